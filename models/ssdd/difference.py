"""Self-supervised difference detection: flags, integration and the difference losses.

Everywhere: `knowledge` and `advice` are masks N×h×w (int64), `present` is N×C with background first, d_k and d_a are
the difference logits N×1×h×w that the DD-Net predicts from the knowledge and from the advice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.global_batch import per_process_share


def one_hot(mask: Tensor, classes: int) -> Tensor:
    """N×h×w int64 → N×C×h×w float32."""
    return F.one_hot(mask, classes).movedim(-1, 1).float()


def missing_class_flags(knowledge: Tensor, advice: Tensor, present: Tensor, kept: bool = False) -> Tensor:
    """Which foreground classes of the image's label did the advice lose?

    1 where |A=c| / max(|K=c|, 1) < 0.5, so a labelled class that neither mask contains is flagged; background never is.

    Args:
        kept: the rule as the poster prints it, ratio > 0.5, which flags the classes that the advice kept.

    Returns:
        N×C float32 of zeros and ones.
    """
    classes = present.shape[1]
    pixels_k = F.one_hot(knowledge.flatten(1), classes).sum(dim=1)
    pixels_a = F.one_hot(advice.flatten(1), classes).sum(dim=1)
    ratio = pixels_a / pixels_k.clamp(min=1)
    flags = (ratio > 0.5 if kept else ratio < 0.5) * present.float()
    return F.pad(flags[:, 1:], (1, 0))


def integrate(
    knowledge: Tensor, advice: Tensor, d_k: Tensor, d_a: Tensor, flags: Tensor, bias: float = 0.4, bg: float = 0.0
) -> Tensor:
    """The refined mask: the advice where the difference is predictable from the knowledge and odd from the advice.

    w = σ(d_K) − σ(d_A) + bias − bg·[K=0] + bg·[A=0] − flag(K) + flag(A); advice where w ≥ 0, else knowledge.

    Args:
        flags: N×C from `missing_class_flags`.
        bias: positive favours the advice.
        bg: positive favours the mask that says background.

    Returns:
        N×h×w int64 without gradient.

    Reference:
        Shimoda and Yanai, ICCV 2019, section 3 (integration); signs as in the released program.
    """
    w = (torch.sigmoid(d_k) - torch.sigmoid(d_a)).detach().squeeze(1) + bias
    w = w - bg * (knowledge == 0) + bg * (advice == 0) - _flag_at(flags, knowledge) + _flag_at(flags, advice)
    return torch.where(w >= 0, advice, knowledge)


def _flag_at(flags: Tensor, mask: Tensor) -> Tensor:
    return flags.gather(1, mask.flatten(1)).view(mask.shape)


def difference_map(knowledge: Tensor, advice: Tensor) -> Tensor:
    """M = [K ≠ A], N×1×h×w float32: what the DD-Net learns to predict."""
    return (knowledge != advice).float().unsqueeze(1)


def balanced_bce(d: Tensor, difference: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Class-balanced binary cross entropy: mean over changed and mean over unchanged pixels, averaged.

    Args:
        d: difference logits N×1×h×w.
        difference: N×1×h×w of zeros and ones.
        dims: the dimensions that the two means run over; (1, 2, 3) gives one loss an image.

    Returns:
        The losses over the remaining dimensions. A side without pixels counts as 0.
    """
    loss = F.binary_cross_entropy_with_logits(d, difference, reduction="none")
    pixels = torch.stack([difference.sum(dims), (1 - difference).sum(dims)])
    if 0 in dims:
        pixels = per_process_share(pixels)
    changed = (loss * difference).sum(dims) / torch.where(pixels[0] > 0, pixels[0], 1)
    unchanged = (loss * (1 - difference)).sum(dims) / torch.where(pixels[1] > 0, pixels[1], 1)
    return (changed + unchanged) / 2


def pair_difference_loss(d_k: Tensor, d_a: Tensor, knowledge: Tensor, advice: Tensor, flags: Tensor) -> Tensor:
    """The K/A difference loss: per image, images with a flagged class skipped, mean over d_K and d_A.

    0 without gradient from any image where all are skipped.
    """
    difference = difference_map(knowledge, advice)
    per_image = (balanced_bce(d_k, difference, (1, 2, 3)) + balanced_bce(d_a, difference, (1, 2, 3))) / 2
    used = (flags.sum(dim=1) == 0).float()
    images = per_process_share(used.sum())
    return (per_image * used).sum() / torch.where(images > 0, images, 1)


def seed_difference_loss(d: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Loss of one map of the seed module against [mask ≠ target], means over all pixels of the batch, none skipped."""
    return balanced_bce(d, difference_map(mask, target), (0, 1, 2, 3))


def dynamic_segmentation_loss(main: Tensor, sub: Tensor, seed: Tensor, refined: Tensor, alpha: float = 0.5) -> Tensor:
    """L_seg of the dynamic mode.

    CE(seg_main, m_ssdd2) + α·CE(seg_sub, m_ssdd0) + (1 − α)·CE(seg_sub, m_ssdd2).

    Args:
        main, sub: logits N×C×h×w.
        seed: m_ssdd0, N×h×w.
        refined: m_ssdd2, N×h×w.
    """
    loss_sub = alpha * F.cross_entropy(sub, seed) + (1 - alpha) * F.cross_entropy(sub, refined)
    return F.cross_entropy(main, refined) + loss_sub
