"""The rivals of static SSDD: rules that choose among knowledge and advisers, and what is counted of them."""

import numpy as np
import torch

from datasets.seed_store import SeedMaps
from datasets.voc import IGNORE
from evaluation.metrics import confusion, iou, mean_iou, without_unknown
from models.ssdd.difference import integrate, missing_class_flags
from models.ssdd.steps import Integration, integrated_in_turn

# Beside the masks alone and the oracle.
COMPARED = ("larger probability", "flags alone", "maps alone", "SSDD, maps by their spread", "static SSDD")
BIASES = tuple(np.arange(-1.0, 1.05, 0.1).round(1).tolist())
BINS = 400  # of σ(d_K) − σ(d_A) in −1…1


def choices(
    members: list[SeedMaps],
    differences: torch.Tensor,
    present: torch.Tensor,
    how: Integration,
    spread: float,
    truth: np.ndarray,
) -> dict[str, np.ndarray]:
    """The mask H×W of every rule that chooses among the knowledge and its A advisers, but for static SSDD, whose masks
    lie in files. An unknown pixel is never chosen where another mask knows.

    Args:
        members: knowledge and advisers, in their order.
        differences: logits (d_K, d_A) of each adviser, 2×A×H×W.
        present: 1×C image-level label.
        how: the integration of static SSDD, of which parts are left out.
        spread: of σ(d_K) − σ(d_A), see `spread_of_maps`.
        truth: the true mask, for the oracle.
    """
    masks = [maps.mask() for maps in members]
    # PSA's maps do not sum to 1, the CRF's do.
    sure = [
        np.where(mask == IGNORE, -1, maps.maps.max(axis=0) / np.maximum(maps.maps.sum(axis=0), 1e-12))
        for maps, mask in zip(members, masks, strict=True)
    ]
    larger, most, oracle = masks[0], sure[0], masks[0]
    for mask, own in zip(masks[1:], sure[1:], strict=True):
        larger, most = np.where(own >= most, mask, larger), np.maximum(own, most)
        oracle = np.where((mask == truth) & (oracle != truth), mask, oracle)
    alone = {
        f"{parts} alone": before_and_after(masks, differences, present, how._replace(parts=parts))[-1]
        for parts in ("flags", "maps")
    }
    weighted = how._replace(weight=weight_by_spread(how.bias, spread))
    by_spread = before_and_after(masks, differences, present, weighted)[-1]
    return {"larger probability": larger, **alone, "SSDD, maps by their spread": by_spread, "oracle": oracle}


def weight_by_spread(bias: float, spread: float) -> float:
    """The --map_weight with which the maps weigh as much as the bias, one standard deviation against it."""
    return abs(bias) / max(spread, 1e-6)


def before_and_after(
    masks: list[np.ndarray], differences: torch.Tensor, present: torch.Tensor, how: Integration
) -> list[np.ndarray]:
    """What each adviser is asked about, and what comes out at last: A + 1 masks H×W."""
    knowledge, *advices = [torch.from_numpy(mask.astype(np.int64))[None] for mask in masks]
    results = integrated_in_turn(knowledge, advices, *differences[:, None], present, how)
    return [masks[0], *(result.refined[0].numpy() for result in results)]


