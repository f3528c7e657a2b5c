"""Self-supervised difference detection: flags, integration and the difference losses.

Everywhere: `knowledge` and `advice` are masks N×h×w (int64), `present` is N×C with background first, d_k and d_a are
the difference logits N×1×h×w that the DD-Net predicts from the knowledge and from the advice.

Masks may be 255, unknown, at some pixels: no class there, no difference, no loss, and never taken where the other
mask knows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.global_batch import per_process_share

UNKNOWN = 255


def one_hot(mask: Tensor, classes: int) -> Tensor:
    """N×h×w int64 → N×C×h×w float32, all zero where the mask is unknown."""
    return (mask[..., None] == torch.arange(classes, device=mask.device)).float().movedim(-1, 1)


def class_pixels(mask: Tensor, classes: int) -> Tensor:
    """How many pixels of each image have which class: N×h×w int64 → N×C int64; unknown ones are of none."""
    classes_and_unknown = mask.flatten(1).clamp(max=classes)
    count = mask.new_zeros(len(mask), classes + 1)
    return count.scatter_add_(1, classes_and_unknown, torch.ones_like(classes_and_unknown))[:, :classes]


def missing_class_flags(knowledge: Tensor, advice: Tensor, present: Tensor, poster: bool = False) -> Tensor:
    """Which foreground classes of the image's label did the advice lose?

    1 where |A=c| / max(|K=c|, 1) < 0.5, so a labelled class that neither mask contains is flagged; background never is.

    Args:
        poster: as the poster prints it, 1 − b with b = [ratio > 0.5], which counts background like a labelled class
            and exactly half as lost. Its sign in the integration comes out the same: b_A − b_K = flag(K) − flag(A).

    Returns:
        N×C float32 of zeros and ones.
    """
    classes = present.shape[1]
    ratio = class_pixels(advice, classes) / class_pixels(knowledge, classes).clamp(min=1)
    if poster:
        return (ratio <= 0.5) * present.float()
    return F.pad(((ratio < 0.5) * present.float())[:, 1:], (1, 0))


def integrate(
    knowledge: Tensor,
    advice: Tensor,
    d_k: Tensor,
    d_a: Tensor,
    flags: Tensor,
    bias: float = 0.4,
    bg: float = 0.0,
    weight: float = 1.0,
) -> Tensor:
    """The refined mask: the advice where the difference is predictable from the knowledge and odd from the advice.

    w = σ(d_K) − σ(d_A) + bias − bg·[K=0] + bg·[A=0] − flag(K) + flag(A); advice where w ≥ 0, else knowledge. Where one
    of the two is unknown it is the other.

    Args:
        flags: N×C from `missing_class_flags`.
        bias: positive favours the advice.
        bg: positive favours the mask that says background.
        weight: factor on σ(d_K) − σ(d_A); published is 1.

    Returns:
        N×h×w int64 without gradient.

    Reference:
        Shimoda and Yanai, ICCV 2019, section 3 (integration); signs as in the released program.
    """
    return by_score(knowledge, advice, weight * map_score(d_k, d_a, knowledge, advice), flags, bias, bg)


def by_score(knowledge: Tensor, advice: Tensor, score: Tensor, flags: Tensor, bias: float, bg: float) -> Tensor:
    """`integrate` with any score N×h×w in place of the weighed σ(d_K) − σ(d_A)."""
    w = score + bias
    w = w - bg * (knowledge == 0) + bg * (advice == 0) - _flag_at(flags, knowledge) + _flag_at(flags, advice)
    takes_advice = (w >= 0) & (advice != UNKNOWN) | (knowledge == UNKNOWN)
    return torch.where(takes_advice, advice, knowledge)


def map_score(d_k: Tensor, d_a: Tensor, knowledge: Tensor, advice: Tensor, reading: str = "published") -> Tensor:
    """What the difference maps say for the advice, N×h×w without gradient; 0 where both logits are 0.

    Args:
        reading: "published": σ(d_K) − σ(d_A). The others are ours, of the same slope where both logits are 0.
            "logits": (d_K − d_A)/4. The prior of a change falls out of it, and sure maps do not saturate.
            "calibrated": the loss counts changed and unchanged pixels alike, so σ(d) is no probability. With π, the
            share of changed pixels of the image, which the masks tell, σ(d + logit π) is one. The difference of both
            is over 4·π·(1 − π), so that it is the published reading where π is ½.
            "apart": as published where the advice says background; σ(d_K) − ½ where it shows an object, as d_A knows
            little of what grows.
    """
    d_k, d_a = d_k.detach().squeeze(1), d_a.detach().squeeze(1)
    if reading == "logits":
        return (d_k - d_a) / 4
    if reading == "calibrated":
        changed = difference_map(knowledge, advice).sum((1, 2, 3))
        known = known_in_both(knowledge, advice).sum((1, 2, 3)).clamp(min=1)
        prior = (changed / known).clamp(1e-3, 1 - 1e-3)[:, None, None]
        shift = torch.logit(prior)
        return (torch.sigmoid(d_k + shift) - torch.sigmoid(d_a + shift)) / (4 * prior * (1 - prior))
    if reading == "apart":
        d_a = torch.where(advice == 0, d_a, 0)
    return torch.sigmoid(d_k) - torch.sigmoid(d_a)


def _flag_at(flags: Tensor, mask: Tensor) -> Tensor:
    classes = flags.shape[1]
    return F.pad(flags, (0, 1)).gather(1, mask.flatten(1).clamp(max=classes)).view(mask.shape)


def known_in_both(knowledge: Tensor, advice: Tensor) -> Tensor:
    """Where a difference can be told, N×1×h×w float32 of zeros and ones."""
    return ((knowledge != UNKNOWN) & (advice != UNKNOWN)).float().unsqueeze(1)


def difference_map(knowledge: Tensor, advice: Tensor) -> Tensor:
    """M = [K ≠ A], N×1×h×w float32: what the DD-Net learns to predict; 0 where one of the two is unknown."""
    return (knowledge != advice).float().unsqueeze(1) * known_in_both(knowledge, advice)


def balanced_bce(d: Tensor, difference: Tensor, dims: tuple[int, ...], known: Tensor | None = None) -> Tensor:
    """Class-balanced binary cross entropy: mean over changed and mean over unchanged pixels, averaged.

    Args:
        d: difference logits N×1×h×w.
        difference: N×1×h×w of zeros and ones.
        dims: the dimensions that the two means run over; (1, 2, 3) gives one loss an image.
        known: N×1×h×w of zeros and ones, `known_in_both`; pixels with 0 count on neither side. None: all count.

    Returns:
        The losses over the remaining dimensions. A side without pixels counts as 0.
    """
    loss = F.binary_cross_entropy_with_logits(d, difference, reduction="none")
    unchanged_pixels = (1 if known is None else known) - difference
    pixels = torch.stack([difference.sum(dims), unchanged_pixels.sum(dims)])
    if 0 in dims:
        pixels = per_process_share(pixels)
    changed = (loss * difference).sum(dims) / torch.where(pixels[0] > 0, pixels[0], 1)
    unchanged = (loss * unchanged_pixels).sum(dims) / torch.where(pixels[1] > 0, pixels[1], 1)
    return (changed + unchanged) / 2


def pair_difference_loss(d_k: Tensor, d_a: Tensor, knowledge: Tensor, advice: Tensor, flags: Tensor) -> Tensor:
    """The K/A difference loss: per image, images with a flagged class skipped, mean over d_K and d_A.

    An image without a pixel that both masks know is skipped too. 0 without gradient from any image where all are.
    """
    difference, known = difference_map(knowledge, advice), known_in_both(knowledge, advice)
    d_k_loss, d_a_loss = (balanced_bce(d, difference, (1, 2, 3), known) for d in (d_k, d_a))
    per_image = (d_k_loss + d_a_loss) / 2
    used = ((flags.sum(dim=1) == 0) & (known.sum((1, 2, 3)) > 0)).float()
    images = per_process_share(used.sum())
    return (per_image * used).sum() / torch.where(images > 0, images, 1)


def seed_difference_loss(d: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Loss of one map of the seed module against [mask ≠ target], means over all known pixels of the batch."""
    return balanced_bce(d, difference_map(mask, target), (0, 1, 2, 3), known_in_both(mask, target))


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean over the known pixels of the global batch, 0 without gradient if there are none.

    Args:
        logits: N×C×h×w.
        mask: N×h×w int64.
    """
    known = per_process_share((mask != UNKNOWN).sum())
    total = F.cross_entropy(logits, mask, ignore_index=UNKNOWN, reduction="sum")
    return total / torch.where(known > 0, known, 1)


def dynamic_segmentation_loss(main: Tensor, sub: Tensor, seed: Tensor, refined: Tensor, alpha: float = 0.5) -> Tensor:
    """L_seg of the dynamic mode.

    CE(seg_main, m_ssdd2) + α·CE(seg_sub, m_ssdd0) + (1 − α)·CE(seg_sub, m_ssdd2).

    Args:
        main, sub: logits N×C×h×w.
        seed: m_ssdd0, N×h×w.
        refined: m_ssdd2, N×h×w.
    """
    loss_sub = alpha * cross_entropy(sub, seed) + (1 - alpha) * cross_entropy(sub, refined)
    return cross_entropy(main, refined) + loss_sub
