"""Pixel-adaptive mask refinement (PAMR): maps averaged over neighbours of like colour, again and again."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
ITERATIONS = 10


@torch.no_grad()
def pamr(image: Tensor, maps: Tensor, iterations: int = ITERATIONS, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """`iterations` times m_p = Σ_q a_pq m_q over the eight neighbours q at each dilation.

    Only the affinities are kept for all neighbours, N×48×H×W; the maps are shifted one neighbour at a time.

    Args:
        image: N×3×H×W, normalised or not.
        maps: N×K×H×W.
        dilations: distances of the neighbours in pixels; the border is replicated.

    Returns:
        N×K×H×W float32 (float64 if `maps` are); an average, so peaks drop.

    Raises:
        ValueError: image and maps differ in size.

    Reference:
        Araslanov and Roth, CVPR 2020, section 4.3.
    """
    if image.shape[-2:] != maps.shape[-2:] or len(image) != len(maps):
        raise ValueError(f"PAMR needs one size: image {tuple(image.shape)}, maps {tuple(maps.shape)}")
    with torch.autocast(maps.device.type, enabled=False):
        exact = torch.promote_types(maps.dtype, torch.float32)
        maps, weights = maps.to(exact), affinities(image.to(exact), dilations)
        for _ in range(iterations):
            average = torch.zeros_like(maps)
            for n, neighbour in enumerate(_neighbours(maps, dilations)):
                average.addcmul_(weights[:, n : n + 1], neighbour)
            maps = average
    return maps


def affinities(image: Tensor, dilations: tuple[int, ...] = DILATIONS) -> Tensor:
    """Softmax over the neighbours of the mean over channels of −|I_p − I_q| / (1e-8 + 0.1·σ_p).

    σ is the standard deviation (n − 1) over the 3×3 neighbourhoods of all dilations together, each with its centre.

    Args:
        image: N×3×H×W float32.

    Returns:
        N×8·len(dilations)×H×W.
    """
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in _neighbours(image, dilations):
        difference = neighbour - image
        total += difference
        squares.addcmul_(difference, difference)
    # Taken from the centre, which is among the values, the squares cannot lose more than a digit to the subtraction.
    count = 9 * len(dilations)
    deviation = ((squares - total**2 / count).clamp(min=0) / (count - 1)).sqrt()
    per_channel = -1 / ((1e-8 + 0.1 * deviation) * image.shape[1])
    result = image.new_empty(len(image), 8 * len(dilations), *image.shape[-2:])
    for n, neighbour in enumerate(_neighbours(image, dilations)):
        torch.sum((neighbour - image).abs() * per_channel, dim=1, out=result[:, n])
    return torch.softmax(result, dim=1)


def _neighbours(x: Tensor, dilations: tuple[int, ...]) -> Iterator[Tensor]:
    """Views of N×C×H×W `x` shifted to each of the eight neighbours at each dilation, borders replicated."""
    height, width = x.shape[-2:]
    most = max(dilations)
    padded = F.pad(x, (most,) * 4, mode="replicate")
    for dilation in dilations:
        for down in (-dilation, 0, dilation):
            for right in (-dilation, 0, dilation):
                if down or right:
                    top, left = most + down, most + right
                    yield padded[..., top : top + height, left : left + width]
