"""L_cls, L_cam and L_seg. With several processes each is the mean over the global batch (per_process_share)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.global_batch import per_process_share
from models.inference import resize
from models.recurseed.cam import normalised_cam
from models.recurseed.certain import IGNORE


def classification_loss(scores: Tensor, present: Tensor, images: Tensor) -> Tensor:
    """L_cls: multi-label soft-margin loss, mean over classes and over the images that take part; 0 if none does.

    Args:
        scores: N×(C−1) logits of the foreground classes.
        present: N×C image-level labels, background first.
        images: N bool, those that take part.
    """
    per_image = F.multilabel_soft_margin_loss(scores.float(), present[:, 1:].float(), reduction="none")
    return _mean(per_image, images)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L_seg: cross entropy, mean over all pixels of the batch that are not 255; exactly 0 if there are none.

    Args:
        logits: N×C×h×w, resized (bilinear) to the labels' size.
        labels: N×H×W int64.
    """
    logits = resize(logits.float(), tuple(labels.shape[-2:]))
    return _mean(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none"), labels != IGNORE)


def cam_loss(logits: Tensor, target: Tensor, present: Tensor, cells: Tensor) -> Tensor:
    """L_cam: mean of |CAM/(max + 1e-5) − M_rs| over the classes that an image has and the cells that belong to it.

    The gradient passes through the maximum too, so that it never asks a CAM to shrink or to grow as a whole. Else M_rs,
    whose peaks lie below 1, would push every maximum down, step by step, until the classes are forgotten. 0 if nothing
    takes part.

    Args:
        logits: CAM logits N×(C−1)×h×w.
        target: M_rs at the same size (`on_grid`).
        present: N×C image-level labels, background first; all 0 in a row leaves that image out.
        cells: N×h×w bool.
    """
    distance = (normalised_cam([logits], cells) - target).abs()
    return _mean(distance, (present[:, 1:, None, None] > 0) & cells[:, None])


def on_grid(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """N×K×H×W maps to a smaller size by area mean."""
    return F.interpolate(maps, size, mode="area")


def _mean(loss: Tensor, used: Tensor) -> Tensor:
    count = per_process_share(used.sum())
    return torch.where(used, loss, 0).sum() / torch.where(count > 0, count, 1)
