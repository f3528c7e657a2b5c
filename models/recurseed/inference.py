"""Masks from the trained network: multi-scale averages, choice of classes, background, the CRF's input."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.inference import resize
from models.recurseed.cam import normalised_cam
from models.recurseed.network import Features, Output, RecurSeedNetwork
from models.recurseed.scg import self_correlation_maps

SCALES = (1.0, 0.5, 1.5, 2.0)
SCORE = 0.34


class Prediction(NamedTuple):
    probabilities: Tensor  # N×C×H×W, mean of the softmaxes, background first
    scores: Tensor  # N×(C−1), mean of the sigmoids of the class logits


@torch.no_grad()
def scaled_outputs(
    network: RecurSeedNetwork, x: Tensor, scales: tuple[float, ...]
) -> Iterator[tuple[tuple[int, int], Output]]:
    """The network's output for the images followed by their mirrors (2N), scale by scale, with the scaled size.

    Args:
        network: in evaluation mode.
        x: N×3×H×W normalised.
        scales: relative to the input.
    """
    for scale in scales:
        size = tuple(max(1, int(side * scale)) for side in x.shape[-2:])
        scaled_x = resize(x, size)
        yield size, network(torch.cat([scaled_x, scaled_x.flip(-1)]))


def unmirrored(maps: Tensor) -> tuple[Tensor, Tensor]:
    """2N×C×h×w of images and their mirrors → two of N×C×h×w, both the right way round."""
    straight, mirrored = maps.chunk(2)
    return straight, mirrored.flip(-1)


def image_probabilities(seg: Tensor, scaled_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Softmax of decoder logits 2N×C×h×w, mean of image and mirror at the image's size, N×C×H×W float32.

    To the scaled image's size by nearest, then to the image's by nearest, as released.
    """
    # A softmax of repeated logits is the repeated softmax, so it is taken where there are fewer.
    probabilities = torch.softmax(seg.float(), dim=1)
    straight, mirrored = unmirrored(F.interpolate(F.interpolate(probabilities, scaled_size), size))
    return (straight + mirrored) / 2


def multiscale_prediction(network: RecurSeedNetwork, x: Tensor, scales: tuple[float, ...] = SCALES) -> Prediction:
    """Mean over scales and mirrors of the decoder's softmaxes and of the class scores; see `scaled_outputs`."""
    probabilities, scores, size = 0, 0, tuple(x.shape[-2:])
    for scaled_size, output in scaled_outputs(network, x, scales):
        probabilities = probabilities + image_probabilities(output.seg, scaled_size, size)
        scores = scores + sum(torch.sigmoid(output.scores.float()).chunk(2)) / 2
    return Prediction(probabilities / len(scales), scores / len(scales))


class CamPrediction(NamedTuple):
    cam: Tensor  # N×(C−1)×h×w normalised, of c3's size at the first scale
    features: tuple[Tensor, ...]  # c2…c5 of the same size, N×D×h×w
    scores: Tensor  # N×(C−1), mean of the sigmoids of the class logits


def multiscale_cam(network: RecurSeedNetwork, x: Tensor, scales: tuple[float, ...] = SCALES) -> CamPrediction:
    """What self-correlation is given outside training: the CAM of all scales and mirrors, and c2…c5, each their sum.

    Logits and features are resized and turned back first; only then come ReLU, sum and division.
    """
    cams: list[Tensor] = []
    totals: list[Tensor] = []
    scores, grid = 0, (0, 0)
    for _, output in scaled_outputs(network, x, scales):
        features = Features(*output.features)
        if not cams:
            grid = tuple(features.c3.shape[-2:])
        cams += unmirrored(resize(output.cam.float(), grid))
        levels = [sum(unmirrored(resize(level.float(), grid))) for level in features[1:]]
        totals = [total + level for total, level in zip(totals, levels, strict=True)] if totals else levels
        scores = scores + sum(torch.sigmoid(output.scores.float()).chunk(2)) / 2
    return CamPrediction(normalised_cam(cams), tuple(totals), scores / len(scales))


def maps_without_decoder(
    network: RecurSeedNetwork, x: Tensor, scales: tuple[float, ...] = SCALES, correlated: bool = False
) -> Prediction:
    """The CAM in place of the decoder's probabilities, for a network whose decoder has not learned.

    Args:
        correlated: what SCG makes of the CAM instead.

    Returns:
        As `multiscale_prediction`, but foreground maps from 0 to 1 that do not sum to one, and a background of 0, which
        `class_maps` does not read.
    """
    found = multiscale_cam(network, x, scales)
    maps = self_correlation_maps(found.cam, found.features) if correlated else found.cam
    return Prediction(F.pad(resize(maps, tuple(x.shape[-2:])), (0, 0, 0, 0, 1, 0)), found.scores)


def class_maps(prediction: Prediction, present: Tensor | None = None, score: float = SCORE) -> tuple[Tensor, Tensor]:
    """What the CRF is given, for all classes: the chosen foreground maps and (1 − their maximum)² as background.

    Each foreground map is divided by (its maximum over the image + 1e-5).

    Args:
        present: N×C image-level labels, which choose the classes where they are known (train); None: those with a
            score of at least `score`.

    Returns:
        N×C×H×W maps, 0 at classes that were not chosen; and `chosen`, N×C of 0 and 1, background always 1.
        Where no class was chosen the background is 1.
    """
    foreground = prediction.probabilities[:, 1:]
    foreground = foreground / (foreground.amax(dim=(2, 3), keepdim=True) + 1e-5)
    chosen = (prediction.scores >= score) if present is None else present[:, 1:] > 0
    foreground = foreground * chosen[:, :, None, None]
    background = (1 - foreground.amax(dim=1, keepdim=True)) ** 2
    return torch.cat([background, foreground], dim=1), F.pad(chosen.float(), (1, 0), value=1.0)


def crf_images(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The images that the CRF is given: de-normalised and truncated to uint8, as released, so some values are 1 less.

    Args:
        x: N×3×H×W normalised with `mean` and `std` (datasets.transforms.MEAN, STD).

    Returns:
        N×H×W×3 uint8 RGB.
    """
    mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (mean, std))
    return ((x.float() * std + mean) * 255).clamp(0, 255).to(torch.uint8).movedim(1, -1)
