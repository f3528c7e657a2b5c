"""Intersection over union."""

import numpy as np

from datasets.voc import CLASSES, IGNORE


def confusion(truth: np.ndarray, mask: np.ndarray, classes: int = len(CLASSES)) -> np.ndarray:
    """Pixel counts of one image, C×(C+1) int64: row = true class, column = class of the mask; 255 in truth is ignored.

    The last column counts pixels where the *mask* is 255, which are wrong.
    """
    pairs = truth.astype(np.uint16) << 8 | mask.astype(np.uint8)
    counts = np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)[:classes]
    return np.column_stack([counts[:, :classes], counts[:, IGNORE]])


def iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class from summed `confusion` counts, (C,) in 0…1; NaN for a class that no true mask has."""
    hit = np.diag(counts).astype(np.float64)
    true = counts.sum(axis=1)
    union = true + counts.sum(axis=0)[: len(hit)] - hit
    return np.where(true > 0, hit / np.maximum(union, 1), np.nan)


def without_unknown(counts: np.ndarray) -> np.ndarray:
    """`confusion` counts that leave out pixels where the mask is 255, as ICD's authors count."""
    return np.column_stack([counts[:, :-1], np.zeros_like(counts[:, -1])])


def mean_iou(counts: np.ndarray) -> float:
    """Mean IoU over the classes that the true masks have (all 21 on VOC)."""
    per_class = iou(counts)
    return float(np.nanmean(per_class)) if np.isfinite(per_class).any() else float("nan")


def mean_and_spread(values: list[float | None], digits: int = 1) -> str:
    """Percent, with the standard deviation (n − 1) where there are several; – where a value is missing."""
    if any(v is None for v in values):
        return "–"
    spread = f" ± {100 * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.{digits}f}{spread}"
