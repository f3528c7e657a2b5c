"""One training step of the static and of the dynamic mode, as functions of a batch.

They are modules so that DistributedDataParallel can wrap a whole step. The two networks share no gradient: the
DD-Net's inputs are detached, so one backward of `loss_seg + loss_dd` trains each on its own loss.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.ssdd.ddnet import DDNet
from models.ssdd.difference import (
    by_score,
    cross_entropy,
    dynamic_segmentation_loss,
    integrate,
    map_score,
    missing_class_flags,
    pair_difference_loss,
    seed_difference_loss,
)
from models.ssdd.segmentation import SegmentationNetwork, masked_prediction, upsample_twice


class Integration(NamedTuple):
    """How d_K and d_A are turned into a mask; see models.ssdd.difference.integrate."""

    bias: float = 0.4
    bg: float = 0.0
    poster_flags: bool = False  # for the integration only; the difference loss always skips images that lost a class
    weight: float = 1.0  # factor on σ(d_K) − σ(d_A)
    parts: str = "both"  # that choose: "maps", "flags", "both", or none: always "knowledge" or always "advice"
    reading: str = "published"  # of the maps, see models.ssdd.difference.map_score


class ModuleResult(NamedTuple):
    """One SSDD module's view of a batch; what the pages show."""

    knowledge: Tensor  # N×h×w
    advice: Tensor
    d_k: Tensor  # N×1×h×w logits
    d_a: Tensor
    flags: Tensor  # N×C
    refined: Tensor  # N×h×w


def run_module(
    ddnet: DDNet, index: int, features: Tensor, knowledge: Tensor, advice: Tensor, present: Tensor, how: Integration
) -> ModuleResult:
    """SSDD module `index`: difference maps of knowledge and advice, flags, and the integrated mask."""
    d_k, d_a = ddnet.differences(index, features, knowledge, advice)
    return integrated(knowledge, advice, d_k, d_a, present, how)


def integrated(
    knowledge: Tensor, advice: Tensor, d_k: Tensor, d_a: Tensor, present: Tensor, how: Integration
) -> ModuleResult:
    """Flags and integrated mask for difference logits that are known already."""
    flags = missing_class_flags(knowledge, advice, present, how.poster_flags)
    refined = chosen(knowledge, advice, d_k, d_a, flags, how)
    return ModuleResult(knowledge, advice, d_k, d_a, flags, refined)


def chosen(knowledge: Tensor, advice: Tensor, d_k: Tensor, d_a: Tensor, flags: Tensor, how: Integration) -> Tensor:
    """The integrated mask by those parts of the rule that `how` names: what each of them brings."""
    if how.parts in ("knowledge", "advice"):
        # Nothing but a bias, larger than any that could be: it yields only where its mask is unknown.
        zero, bias = torch.zeros_like(d_k), 1.0 if how.parts == "advice" else -1.0
        return integrate(knowledge, advice, zero, zero, torch.zeros_like(flags), bias)
    if how.parts == "flags":
        d_k = d_a = torch.zeros_like(d_k)
    if how.parts == "maps":
        flags = torch.zeros_like(flags)
    score = how.weight * map_score(d_k, d_a, knowledge, advice, how.reading)
    return by_score(knowledge, advice, score, flags, how.bias, how.bg)


def integrated_in_turn(
    knowledge: Tensor, advices: Sequence[Tensor], d_k: Tensor, d_a: Tensor, present: Tensor, how: Integration
) -> tuple[ModuleResult, ...]:
    """`integrated` for one adviser after the other: what one gives is the knowledge of the next.

    Args:
        advices: a mask N×h×w of each adviser.
        d_k, d_a: N×A×h×w, the difference logits of each of the A advisers.
    """
    results: list[ModuleResult] = []
    for n, advice in enumerate(advices):
        results.append(integrated(knowledge, advice, d_k[:, n : n + 1], d_a[:, n : n + 1], present, how))
        knowledge = results[-1].refined
    return tuple(results)


class StepResult(NamedTuple):
    loss_seg: Tensor
    loss_dd: Tensor
    modules: tuple[ModuleResult, ...]
    logits: tuple[Tensor, ...]  # of seg_main and, in the dynamic mode, seg_sub


