"""Regions without classes as an adviser: each takes a class from the knowledge (ours)."""

import torch
from torch import Tensor

FILLS, HOLDS = 0.5, 0.85


def region_classes(knowledge: Tensor, regions: Tensor, classes: int) -> Tensor:
    """The class that each region takes, R int64; −1: none, there the knowledge stays.

    A foreground class that fills more than half of the region, or of whose pixels the region holds at least 85 %; of
    several the one that fills most. Else the background, if it fills more than half. Unknown pixels are of no class.

    Args:
        knowledge: H×W int64, 255 = unknown.
        regions: R×H×W bool.
        classes: how many there are, background included.
    """
    rows = [torch.bincount(knowledge[region], minlength=256)[:classes] for region in regions]
    counts = torch.stack(rows) if rows else knowledge.new_zeros(0, classes)
    fills = counts / regions.flatten(1).sum(dim=1, keepdim=True).clamp(min=1)
    total = torch.bincount(knowledge.flatten(), minlength=256)[:classes]
    holds = counts / total.clamp(min=1)
    # What holds most of the background says nothing about what is in it.
    takes = (fills > FILLS) | (holds >= HOLDS) & (torch.arange(classes, device=knowledge.device) > 0)
    share, winner = (fills * takes)[:, 1:].max(dim=1)
    rest = torch.where(takes[:, 0], 0, -1)
    return torch.where(share > 0, winner + 1, rest)


def region_advice(knowledge: Tensor, regions: Tensor, classes: int) -> Tensor:
    """The advice of regions, H×W int64: their classes, where they overlap that of the smallest; else the knowledge.

    Regions that take no class count as if they were not there; of two equally large ones the first is on top.
    """
    taken = region_classes(knowledge, regions, classes)
    sizes = regions.flatten(1).sum(dim=1)
    # The first of equals must be painted last.
    order = sizes.flip(0).argsort(descending=True, stable=True)
    advice = knowledge.clone()
    for n in (len(regions) - 1 - order).tolist():
        if taken[n] >= 0:
            advice[regions[n]] = taken[n]
    return advice
