"""What tools.bench times of mode 2's loader: samples with all that they are read from, and the parts of making one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.errors import InputError
from datasets.pictures import write_photo
from datasets.samples.seeds import SeedSamples, StoredDifferences
from datasets.seed_store import load_differences, read_seed, save_differences, save_maps, store_path
from datasets.transforms import as_tensor, cut, cut_maps, planes, random_square, resize_square
from datasets.voc import CLASSES, image_path, read_image, read_reduced
from settings.config import Config


def each(function: Callable[[str], object], ids: list[str]) -> None:
    for image_id in ids:
        function(image_id)


def loader_samples(config: Config, root: Path, size: tuple[int, int], cases: list[tuple]) -> SeedSamples:
    """Samples of mode 2 with all that they are read from, in a folder: PSA's seeds on the feature grid, the CRF's at
    full size, and difference maps.

    Args:
        size: (H, W) that the images get.
        cases: of each image the picture, probabilities K×s×s and their K classes.
    """
    ids = [f"{n:06d}" for n in range(len(cases))]
    folders = [root / kind for kind in ("knowledge", "advice", "differences")]
    for n, (image_id, (image, p, labels)) in enumerate(zip(ids, cases, strict=True)):
        image = cv2.resize(image, size[::-1])
        objects = "".join(f"<object><name>{CLASSES[label]}</name></object>" for label in labels[labels > 0])
        if not objects:
            raise InputError(f"image {n} of {config.voc_root} shows no object; give another --split")
        annotation = root / "Annotations" / f"{image_id}.xml"
        annotation.parent.mkdir(exist_ok=True)
        annotation.write_text(f"<annotation>{objects}</annotation>")
        write_photo(image_path(root, image_id), image)
        full = torch.nn.functional.interpolate(torch.from_numpy(p)[None], size, mode="bilinear")
        grid = torch.nn.functional.interpolate(full, [-(-side // 8) for side in size], mode="bilinear")
        for folder, maps in zip(folders, (grid, full), strict=False):
            save_maps(store_path(folder, image_id), labels, maps[0].numpy(), size, "bench")
        small = np.random.default_rng(n).normal(size=(2, config.crop // 4, config.crop // 4)).astype(np.float32)
        save_differences(store_path(folders[2], image_id), *small, "bench")
    seeds, differences = dict(zip(("knowledge", "advice"), folders, strict=False)), StoredDifferences(folders[2])
    return SeedSamples(str(root), ids, seeds, config.crop, config.dynamic_side, differences=differences)


def loader_parts(samples: SeedSamples) -> dict[str, Callable[[str], object]]:
    """What SeedSamples does for an image, part by part, each as a function of the image's id."""
    root, crop, side = samples.root, samples.crop, samples.crop // 4
    square = partial(random_square, samples.sides, crop)
    photo = read_image(root, samples.ids[0])
    seeds = {name: read_seed(folder, samples.ids[0], photo.shape[:2]) for name, folder in samples.seeds.items()}
    maps = np.zeros((2, side, side), np.float32)

    def picture(_: str) -> None:
        own = cut(photo, square(), crop)
        planes(own), resize_square(as_tensor(own), side)

    def masks(_: str) -> None:
        for seed in seeds.values():
            cut_maps(seed.stored, square(), crop, side, seed.grid_of).numpy().argmax(axis=0)

    stored = {
        f"reading {name}": partial(read_seed, folder, size=photo.shape[:2]) for name, folder in samples.seeds.items()
    }
    return {
        "JPEG": lambda image_id: read_reduced(root, image_id, samples.sides[1]),
        **stored,
        "reading difference maps": lambda image_id: load_differences(store_path(samples.differences.folder, image_id)),
        "cutting the photograph": picture,
        "cutting seeds": masks,
        "cutting difference maps": lambda _: cut_maps(maps, square(), crop, side),
    }
