"""The difference-detection network (DD-Net): where will a refinement change this mask?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.resnet38 import he_initialise, scaled
from models.ssdd.difference import one_hot


class FeatureHead(nn.Module):
    """`dd_head`: joins the head features with the early backbone features.

    Shape:
        head features N×512×h×w and conv2 N×128×2h×2w → N×256×h×w.
    """

    def __init__(self, width: float):
        super().__init__()
        hidden = scaled(256, width)
        self.conv1ab = nn.Module()
        self.conv1ab.conv1 = nn.Conv2d(
            scaled(512, width) + scaled(128, width), hidden, 3, padding=1, padding_mode="reflect", bias=False
        )
        self.conv1ab.bn1 = nn.BatchNorm2d(hidden, eps=1e-3)

    def forward(self, high: Tensor, conv2: Tensor) -> Tensor:
        low = F.avg_pool2d(conv2.float(), 2)
        return F.relu(self.conv1ab.bn1(self.conv1ab.conv1(torch.cat([high, low], dim=1))))


class DifferenceModule(nn.Module):
    """`dd`: features and the one-hot mask → the logit, at each pixel, that the refinement changes it.

    Shape:
        features N×256×h×w and one-hot mask N×21×h×w → N×1×h×w.
    """

    def __init__(self, classes: int, width: float):
        super().__init__()
        hidden = scaled(256, width)
        self.conv1c = nn.Module()
        self.conv1c.conv1 = nn.Conv2d(classes, hidden, 1, bias=False)
        self.conv1c.bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.conv1abc = nn.Module()
        self.conv1abc.conv1 = nn.Conv2d(2 * hidden, hidden, 1, bias=False)
        self.conv1abc.bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.conv1abc.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, padding_mode="reflect", bias=False)
        self.conv1abc.bn2 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.conv1abc.conv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.conv1abc.bn3 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.conv1abc.downsample = nn.Conv2d(2 * hidden, hidden, 1, bias=False)
        self.conv1abc.bnd = nn.BatchNorm2d(hidden, eps=1e-3)
        self.pred_abc = nn.Conv2d(hidden, 1, 1, bias=False)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        mask_features = F.relu(self.conv1c.bn1(self.conv1c.conv1(mask)))
        joined = torch.cat([features, mask_features], dim=1)
        block = self.conv1abc
        x = F.relu(block.bn1(block.conv1(joined)))
        x = F.relu(block.bn2(block.conv2(x)))
        x = block.bn3(block.conv3(x)) + block.bnd(block.downsample(joined))
        return self.pred_abc(F.relu(x))


class DDNet(nn.Module):
    """DD modules with their feature heads: one an adviser (static), or two (dynamic).

    Args:
        modules: 1 builds dd_head0 and dd0, 2 also dd_head1 and dd1, and so on.
        classes: number of classes, background included.
        width: factor on the number of channels.

    Reference:
        Shimoda and Yanai, ICCV 2019, section 3.
    """

    def __init__(self, modules: int = 1, classes: int = 21, width: float = 1.0):
        super().__init__()
        self.classes = classes
        for index in range(modules):
            self.add_module(f"dd_head{index}", FeatureHead(width))
            self.add_module(f"dd{index}", DifferenceModule(classes, width))
        he_initialise(self)

    def features(self, index: int, high: Tensor, conv2: Tensor) -> Tensor:
        """Features of module `index`; both inputs are detached, so no gradient reaches the backbone."""
        return self.get_submodule(f"dd_head{index}")(high.detach(), conv2.detach())

    def differences(self, index: int, features: Tensor, knowledge: Tensor, advice: Tensor) -> tuple[Tensor, Tensor]:
        """Difference logits d_K and d_A, N×1×h×w each, of two masks N×h×w, as one batch through module `index`."""
        module = self.get_submodule(f"dd{index}")
        masks = one_hot(torch.cat([knowledge, advice]), self.classes)
        d_k, d_a = module(torch.cat([features, features]), masks).float().chunk(2)
        return d_k, d_a
