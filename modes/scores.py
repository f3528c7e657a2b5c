"""The figures of masks that a system's evaluation wrote."""

import json
from dataclasses import asdict
from pathlib import Path

from datasets.files import atomic_write
from datasets.voc import list_path, mask_path
from engine import notes, stages
from evaluation.masks import as_markdown, evaluate
from settings import crf
from settings.config import Config


def report(config: Config, stage: str, ids: list[str], kinds: dict[str, Path]) -> None:
    """Print and store IoU and mIoU where the split has true masks.

    Args:
        stage: whose folder receives them.
        kinds: folder of each kind of masks.
    """
    title, names = stages.STAGES[stage].title.split(",")[0], ", ".join(str(folder) for folder in kinds.values())
    if not any(mask_path(config.voc_root, image_id).exists() for image_id in ids):
        print(f"{title}: masks of {len(ids)} images in {names}; no true masks for split '{config.split}', so no mIoU")
        return
    path = stages.folder(config, stage) / f"result_{config.split}.json"
    masks = [folder / f"{image_id}.png" for folder in kinds.values() for image_id in ids]
    truths = [mask_path(config.voc_root, image_id) for image_id in ids]
    seen = notes.digest_of([list_path(config.voc_root, config.split), *masks, *truths])
    results = figures_of_before(path, kinds, seen)
    if not results:
        results = {kind: evaluate(folder, config.voc_root, ids) for kind, folder in kinds.items()}
        with atomic_write(path) as temporary:
            about = {"made_from": seen, "crf": crf.used_by(stage, asdict(config))}
            temporary.write_text(json.dumps(about | results, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(results, f"{config.split}, {len(ids)} images"))
    print(f"{title}: masks in {names}, figures in {path}")


def figures_of_before(path: Path, kinds: dict[str, Path], seen: str) -> dict[str, dict]:
    """The stored figures, if they were computed from the same list and masks; else none."""
    if path.exists():
        stored = notes.read_config(path)
        if stored.get("made_from") == seen and all(isinstance(stored.get(kind), dict) for kind in kinds):
            return {kind: stored[kind] for kind in kinds}
    return {}