class StaticStep(nn.Module):
    """Mode 0: seg_main learns the knowledge, the DD-Net where the advice differs from it (paper section 3).

    Several advisers are integrated in turn, each by a DD module of its own: its knowledge is what the one before gave.
    The modules share nothing, so the first learns as if it were alone.

    Pixels that a mask does not know (255) take no part in what that mask is needed for; see models.ssdd.
    """

    def __init__(self, segmentation: SegmentationNetwork, ddnet: DDNet, how: Integration):
        super().__init__()
        self.segmentation, self.ddnet, self.how = segmentation, ddnet, how

    def predict(
        self, x: Tensor, present: Tensor, knowledge: Tensor, *advices: Tensor
    ) -> tuple[Tensor, tuple[ModuleResult, ...]]:
        """Logits of seg_main and each SSDD module's view; mode 1 needs no more."""
        output = self.segmentation(x)
        modules: list[ModuleResult] = []
        for n, advice in enumerate(advices):
            features = self.ddnet.features(n, output.main.features, output.conv2)
            modules.append(run_module(self.ddnet, n, features, knowledge, advice, present, self.how))
            knowledge = modules[-1].refined
        return output.main.logits, tuple(modules)

    def forward(self, x: Tensor, present: Tensor, knowledge: Tensor, *advices: Tensor) -> StepResult:
        """x N×3×H×W normalised; present N×C; the masks N×H/4×W/4, one or several advices."""
        logits, modules = self.predict(x, present, knowledge, *advices)
        loss_seg = cross_entropy(logits, knowledge)
        losses = []
        for module in modules:
            lost = missing_class_flags(module.knowledge, module.advice, present)
            losses.append(pair_difference_loss(module.d_k, module.d_a, module.knowledge, module.advice, lost))
        return StepResult(loss_seg, sum(losses[1:], start=losses[0]), modules, (logits,))


class DynamicStep(nn.Module):
    """Mode 2: two SSDD modules around the segmentation network (paper section 4).

    The seed may be unknown (255) in places.

    Args:
        alpha: weight of the seed m_ssdd0 in seg_sub's loss.
        seed_target: which mask d(m_ssdd1) is compared with: "ssdd1" (paper) or "ssdd2" (released program).
        crf: (images N×h×w×3 uint8, logits, present) → function that waits for the masks N×h×w;
            models.crf.masks_after_crf or models.exact_crf.exact_masks with its settings.
    """

    def __init__(
        self,
        segmentation: SegmentationNetwork,
        ddnet: DDNet,
        how: Integration,
        alpha: float,
        seed_target: str,
        crf: Callable[[Tensor, Tensor, Tensor], Callable[[], Tensor]],
    ):
        super().__init__()
        self.segmentation, self.ddnet, self.how = segmentation, ddnet, how
        self.alpha, self.seed_target, self.crf = alpha, seed_target, crf

    def forward(
        self, x: Tensor, present: Tensor, images: Tensor, seed: Tensor, seed_teaches: bool = False
    ) -> StepResult:
        """One step.

        Args:
            x: N×3×H×W normalised.
            present: N×C.
            images: N×H/4×W/4×3 uint8, for the CRF.
            seed: m_ssdd0, N×H/4×W/4.
            seed_teaches: both heads learn the seed alone, in place of m_ssdd2 (ours).
        """
        encoded = self.segmentation.encoder(x)
        main, main_features = upsample_twice(self.segmentation.seg_main(encoded.conv6))
        crf_masks = self.crf(images, main, present)
        # Up to `crf_masks()` nothing needs the CRF, whose workers are busy meanwhile.
        sub, sub_features = upsample_twice(self.segmentation.seg_sub(encoded.conv6))
        features = [self.ddnet.features(n, f, encoded.conv2) for n, f in enumerate((main_features, sub_features))]
        m_seg = masked_prediction(main, present)
        m_sub = masked_prediction(sub, present)

        m_crf1 = crf_masks()
        first = run_module(self.ddnet, 0, features[0], m_seg, m_crf1, present, self.how)
        second = run_module(self.ddnet, 1, features[1], seed, first.refined, present, self.how)

        target = second.refined if self.seed_target == "ssdd2" else first.refined
        lost = missing_class_flags(m_seg, m_crf1, present)
        loss_crf = pair_difference_loss(first.d_k, first.d_a, m_seg, m_crf1, lost)
        loss_seed = seed_difference_loss(second.d_k, seed, m_sub) + seed_difference_loss(second.d_a, target, m_sub)
        # The sum of four maps' losses over 4; loss_crf is the mean of its two.
        loss_dd = (2 * loss_crf + loss_seed) / 4
        teacher = seed if seed_teaches else second.refined
        loss_seg = dynamic_segmentation_loss(main, sub, seed, teacher, self.alpha)
        return StepResult(loss_seg, loss_dd, (first, second), (main, sub))
