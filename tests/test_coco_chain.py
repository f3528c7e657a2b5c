"""81 classes through the whole house: six made images in COCO's format, and the chain of each system on them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import main_recurseed
import main_ssdd
from datasets.coco import CLASSES
from datasets.seed_store import load_maps, store_path
from datasets.voc import class_names, read_ids, read_mask
from engine import checkpoint, stages
from prepare_labels import (
    make_aff_labels,
    make_cam_labels,
    make_icd_labels,
    make_superpixels,
    train_aff,
    train_cls,
    train_icd,
)
from script import make_pages
from settings.config import Config, check, preset
from tests.conftest import as_flags, tiny
from tests.test_pages import data_of
from tools import coco
from tools.predict import Predictor

SIZE = (72, 96)
# Some of 80, among them the last, at class indices that VOC does not have.
SHOWN = {"train": ((1, 80), (44,), (80,), (21, 79)), "val": ((80,), (1, 44))}


def category_ids():
    """COCO's own ids have gaps, from 1 to 90; here every ninth is left out."""
    return [n for n in range(1, 91) if n % 9][:80]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """What tools.coco makes of it."""
    folder = tmp_path_factory.mktemp("coco")
    categories = [{"id": n, "name": name} for n, name in zip(category_ids(), CLASSES[1:], strict=True)]
    rng = np.random.default_rng(2)
    (folder / "annotations").mkdir()
    for split, pictures in SHOWN.items():
        (folder / f"{split}2014").mkdir()
        images, annotations = [], []
        for number, classes in enumerate(pictures, 1):
            pixels = rng.integers(0, 90, (*SIZE, 3), dtype=np.uint8)
            name = f"COCO_{split}2014_{number:012d}.jpg"
            for place, c in enumerate(classes):
                left, top = 8 + 44 * place, 16
                pixels[top : top + 40, left : left + 36] += np.array([2 * c, 160 - 2 * c, 80], np.uint8)
                outline = [left, top, left + 36, top, left + 36, top + 40, left, top + 40]
                annotations.append({
                    "id": len(annotations), "image_id": number, "category_id": category_ids()[c - 1], "iscrowd": 0,
                    "bbox": [left, top, 36, 40], "segmentation": [outline],
                })  # fmt: skip
            Image.fromarray(pixels).save(folder / f"{split}2014" / name)
            images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))
    coco.main(["prepare", str(folder), "--to", str(folder / "root")])
    return folder / "root"


def coco_config(root, out) -> Config:
    """The preset with all that is small in the tests' own."""
    own = replace(tiny(root, out), preset="coco", bn=2, cls_batch=2, aff_batch=2, pictures=1)
    small = {
        "icd_width": 0.0625,
        "recurseed_width": 0.0625,
        "icd_crop": 49,
        "icd_side": 97,
        "icd_epochs": 1,
        "icd_batch": 2,
    }
    small |= {"recurseed_epochs": 3, "recurseed_batch": 2, "recurseed_crop": 64, "recurseed_side": (48, 80)}
    small |= {"recurseed_from": 2, "mix_from": 3, "recurseed_scales": (1.0,), "certain": 0.3}
    config = replace(own, **small)
    check(config)
    return config


def masks_of(folder, root, split):
    masks = [read_mask(folder / f"{image_id}.png", len(CLASSES)) for image_id in read_ids(root, split)]
    assert all(mask.shape == SIZE for mask in masks)
    return masks


def test_the_preset_is_vocs_on_a_coco_folder():
    assert replace(preset("coco"), preset="voc", voc_root="voc_root") == preset("voc")


def test_psa_and_ssdd(root, tmp_path):
    config = replace(coco_config(root, tmp_path / "out"), lr=1e-3)
    for program in (train_cls, make_cam_labels, train_aff, make_aff_labels):
        program.main(as_flags(config))
    main_ssdd.main(["--mode=all", *as_flags(config)])
    ids = read_ids(root, "train_aug")
    assert class_names(root) == CLASSES and len(ids) == 4
    for image_id, classes in zip(ids, SHOWN["train"], strict=True):
        maps = load_maps(store_path(stages.folder(config, "make_aff_labels", 1), image_id))
        assert maps.classes.tolist() == [0, *classes]
        assert set(np.unique(read_mask(stages.folder(config, "mode 1") / f"{image_id}.png", 81))) <= {0, *classes}
    weights = stages.checkpoint_path(stages.folder(config, "mode 2"), "seg", 1)
    assert checkpoint.load_state(weights)["seg_main.seg2.weight"].shape[0] == 81
    masks_of(stages.folder(config, "mode 3") / "crf", root, "val")
    result = json.loads((stages.folder(config, "mode 3") / "result_val.json").read_text())["mask"]["iou"]
    assert len(result) == 81 and {name for name, value in result.items() if value is not None} == {
        CLASSES[c] for c in (0, 1, 44, 80)
    }
    page = data_of(make_pages.make_pages(config).with_name("labels.html"))
    assert page["classes"][80]["name"] == "toothbrush" and page["rows"][0]["classes"] == [1, 80]
    predictor = Predictor(weights, "cpu", crf=False)
    assert predictor.classes == CLASSES and predictor.maps(np.zeros((*SIZE, 3), np.uint8)).shape[0] == 81


def test_icd(root, tmp_path):
    config = coco_config(root, tmp_path / "out")
    for program in (make_superpixels, train_icd, make_icd_labels):
        program.main(as_flags(config))
    seeds = masks_of(stages.folder(config, "make_icd_labels"), root, "train_aug")
    assert all(set(np.unique(m)) <= {0, 255, *c} for m, c in zip(seeds, SHOWN["train"], strict=True))
    masks_of(stages.folder(config, "make_icd_labels", 1), root, "train_aug")
    state = checkpoint.load_state(stages.label_network(config, "train_icd"))
    assert state["fc8.weight"].shape[0] == state["icd_bu_weight"].shape[0] == 80


def test_recurseed(root, tmp_path):
    config = coco_config(root, tmp_path / "out")
    main_recurseed.main(["--mode=all", *as_flags(config)])
    for image_id, classes in zip(read_ids(root, "train_aug"), SHOWN["train"], strict=True):
        maps = load_maps(store_path(stages.folder(config, "recurseed labels"), image_id))
        assert maps.classes.tolist() == [0, *classes]
    masks_of(stages.folder(config, "recurseed evaluate") / "mask", root, "val")
    weights = stages.checkpoint_path(stages.folder(config, "recurseed train"), "recurseed", 3)
    state = checkpoint.load_state(weights)
    assert state["classifier.weight"].shape[0] == 80 and state["decoder.classifier.8.weight"].shape[0] == 81
    assert torch.isfinite(state["classifier.weight"]).all()
