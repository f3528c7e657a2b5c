"""What the modes of RecurSeed share: its network, the weights that it starts from, and its maps of one image."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from datasets.errors import InputError
from datasets.transforms import MEAN, STD, as_tensor, normalise
from datasets.voc import check_pixels, class_names, read_image, read_present
from engine import checkpoint, distributed, runs
from models.crf import CrfKernel
from models.recurseed.inference import (
    Prediction,
    class_maps,
    crf_images,
    maps_without_decoder,
    multiscale_prediction,
)
from models.recurseed.network import RecurSeedNetwork, start_from_imagenet
from models.recurseed.steps import SeedSettings
from settings.config import Config

NETWORK = "recurseed"  # in the names of weights files
C3_STRIDE = 8  # pixels a cell of what SCG works on outside training, at the first scale
SCG_CELLS = 1 << 14  # an n×n matrix of so many takes 1 GiB, of which some six are alive


def build(config: Config, classes: int) -> RecurSeedNetwork:
    """A fresh network for `classes` classes, background included; its published dropout rates times --dropout."""
    network = RecurSeedNetwork(classes, config.recurseed_width)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p *= config.dropout
    return network


def seed_settings(config: Config) -> SeedSettings:
    return SeedSettings(
        config.scg_stride,
        config.scg_foreground,
        config.scg_background,
        config.pamr_stride,
        config.pamr_iterations,
        config.certain,
        config.unsure,
        config.seeds_eval_mode,
    )


def start_from_given(config: Config, network: RecurSeedNetwork) -> list[Path]:
    """Fill the backbone with the weights that --weights names; the files that were read.

    Raises:
        InputError: they are neither torchvision's ResNet-50 nor a RecurSeed network, of another width, or not finite.
    """
    path = runs.given_weights(config)
    if path is None:
        print("RecurSeed: no --weights (torchvision's ResNet-50, IMAGENET1K_V1), learning from scratch")
        return []
    state = checkpoint.load_state(path)
    try:
        start_from_imagenet(network, state)
    except ValueError as error:
        raise InputError(f"--weights={path}: {error}; training starts from torchvision's ResNet-50") from None
    if not all(torch.isfinite(value).all() for value in network.model.state_dict().values()):
        raise InputError(f"--weights={path}: holds values that are not finite")
    return [path]


def trained_network(config: Config, device: torch.device) -> tuple[RecurSeedNetwork, Path]:
    """The network of --weights, else of this run's training, ready for inference; and the file it came from.

    Raises:
        InputError: there is none, or it is another network or knows other classes.
    """
    weights = runs.given_weights(config) or runs.last_checkpoint(config, "recurseed train", NETWORK)
    checkpoint.need_classes(weights, config.voc_root)
    network = build(config, len(class_names(config.voc_root)))
    checkpoint.load_into(network, weights, flags="--recurseed_width")
    layout = distributed.memory_format(device, config.recurseed_width, config.precision)
    return network.to(device, memory_format=layout).eval().requires_grad_(False), weights


def image_ids(config: Config, split: str) -> list[str]:
    """The images of a list, none of which is too large for the network, or for SCG where masks are made by it.

    Raises:
        InputError: see `runs.image_ids`; or SCG would need too much memory.
    """
    ids = runs.image_ids(config, split, "recurseed_scales")
    if config.recurseed_maps == "scg" and distributed.rank() == 0:
        most = int(SCG_CELLS * (C3_STRIDE / config.recurseed_scales[0]) ** 2)
        check_pixels(config.voc_root, ids, most, "--recurseed_maps=cam, or a smaller first one of --recurseed_scales")
    return ids


class ImageMaps(NamedTuple):
    """What the network makes of one image, K classes of it, the background first."""

    image: np.ndarray  # H×W×3 uint8, as the CRF is given it
    classes: np.ndarray  # K ascending
    maps: np.ndarray  # K×H×W float32


def labelled_maps(
    config: Config, network: RecurSeedNetwork, device: torch.device, image_id: str, labelled: bool
) -> ImageMaps:
    """The maps of an image of the data set.

    Args:
        labelled: choose its classes by its image-level labels; otherwise by their scores.
    """
    present = read_present(config.voc_root, image_id) if labelled else None
    return image_maps(config, network, device, read_image(config.voc_root, image_id), present)


def image_maps(
    config: Config, network: RecurSeedNetwork, device: torch.device, image: np.ndarray, present: np.ndarray | None
) -> ImageMaps:
    """The maps of an image H×W×3 uint8 at its own size.

    Args:
        present: (C,) label that chooses the classes; None: their scores do.
    """
    x = network_input(config, device, image)
    prediction = maps_of(config, network, x)
    labels = None if present is None else torch.from_numpy(present)[None].to(device)
    maps, chosen = class_maps(prediction, labels, config.score)
    places = chosen[0].nonzero()[:, 0]
    return ImageMaps(crf_images(x, MEAN, STD)[0].cpu().numpy(), places.cpu().numpy(), maps[0, places].cpu().numpy())


def network_input(config: Config, device: torch.device, image: np.ndarray) -> torch.Tensor:
    """H×W×3 uint8 → 1×3×H×W normalised, on the device."""
    layout = distributed.memory_format(device, config.recurseed_width, config.precision)
    return normalise(as_tensor(image)[None].to(device)).contiguous(memory_format=layout)


def predicted(config: Config, network: RecurSeedNetwork, x: torch.Tensor) -> Prediction:
    with distributed.autocast(x.device, config.precision):
        return multiscale_prediction(network, x, config.recurseed_scales)


def maps_of(config: Config, network: RecurSeedNetwork, x: torch.Tensor) -> Prediction:
    """What masks are made from, by --recurseed_maps."""
    if config.recurseed_maps == "decoder":
        return predicted(config, network, x)
    with distributed.autocast(x.device, config.precision):
        return maps_without_decoder(network, x, config.recurseed_scales, config.recurseed_maps == "scg")


def crf_kernel(config: Config) -> CrfKernel:
    return CrfKernel(
        config.recurseed_crf_gaussian_sxy,
        config.recurseed_crf_gaussian_weight,
        config.recurseed_crf_sxy,
        config.recurseed_crf_srgb,
        config.recurseed_crf_bilateral_weight,
    )
