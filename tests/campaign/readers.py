"""Every reader of files that strangers can have made, with good files for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets.coco import paint, picture_classes, read_instances
from datasets.demo import make_demo
from datasets.pictures import read_photo
from datasets.saliency import read_saliency
from datasets.seed_store import load_differences, load_maps, save_differences, save_maps
from datasets.superpixels import read_superpixels, write_superpixels
from datasets.voc import class_names, image_size, read_ids, read_image, read_mask, read_present
from engine import checkpoint, history, notes, runs
from engine.resume import Standing, read_state, write_state
from models.psa.classifier import Classifier
from settings.config import voc
from tests.conftest import tiny
from tools import import_images, import_labels
from tools.convert_weights import MXNET_FILE, read_weights
from tools.voc import read_sbd_ids


class Reader(NamedTuple):
    samples: list[bytes]  # good files
    name: str  # of the file
    read: Callable[[Path], object]


def readers(work: Path) -> dict[str, Reader]:
    """Every reader of files that strangers can have made, with good files for it."""
    root = work / "readers"
    make_demo(root, train=4, val=2)
    train, val = read_ids(root, "train"), read_ids(root, "val")
    folder = work / "made"
    classes, (height, width) = np.array([0, 3, 15]), image_size(root, train[0])
    rng = np.random.default_rng(0)
    maps = rng.random((3, height, width), np.float32)
    grid = rng.random((3, -(-height // 8), -(-width // 8)), np.float32)
    save_maps(folder / "full.npz", classes, maps, (height, width), "x")
    save_maps(folder / "grid.npz", classes, grid, (height, width), "x")
    save_differences(folder / "d.npz", grid[0], grid[1], "x")
    network = Classifier(20, 0.0625)
    checkpoint.save_weights(folder / "new.pth", network)
    checkpoint.save_weights(folder / "described.pth", torch.nn.Linear(3, 2), voc(), ("background", "cat"))
    (folder / "classes.txt").write_text("cat\ndog\nsea lion\n")
    (folder / "labels.csv").write_text("a.jpg,cat;dog\nb.jpg,dog\n")
    (folder / history.FILE).write_text('{"step": 1, "epoch": 0.5, "loss": 1.0}\n{"epoch": 1, "seconds": 3.0}\n')
    small = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(small.parameters())
    small(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    torch.save(small.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    checkpoint.save_weights(folder / "small.pth", small)
    figures = [(0, ["a"], {"loss": torch.tensor(1.0)})]
    write_state(folder / "state.pth", Standing(1, 2, {"loss": 1.0}, figures), 3, {"n": small}, [optimiser])
    runs.claim_folder(folder / "run", tiny(root, work).stage(1), "mode 0", [])
    models = work / "damaged" / "run" / "models"
    models.mkdir(parents=True)
    (models / "seg_0001.pth").touch()
    (work / "damaged" / "JPEGImages").mkdir()
    np.save(folder / "crf.npy", maps)
    np.save(folder / "aff.npy", {int(c): m for c, m in zip(classes, maps, strict=True)}, allow_pickle=True)
    np.save(folder / "cam.npy", {int(c) - 1: m for c, m in zip(classes[1:], maps, strict=False)}, allow_pickle=True)
    name = b"arg:conv1a_weight"
    mxnet = MXNET_FILE + np.array([0, 1], "<u8").tobytes() + np.array([0xF993FAC9, 0, 2], "<u4").tobytes()
    mxnet += np.array([2, 3], "<i8").tobytes() + np.array([1, 0, 0], "<i4").tobytes() + np.ones(6, "<f4").tobytes()
    mxnet += np.array([1, len(name)], "<u8").tobytes() + name

    def good(*names: str) -> list[bytes]:
        return [(folder / name).read_bytes() for name in names]

    def photos(kind: str, names: list[str], ending: str) -> list[bytes]:
        return [(root / kind / f"{name}{ending}").read_bytes() for name in names]

    def of_id(read: Callable) -> Callable[[Path], object]:
        """For readers that take a VOC root and an id."""
        return lambda path: read(path.parent.parent, path.stem)

    def state(path: Path) -> None:
        other = torch.nn.Linear(3, 2)
        read_state(path, 3, 3, {"n": other}, [torch.optim.AdamW(other.parameters())])

    def imported(kind: str, shown: np.ndarray) -> Callable[[Path], object]:
        return lambda path: import_labels.read_maps(path, kind, shown, (height, width))

    def painted(path: Path) -> None:
        instances = read_instances(path)
        for picture in instances.pictures:
            picture_classes(instances, picture)
            paint(instances, picture)

    size = image_size(root, val[0])
    write_superpixels(folder / "superpixels.png", np.arange(size[0] * size[1]).reshape(size) // 999 % 60)
    Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / "saliency.png")
    outline = {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "bbox": [1, 1, 4, 4]}
    runs_of = outline | {"id": 2, "iscrowd": 1, "segmentation": {"size": [9, 8], "counts": [5, 7, 60]}}
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 8}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [outline | {"segmentation": [[1, 1, 5, 1, 5, 5.5]]}, runs_of],
    }
    (folder / "instances.json").write_text(json.dumps(coco))
    lists = [(root / "ImageSets" / "Segmentation" / "train.txt").read_bytes()]
    return {
        "list": Reader(lists, "ImageSets/Segmentation/x.txt", lambda path: read_ids(path.parents[2], "x")),
        "SBD list": Reader(lists, "sbd/train.txt", lambda path: read_sbd_ids(path.parent, "train")),
        "photograph": Reader(photos("JPEGImages", train, ".jpg"), "JPEGImages/x.jpg", of_id(read_image)),
        "photograph's size": Reader(photos("JPEGImages", train, ".jpg"), "JPEGImages/x.jpg", of_id(image_size)),
        "photograph in PNG": Reader(photos("SegmentationClass", val, ".png"), "JPEGImages/x.jpg", of_id(read_image)),
        "mask": Reader(photos("SegmentationClass", val, ".png"), "SegmentationClass/x.png", read_mask),
        "annotation": Reader(photos("Annotations", train, ".xml"), "Annotations/x.xml", of_id(read_present)),
        "superpixels": Reader(good("superpixels.png"), "x.png", lambda path: read_superpixels(path, size)),
        "saliency": Reader(good("saliency.png"), "x.png", lambda path: read_saliency(path, size)),
        "instances of COCO": Reader(good("instances.json"), "x.json", painted),
        "stored maps": Reader(good("full.npz", "grid.npz"), "x.npz", load_maps),
        "difference maps": Reader(good("d.npz"), "x.npz", load_differences),
        "weights": Reader(good("new.pth"), "x.pth", lambda path: checkpoint.load_into(Classifier(20, 0.0625), path)),
        "weights, small": Reader(
            good("small.pth", "old.pth"), "x.pth", lambda path: checkpoint.load_into(torch.nn.Linear(3, 2), path)
        ),
        "published weights": Reader([mxnet, *good("small.pth")], "x.params", read_weights),
        "weights, described": Reader(good("described.pth"), "x.pth", checkpoint.load_description),
        "class names": Reader(good("classes.txt"), "classes.txt", lambda path: class_names(path.parent)),
        "labels in CSV": Reader(good("labels.csv"), "x.csv", import_images.labels_from_csv),
        "history": Reader(good(history.FILE), history.FILE, lambda path: history.read(path.parent)),
        "picture": Reader(photos("JPEGImages", train, ".jpg"), "x.jpg", read_photo),
        "training state": Reader(good("state.pth"), "x.pth", state),
        "Config": Reader(
            good("run/config.json"),
            "run/config.json",
            lambda path: notes.read_config(path),
        ),
        "import of CRF maps": Reader(good("crf.npy"), "x.npy", imported("aff_crf", classes)),
        "import of PSA maps": Reader(good("aff.npy"), "x.npy", imported("aff", classes)),
        "import of CAMs": Reader(good("cam.npy"), "x.npy", imported("cam", classes[1:])),
    }
