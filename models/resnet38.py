"""ResNet-38, PSA's variant of Wide-ResNet-38 (model A1): pre-activation residual blocks, stride 8."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Features(NamedTuple):
    """What the backbone gives, for an input N×3×H×W (channels at width 1.0)."""

    conv2: Tensor  # N×128×H/2×W/2, the activated input of b3
    conv3: Tensor  # N×256×H/4×W/4, the activated input of b4
    conv4: Tensor  # N×512×H/8×W/8, the output of b4_5
    conv5: Tensor  # N×1024×H/8×W/8, the output of b5_2
    conv6: Tensor  # N×4096×H/8×W/8, ReLU(bn7(b7))


def scaled(channels: int, width: float) -> int:
    """Number of channels of a layer that has `channels` of them in the published network (width 1.0)."""
    return max(4, round(channels * width))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, mid: int, outputs: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)):
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = conv(inputs, mid, 3, stride, dilations[0])
        self.bn_branch2b1 = nn.BatchNorm2d(mid)
        self.conv_branch2b1 = conv(mid, outputs, 3, 1, dilations[1])
        if inputs != outputs or stride != 1:
            self.conv_branch1 = conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and its activated input."""
        activated = F.relu(self.bn_branch2a(x))
        shortcut = self.conv_branch1(activated) if hasattr(self, "conv_branch1") else x
        branch = self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(activated))))
        return shortcut + branch, activated


class BottleneckBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float):
        super().__init__()
        quarter, half = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = conv(inputs, quarter, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.conv_branch2b1 = conv(quarter, half, 3, 1, dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.conv_branch2b2 = conv(half, outputs, 1)
        self.conv_branch1 = conv(inputs, outputs, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn_branch2a(x))
        branch = self.conv_branch2a(activated)
        branch = self.conv_branch2b1(self.dropout(F.relu(self.bn_branch2b1(branch))))
        branch = self.conv_branch2b2(self.dropout(F.relu(self.bn_branch2b2(branch))))
        return self.conv_branch1(activated) + branch


class ResNet38(nn.Module):
    """The backbone.

    Args:
        width: factor on every number of channels; 1.0 is the published network.
        dropout: factor on the rates of b6 and b7.
        dilation: of b6 and b7, in cells; b5 has half of it. 4 is published; small images need less, or every cell
            sees the whole image and class activation maps lose their place.

    Shape:
        Input N×3×H×W, normalised (datasets.transforms.normalise); see `Features` for the five outputs.

    Reference:
        Ahn and Kwak, CVPR 2018 (PSA); Wu, Shen and van den Hengel, 2016 (model A1).
    """

    def __init__(self, width: float = 1.0, dropout: float = 1.0, dilation: int = 4):
        super().__init__()
        half = max(1, dilation // 2)
        c64, c128, c256, c512, c1024, c2048, c4096 = (scaled(64 * 2**i, width) for i in range(7))
        self.conv1a = conv(3, c64, 3)
        self.b2 = BasicBlock(c64, c128, c128, stride=2)
        self.b2_1 = BasicBlock(c128, c128, c128)
        self.b2_2 = BasicBlock(c128, c128, c128)
        self.b3 = BasicBlock(c128, c256, c256, stride=2)
        self.b3_1 = BasicBlock(c256, c256, c256)
        self.b3_2 = BasicBlock(c256, c256, c256)
        self.b4 = BasicBlock(c256, c512, c512, stride=2)
        self.b4_1 = BasicBlock(c512, c512, c512)
        self.b4_2 = BasicBlock(c512, c512, c512)
        self.b4_3 = BasicBlock(c512, c512, c512)
        self.b4_4 = BasicBlock(c512, c512, c512)
        self.b4_5 = BasicBlock(c512, c512, c512)
        self.b5 = BasicBlock(c512, c512, c1024, dilations=(1, half))
        self.b5_1 = BasicBlock(c1024, c512, c1024, dilations=(half, half))
        self.b5_2 = BasicBlock(c1024, c512, c1024, dilations=(half, half))
        self.b6 = BottleneckBlock(c1024, c2048, dilation, dropout=0.3 * dropout)
        self.b7 = BottleneckBlock(c2048, c4096, dilation, dropout=0.5 * dropout)
        self.bn7 = nn.BatchNorm2d(c4096)

    def features(self, x: Tensor) -> Features:
        x = self.conv1a(x)
        for block in (self.b2, self.b2_1, self.b2_2):
            x, _ = block(x)
        x, conv2 = self.b3(x)
        for block in (self.b3_1, self.b3_2):
            x, _ = block(x)
        x, conv3 = self.b4(x)
        for block in (self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5):
            x, _ = block(x)
        conv4 = x
        for block in (self.b5, self.b5_1, self.b5_2):
            x, _ = block(x)
        conv5 = x
        conv6 = F.relu(self.bn7(self.b7(self.b6(conv5))))
        return Features(conv2, conv3, conv4, conv5, conv6)

    def forward(self, x: Tensor) -> Features:
        return self.features(x)


def he_initialise(module: nn.Module) -> None:
    """He (fan-in) normal for every convolution, zero bias, BatchNorm weight 1 and bias 0 (method of both programs)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def train_with_frozen_batchnorm(module: nn.Module) -> None:
    """Put `module` into training mode (dropout acts) with every BatchNorm fixed: statistics, weight and bias."""
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
            layer.requires_grad_(False)


def freeze_first_blocks(network: nn.Module) -> None:
    """Label networks with pretrained weights keep conv1a and b2* as they are (PSA)."""
    for block in (network.conv1a, network.b2, network.b2_1, network.b2_2):
        block.requires_grad_(False)


def average_statistics_anew(network: nn.Module) -> None:
    """Let BatchNorm's running statistics be the plain mean over the steps from here on.

    Done before the last epoch, so that the statistics that everything later is frozen with fit the final weights,
    however few steps there were; a moving average would still hold its start values after a short training.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
