"""CertainFilter, which keeps the labels that are certain, and CertainMix, which pastes certain objects elsewhere."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.recurseed.cam import Chosen

IGNORE = 255
CERTAIN, UNSURE = 0.55, 0.10


def certain_labels(
    maps: Tensor,
    chosen: Chosen,
    inside: Tensor | None = None,
    lost: Tensor | None = None,
    certain: float = CERTAIN,
    unsure: float = UNSURE,
) -> Tensor:
    """CertainFilter: the class with the largest map where that is ≥ `certain`, background where ≤ `unsure`, else 255.

    Args:
        maps: N×K×H×W, of `chosen`'s classes, in 0…1.
        inside: N×H×W bool, pixels of the image; padding becomes 255. None: all.
        lost: N bool, images of which a class has no evidence at all, so that what looks like background may be that
            class: they get 255 instead of background. None: no image.

    Returns:
        N×H×W int64. An image without any class is background.
    """
    maps = maps * chosen.here[:, :, None, None]
    value, winner = maps.max(dim=1)
    labels = chosen.classes.gather(1, winner.flatten(1)).view(winner.shape)
    rest = torch.zeros(len(maps), dtype=torch.int64, device=maps.device)
    if lost is not None:
        rest = rest.masked_fill(lost, IGNORE)
    labels = torch.where(value >= certain, labels, torch.where(value <= unsure, rest[:, None, None], IGNORE))
    return labels if inside is None else labels.masked_fill(~inside, IGNORE)


def without_evidence(scm: Tensor, chosen: Chosen) -> Tensor:
    """N bool: images with a present class whose map (N×K×h×w) is 0 everywhere."""
    return (chosen.here & (scm.flatten(2).amax(dim=2) == 0)).any(dim=1)


def label_shares(labels: Tensor) -> Tensor:
    """(3,) shares of undefined, foreground and background pixels in labels; they sum to 1."""
    undefined, background = (labels == IGNORE).float().mean(), (labels == 0).float().mean()
    return torch.stack([undefined, 1 - undefined - background, background])


def enlarged(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels or bool masks N×h×w to another size by nearest."""
    return F.interpolate(labels[:, None].float(), size)[:, 0].to(labels.dtype)


class Mixed(NamedTuple):
    x: Tensor  # N×3×H×W
    labels: Tensor  # N×h×w int64
    present: Tensor  # N×C
    pasted: Tensor  # N×h×w bool, what came from the partner
    mixed: Tensor  # N bool; the others are as they were, and belong in no loss on mixed images


def draw_partners(images: int, device: torch.device | str = "cpu") -> Tensor:
    """A random permutation without fixed points, (images,) int64; one image alone is its own partner.

    All permutations of one cycle are equally likely, and so every other image is as a partner.
    """
    order = torch.randperm(images, device=device)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def certain_mix(x: Tensor, labels: Tensor, present: Tensor, partners: Tensor, certain: Tensor | None = None) -> Mixed:
    """Paste each partner's certain foreground, pixels and labels, at its place over the image and its labels.

    The image's own labels stay elsewhere, 255 too. Its classes become the union of both, less those of its own whose
    certain pixels were all covered. Where the partner has no certain foreground, or is the image itself, nothing
    changes.

    Args:
        x: N×3×H×W, in any scale of values.
        labels: N×h×w after CertainFilter, or of any source with 255 for what it does not know; h×w is H×W or smaller
            (then the paste follows it by nearest).
        present: N×C image-level labels, background first.
        partners: N indices, from `draw_partners`.
        certain: N×h×w bool, where labels are certain enough to be pasted; None: wherever they are not 255.
    """
    other = labels[partners]
    itself = partners == torch.arange(len(x), device=x.device)
    pasted = (other != 0) & (other != IGNORE) & ~itself[:, None, None]
    if certain is not None:
        pasted &= certain[partners]
    pixels = enlarged(pasted, tuple(x.shape[-2:]))
    classes = present.shape[1]
    before, after, new = (
        _classes_in(one, classes)
        for one in (labels, labels.masked_fill(pasted, IGNORE), other.masked_fill(~pasted, IGNORE))
    )
    union = ((present > 0) & ~(before & ~after)) | new
    union[:, 0] = present[:, 0] > 0
    return Mixed(
        torch.where(pixels[:, None], x[partners], x),
        torch.where(pasted, other, labels),
        union.to(present.dtype),
        pasted,
        pasted.flatten(1).any(dim=1),
    )


def _classes_in(labels: Tensor, classes: int) -> Tensor:
    """N×`classes` bool: is there a pixel of it?"""
    found = torch.zeros(len(labels), IGNORE + 1, dtype=torch.bool, device=labels.device)
    return found.scatter_(1, labels.flatten(1), True)[:, :classes]
