"""ICD's network: VGG16, the CAM branch, and the branch that tells objects from background inside a class."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batchnorm import GlobalBatchNorm, fix_scale
from models.resnet38 import he_initialise, scaled
from models.vgg16 import Vgg16

NEW_LAYER_RATE = 10.0
SPREAD = 0.01


class IcdOutput(NamedTuple):
    """For an input N×3×H×W; h, w are H/8, W/8 rounded up, C the number of foreground classes."""

    cam: Tensor  # N×C×h×w logits
    features: Tensor  # N×512×h×w after feat_bn, what the directions W are learned on
    t: Tensor  # N×C×h×w, the top-down logits: positive on the object, negative on its background


class IcdNetwork(Vgg16):
    """VGG16 with the CAM branch (fc6, fc7, fc8) and the ICD branch (feat_bn, W, fc6_ft, fc7_ft, conv_ft).

    A new network is initialised as the published one where no file has weights: weights Normal(0, 0.01), biases 0. With
    `batchnorm`, meant for learning from scratch, all layers but fc8, W and conv_ft start as He et al. (fan-in).

    Args:
        classes: number of *foreground* classes.
        width, batchnorm: see Vgg16.
        dropout: factor on the published rate of one half.

    Shape:
        Input N×3×H×W (models.vgg16.subtract_mean); see IcdOutput.

    Reference:
        Fan, Zhang, Song and Tan, CVPR 2020; keys after the released program's names
        (models.vgg16.from_mxnet_names).
    """

    def __init__(self, classes: int = 20, width: float = 1.0, batchnorm: bool = False, dropout: float = 1.0):
        super().__init__(width, batchnorm)
        self.dropout = dropout / 2
        hidden, channels = scaled(1024, width), self.out_channels
        self.fc6 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.fc8 = nn.Conv2d(hidden, classes, 1)
        self.feat_bn = fix_scale(GlobalBatchNorm(channels))
        self.fc6_ft = nn.Conv2d(channels, hidden, 3, padding=1)
        self.fc7_ft = nn.Conv2d(hidden, hidden, 1)
        self.conv_ft = nn.Conv2d(channels + 2 * hidden, classes, 1, bias=False)
        self.icd_bu_weight = nn.Parameter(torch.empty(classes, channels))
        self.register_buffer("icd_accum_resign_moving_mean", torch.zeros(classes, 2))
        self._initialise()
        self.start_fine_tuned_layers()

    def _initialise(self) -> None:
        drawn = self.modules()
        if self.batchnorm:
            he_initialise(self)
            drawn = (self.fc8, self.conv_ft)
        for layer in drawn:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=SPREAD)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.icd_bu_weight, std=SPREAD)

    def start_fine_tuned_layers(self) -> None:
        """Make fc6_ft and fc7_ft copies of fc6 and fc7: once, after published weights were loaded into those."""
        self.fc6_ft.load_state_dict(self.fc6.state_dict())
        self.fc7_ft.load_state_dict(self.fc7.state_dict())

    def forward(self, x: Tensor) -> IcdOutput:
        conv5_3, pooled = self.features(x)
        hidden = F.dropout(F.relu(self.fc6(pooled)), self.dropout, self.training)
        hidden = F.dropout(F.relu(self.fc7(hidden)), self.dropout, self.training)
        features = self.feat_bn(conv5_3)
        first = F.relu(self.fc6_ft(features))
        second = F.relu(self.fc7_ft(first))
        t = self.conv_ft(torch.cat([features, first, second], dim=1))
        return IcdOutput(self.fc8(hidden), features, t)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict]:
        """For models.icd.optimiser.Momentum: fc8 and conv_ft learn ten times as fast, biases and betas do not decay.

        Each group has `rate`, its factor on the learning rate; `lr` is to be set anew every epoch as rate · lr.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = NEW_LAYER_RATE if name.startswith(("fc8.", "conv_ft.")) else 1.0
                # One dimension: biases, and what BatchNorm learns.
                decay = weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "rate": rate, "lr": rate * lr, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]
