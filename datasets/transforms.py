"""Geometry and colour of training samples, and the normalisation that every network here expects."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from settings.common import CELL

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

JITTER = (0.3, 0.3, 0.3, 0.1)  # brightness, contrast, saturation, hue
GREY = (0.299, 0.587, 0.114)

colour_jitter = v2.ColorJitter(*JITTER)


def as_tensor(image: np.ndarray) -> Tensor:
    """H×W×3 → 3×H×W."""
    return torch.from_numpy(image).movedim(-1, 0)


def draw_jitter() -> tuple[str, Tensor]:
    """What `jittered` is to do to one image: a random order of the four changes, such as "scbh", and the factors of
    b, c, s and h, (4,)."""
    order = "".join("bcsh"[n] for n in torch.randperm(4).tolist())
    strength = torch.tensor(JITTER)
    return order, torch.tensor([1.0, 1.0, 1.0, 0.0]) + strength * (2 * torch.rand(4) - 1)


def jittered(images: Tensor, orders: list[str], factors: Tensor) -> Tensor:
    """torchvision's ColorJitter with own factors and order for every image, on their device.

    Args:
        images: N×3×H×W uint8.
        orders, factors: of `draw_jitter`, N each; factors N×4.

    Returns:
        N×3×H×W float32 from 0 to 255, not rounded.
    """
    x = images.float()
    for place in range(4):
        for column, (letter, change) in enumerate(_CHANGES.items()):
            chosen = [n for n, order in enumerate(orders) if order[place] == letter]
            if chosen:
                # From pinned memory the GPU fetches the places without anybody's waiting.
                index = torch.tensor(chosen, pin_memory=x.is_cuda).to(x.device, non_blocking=True)
                x[index] = change(x[index], factors[index, column].view(-1, 1, 1, 1))
    return x


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(-3)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(-3)


def _brightened(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x).clamp(0, 255)


def _contrasted(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x).mean((-3, -2, -1), keepdim=True), x, factor).clamp(0, 255)


def _saturated(x: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(x), x, factor).clamp(0, 255)


def _hue_turned(x: Tensor, turn: Tensor) -> Tensor:
    """Hue in HSV moved by `turn` of the colour circle."""
    value, least = x.amax(-3, keepdim=True), x.amin(-3, keepdim=True)
    chroma = value - least
    red, green, blue = x.split(1, -3)
    sector = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    sixths = sector / chroma.clamp(min=1e-6) + 6 * turn
    k = (sixths + torch.arange(5.0, 0.0, -2.0, device=x.device).view(3, 1, 1)).remainder(6)
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


_CHANGES = {"b": _brightened, "c": _contrasted, "s": _saturated, "h": _hue_turned}


def normalise(images: Tensor) -> Tensor:
    """...×3×H×W RGB from 0 to 255 → float32, x/255 with ImageNet's mean and standard deviation."""
    mean, std = _statistics(images.device)
    return (images.float() / 255 - mean) / std


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, device=device).view(3, 1, 1), torch.tensor(STD, device=device).view(3, 1, 1)


class Square(NamedTuple):
    """What is cut from an image: it becomes a square of `side` pixels, whatever its aspect ratio; of that a crop at
    (top, left), mirrored where `flip` says so."""

    side: int
    top: int = 0
    left: int = 0
    flip: bool = False


def random_square(sides: tuple[int, int], crop: int) -> Square:
    """A square of random side and place, mirrored or not.

    Args:
        sides: smallest and largest side, inclusive.
        crop: side of the crop; at most sides[0].
    """
    flip = bool(torch.rand(()) < 0.5)
    side = int(torch.randint(sides[0], sides[1] + 1, ()))
    top, left = (int(torch.randint(0, side - crop + 1, ())) for _ in range(2))
    # The mirrored square's left is the square's right.
    return Square(side, top, side - crop - left if flip else left, flip)


def cut(picture: np.ndarray, square: Square, crop: int) -> np.ndarray:
    """The crop of a picture, H×W×3 uint8 → crop×crop×3; the resize is bilinear."""
    whole = resize_square(as_tensor(picture), square.side).movedim(0, -1).numpy()
    part = whole[square.top : square.top + crop, square.left : square.left + crop]
    return cv2.flip(part, 1) if square.flip else np.ascontiguousarray(part)


def planes(picture: np.ndarray) -> Tensor:
    """`as_tensor` with each channel's pixels side by side, which OpenCV does several times as fast as torch."""
    channels = np.empty((3, *picture.shape[:2]), np.uint8)
    cv2.split(picture, list(channels))
    return torch.from_numpy(channels)


