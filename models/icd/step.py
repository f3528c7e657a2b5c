"""One training step of ICD as a function of a batch; a module so that DistributedDataParallel can wrap it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.icd.bottom_up import bottom_up_loss, class_scores, signed, update_sign_statistics
from models.icd.network import IcdNetwork
from models.icd.refinement import refine, resized_one_hot
from models.icd.top_down import cam_loss, top_down_loss


class IcdStepResult(NamedTuple):
    loss_cam: Tensor
    loss_bottom_up: Tensor  # negative: the mean of s², to be made large
    loss_top_down: Tensor  # with the warm-up's factor
    scores: Tensor  # N×C×h×w with their sign
    refined: Tensor  # N×C×h×w, what t learned from
    cam: Tensor  # N×C×h×w logits
    t: Tensor  # N×C×h×w logits

    @property
    def loss(self) -> Tensor:
        return self.loss_cam + self.loss_bottom_up + self.loss_top_down


class IcdStep(nn.Module):
    """All three branches learn at once; backward of the sum of the three losses gives the published gradients.

    The CAM's loss reaches the backbone and the top-down loss does; the bottom-up loss reaches W alone.

    Args:
        superpixels: ids that a crop can have, padding included; 65 for at most 64 superpixels an image.
    """

    def __init__(self, network: IcdNetwork, superpixels: int = 65):
        super().__init__()
        self.network, self.superpixels = network, superpixels

    def forward(self, x: Tensor, present: Tensor, superpixels: Tensor, warm_up: float) -> IcdStepResult:
        """
        Args:
            x: N×3×H×W of models.vgg16.subtract_mean.
            present: N×(C+1) image-level labels, background first.
            superpixels: N×H×W ids, below the number given to the constructor.
            warm_up: of models.icd.top_down.warm_up.
        """
        output = self.network(x)
        labels = present[:, 1:]
        with torch.autocast(x.device.type, enabled=False):
            cam, features, t = (tensor.float() for tensor in output)
            scores = class_scores(features, self.network.icd_bu_weight)
            loss_bottom_up = bottom_up_loss(scores, labels)
            scores, fixed_cam = scores.detach(), cam.detach()
            statistics = self.network.icd_accum_resign_moving_mean
            if self.training:
                update_sign_statistics(statistics, scores, fixed_cam, labels)
            scores = signed(scores, statistics)
            one_hot = resized_one_hot(superpixels, tuple(scores.shape[-2:]), self.superpixels)
            refined = refine(scores, labels, one_hot)
            loss_top_down = warm_up * top_down_loss(t, refined, labels)
            return IcdStepResult(cam_loss(cam, labels), loss_bottom_up, loss_top_down, scores, refined, fixed_cam, t)
