"""Resizing, and inference over several scales."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settings.common import CELL


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The bilinear resize of the method: align_corners=False, no antialiasing."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@torch.no_grad()
def multiscale_probabilities(network: nn.Module, x: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Sum of the softmaxes over scales and mirrors (method of the released evaluation).

    Args:
        network: in evaluation mode; its `main_logits` gives N×C×h×w at an eighth of the input, or a quarter.
        x: N×3×H×W normalised images.
        scales: relative to the input.

    Returns:
        N×C×H×W sum of 2·len(scales) softmaxes, float32.
    """
    size = x.shape[-2:]
    total = 0
    for scale in scales:
        scaled_x = x if scale == 1 else resize(x, (int(size[0] * scale), int(size[1] * scale)))
        logits = network.main_logits(torch.cat([scaled_x, scaled_x.flip(-1)])).float()
        logits = resize(logits, tuple(CELL * -(-side // CELL) for side in scaled_x.shape[-2:]))
        straight, mirrored = resize(torch.softmax(logits, dim=1), size).chunk(2)
        total = total + straight + mirrored.flip(-1)
    return total
