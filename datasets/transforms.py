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


def cut(tensor: Tensor, square: Square, crop: int, size: int | None = None) -> Tensor:
    """The crop of a picture or of maps of the same scene, whatever its size; every resize is bilinear.

    Args:
        tensor: C×H×W uint8 or float32.
        crop: side of the crop, pixels.
        size: the crop is resized once more to this side; None: it is not.

    Returns:
        C×crop×crop or C×size×size of the same type.
    """
    rows, columns = slice(square.top, square.top + crop), slice(square.left, square.left + crop)
    if tensor.is_floating_point():
        # OpenCV takes a sixth of torchvision's time for floats, and is equal to it but for rounding.
        planes = [_resized(plane, square.side)[rows, columns] for plane in tensor.numpy()]
        result = torch.from_numpy(np.stack([_resized(plane, size) if size else plane for plane in planes]))
    else:
        result = resize_square(tensor, square.side)[:, rows, columns]
        result = resize_square(result, size) if size else result
    return result.flip(-1) if square.flip else result.contiguous()


def _resized(plane: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(plane, (side, side), interpolation=cv2.INTER_LINEAR)


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
