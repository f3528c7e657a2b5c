"""The figures of masks that a system's evaluation wrote."""

import json
from dataclasses import asdict
from pathlib import Path

from datasets.files import atomic_write
from datasets.voc import mask_path
from engine import stages
from evaluation.masks import as_markdown, evaluate
from settings import crf
from settings.config import Config


def kinds_of(config: Config, stage: str) -> dict[str, Path]:
    """The folder of each kind of masks that an evaluation makes."""
    folder = stages.folder(config, stage)
    return {"mask": folder / "mask", "mask after CRF": folder / "crf"}


def report(config: Config, stage: str, ids: list[str]) -> None:
    """Print and store IoU and mIoU where the split has true masks.

    Args:
        stage: whose folder receives them.
    """
    kinds = kinds_of(config, stage)
    title, names = stages.STAGES[stage].title.split(",")[0], ", ".join(str(folder) for folder in kinds.values())
    if not any(mask_path(config.voc_root, image_id).exists() for image_id in ids):
        print(f"{title}: masks of {len(ids)} images in {names}; no true masks for split '{config.split}', so no mIoU")
        return
    path = stages.folder(config, stage) / f"result_{config.split}.json"
    results = {kind: evaluate(folder, config.voc_root, ids) for kind, folder in kinds.items()}
    with atomic_write(path) as temporary:
        content = {"crf": crf.used_by(stage, asdict(config))} | results
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(results, f"{config.split}, {len(ids)} images"))
    print(f"{title}: masks in {names}, figures in {path}")