def cut_maps(maps: np.ndarray, square: Square, crop: int, size: int, grid_of: tuple[int, int] | None = None) -> Tensor:
    """The crop of maps of the same scene, whatever their size, at another size.

    Equal but for rounding to resizing all of them to the square, cropping, and resizing the crop, each bilinearly.
    That is linear in rows and in columns, so both become one matrix, and only what lies in the crop is read.

    Args:
        maps: C×h×w of any type.
        crop: side of the crop, pixels.
        size: side that the crop gets.
        grid_of: (H, W) of the image whose feature grid the maps are on: they are brought to its size first.

    Returns:
        C×size×size float32.
    """
    (rows, down), (columns, across) = (
        _crop_weights(length, square.side, start, crop, size, cells=grid_of is not None)
        for length, start in zip(grid_of or maps.shape[1:], (square.top, square.left), strict=True)
    )
    part = torch.from_numpy(maps[:, rows, columns].astype(np.float32))
    with torch.autocast("cpu", enabled=False):  # pictures are read within a network's
        return down @ (part @ (across.flip(0) if square.flip else across).mT)


def _crop_weights(length: int, side: int, start: int, crop: int, size: int, cells: bool) -> tuple[slice, Tensor]:
    """An axis of `length` pixels becomes `side`, of which `crop` from `start` on become `size`: the n pixels that are
    needed, or of maps on the feature grid all cells, and what each of them has to do with the result, size×n."""
    low, high, share = _between(crop, size, np.arange(size))
    terms = []
    for pixels, part in ((low, 1 - share), (high, share)):
        below, above, rest = _between(length, side, start + pixels)
        terms += [(below, part * (1 - rest)), (above, part * rest)]
    if cells:
        weights = sum(part[:, None] * _cell_weights(length)[index] for index, part in terms)
        return slice(None), torch.from_numpy(weights)
    first, last = terms[0][0][0], terms[-1][0][-1]
    weights = np.zeros((size, last + 1 - first), np.float32)
    for index, part in terms:
        weights[np.arange(size), index - first] += part
    return slice(first, last + 1), torch.from_numpy(weights)


@lru_cache
def _cell_weights(length: int) -> np.ndarray:
    """What the cells of the feature grid have to do with each of `length` pixels, length×cells float32: bilinear, of
    whole cells."""
    cells = -(-length // CELL)
    low, high, share = _between(cells, CELL * cells, np.arange(length))
    eye = np.eye(cells, dtype=np.float32)
    return (1 - share)[:, None] * eye[low] + share[:, None] * eye[high]


def _between(length: int, side: int, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two of `length` pixels between whose centres each of `pixels` of `side` lies, and the share of the second."""
    place = ((pixels + 0.5) * (length / side) - 0.5).clip(0, length - 1)
    low = place.astype(np.int64)
    return low, np.minimum(low + 1, length - 1), (place - low).astype(np.float32)


def resize_square(tensor: Tensor, side: int) -> Tensor:
    """C×H×W → C×side×side, bilinear; the aspect ratio is not kept."""
    return F.resize(tensor, [side, side], antialias=False)


def random_long_side(pixels: np.ndarray, sides: tuple[int, int]) -> Tensor:
    """H×W×3 uint8 → 3×h×w uint8 whose long side is a random integer in `sides`; the aspect ratio is kept.

    By Pillow's bicubic, which averages where it shrinks (PSA, and RecurSeed's release).
    """
    factor = int(torch.randint(sides[0], sides[1] + 1, ())) / max(pixels.shape[:2])
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return as_tensor(np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)))


def random_flip(tensors: list[Tensor]) -> list[Tensor]:
    return [F.horizontal_flip(t) for t in tensors] if torch.rand(()) < 0.5 else tensors


def random_crop_or_pad(tensors: list[Tensor], crop: int) -> list[Tensor]:
    """Crop C×H×W tensors of one size to crop×crop at the same random place; what is smaller lies at a random place
    in zeros, so pictures must be normalised before."""
    height, width = tensors[0].shape[-2:]
    pad_y, pad_x = max(0, crop - height), max(0, crop - width)
    top = int(torch.randint(0, max(0, height - crop) + 1, ()))
    left = int(torch.randint(0, max(0, width - crop) + 1, ()))
    above = int(torch.randint(0, pad_y + 1, ()))
    before = int(torch.randint(0, pad_x + 1, ()))
    return [
        torch.nn.functional.pad(
            t[..., top : top + crop, left : left + crop], (before, pad_x - before, above, pad_y - above)
        )
        for t in tensors
    ]