class Step:
    """How often the difference maps of one adviser are right, summed over images; `before`: what it was asked about."""

    def __init__(self, titles: tuple[str, str], rules: tuple[str, ...] = COMPARED):
        self.titles, self.rules = titles, rules
        self.pixels = dict.fromkeys(("differ", *(f"{name} right" for name in titles), *rules, "bias overruled"), 0)
        self.changes, self.histograms = np.zeros((2, 2, BINS)), np.zeros((2, BINS))

    def add(
        self,
        before: np.ndarray,
        advice: np.ndarray,
        maps: torch.Tensor,
        truth: np.ndarray,
        masks: dict[str, np.ndarray],
        bias: float,
    ) -> None:
        known = (truth != IGNORE) & (before != IGNORE) & (advice != IGNORE)
        differ = known & (before != advice)
        right = [differ & (mask == truth) for mask in (before, advice)]
        self.pixels["differ"] += int(differ.sum())
        for title, where in zip(self.titles, right, strict=True):
            self.pixels[f"{title} right"] += int(where.sum())
        for rule in self.rules:
            self.pixels[rule] += int((differ & (masks[rule] == truth)).sum())
        predicted = [torch.sigmoid(d).numpy() for d in maps]
        for histogram, change in zip(self.changes, predicted, strict=True):
            for row, where in enumerate((known & (before == advice), differ)):
                histogram[row] += np.histogram(change[where], BINS, (0, 1))[0]
        score = predicted[0] - predicted[1]
        self.pixels["bias overruled"] += int(overrules(score[differ], bias).sum())
        for row, where in enumerate(right):
            self.histograms[row] += np.histogram(score[where], BINS, (-1, 1))[0]

    def figures(self) -> dict:
        return {
            "pair": self.titles,
            "pixels": self.pixels,
            "change": [area_under_roc(*histogram) for histogram in self.changes],
            "detection": area_under_roc(*self.histograms),
        }


class Sweep:
    """The counts of every bias on each half of the images."""

    def __init__(self, classes: int, how: Integration):
        self.classes, self.how = classes, how
        self.halves = [dict.fromkeys(BIASES, 0) for _ in range(2)]

    def add(
        self, half: int, k: np.ndarray, a: np.ndarray, maps: torch.Tensor, truth: np.ndarray, present: torch.Tensor
    ) -> None:
        flags = missing_class_flags(*(torch.from_numpy(mask)[None] for mask in (k, a)), present, self.how.poster_flags)
        # Only where the masks differ does the bias matter.
        differ = (k != a) & (truth != IGNORE)
        same = confusion(np.where(differ, IGNORE, truth), k, self.classes)
        at = [torch.from_numpy(mask[differ].astype(np.int64)).view(1, 1, -1) for mask in (k, a)]
        at_d = [d[torch.from_numpy(differ)].view(1, 1, 1, -1) for d in maps]
        for bias in BIASES:
            chosen = integrate(*at, *at_d, flags, bias, self.how.bg).flatten().numpy()
            count = same + confusion(truth[differ], chosen, self.classes)
            self.halves[half][bias] = self.halves[half][bias] + count


def figures_of(count: np.ndarray, names: tuple[str, ...]) -> dict:
    figures = {"miou": mean_iou(count), "iou": by_class(names, iou(count))}
    return figures | ({"miou_known": mean_iou(without_unknown(count))} if count[:, -1].any() else {})


def overrules(score: np.ndarray, bias: float) -> np.ndarray:
    """Where σ(d_K) − σ(d_A) decides otherwise than the bias would alone; flags and background term left aside."""
    return (score + bias >= 0) != (bias >= 0)


def by_class(names: tuple[str, ...], values: np.ndarray) -> dict[str, float | None]:
    return {name: float(v) if np.isfinite(v) else None for name, v in zip(names, values, strict=True)}


def share_of_gap(figures: dict[str, float], single: tuple[str, ...]) -> float | None:
    """(SSDD − best single mask) / (oracle − best single mask); None where the oracle gains nothing."""
    best = max(figures[rule] for rule in single)
    gap = figures["oracle"] - best
    return (figures["static SSDD"] - best) / gap if gap > 0 else None


def area_under_roc(negative: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a pixel of the positive histogram scores above one of the negative; None if one is empty."""
    if not negative.sum() or not positive.sum():
        return None
    below = np.concatenate([[0], np.cumsum(negative)[:-1]])
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def chosen_bias(halves: list[dict[float, np.ndarray]]) -> dict:
    """The bias that is best on one half of the images, and the mIoU of every bias on each half."""
    figures = [{bias: mean_iou(count) for bias, count in half.items()} for half in halves]
    best = max(BIASES, key=lambda bias: figures[0][bias])
    return {"best_on_first_half": best, "sweep_of_first_half": figures[0], "sweep_of_second_half": figures[1]}
