"""VGG16 with stride 8: the backbone of ICD."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import GlobalBatchNorm
from models.resnet38 import scaled

# (group, channels, convolutions, stride of the pool after the group, dilation)
GROUPS = ((1, 64, 2, 2, 1), (2, 128, 2, 2, 1), (3, 256, 3, 2, 1), (4, 512, 3, 1, 1), (5, 512, 3, 1, 2))
MEAN = 127
SIDE = 513
# What MXNet calls a layer's tensors; the right side is PyTorch's.
_FIELDS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
_MXNET_NAME = re.compile(rf"(?P<layer>\w+?)_(?P<field>{'|'.join(_FIELDS)})$")
# Bare tensors: whatever their names end with, they are no layer's.
_BARE = ("icd_bu_weight", "icd_accum_resign_moving_mean")


class Features(NamedTuple):
    """What the backbone gives, for an input N×3×H×W (channels at width 1.0); h, w are H/8, W/8 rounded up."""

    conv5_3: Tensor  # N×512×h×w, after ReLU, before the fifth pool
    pooled: Tensor  # N×512×h×w, after the fifth max pool and the average pool


class Vgg16(nn.Module):
    """The thirteen convolutions, each with bias and ReLU.

    Args:
        width: factor on every number of channels; 1.0 is the published network.
        batchnorm: a BatchNorm after every convolution, for a narrow network that learns from scratch; no published
            weights have it.

    Shape:
        Input N×3×H×W, RGB from 0 to 255 minus 127 (`subtract_mean`); see `Features` for the outputs.

    Reference:
        Simonyan and Zisserman, ICLR 2015 (configuration D); pools and dilation as in Fan et al., CVPR 2020.
    """

    def __init__(self, width: float = 1.0, batchnorm: bool = False):
        super().__init__()
        self.batchnorm = batchnorm
        inputs = 3
        for group, channels, convolutions, _, dilation in GROUPS:
            outputs = scaled(channels, width)
            for number in range(1, convolutions + 1):
                self.add_module(
                    f"conv{group}_{number}", nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
                )
                if batchnorm:
                    self.add_module(f"bn{group}_{number}", GlobalBatchNorm(outputs))
                inputs = outputs
        self.out_channels = inputs

    def features(self, x: Tensor) -> Features:
        for group, _, convolutions, stride, _ in GROUPS:
            for number in range(1, convolutions + 1):
                x = self.get_submodule(f"conv{group}_{number}")(x)
                if self.batchnorm:
                    x = self.get_submodule(f"bn{group}_{number}")(x)
                x = F.relu(x)
            last, x = x, F.max_pool2d(x, 3, stride, padding=1)
        return Features(last, F.avg_pool2d(x, 3, stride=1, padding=1))

    def forward(self, x: Tensor) -> Features:
        return self.features(x)


def subtract_mean(images: Tensor) -> Tensor:
    """...×3×H×W RGB from 0 to 255 → float32 input of the network."""
    return images.float() - MEAN


def padded(image: Tensor, side: int = SIDE) -> Tensor:
    """Pad an image below and on the right, to the square that seeds are made in, with the colour that becomes 0.

    Args:
        image: 3×H×W uint8.
        side: of the square. An image that is larger gets the next side of 8·k + 1 that holds it; the released program
            crops it instead, and cuts its seeds from another place.

    Returns:
        3×S×S uint8.
    """
    height, width = image.shape[-2:]
    side = padded_side(height, width, side)
    return F.pad(image, (0, side - width, 0, side - height), value=MEAN)


def padded_side(height: int, width: int, side: int = SIDE) -> int:
    """The side of the square that `padded` makes."""
    larger = max(height, width)
    return side if larger <= side else 8 * -(-(larger - 1) // 8) + 1


def from_any_names(state: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """State dict under our keys of weights that others stored: under MXNet's names, torchvision's, or ours.

    torchvision's names with an fc6 beside them are taken for a copy of `vgg16_20M`, whose input is RGB − 127.

    Args:
        mean, std: of torchvision's input, see `for_plain_input`.

    Raises:
        KeyError: torchvision's names, but a convolution is missing.
    """
    if "features.0.weight" not in state:
        return from_mxnet_names(state)
    layers = {key: value for key, value in state.items() if key.startswith(("fc6.", "fc7."))}
    convolutions = from_torchvision(state)
    return convolutions | layers if layers else for_plain_input(convolutions, mean, std)


def from_mxnet_names(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the arrays of an MXNet file, as arg:conv1_1_weight → conv1_1.weight.

    Serves `vgg16_20M.params` and the file of a trained ICD run (feat_bn_gamma → feat_bn.weight). A name that is none of
    the forms known here is kept as it is, so that loading refuses it by name.

    Args:
        arrays: by name, with or without `arg:` and `aux:`.
    """
    return {_key(name.removeprefix("arg:").removeprefix("aux:")): value for name, value in arrays.items()}


def _key(name: str) -> str:
    match = None if name in _BARE else _MXNET_NAME.match(name)
    return f"{match['layer']}.{_FIELDS[match['field']]}" if match else name


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions of torchvision's VGG16 under our keys, features.0.weight → conv1_1.weight.

    Its classifier has other shapes than ICD's fc6 and fc7 and is left out. Its input is RGB/255 with ImageNet's mean
    and standard deviation: the caller brings the first layer to this network's input with `for_plain_input`.

    Raises:
        KeyError: a convolution is missing.
    """
    numbers = iter(torchvision_numbers())
    keys = [f"conv{group}_{n}" for group, _, convolutions, _, _ in GROUPS for n in range(1, convolutions + 1)]
    return {
        f"{key}.{field}": state[f"features.{number}.{field}"]
        for key, number in zip(keys, numbers, strict=True)
        for field in ("weight", "bias")
    }


def torchvision_numbers() -> list[int]:
    """Places of the convolutions in torchvision's `features`: each is followed by a ReLU, each group by a pool."""
    numbers, place = [], 0
    for _, _, convolutions, _, _ in GROUPS:
        numbers += [place + 2 * n for n in range(convolutions)]
        place += 2 * convolutions + 1
    return numbers


def for_plain_input(state: Mapping[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The same weights for input RGB − 127 instead of (RGB/255 − mean)/std.

    Exact but for a border of one pixel, where padding stands for another colour.

    Args:
        state: with conv1_1.weight and conv1_1.bias.
        mean, std: three values each, of RGB/255.
    """
    weight = state["conv1_1.weight"] / (255 * std)[:, None, None]
    shift = (MEAN - 255 * mean)[:, None, None]
    bias = state["conv1_1.bias"] + (weight * shift).sum(dim=(1, 2, 3))
    return {**state, "conv1_1.weight": weight, "conv1_1.bias": bias}
