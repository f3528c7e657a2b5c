"""Segmentation network: backbone and one or two heads, and its prediction among the classes that an image has."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inference import resize
from models.resnet38 import Features, ResNet38, he_initialise, scaled


class HeadOutput(NamedTuple):
    logits: Tensor  # N×21×h×w
    features: Tensor  # N×512×h×w, the head features that the DD-Net sees


class SegmentationHead(nn.Module):
    """Two dilated 3×3 convolutions with reflection padding on conv6 (method of the released program).

    Args:
        classes: number of classes, background included.
        width: factor on the number of channels.
        dilation: dilation and padding of both convolutions, in cells; 12 as published.

    Shape:
        conv6 N×4096×h×w → logits N×classes×h×w and features N×512×h×w.

    Raises:
        ValueError: the map is not larger than the reflection padding.
    """

    def __init__(self, classes: int = 21, width: float = 1.0, dilation: int = 12):
        super().__init__()
        self.dilation = dilation
        hidden = scaled(512, width)
        reflected = {"padding": dilation, "dilation": dilation, "padding_mode": "reflect"}
        self.seg1 = nn.Module()
        self.seg1.conv1 = nn.Conv2d(scaled(4096, width), hidden, 3, **reflected)
        self.seg1.bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.seg2 = nn.Conv2d(hidden, classes, 3, **reflected)

    def forward(self, conv6: Tensor) -> HeadOutput:
        if min(conv6.shape[-2:]) <= self.dilation:
            height, width = (8 * side for side in conv6.shape[-2:])
            raise ValueError(
                f"input of {height}×{width} is too small for head dilation {self.dilation}: "
                f"each side must exceed {8 * self.dilation} pixels (or use a smaller head_dilation)"
            )
        features = F.relu(self.seg1.bn1(self.seg1.conv1(conv6)))
        return HeadOutput(self.seg2(features), features)


class SegmentationOutput(NamedTuple):
    """Heads at a quarter of the input, ×2 the feature map, in float32."""

    main: HeadOutput
    sub: HeadOutput | None
    conv2: Tensor  # N×128×H/2×W/2, at half of the input, not upsampled


class SegmentationNetwork(nn.Module):
    """ResNet-38 with `seg_main` and, for the dynamic mode, `seg_sub`.

    Args:
        classes, width, dilation, dropout, backbone_dilation: see SegmentationHead and ResNet38.
        with_sub: build the second head.
    """

    def __init__(
        self,
        classes: int = 21,
        width: float = 1.0,
        dilation: int = 12,
        with_sub: bool = False,
        dropout: float = 1.0,
        backbone_dilation: int = 4,
    ):
        super().__init__()
        self.encoder = ResNet38(width, dropout, backbone_dilation)
        self.seg_main = SegmentationHead(classes, width, dilation)
        self.seg_sub = SegmentationHead(classes, width, dilation) if with_sub else None
        he_initialise(self)

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Training: logits and head features upsampled ×2, to a quarter of the input."""
        encoded: Features = self.encoder(x)
        main = upsample_twice(self.seg_main(encoded.conv6))
        sub = upsample_twice(self.seg_sub(encoded.conv6)) if self.seg_sub is not None else None
        return SegmentationOutput(main, sub, encoded.conv2)

    def main_logits(self, x: Tensor) -> Tensor:
        """Evaluation: logits of seg_main at the resolution of the feature map, N×21×H/8×W/8."""
        return self.seg_main(self.encoder(x).conv6).logits


def upsample_twice(head: HeadOutput) -> HeadOutput:
    return HeadOutput(*(resize(t.float(), (2 * t.shape[-2], 2 * t.shape[-1])) for t in head))


def masked_probabilities(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax restricted to the labels of the image: softmax(logits)·y + 1e-4·y.

    Args:
        logits: N×C×h×w.
        present: N×C image-level labels, background first (always 1).

    Returns:
        N×C×h×w, zero at absent classes; its argmax is the masked prediction.
    """
    y = present[:, :, None, None]
    return torch.softmax(logits, dim=1) * y + 1e-4 * y


def masked_prediction(logits: Tensor, present: Tensor) -> Tensor:
    """The network's mask among the classes that the image has: N×h×w, int64."""
    return masked_probabilities(logits.detach(), present).argmax(dim=1)
