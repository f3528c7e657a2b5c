"""One training step as a function of a batch: seeds from the network itself, and mixed images.

It is a module so that DistributedDataParallel can wrap the whole step. Every parameter gets a gradient in every step,
zero where a loss has nothing to say.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.crf import present_probabilities
from models.inference import resize
from models.recurseed.cam import Chosen, choose, chosen_classes, normalised_cam, spread
from models.recurseed.certain import (
    CERTAIN,
    IGNORE,
    UNSURE,
    Mixed,
    certain_labels,
    certain_mix,
    draw_partners,
    enlarged,
    without_evidence,
)
from models.recurseed.losses import cam_loss, classification_loss, on_grid, segmentation_loss
from models.recurseed.network import Output, RecurSeedNetwork
from models.recurseed.pamr import ITERATIONS, pamr
from models.recurseed.scg import self_correlation_maps


@dataclass(frozen=True)
class SeedSettings:
    """How seeds come from the network's own output."""

    stride: int = 16  # of the grid that SCG works on, pixels; 8 takes 16 times its memory, 64 its time
    foreground: float = 0.30  # SCG: CAM of sure cells
    background: float = 0.05  # SCG: CAM of cells that surely lack the class
    pamr_stride: int = 2  # PAMR works at the crop's side over this
    pamr_iterations: int = ITERATIONS
    certain: float = CERTAIN  # CertainFilter
    unsure: float = UNSURE
    eval_mode: bool = False  # seeds from a forward of their own with dropout off and BatchNorm's running statistics


class Losses(NamedTuple):
    """All of weight 1 as published; those that have nothing to learn from are exactly 0."""

    cls: Tensor
    cam: Tensor
    seg: Tensor
    cls_mix: Tensor
    cam_mix: Tensor
    seg_mix: Tensor


class Seeds(NamedTuple):
    """What the network says now, without gradient; h×w is the size that PAMR works at."""

    chosen: Chosen  # the K classes of each image
    maps: Tensor  # M_rs, N×K×h×w
    labels: Tensor  # N×h×w int64, M_rs after CertainFilter; the labels of L_seg
    mix_labels: Tensor  # N×h×w int64, M_dec after CertainFilter; what CertainMix pastes


class StepResult(NamedTuple):
    losses: Losses
    output: Output
    seeds: Seeds | None  # before RecurSeed starts there are none
    mixed: Mixed | None  # before CertainMix starts there are none


