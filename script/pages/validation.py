"""val.html, recurseed_val.html: the masks of an evaluation beside the true ones."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.voc import IGNORE, class_names, image_path, mask_path, read_ids, read_mask
from engine import stages
from engine.workers import at_most_cores
from evaluation.metrics import confusion
from script.pages.document import column
from script.pages.masks import Stamped, grid, save_wrong, scores, stamped
from settings.config import Config


def validation_page(config: Config, stage: str, folder: Path) -> dict:
    ids = read_ids(config.voc_root, config.split)
    masks, root = stages.folder(config, stage), config.voc_root
    made = folder / "wrong" / masks.name
    classes = len(class_names(root))
    shown = [image_id for image_id in ids if (masks / "crf" / f"{image_id}.png").exists()]
    if not shown:
        raise InputError(f"There are no masks yet: {stages.command(config, stage)} writes them.")
    with ThreadPoolExecutor(at_most_cores(os.cpu_count() or 1)) as pool:
        rows = list(pool.map(lambda image_id: validation_row(root, masks, made, image_id, classes), shown))
    columns = [
        column("image", "image", image_path(root, "ID"), folder),
        column("mask", "mask", masks / "mask" / "ID.png", folder),
        column("crf", "mask after CRF", masks / "crf" / "ID.png", folder),
        column("truth", "true mask", mask_path(root, "ID"), folder),
        column("wrong", "where it is wrong, after CRF", made / "ID.png", folder) | {"over": "image"},
    ]
    return {
        "view": "rows",
        "note": f"{len(shown)} of {len(ids)} images of the split {config.split}.",
        "columns": columns,
        "scores": {"crf": "mask after CRF", "mask": "mask"},
        "first": "crf",
        "rows": rows,
    }


def validation_row(root: str, masks: Path, made: Path, image_id: str, classes: int) -> dict:
    files = tuple(stamped(masks / kind / f"{image_id}.png") for kind in ("mask", "crf"))
    return _validation_row(str(made / f"{image_id}.png"), image_id, stamped(mask_path(root, image_id)), files, classes)


@cache
def _validation_row(wrong: str, image_id: str, truth_file: Stamped, files: tuple[Stamped, ...], classes: int) -> dict:
    masks = {key: read_mask(file[0], classes) for key, file in zip(("mask", "crf"), files, strict=True) if file}
    truth = read_mask(truth_file[0], classes) if truth_file else None
    row = {"id": image_id, "size": masks["crf"].shape[::-1], "scores": {}, "missing": []}
    row["grids"] = {key: grid(mask) for key, mask in masks.items()}
    row["missing"] = [key for key in ("mask", "crf") if key not in masks]
    if truth is not None and truth.shape == masks["crf"].shape:
        row["grids"]["truth"] = grid(truth)
        counts = {key: confusion(truth, mask, classes) for key, mask in masks.items()}
        row["scores"] = {key: scores(found) for key, found in counts.items()}
        there = set(np.flatnonzero(counts["crf"].sum(axis=1) + counts["crf"].sum(axis=0)[:-1]).tolist())
        save_wrong(Path(wrong), truth, masks["crf"])
    else:
        row["missing"] += ["truth", "wrong"]
        there = set(np.unique(masks["crf"]).tolist())
    row["classes"] = sorted(there - {0, IGNORE})
    return row
