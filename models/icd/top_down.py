"""ICD's top-down part: what its logits t learn from the refined scores, and the CAM branch's loss.

`labels` is N×C, the image's foreground classes as zeros and ones.
"""

import math

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
CERTAIN = 0.2


def targets(refined: Tensor) -> tuple[Tensor, Tensor]:
    """What t should say and where: refined scores, brought to −1…1 by their own extremes per image and class.

    Args:
        refined: N×C×h×w.

    Returns:
        Two N×C×h×w float32: 1 where the score is positive; 1 where its size exceeds 0.2 of its extreme.
    """
    scores = refined.detach()
    positive, negative = scores.clamp(min=0), (-scores).clamp(min=0)
    extremes = [side / side.amax(dim=(2, 3), keepdim=True).clamp(min=EPS) for side in (positive, negative)]
    normalised = extremes[0] - extremes[1]
    return (normalised > 0).float(), (normalised.abs() > CERTAIN).float()


def top_down_loss(t: Tensor, refined: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of t against the targets: mean over pixels, sum over an image's classes, mean over images.

    Its gradient at t is (σ(t) − target)·y/(h·w) where the target is certain, over the number of images.

    Args:
        t: N×C×h×w logits.
        refined: N×C×h×w of models.icd.refinement.refine.

    Reference:
        Fan et al., CVPR 2020, section 3.4 (top-down).
    """
    target, certain = targets(refined)
    loss = F.binary_cross_entropy_with_logits(t, target, reduction="none") * certain
    return (loss.mean(dim=(2, 3)) * labels).sum(dim=1).mean()


def warm_up(step: int, steps: int) -> float:
    """Factor k on the top-down loss, from exp(−10) to 1: exp(−10·max(0, 1 − i/S)).

    Args:
        step: i, counted from 0.
        steps: S, of `warm_up_steps`; 0 means no warm-up.
    """
    return math.exp(-10 * max(0.0, 1 - step / steps)) if steps else 1.0


def warm_up_steps(images: int, batch: int) -> int:
    """Length of the warm-up: two epochs, in steps; 661 for VOC's 10,582 images and 32 a batch."""
    return 2 * images // batch


def cam_loss(cam: Tensor, labels: Tensor) -> Tensor:
    """Classification by the CAM branch: cross entropy of its global average, summed over classes, mean over images.

    Args:
        cam: N×C×h×w logits.
    """
    logits = cam.mean(dim=(2, 3))
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1).mean()
