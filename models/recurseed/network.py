"""The network: ResNet-50 at stride 16, class activation maps at its end, and a DeepLabv3+ decoder."""

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from models.inference import resize
from models.resnet38 import scaled

BLOCKS = (3, 4, 6, 3)


class Features(NamedTuple):
    """What the backbone gives, for an input N×3×H×W (channels at width 1.0); sides are rounded up."""

    c1: Tensor  # N×64×H/4×W/4, after max pooling
    c2: Tensor  # N×256×H/4×W/4
    c3: Tensor  # N×512×H/8×W/8
    c4: Tensor  # N×1024×H/16×W/16
    c5: Tensor  # N×2048×H/16×W/16


class Output(NamedTuple):
    features: Features
    cam: Tensor  # N×20×H/16×W/16, logits of the foreground classes at each cell
    scores: Tensor  # N×20, logits of the image's classes: the average of `cam`
    seg: Tensor | None  # N×21×H/4×W/4, the decoder's logits; None where it was not asked


class ResNet50(nn.Module):
    """torchvision's ResNet-50 without its `fc`; the last stage has stride 1 and no dilation.

    Args:
        width: factor on every number of channels.

    Reference:
        He et al., CVPR 2016.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        stem, *planes = (scaled(channels, width) for channels in (64, 64, 128, 256, 512))
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = (stem, *(Bottleneck.expansion * mid for mid in planes))
        for n, (mid, blocks, stride) in enumerate(zip(planes, BLOCKS, (1, 2, 2, 1), strict=True)):
            setattr(self, f"layer{n + 1}", stage(inputs[n], mid, blocks, stride))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Features:
        c1 = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(c1)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return Features(c1, c2, c3, c4, self.layer4(c4))


def stage(inputs: int, mid: int, blocks: int, stride: int) -> nn.Sequential:
    outputs = Bottleneck.expansion * mid
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    later = (Bottleneck(outputs, mid) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, mid, stride, shortcut), *later)


class BatchNormOfOne(nn.BatchNorm2d):
    """BatchNorm that takes its running statistics where a batch has one value a channel, which has no spread."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class AtrousBranch(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.atrous_conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: c5 → D1, N×256×H/16×W/16 (Chen et al., ECCV 2018)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.aspp1 = AtrousBranch(inputs, outputs, 1, 1)
        self.aspp2 = AtrousBranch(inputs, outputs, 3, 6)
        self.aspp3 = AtrousBranch(inputs, outputs, 3, 12)
        self.aspp4 = AtrousBranch(inputs, outputs, 3, 18)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, outputs, 1, bias=False), BatchNormOfOne(outputs), nn.ReLU()
        )
        self.conv1 = nn.Conv2d(5 * outputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(0.5)

    def forward(self, c5: Tensor) -> Tensor:
        branches = [branch(c5) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        pooled = self.global_avg_pool(c5).expand(-1, -1, *c5.shape[-2:])
        return self.dropout(F.relu(self.bn1(self.conv1(torch.cat([*branches, pooled], dim=1)))))


class Decoder(nn.Module):
    """(D1, c2) → D2, N×512×H/4×W/4, → logits."""

    def __init__(self, high: int, low: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(low, high, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(high)
        self.classifier = nn.Sequential(
            nn.Conv2d(2 * high, high, 3, padding=1, bias=False),
            nn.BatchNorm2d(high),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(high, high, 3, padding=1, bias=False),
            nn.BatchNorm2d(high),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(high, classes, 3, padding=1, bias=False),
        )

    def joined(self, d1: Tensor, c2: Tensor) -> Tensor:
        low = F.relu(self.bn1(self.conv1(c2)))
        return torch.cat([resize(d1, low.shape[-2:]), low], dim=1)

    def forward(self, d1: Tensor, c2: Tensor) -> Tensor:
        return self.classifier(self.joined(d1, c2))


class RecurSeedNetwork(nn.Module):
    """Backbone, CAM classifier and decoder. A released state dict loads as it is (374 entries at 21 classes).

    Args:
        classes: number of classes, background included; the CAM classifier has one less.
        width: factor on every number of channels; 1.0 is the published network.

    Shape:
        Input N×3×H×W, normalised (datasets.transforms.normalise), of any size; see `Output`.

    Reference:
        Jo, Yu and Kim, arXiv 2204.06754; keys, dropouts and strides as in the release.
    """

    def __init__(self, classes: int = 21, width: float = 1.0):
        super().__init__()
        self.model = ResNet50(width)
        low, last, mid = scaled(64, width) * 4, scaled(512, width) * 4, scaled(256, width)
        self.classifier = nn.Conv2d(last, classes - 1, 1, bias=False)
        self.aspp = ASPP(last, mid)
        self.decoder = Decoder(mid, low, classes)
        for part in (self.aspp, self.decoder):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, decode: bool = True) -> Output:
        features = self.model(x)
        cam = self.classifier(features.c5)
        seg = self.decoder(self.aspp(features.c5), features.c2) if decode else None
        return Output(features, cam, cam.mean(dim=(2, 3)), seg)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        return chain(self.aspp.parameters(), self.decoder.parameters())


def start_from_imagenet(network: RecurSeedNetwork, state: dict[str, Tensor]) -> None:
    """Give the backbone torchvision's ImageNet weights of ResNet-50 (published: the set IMAGENET1K_V1).

    Args:
        state: torchvision's state dict, `fc` with or without; or that of a RecurSeedNetwork, whose backbone is taken.

    Raises:
        ValueError: keys or shapes are not ResNet-50's (of this width).
    """
    others = ("fc.", "classifier.", "aspp.", "decoder.")
    backbone = {key.removeprefix("model."): value for key, value in state.items() if not key.startswith(others)}
    try:
        network.model.load_state_dict(backbone)
    except RuntimeError as error:
        raise ValueError(f"not the weights of this ResNet-50: {' '.join(str(error).split())[:300]}") from None
