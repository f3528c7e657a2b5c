"""ICD's bottom-up part: per class one direction in feature space that tells object from background, and its sign.

Everywhere: `labels` is N×C, the image's foreground classes as zeros and ones (`present` without its first column);
features are N×D×h×w; `weight` is C×D, one direction a class.
"""

import torch
import torch.distributed
from torch import Tensor

EPS = 1e-5
STRENGTH = 10.0
MOMENTUM = 0.9


def class_scores(features: Tensor, weight: Tensor) -> Tensor:
    """s_c = (w_c/|w_c|)·x at every pixel, N×C×h×w; no gradient reaches the features.

    The gradient that reaches `weight` is the published one, whose divisors have a small addend:
    g/(|w| + 1e-5) − w (w·g)/(|w|³ + 1e-5) for a gradient g at the direction w/|w|.
    """
    fixed = weight.detach()
    length = fixed.norm(dim=1, keepdim=True)
    along = (weight * fixed).sum(dim=1, keepdim=True)
    learned = weight / (length + EPS) - fixed * along / (length**3 + EPS)
    direction = fixed / length + learned - learned.detach()
    return torch.einsum("ndhw,cd->nchw", features.detach(), direction)


def bottom_up_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The more a class's direction explains of its features, the lower: −5 · mean over pixels of s², a sum over images.

    Its gradient makes each direction the first principal one of its class. Only images with exactly one class count.

    Args:
        scores: N×C×h×w from `class_scores`.

    Returns:
        The mean over the images, as every loss here.

    Reference:
        Fan et al., CVPR 2020, section 3.2 (bottom-up); gradient −(10/(h·w)) Σ y·s·x as in the released program.
    """
    single = labels * (labels.sum(dim=1, keepdim=True) == 1)
    energy = scores.square().mean(dim=(2, 3))
    return -STRENGTH / 2 * (single * energy).sum(dim=1).mean()


@torch.no_grad()
def update_sign_statistics(statistics: Tensor, scores: Tensor, cam: Tensor, labels: Tensor) -> None:
    """Move, in place, the mean CAM on either side of each class's direction towards that of the global batch.

    Per image the mean of ReLU(CAM) over the pixels with s > 0 and with s < 0 (0 where there is none), then averaged
    over all images of the class, those with several classes too. A class that no image has keeps its values.

    Args:
        statistics: C×2, columns s > 0 and s < 0.
        scores: N×C×h×w, without sign rule.
        cam: N×C×h×w logits.
    """
    evidence = cam.relu()
    sides = torch.stack([scores > 0, scores < 0], dim=2).float()  # N×C×2×h×w
    means = (sides * evidence.unsqueeze(2)).sum(dim=(3, 4)) / sides.sum(dim=(3, 4)).clamp(min=1)
    sums = torch.cat([(means * labels.unsqueeze(2)).sum(dim=0), labels.sum(dim=0).unsqueeze(1)], dim=1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    totals, images = sums[:, :2], sums[:, 2:]
    mean = torch.where(images > 0, totals / images.clamp(min=1), statistics)
    statistics.copy_(MOMENTUM * statistics + (1 - MOMENTUM) * mean)


def signed(scores: Tensor, statistics: Tensor) -> Tensor:
    """The scores, negated where the CAM is stronger on the negative side of the class's direction."""
    negated = statistics[:, 0] < statistics[:, 1]
    return torch.where(negated[:, None, None], -scores, scores)
