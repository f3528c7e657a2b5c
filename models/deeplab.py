"""DeepLab-v2 and DeepLabv3+ with ResNet-101: what papers train on their seeds.

DeepLabv3+'s decoder is segmentation_models.pytorch's, a kept library. That has no DeepLab-v2, whose head is four
convolutions: it is ours. So is the backbone of both, because the library's has no width, which small presets need. At
width 1.0 its keys are torchvision's, and DeepLabv3+ computes what the library's own does (tests/test_deeplab.py).
"""

import torch.nn.functional as F
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from models.inference import resize
from models.resnet38 import scaled

BLOCKS = (3, 4, 23, 3)
RATES_V2, RATES_V3PLUS = (6, 12, 18, 24), (6, 12, 18)


class ResNet101(nn.Module):
    """torchvision's ResNet-101 without its `fc`, whose last stages may have dilation in place of stride.

    Args:
        stride: of the last feature map, 8 (stages 3 and 4 dilated by 2 and 4) or 16 (stage 4 dilated by 2).
        width: factor on every number of channels.

    Shape:
        N×3×H×W → features at 1/4, N×256×H/4×W/4, and last ones, N×2048×H/stride×W/stride; sides are rounded up.

    Reference:
        He et al., CVPR 2016; dilation: Chen et al., TPAMI 2018.
    """

    def __init__(self, stride: int, width: float = 1.0):
        super().__init__()
        stem, *planes = (scaled(channels, width) for channels in (64, 64, 128, 256, 512))
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        strides, dilations = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2))}[stride]
        inputs = stem
        for n, (mid, blocks) in enumerate(zip(planes, BLOCKS, strict=True)):
            setattr(self, f"layer{n + 1}", stage(inputs, mid, blocks, strides[n], dilations[n]))
            inputs = Bottleneck.expansion * mid
        self.channels = (Bottleneck.expansion * planes[0], inputs)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        early = self.layer1(x)
        return early, self.layer4(self.layer3(self.layer2(early)))


def stage(inputs: int, mid: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    outputs = Bottleneck.expansion * mid
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    later = (Bottleneck(outputs, mid, dilation=dilation) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, mid, stride, shortcut, dilation=dilation), *later)


class DeepLabV2(nn.Module):
    """ResNet-101 at stride 8, and the sum of four dilated 3×3 convolutions (ASPP).

    Args:
        classes: number of classes, background included.
        width: factor on the backbone's numbers of channels.

    Shape:
        Input N×3×H×W, normalised. Training: logits N×classes×2h×2w, twice the feature map h×w = H/8×W/8, in float32.

    Reference:
        Chen et al., TPAMI 2018, section 4.1: rates 6, 12, 18, 24.
    """

    def __init__(self, classes: int = 21, width: float = 1.0):
        super().__init__()
        self.encoder = ResNet101(8, width)
        last = self.encoder.channels[1]
        self.aspp = nn.ModuleList(nn.Conv2d(last, classes, 3, padding=rate, dilation=rate) for rate in RATES_V2)
        for branch in self.aspp:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def main_logits(self, x: Tensor) -> Tensor:
        """Evaluation: logits at the resolution of the feature map."""
        last = self.encoder(x)[1]
        return sum(branch(last) for branch in self.aspp)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.main_logits(x).float()
        return resize(logits, (2 * logits.shape[-2], 2 * logits.shape[-1]))


class DeepLabV3Plus(nn.Module):
    """ResNet-101 at stride 16 and segmentation_models.pytorch's decoder: separable ASPP, joined with features of 1/4.

    Args:
        classes: number of classes, background included.
        width: factor on the numbers of channels of backbone and ASPP.

    Shape:
        Input N×3×H×W, normalised; inside, it is padded by zeros to whole strides. Logits N×classes×H/4×W/4, sides
        rounded up, float32 in training.

    Reference:
        Chen et al., ECCV 2018; rates 6, 12, 18 at stride 16.
    """

    def __init__(self, classes: int = 21, width: float = 1.0):
        super().__init__()
        self.encoder = ResNet101(16, width)
        early, last = self.encoder.channels
        high = scaled(256, width)
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=(3, 0, early, 0, 0, last),  # it looks at the third and the last
            encoder_depth=5,
            out_channels=high,
            atrous_rates=RATES_V3PLUS,
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        self.head = nn.Conv2d(high, classes, 1)
        for layer in (*self.decoder.modules(), self.head):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def main_logits(self, x: Tensor) -> Tensor:
        """Evaluation: logits at a quarter of the input."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 16, 0, -height % 16))
        early, last = self.encoder(padded)
        logits = self.head(self.decoder([padded, padded, early, early, early, last]))
        return logits[..., : -(-height // 4), : -(-width // 4)]

    def forward(self, x: Tensor) -> Tensor:
        return self.main_logits(x).float()


FINAL = {"deeplabv2": DeepLabV2, "deeplabv3plus": DeepLabV3Plus}


def start_from_imagenet(network: DeepLabV2 | DeepLabV3Plus, state: dict[str, Tensor]) -> None:
    """Give the backbone ImageNet weights under torchvision's names.

    Args:
        state: torchvision's state dict of ResNet-101, `fc` with or without.

    Raises:
        ValueError: keys or shapes are not ResNet-101's (of this width).
    """
    backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        network.encoder.load_state_dict(backbone)
    except RuntimeError as error:
        raise ValueError(f"not the weights of this ResNet-101: {' '.join(str(error).split())[:200]}") from None
