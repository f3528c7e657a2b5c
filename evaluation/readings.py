"""Other readings of the difference maps than the published one, as rules beside static SSDD, and what they know.

No rule here sees a true mask. A bias comes from the mean and the spread of the rule's own score over the pixels where
knowledge and advice differ, or from the share of the labelled classes that the advice keeps: what loses every second
class is no word to rely on.
"""

from collections.abc import Iterator

import numpy as np
import torch

from datasets.voc import IGNORE
from evaluation.rivals import area_under_roc, before_and_after, weight_by_spread
from models.ssdd.difference import map_score, missing_class_flags
from models.ssdd.steps import Integration
from settings.ssdd import READINGS

# Where the advice differs: it says background, it shows an object where the knowledge has none, or another object.
KINDS = ("erased", "grown", "exchanged")
BINS = 2000
# Rules by their row: the reading, and what its bias follows from; "kind": mean and spread of what the advice erases and
# of the rest.
RULES = {
    **{name: (name, "") for name in READINGS[1:]},
    **{f"{name}, bias by kept classes": (name, "kept") for name in READINGS[:3]},
    **{f"{name}, by mean and spread": (name, "spread") for name in READINGS[:3]},
    **{f"{name}, by mean and spread of each kind": (name, "kind") for name in (READINGS[0], READINGS[3])},
}


def rules_for(advisers: int) -> list[str]:
    """Those that can be told for so many advisers: of several, each kind does not have its own."""
    return [rule for rule, (_, bias) in RULES.items() if advisers == 1 or bias != "kind"]


def kinds(before: np.ndarray, advice: np.ndarray) -> dict[str, np.ndarray]:
    """Where the masks H×W differ, by KINDS; a pixel that one does not know is of none."""
    differ = (before != advice) & (before != IGNORE) & (advice != IGNORE)
    erased, grown = differ & (advice == 0), differ & (before == 0)
    return {"erased": erased, "grown": grown, "exchanged": differ & ~erased & ~grown}


def scores(before: np.ndarray, advice: np.ndarray, maps: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Each reading with its score H×W, of the logits 2×H×W."""
    k, a = (torch.from_numpy(mask.astype(np.int64))[None] for mask in (before, advice))
    for reading in READINGS:
        yield reading, map_score(*maps[:, None, None], k, a, reading)[0].numpy()


class Spreads:
    """What needs no true mask: mean and standard deviation of each reading's score where the masks differ, by kind and
    over all, and how many of the labelled classes the advice keeps."""

    def __init__(self):
        self.labelled = self.lost = 0
        self.sums = {(reading, kind): np.zeros(3) for reading in READINGS for kind in ("all", "erased", "shown")}

    def add(self, before: np.ndarray, advice: np.ndarray, maps: torch.Tensor, present: torch.Tensor) -> None:
        k, a = (torch.from_numpy(mask.astype(np.int64))[None] for mask in (before, advice))
        self.labelled += int(present[:, 1:].sum())
        self.lost += int(missing_class_flags(k, a, present).sum())
        erased, grown, exchanged = kinds(before, advice).values()
        shown = grown | exchanged
        for reading, score in scores(before, advice, maps):
            for kind, where in {"all": erased | shown, "erased": erased, "shown": shown}.items():
                there = score[where].astype(np.float64)
                self.sums[reading, kind] += len(there), there.sum(), np.square(there).sum()

    def of(self, reading: str, kind: str = "all") -> tuple[float, float]:
        """(mean, standard deviation), both 0 where there was no pixel."""
        count, total, squares = self.sums[reading, kind]
        if not count:
            return 0.0, 0.0
        return float(total / count), float(np.sqrt(max(squares / count - (total / count) ** 2, 0)))

    def bias_by_kept_classes(self) -> float:
        """logit(kept)/4, the share of kept classes standing for the chance that the advice is right.

        Even odds leave the choice to the maps. Over 4, as every reading has the slope ¼ of σ where both logits are 0.
        """
        kept = np.clip(1 - self.lost / max(self.labelled, 1), 0.01, 0.99)
        return float(np.log(kept / (1 - kept)) / 4)


def by_mean_and_spread(how: Integration, reading: str, mean: float, spread: float) -> Integration:
    """A score of one standard deviation less than its mean weighs as much as the bias against it."""
    weight = weight_by_spread(how.bias, spread)
    return how._replace(reading=reading, weight=weight, bias=how.bias - weight * mean)


def masks_by_readings(
    masks: list[np.ndarray], differences: torch.Tensor, present: torch.Tensor, how: Integration, spreads: Spreads
) -> dict[str, np.ndarray]:
    """The mask H×W of each rule.

    Args:
        masks: of knowledge and A advisers.
        differences: logits (d_K, d_A) of each adviser, 2×A×H×W.
        present: 1×C image-level label.
        how: the integration of static SSDD.
    """

    def refined(one: Integration) -> np.ndarray:
        return before_and_after(masks, differences, present, one)[-1]

    found = {}
    for rule in rules_for(len(masks) - 1):
        reading, bias = RULES[rule]
        if bias == "kind":
            own = [by_mean_and_spread(how, reading, *spreads.of(reading, kind)) for kind in ("erased", "shown")]
            found[rule] = np.where(masks[1] == 0, *(refined(one) for one in own))
        elif bias == "kept":
            found[rule] = refined(how._replace(reading=reading, bias=spreads.bias_by_kept_classes()))
        elif bias == "spread":
            found[rule] = refined(by_mean_and_spread(how, reading, *spreads.of(reading)))
        else:
            found[rule] = refined(how._replace(reading=reading))
    return found


class Detection:
    """How well each reading's score tells that the advice is right where the masks differ, by kind and over all."""

    def __init__(self):
        self.histograms = {(r, kind): np.zeros((2, BINS)) for r in READINGS for kind in ("all", *KINDS)}

    def add(self, before: np.ndarray, advice: np.ndarray, maps: torch.Tensor, truth: np.ndarray) -> None:
        found = {kind: where & (truth != IGNORE) for kind, where in kinds(before, advice).items()}
        right = [(mask == truth) for mask in (before, advice)]
        for reading, score in scores(before, advice, maps):
            bounded = score / (1 + np.abs(score))
            for kind, where in found.items():
                for row, good in enumerate(right):
                    counts = np.histogram(bounded[where & good], BINS, (-1, 1))[0]
                    self.histograms[reading, kind][row] += counts
                    self.histograms[reading, "all"][row] += counts

    def areas(self) -> dict[str, dict[str, float | None]]:
        """{reading: {kind: area under the ROC curve}}; 0.5 is nothing, None: no such pixel, or only one side right."""
        kinds_and_all = ("all", *KINDS)
        return {r: {kind: area_under_roc(*self.histograms[r, kind]) for kind in kinds_and_all} for r in READINGS}
