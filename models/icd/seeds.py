"""ICD's seeds: from the top-down logits t and the CAM of an image's classes to a mask with 255 for undefined pixels."""

import numpy as np
import torch
from torch import Tensor

from models.crf import CrfKernel, dense_crf
from models.icd.network import IcdNetwork
from models.inference import resize
from models.vgg16 import SIDE, padded, subtract_mean

EPS = 1e-5
UNDEFINED = 255
SALIENT = 0.01  # both of a pixel's saliency and of the share of salient pixels
SCORE = 0.5  # of a class, in an image without labels
LABEL_PROBABILITY = 0.5
LEAST_PROBABILITY = 0.1
PUBLISHED_CRF = CrfKernel()


@torch.no_grad()
def class_maps(network: IcdNetwork, image: Tensor, classes: Tensor, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """t and CAM logits of an image's classes in its own size, from one pass: one scale, no mirror.

    Args:
        network: in evaluation mode.
        image: 3×H×W uint8 RGB, on the network's device.
        classes: K class indices of the mask (1 = first foreground class), int64.
        side: of the square that the image is padded to, see models.vgg16.padded.

    Returns:
        t and CAM, K×H×W float32 each.
    """
    square = padded(image, side)
    output = network(subtract_mean(square)[None])
    t, cam = (
        upsampled(maps[0, classes - 1].float(), square.shape[-1], tuple(image.shape[-2:]))
        for maps in (output.t, output.cam)
    )
    return t, cam


@torch.no_grad()
def unlabelled_seed(network: IcdNetwork, image: Tensor, side: int = SIDE, least: float = SCORE) -> Tensor:
    """The seed of an image whose classes nobody named: those whose score reaches `least` (ours).

    The score is the sigmoid of the CAM logits' mean over the image. Without such a class all is background.

    Args:
        network, image, side: see `class_maps`.

    Returns:
        H×W int64 as `icd_seed`.
    """
    classes = torch.arange(1, network.fc8.out_channels + 1, device=image.device)
    t, cam = class_maps(network, image, classes, side)
    chosen = torch.sigmoid(cam.mean(dim=(1, 2))) >= least
    if not chosen.any():
        return torch.zeros(image.shape[-2:], dtype=torch.int64, device=image.device)
    return icd_seed(t[chosen], cam[chosen], classes[chosen])


def upsampled(maps: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """K×h×w maps of a padded square → K×H×W of the image, the top left part of the square."""
    return resize(maps[None], (side, side))[0, :, : size[0], : size[1]]


def icd_seed(t: Tensor, cam: Tensor, classes: Tensor, saliency: Tensor | None = None) -> Tensor:
    """The seed before a CRF.

    Args:
        t: K×H×W, top-down logits of the classes that the image has, `upsampled`.
        cam: K×H×W, their CAM logits, `upsampled`.
        classes: K class indices of the mask (1 = first foreground class), ascending, int64.
        saliency: H×W from 0 to 1; background then comes from it.

    Returns:
        H×W int64: 0 background, class indices, 255 undefined.

    Reference:
        Fan et al., CVPR 2020, section 3.5; rules and limits as in the released program.
    """
    foreground = _share_of_extreme(t)
    claimed = (foreground > EPS).any(dim=0)
    evidence = cam.clamp(min=0)
    evidence = (evidence - evidence.amin()) / (evidence.amax() - evidence.amin()).clamp(min=EPS)
    contest = evidence * foreground
    # Without a second class nobody contests the claim.
    undecided = (contest.amax(dim=0) - contest.amin(dim=0) <= EPS) & (len(classes) > 1)

    background = (_share_of_extreme(-t) > EPS).all(dim=0)
    if saliency is not None:
        dark = saliency < SALIENT
        few = (~dark).sum() < SALIENT * dark.numel()
        background = dark & (background | ~few)
    seed = torch.where(claimed, classes[contest.argmax(dim=0)], 0)
    return seed.masked_fill((claimed == background) | (claimed & undecided), UNDEFINED)


def _share_of_extreme(maps: Tensor) -> Tensor:
    """Positive parts of K×H×W maps, divided by each map's maximum."""
    positive = maps.clamp(min=0)
    return positive / positive.amax(dim=(1, 2), keepdim=True).clamp(min=EPS)


def seed_after_crf(
    image: np.ndarray, seed: np.ndarray, labels: int = 21, iterations: int = 10, kernel: CrfKernel = PUBLISHED_CRF
) -> np.ndarray:
    """The seed after a dense CRF over all classes, those that the image does not have included.

    Args:
        image: H×W×3 uint8 RGB.
        seed: H×W of class indices, 255 undefined.
        labels: number of classes, background included.

    Returns:
        H×W uint8; 255 where no class reaches a probability of 0.1.
    """
    indices = np.arange(labels)[:, None, None]
    # Half a label's worth for what the seed says, the other half spread over all; undefined pixels say nothing.
    probabilities = np.where(seed == indices, LABEL_PROBABILITY, (1 - LABEL_PROBABILITY) / labels).astype(np.float32)
    probabilities /= probabilities.sum(axis=0)
    marginals = dense_crf(image, probabilities, iterations, kernel)
    return np.where(marginals.max(axis=0) < LEAST_PROBABILITY, UNDEFINED, marginals.argmax(axis=0)).astype(np.uint8)
