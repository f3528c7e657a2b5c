"""Superpixel files, and the training crops of an image with its superpixels.

One PNG an image, three channels of 8 bits: id = blue + 256·green + 65536·red. ICD's authors offer theirs so.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datasets.errors import InputError
from datasets.files import atomic_write
from datasets.voc import decode

MOST = 64
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
PAD_COLOUR = 127
_LARGEST_ID = (1 << 24) - 1


def superpixel_path(folder: str | Path, image_id: str) -> Path:
    return Path(folder) / f"{image_id}.png"


def write_superpixels(path: str | Path, ids: np.ndarray) -> None:
    """Write H×W ids, 0 to 2²⁴ − 1."""
    if ids.min() < 0 or ids.max() > _LARGEST_ID:
        raise ValueError(f"superpixel ids from {ids.min()} to {ids.max()}; a file holds 0 to {_LARGEST_ID}")
    pixels = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype(np.uint8)
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def read_superpixels(path: str | Path, size: tuple[int, int], most: int = MOST) -> np.ndarray:
    """The superpixels of an image, H×W int32, renumbered from 0 in the order of their ids.

    Args:
        size: (H, W) of the image.
        most: superpixels that an image may have.

    Raises:
        InputError: the file is missing, no PNG of three channels, of another size, or has more superpixels.
    """
    path = Path(path)

    def ids(image: Image.Image) -> np.ndarray:
        if image.mode != "RGB":
            raise InputError(
                f"{path} is a {image.mode} picture, needed: a PNG of three channels that hold superpixel ids"
            )
        if any("16" in str(tile[3]) for tile in image.tile):  # Pillow would keep the upper 8 of them
            raise InputError(f"{path} has channels of 16 bits, needed: three of 8 bits that hold superpixel ids")
        return np.array(image).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)

    if not path.exists():
        raise InputError(f"{path} is missing: every image needs its superpixels; make them, or put the authors' there")
    stored = decode(path, ids, ("PNG",))
    values, numbers = np.unique(stored, return_inverse=True)
    numbers = numbers.reshape(stored.shape).astype(np.int32)
    if numbers.shape != tuple(size):
        found, needed = (f"{height}×{width}" for height, width in (numbers.shape, size))
        raise InputError(f"{path}: the superpixels are {found}, their photograph {needed}; make them anew")
    if len(values) > most:
        raise InputError(f"{path} has {len(values)} superpixels, at most {most} are read; merge them or make them anew")
    return numbers


def random_scaled_crop(
    image: Tensor, superpixels: Tensor, crop: int, scales: tuple[float, ...] = SCALES
) -> tuple[Tensor, Tensor]:
    """ICD's augmentation: scale, mirror, pad below and on the right, crop at a random place.

    Args:
        image: 3×H×W uint8.
        superpixels: H×W ids from 0.
        crop: side of the result.
        scales: one of them is drawn.

    Returns:
        3×crop×crop uint8, padded with 127, and crop×crop int64 ids, renumbered from 0; the padding is one more id.
    """
    scale = scales[int(torch.randint(len(scales), ()))]
    size = [max(1, int(side * scale + 0.5)) for side in image.shape[-2:]]
    image = F.resize(image, size, antialias=False)
    ids = F.resize(superpixels[None], size, InterpolationMode.NEAREST)[0].long()
    if torch.rand(()) < 0.5:
        image, ids = image.flip(-1), ids.flip(-1)
    below, right = (max(0, crop - side) for side in size)
    image = torch.nn.functional.pad(image, (0, right, 0, below), value=PAD_COLOUR)
    ids = torch.nn.functional.pad(ids, (0, right, 0, below), value=int(ids.max()) + 1)
    top, left = (int(torch.randint(0, side - crop + 1, ())) for side in image.shape[-2:])
    place = (..., slice(top, top + crop), slice(left, left + crop))
    return image[place], ids[place].unique(return_inverse=True)[1]
