"""What pages know of masks: scores, small copies for the pointer, small pictures, where a mask is wrong."""

from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.voc import IGNORE, PALETTE, read_mask
from evaluation.metrics import iou
from script.pages.document import WRONG, replace_file

GRID = 24  # cells a side, of the small copy of a mask that names the class under the pointer
SIDE = 256  # pixels, of small pictures
Stamped = tuple[str, int] | None  # a file that is there, and when it was written


def stamped(path: Path) -> Stamped:
    try:
        return str(path), path.stat().st_mtime_ns
    except OSError:
        return None


@cache
def grid_of(path: str, stamp: int) -> str:
    """The grid of a mask's file; `stamp`: when it was written."""
    return grid(read_mask(path, IGNORE))


def scores(counts: np.ndarray) -> dict[str, float]:
    """IoU in percent of the classes that an image's true mask has, and their mean under "all"."""
    per_class = iou(counts)
    there = np.flatnonzero(np.isfinite(per_class)).tolist()
    figures = {str(c): round(100 * float(per_class[c]), 1) for c in there}
    return figures | ({"all": round(100 * float(per_class[there].mean()), 1)} if there else {})


def grid(mask: np.ndarray, size: tuple[int, int] = (GRID, GRID)) -> str:
    """A mask on the cells of a grid (rows, columns), row by row, as runs "class*length"."""
    rows, columns = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(size, mask.shape, strict=True))
    cells = mask[np.ix_(rows, columns)].ravel().tolist()
    return ",".join(f"{value}*{len(list(run))}" for value, run in groupby(cells))


def save_small(path: Path, pixels: np.ndarray) -> None:
    """A mask (h×w) or a picture (h×w×3), no larger than people need."""
    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image.putpalette(PALETTE.tobytes())
    if max(image.size) > SIDE:
        factor = SIDE / max(image.size)
        size = tuple(max(1, round(side * factor)) for side in image.size)
        image = image.resize(size, Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BILINEAR)
    replace_file(path, lambda temporary: image.save(temporary, format="PNG", compress_level=1))


def save_wrong(path: Path, truth: np.ndarray, mask: np.ndarray) -> None:
    """Transparent where the mask is right or the truth unknown; else the colours of WRONG."""
    wrong = (truth != mask) & (truth != IGNORE)
    kind = wrong * np.where(mask == 0, 1, np.where(truth == 0, 2, 3))
    image = Image.fromarray(kind.astype(np.uint8))
    image.putpalette([0, 0, 0, *(value for colour in WRONG.values() for value in colour)])
    replace_file(path, lambda temporary: image.save(temporary, format="PNG", transparency=0, compress_level=1))
