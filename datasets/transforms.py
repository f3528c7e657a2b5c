"""Geometry and colour of training samples, and the normalisation that every network here expects."""

from functools import lru_cache

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

colour_jitter = v2.ColorJitter(0.3, 0.3, 0.3, 0.1)


def normalise(images: Tensor) -> Tensor:
    """...×3×H×W uint8 RGB → float32, x/255 with ImageNet's mean and standard deviation."""
    mean, std = _statistics(images.device)
    return (images.float() / 255 - mean) / std


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(MEAN, device=device).view(3, 1, 1), torch.tensor(STD, device=device).view(3, 1, 1)


def resize_square(tensors: list[Tensor], side: int) -> list[Tensor]:
    """Each C×H×W → C×side×side, bilinear; the aspect ratio is not kept."""
    return [F.resize(t, [side, side], antialias=False) for t in tensors]


def random_square(tensors: list[Tensor], sides: tuple[int, int], crop: int) -> list[Tensor]:
    """Flip, resize to a square of random side, crop: the same for all tensors, whatever their sizes.

    Args:
        tensors: C×H×W each, pictures or maps of the same scene.
        sides: smallest and largest side, inclusive.
        crop: side of the result; at most sides[0].
    """
    flip = torch.rand(()) < 0.5
    side = int(torch.randint(sides[0], sides[1] + 1, ()))
    top, left = (int(torch.randint(0, side - crop + 1, ())) for _ in range(2))
    if flip:
        tensors = [F.horizontal_flip(t) for t in tensors]
    return [F.crop(t, top, left, crop, crop) for t in resize_square(tensors, side)]


def random_long_side(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """3×H×W resized so that its long side is random in `sides`; the aspect ratio is kept."""
    height, width = image.shape[-2:]
    scale = int(torch.randint(sides[0], sides[1] + 1, ())) / max(height, width)
    return F.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=False)


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
