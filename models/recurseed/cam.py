"""Class activation maps between 0 and 1, and the choice of the maps that a batch needs."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised_cam(logits: Iterable[Tensor], cells: Tensor | None = None) -> Tensor:
    """The sum of the positive parts, divided per class by (its maximum + 1e-5).

    Args:
        logits: CAM logits N×C×h×w, one or more maps of the same images (scales and mirrors, brought to one size).
        cells: N×h×w bool, those that belong to the image; others become 0. None: all.

    Returns:
        N×C×h×w float32 in 0…1; 0 for a class without a positive logit.
    """
    positive = sum(F.relu(one.float()) for one in logits)
    if cells is not None:
        positive = positive * cells[:, None]
    return positive / (positive.amax(dim=(2, 3), keepdim=True) + 1e-5)


class Chosen(NamedTuple):
    """The foreground classes of each image, K an image; where an image has fewer, others fill the places."""

    classes: Tensor  # N×K int64 from 1 to C − 1, each class once an image
    here: Tensor  # N×K bool, False where the class only fills the place


def chosen_classes(present: Tensor) -> Chosen:
    """The classes that each image has, K the largest number of them in the batch, at least 1.

    Args:
        present: N×C image-level labels, background first. On a GPU the caller waits for K.
    """
    foreground = present[:, 1:] > 0
    here, places = foreground.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    most = max(1, int(foreground.sum(dim=1).max()))
    return Chosen(places[:, :most] + 1, here[:, :most] > 0)


def choose(maps: Tensor, chosen: Chosen) -> Tensor:
    """N×(C−1)×h×w maps of all foreground classes → N×K×h×w of the chosen, 0 where the class only fills the place."""
    kept = torch.take_along_dim(maps, (chosen.classes - 1)[:, :, None, None], dim=1)
    return kept * chosen.here[:, :, None, None]


def spread(maps: Tensor, chosen: Chosen, foreground: int) -> Tensor:
    """N×K×h×w maps of the chosen classes → N×`foreground`×h×w, 0 at all others; the reverse of `choose`."""
    place = (chosen.classes - 1)[:, :, None, None].expand_as(maps)
    empty = maps.new_zeros(len(maps), foreground, *maps.shape[2:])
    return empty.scatter_(1, place, maps * chosen.here[:, :, None, None])
