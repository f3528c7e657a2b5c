"""How good are masks or stored maps? IoU of each class and mIoU against the true masks."""

from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.seed_store import load_maps, seed_path
from datasets.voc import class_names, mask_path, read_mask
from evaluation.metrics import confusion, iou, mean_iou

THRESHOLDS = tuple(np.arange(0.05, 0.65, 0.05).round(2).tolist())


def evaluate(source: Path, root: str | Path, ids: list[str]) -> dict:
    """Figures of one folder of masks or stored maps.

    Returns:
        {"miou": float, "iou": {class: float or None}, "images": int}; for CAMs also "threshold" and "sweep";
        for masks with unknown pixels also "miou_of_known", which leaves those out instead of counting them as wrong.

    Raises:
        InputError: a mask is missing, damaged, or of another size than its true mask.
    """
    if not source.is_dir():
        raise InputError(f"{source} is no folder of masks or stored maps")
    names = class_names(root)
    counts: dict[float | None, np.ndarray] = {}
    for image_id in ids:
        truth = read_mask(mask_path(root, image_id), len(names))
        masks = masks_of(source, image_id, len(names))
        if counts and set(masks) != set(counts):
            raise InputError(f"{source} mixes masks with maps that have no background ({image_id}); keep them apart")
        for threshold, mask in masks.items():
            if mask.shape != truth.shape:
                raise InputError(f"{source}/{image_id}: the mask is {mask.shape}, its true mask {truth.shape}")
            counts[threshold] = counts.get(threshold, 0) + confusion(truth, mask, len(names))
    sweep = {threshold: mean_iou(total) for threshold, total in counts.items()}
    best = max(sweep, key=lambda threshold: sweep[threshold])
    per_class = iou(counts[best])
    figures = {
        "miou": sweep[best],
        "iou": {name: float(v) if np.isfinite(v) else None for name, v in zip(names, per_class, strict=True)},
        "images": len(ids),
    }
    if counts[best][:, -1].any():  # as the authors of ICD measure seeds
        figures["miou_of_known"] = mean_iou(counts[best][:, :-1])
    if best is not None:
        figures |= {"threshold": best, "sweep": {f"{t:g}": value for t, value in sweep.items()}}
    return figures


def masks_of(source: Path, image_id: str, classes: int) -> dict[float | None, np.ndarray]:
    """The image's mask H×W by background threshold; a single one under None where maps have their background."""
    path = seed_path(source, image_id)
    if path.suffix == ".png":
        return {None: read_mask(path, classes)}
    if path.with_suffix(".npy").exists():
        raise InputError(
            f"{source} holds .npy files: bring them into a store with `python -m tools.import_labels` first"
        )
    seed = load_maps(path)
    if seed.classes.max() >= classes:
        raise InputError(f"{path} holds maps of class {seed.classes.max()} of {classes}")
    if seed.classes[0] == 0:
        return {None: seed.mask()}
    best, winner = seed.maps.max(axis=0), seed.mask()
    return {threshold: np.where(best > threshold, winner, 0) for threshold in THRESHOLDS}


def as_markdown(results: dict[str, dict], title: str) -> str:
    """One row a source: mIoU and the IoU of each class that the true masks have, in percent."""
    names = next(iter(results.values()))["iou"]
    shown = [name for name in names if any(r["iou"][name] is not None for r in results.values())]
    lines = [f"| {title} | mIoU | {' | '.join(shown)} |", f"|---|{'---|' * (len(shown) + 1)}"]
    for name, figures in results.items():
        cells = ["–" if figures["iou"][c] is None else f"{100 * figures['iou'][c]:.1f}" for c in shown]
        note = f" (background below {figures['threshold']:g})" if "threshold" in figures else ""
        lines.append(f"| {name}{note} | **{100 * figures['miou']:.2f}** | {' | '.join(cells)} |")
    return "\n".join(lines)
