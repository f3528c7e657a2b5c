"""Where one source of masks is better than another, by class and by image: what does a CRF mend, what does it harm?"""

from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.voc import class_names, mask_path, read_mask
from evaluation.masks import masks_of
from evaluation.metrics import confusion, iou, mean_iou

POINT = 0.01  # a gain or loss by less counts as none
SHOWN = 5  # images at either end


def compare(before: Path, after: Path, root: str | Path, ids: list[str]) -> dict:
    """IoU of two folders of masks or stored maps with their background.

    Returns:
        {"classes": {name: {"before", "after": IoU or None, "better", "worse": images with the class in which its IoU
        rose or fell by more than a percent point}}, "images": {id: {"before", "after"}}}; an image's figure is the mean
        IoU of its own true classes.

    Raises:
        InputError: a mask is missing, damaged or of another size, or maps have no background.
    """
    names = class_names(root)
    totals, images = np.zeros((2, len(names), len(names) + 1), np.int64), {}
    moves = np.zeros((2, len(names)), np.int64)
    for image_id in ids:
        truth = read_mask(mask_path(root, image_id), len(names))
        counts = np.stack(
            [confusion(truth, _mask(f, image_id, truth.shape, len(names)), len(names)) for f in (before, after)]
        )
        totals += counts
        first, second = (iou(c) for c in counts)
        gain = np.nan_to_num(second - first)
        moves += np.stack([gain > POINT, gain < -POINT])
        images[image_id] = {"before": mean_iou(counts[0]), "after": mean_iou(counts[1])}
    columns = zip(names, *(iou(total) for total in totals), *moves.tolist(), strict=True)
    classes = {
        name: {"before": _known(b), "after": _known(a), "better": better, "worse": worse}
        for name, b, a, better, worse in columns
    }
    return {"classes": classes, "images": images}


def _mask(folder: Path, image_id: str, shape: tuple[int, int], classes: int) -> np.ndarray:
    masks = masks_of(folder, image_id, classes)
    if None not in masks:
        raise InputError(f"{folder}: its maps have no background, so there is not one mask to compare; name another")
    if masks[None].shape != shape:
        raise InputError(f"{folder}/{image_id}: the mask is {masks[None].shape}, its true mask {shape}")
    return masks[None]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def as_markdown(found: dict, before: str, after: str) -> str:
    """A row a class, the shares of images, and the images that gain and lose most; percent and percent points."""
    lines = [f"| class | {before} | {after} | gain | better in | worse in |", "|---|---|---|---|---|---|"]
    for name, row in found["classes"].items():
        if row["before"] is not None:
            b, a = 100 * row["before"], 100 * row["after"]
            lines.append(
                f"| {name} | {b:.1f} | {a:.1f} | {a - b:+.1f} | {row['better']} images | {row['worse']} images |"
            )
    gains = {name: row["after"] - row["before"] for name, row in found["images"].items()}
    count, order = len(gains), sorted(gains, key=gains.get)
    better, worse = (sum(sign * gain > POINT for gain in gains.values()) for sign in (1, -1))
    lines += [
        "",
        f"{after} is better than {before} by more than a point in {better} of {count} images "
        f"({100 * better / count:.0f} %), worse in {worse} ({100 * worse / count:.0f} %), by the mean IoU of an "
        "image's true classes.",
    ]
    for what, chosen in (("gain", order[::-1][:SHOWN]), ("lose", order[:SHOWN])):
        listed = ", ".join(f"{name} {100 * gains[name]:+.1f}" for name in chosen)
        lines.append(f"Images that {what} most: {listed}.")
    return "\n".join(lines)
