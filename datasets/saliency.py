"""Saliency maps, from which ICD can take its background: grey PNGs of the image's size."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.errors import InputError
from datasets.voc import decode


def read_saliency(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """H×W float32 from 0 to 1.

    Args:
        size: (H, W) of the image.

    Raises:
        InputError: the file is missing, no grey PNG, or of another size.
    """
    path = Path(path)

    def grey(image: Image.Image) -> np.ndarray:
        if image.mode != "L":
            raise InputError(f"{path} is a {image.mode} picture, needed: a grey PNG of 8 bits")
        return np.array(image, np.float32) / 255

    if not path.exists():
        raise InputError(f"{path} is missing: with saliency maps every image needs one; leave them all out, or add it")
    saliency = decode(path, grey, ("PNG",))
    if saliency.shape != tuple(size):
        found, needed = (f"{height}×{width}" for height, width in (saliency.shape, size))
        raise InputError(f"{path}: the saliency map is {found}, its photograph {needed}")
    return saliency