class RecurSeedStep(nn.Module):
    """Forward of a batch with all losses.

    Args:
        network: in training mode.
        how: see SeedSettings.

    Reference:
        Jo, Yu and Kim, arXiv 2204.06754, figures of both versions.
    """

    def __init__(self, network: RecurSeedNetwork, how: SeedSettings = SeedSettings()):
        super().__init__()
        self.network, self.how = network, how

    def forward(self, x: Tensor, present: Tensor, inside: Tensor, recurseed: bool, mix: bool) -> StepResult:
        """One step.

        Args:
            x: N×3×H×W normalised, padding 0.
            present: N×C image-level labels, background first.
            inside: N×H×W bool, pixels of the image; False is padding.
            recurseed: learn from own seeds (published: from epoch 5, counted from 1).
            mix: learn from mixed images too (from epoch 15); needs `recurseed`.
        """
        output = self.network(x, decode=recurseed)
        everyone = torch.ones_like(present[:, 0], dtype=torch.bool)
        cls = classification_loss(output.scores, present, everyone)
        nothing = torch.zeros_like(cls)
        if not recurseed:
            # The decoder has nothing to learn from yet and is not run; its parameters still have their part in a loss.
            unused = sum(0 * parameter.sum() for parameter in self.network.decoder_parameters())
            return StepResult(Losses(cls, nothing, unused, nothing, nothing, nothing), output, None, None)
        seeds = self.seeds(output, x, present, inside)
        target = self._target(seeds, seeds.maps, output.cam)
        cam = cam_loss(output.cam, target, present, _cells(inside, output.cam))
        seg = segmentation_loss(output.seg, enlarged(seeds.labels, tuple(x.shape[-2:])))
        if not mix:
            return StepResult(Losses(cls, cam, seg, nothing, nothing, nothing), output, seeds, None)
        mixed, mix_losses = self.mix(x, seeds, present, inside)
        return StepResult(Losses(cls, cam, seg, *mix_losses), output, seeds, mixed)

    @torch.no_grad()
    def seeds(self, output: Output, x: Tensor, present: Tensor, inside: Tensor) -> Seeds:
        """M_rs = PAMR(SCG(CAM)) and M_dec = PAMR(softmax of the decoder), each after CertainFilter."""
        how = self.how
        if how.eval_mode:
            training = self.network.training
            self.network.eval()
            output = self.network(x)
            self.network.train(training)
        chosen = chosen_classes(present)
        grid, small = (tuple(-(-side // stride) for side in x.shape[-2:]) for stride in (how.stride, how.pamr_stride))
        cam = choose(resize(output.cam.float(), grid), chosen)
        cells = _cells(inside, cam)
        levels = [resize(level.float(), grid) for level in output.features[1:]]
        scm = self_correlation_maps(normalised_cam([cam], cells), levels, cells, how.foreground, how.background)
        decoded = choose(present_probabilities(output.seg, present)[:, 1:], chosen)
        # Both refined at once: they share the affinities.
        maps = torch.cat([resize(scm, small), resize(decoded, small)], dim=1)
        m_rs, m_dec = pamr(resize(x.float(), small), maps, how.pamr_iterations).chunk(2, dim=1)
        pixels = on_grid(inside[:, None].float(), small)[:, 0] > 0.999
        thresholds = {"certain": how.certain, "unsure": how.unsure}
        labels = certain_labels(m_rs, chosen, pixels, without_evidence(scm, chosen), **thresholds)
        return Seeds(chosen, m_rs, labels, certain_labels(m_dec, chosen, pixels, **thresholds))

    def mix(self, x: Tensor, seeds: Seeds, present: Tensor, inside: Tensor) -> tuple[Mixed, tuple[Tensor, ...]]:
        """CertainMix and its second forward: (mixed images, (L_cls^mix, L_cam^mix, L_seg^mix))."""
        partners = draw_partners(len(x), x.device)
        mixed = certain_mix(x, seeds.mix_labels, present, partners)
        output = self.network(mixed.x)
        base = self._target(seeds, seeds.maps * ~mixed.pasted[:, None], output.cam)
        theirs = Seeds(Chosen(*(part[partners] for part in seeds.chosen)), *(part[partners] for part in seeds[1:]))
        target = base + self._target(theirs, theirs.maps * mixed.pasted[:, None], output.cam)
        # An object that was pasted over padding is part of the mixed image.
        covered = inside | enlarged(mixed.pasted, tuple(x.shape[-2:]))
        taking_part = mixed.present * mixed.mixed[:, None]
        labels = mixed.labels.masked_fill(~mixed.mixed[:, None, None], IGNORE)
        return mixed, (
            classification_loss(output.scores, mixed.present, mixed.mixed),
            cam_loss(output.cam, target, taking_part, _cells(covered, output.cam)),
            segmentation_loss(output.seg, enlarged(labels, tuple(x.shape[-2:]))),
        )

    def _target(self, seeds: Seeds, maps: Tensor, cam: Tensor) -> Tensor:
        """Maps of the chosen classes on the CAM's grid, for all classes."""
        return spread(on_grid(maps, tuple(cam.shape[-2:])), seeds.chosen, cam.shape[1])


def _cells(inside: Tensor, maps: Tensor) -> Tensor:
    """N×h×w bool: cells of `maps` of which at least half belong to the image."""
    return on_grid(inside[:, None].float(), tuple(maps.shape[-2:]))[:, 0] >= 0.5
