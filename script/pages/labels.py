"""labels.html: every seed source that is there, side by side."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.pictures import scale_colours
from datasets.seed_store import load_maps, seed_path
from datasets.voc import class_names, image_path, mask_path, read_ids, read_mask
from engine import seeds, stages
from engine.workers import at_most_cores
from evaluation.metrics import confusion
from script.pages.document import column
from script.pages.masks import Stamped, grid, save_small, scores, stamped
from settings.config import Config

LEAST_CAM = 0.2  # of an object, where a CAM is judged
MOST_IMAGES = 200  # seeds of at most this many training images are shown


def labels_page(config: Config, folder: Path) -> dict:
    ids = read_ids(config.voc_root, config.train_split)
    sources = all_sources(config)
    places = np.linspace(0, len(ids) - 1, min(MOST_IMAGES, len(ids))).astype(int)
    some = [ids[n] for n in places]
    sources = {name: s for name, s in sources.items() if any(seed_path(s.folder, i).exists() for i in some)}
    shown = [image_id for image_id in some if any(seed_path(s.folder, image_id).exists() for s in sources.values())]
    if not shown:
        raise InputError(f"There are no seeds yet: {stages.command(config, 'make_cam_labels')} writes the first.")
    root, made, classes = config.voc_root, folder / "labels", len(class_names(config.voc_root))
    folders = {name: source.folder for name, source in sources.items()}
    with ThreadPoolExecutor(at_most_cores(os.cpu_count() or 1)) as pool:
        rows = list(pool.map(lambda image_id: label_row(root, folders, made, image_id, classes), shown))
    scored = {name for row in rows for name in row["scores"]}
    return {
        "view": "rows",
        "note": f"{len(shown)} of {len(ids)} training images ({config.train_split}). CAM: the strongest class of each "
        f"pixel, on the scale below; judged as an object where it is at least {LEAST_CAM}. Unknown pixels (255) count "
        "as wrong. True masks are shown where there are any; training never reads them.",
        "columns": [
            column("image", "image", image_path(root, "ID"), folder),
            *(column(name, s.title, made / f"ID_{name}.png", folder) for name, s in sources.items()),
            column("truth", "true mask", mask_path(root, "ID"), folder),
        ],
        "scores": {name: source.title for name, source in sources.items() if name in scored},
        "scale": "CAM, relative to its maximum",
        "first": "",
        "rows": rows,
    }


def all_sources(config: Config) -> dict[str, seeds.SeedSource]:
    """Every source that stages write, and masks of others that this run names, by a name that can be a file's."""
    found = {name: seeds.source(config, name) for name in stages.sources()}
    for name in (config.knowledge, *config.advisers, config.seed_source):
        with suppress(InputError):
            source = seeds.source(config, name)
            if source.name != stages.TRUTH and source.folder not in [known.folder for known in found.values()]:
                found[f"masks{len(found)}"] = source
    return found


def label_row(root: str, folders: dict[str, Path], made: Path, image_id: str, classes: int) -> dict:
    files = tuple((name, stamped(seed_path(folder, image_id))) for name, folder in folders.items())
    return _label_row(str(made), image_id, stamped(mask_path(root, image_id)), files, classes)


@cache
def _label_row(
    made: str, image_id: str, truth_file: Stamped, files: tuple[tuple[str, Stamped], ...], classes: int
) -> dict:
    truth = read_mask(truth_file[0], classes) if truth_file else None
    row = {"id": image_id, "grids": {}, "scores": {}, "missing": []}
    there: set[int] = set()
    for name, file in files:
        if not file:
            row["missing"].append(name)
            continue
        mask, peaks = seed_of(Path(file[0]), classes)
        row["size"] = mask.shape[::-1]
        there |= set(np.unique(mask).tolist())
        save_small(Path(made) / f"{image_id}_{name}.png", mask if peaks is None else scale_colours(peaks))
        row["grids"][name] = grid(mask)
        if truth is not None and truth.shape == mask.shape:
            judged = mask if peaks is None else np.where(peaks >= LEAST_CAM, mask, 0)
            row["scores"][name] = scores(confusion(truth, judged, classes))
    if truth is None:
        row["missing"].append("truth")
    else:
        row["grids"]["truth"] = grid(truth)
    row["classes"] = sorted(c for c in there if 0 < c < classes)
    return row


def seed_of(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The mask H×W of a seed, and, where it has no background (CAM), the strongest class's value in 0…1."""
    if path.suffix == ".png":
        return read_mask(path, classes), None
    seed = load_maps(path)
    peaks = None if seed.classes[0] == 0 else seed.maps.max(axis=0).clip(0, 1)
    return seed.mask().astype(np.uint8), peaks
