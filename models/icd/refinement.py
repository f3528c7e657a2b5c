"""Scores averaged over superpixels, each of which goes to one class or to none.

The one-hot maps of superpixels are N×K×h×w at the *scores'* size: at most 65 maps of 41×41 instead of 321×321.
"""

import torch
from torch import Tensor

EPS = 1e-5


def resized_one_hot(superpixels: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """The one-hot maps of superpixel ids, resized bilinearly with align_corners=True, without making them first.

    Args:
        superpixels: N×H×W ids, 0 to count − 1.
        size: (h, w) of the result.

    Returns:
        N×K×h×w float32 that sums to 1 at every pixel; K = count.
    """
    rows, row_weights = _neighbours(superpixels.shape[1], size[0], superpixels.device)
    columns, column_weights = _neighbours(superpixels.shape[2], size[1], superpixels.device)
    maps = torch.zeros(len(superpixels), count, *size, device=superpixels.device)
    ids = superpixels.long()
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            corner = ids[:, row[:, None], column].unsqueeze(1)
            weight = row_weight[:, None] * column_weight
            # One after the other: each adds once to a place, so that the sum has one order on every device.
            maps.scatter_add_(1, corner, weight.expand(corner.shape))
    return maps


def _neighbours(inputs: int, outputs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every place of the result the two places of the input between which it lies, and their weights: 2×outputs."""
    steps = max(outputs - 1, 1)
    place = torch.arange(outputs, device=device) * (inputs - 1 if outputs > 1 else 0)
    # In whole numbers, so that every eighth pixel is met exactly.
    before, share = place // steps, (place % steps) / steps
    after = (before + 1).clamp(max=inputs - 1)
    return torch.stack([before, after]), torch.stack([1 - share, share])


@torch.no_grad()
def refine(scores: Tensor, labels: Tensor, one_hot: Tensor) -> Tensor:
    """Every superpixel to the class that claims most of it, or to the background; its pixels share one score a class.

    Args:
        scores: N×C×h×w with their sign (models.icd.bottom_up.signed).
        labels: N×C foreground labels of zeros and ones.
        one_hot: N×K×h×w of `resized_one_hot`.

    Returns:
        N×C×h×w without gradient; 0 for classes that the image does not have.

    Reference:
        Fan et al., CVPR 2020, section 3.3; rules and limits as in the released program.
    """
    scores = torch.where(labels[:, :, None, None] > 0, scores, 0)
    largest = scores.amax(dim=1, keepdim=True)
    claims = scores.clamp(min=0) / largest.clamp(min=EPS)

    area = one_hot.sum(dim=(2, 3)).unsqueeze(1)
    area = torch.where(area > 0, area, 1)
    claim = _sums(claims, one_hot) / area
    positive = _sums(scores.clamp(min=0), one_hot) / area
    negative = _sums(scores.clamp(max=0), one_hot) / area

    foreground = _sums(scores.sign(), one_hot).amax(dim=1, keepdim=True) > EPS
    winner = claim.argmax(dim=1, keepdim=True)
    won = torch.zeros_like(claim, dtype=torch.bool).scatter_(1, winner, foreground)
    superpixel_scores = torch.where(won, positive, negative)
    return torch.einsum("nck,nkhw->nchw", superpixel_scores, one_hot)


def _sums(values: Tensor, one_hot: Tensor) -> Tensor:
    """N×C×h×w → N×C×K, sums over the pixels of each superpixel."""
    return torch.einsum("nchw,nkhw->nck", values, one_hot)
