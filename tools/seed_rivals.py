"""What does static SSDD gain over the simplest rivals, and how much could be gained?

    python -m tools.seed_rivals demo demo1 demo2 --json rivals.json
    python -m tools.seed_rivals demo demo1 demo2 --modelid ssdd icd both        # a row a pair, then the tables of each

Each argument is the --out folder of a finished mode 1; several are repetitions with other seeds. The pair, of any
sources and advisers, is what that mode 1 was given. Rivals: always the knowledge (say, PSA), always an advice
(PSA+CRF), at each pixel the one with the larger probability, and SSDD without its DD-Net (the flags alone) or without
its flags (the maps alone). The oracle takes at each pixel the mask that is right (the knowledge where all
or none is), so it is the ceiling of every choice among them. True masks are used to judge only, but for the line about
the bias, which is chosen on every second image and judged on the others. A mask's unknown pixels (255) count as wrong,
and its mIoU is also given without them.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datasets.errors import InputError, program
from datasets.files import atomic_write, refuse_overwrite
from datasets.seed_store import SeedMaps, load_differences, read_seed, store_path
from datasets.voc import (
    CLASSES_FILE,
    IGNORE,
    class_names,
    list_path,
    mask_path,
    read_ids,
    read_mask,
    read_present,
)
from engine import runs, seeds, stages
from evaluation.metrics import confusion, iou, mean_and_spread, mean_iou, without_unknown
from models.inference import resize
from models.ssdd.difference import integrate, missing_class_flags
from models.ssdd.steps import Integration, integrated_in_turn
from modes.ssdd.networks import seed_integration
from settings.config import Config
from settings.flags import Parser

# Beside the masks alone and the oracle.
COMPARED = ("larger probability", "flags alone", "maps alone", "static SSDD")
# Seeds as published, percent on VOC's train_aug. ICD's leave out pixels whose seed is 255.
PUBLISHED = {"PSA": "52.5", "PSA+CRF": "48.0", "ICD": "60.2, leaving 255 out", "ICD+CRF": "62.2, leaving 255 out"}
BIASES = tuple(np.arange(-1.0, 1.05, 0.1).round(1).tolist())
BINS = 400  # of σ(d_K) − σ(d_A) in −1…1


def files_read(outs: list[Path], modelids: list[str], root: str, split: str) -> Iterator[Path]:
    """All files that the figures of some runs are made from."""
    ids = read_ids(root, split)
    yield from (list_path(root, split), Path(root) / CLASSES_FILE, *(mask_path(root, image_id) for image_id in ids))
    for out in outs:
        for modelid in modelids:
            config = replace(runs.stored_config(out, modelid, "mode 1"), out=str(out), voc_root=root)
            sources = seeds.pair(config).values()
            for folder in (stages.folder(config, "mode 1"), *(source.folder for source in sources)):
                yield folder / "config.json"
                yield from (folder / f"{image_id}{ending}" for image_id in ids for ending in (".npz", ".png"))


def choices(
    members: list[SeedMaps], differences: torch.Tensor, present: torch.Tensor, how: Integration, truth: np.ndarray
) -> dict[str, np.ndarray]:
    """The mask H×W of every rule that chooses among the knowledge and its A advisers, but for static SSDD, whose masks
    lie in files. An unknown pixel is never chosen where another mask knows.

    Args:
        members: knowledge and advisers, in their order.
        differences: logits (d_K, d_A) of each adviser, 2×A×H×W.
        present: 1×C image-level label.
        how: the integration of static SSDD, of which parts are left out.
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
    return {"larger probability": larger, **alone, "oracle": oracle}


def before_and_after(
    masks: list[np.ndarray], differences: torch.Tensor, present: torch.Tensor, how: Integration
) -> list[np.ndarray]:
    """What each adviser is asked about, and what comes out at last: A + 1 masks H×W."""
    knowledge, *advices = [torch.from_numpy(mask.astype(np.int64))[None] for mask in masks]
    results = integrated_in_turn(knowledge, advices, *differences[:, None], present, how)
    return [masks[0], *(result.refined[0].numpy() for result in results)]


class Step:
    """How often the difference maps of one adviser are right, summed over images; `before`: what it was asked about."""

    def __init__(self, titles: tuple[str, str]):
        self.titles = titles
        self.pixels = dict.fromkeys(("differ", *(f"{name} right" for name in titles), *COMPARED, "bias overruled"), 0)
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
        for rule in COMPARED:
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


def judge(out: Path, modelid: str, root: str, ids: list[str]) -> dict:
    """All figures of one run.

    Returns:
        "pair": titles of knowledge and advisers; "rules": {rule: {"miou", "iou": {class: float or None}}}, where masks
        hold 255 also "miou_known"; "images": {id: {rule: mean IoU of its classes}}; "share_of_gap"; "steps", one an
        adviser: "pair", "pixels" (how often which mask is right where the two differ, and what each rule makes of it),
        "change" (area under the ROC curve of d_K and of d_A as a sign that the masks differ), "detection" (that of
        σ(d_K) − σ(d_A) as a sign that the advice is right); "bias", of a single adviser.

    Raises:
        InputError: a map or mask is missing, damaged or of another size than its true mask.
    """
    config = replace(runs.stored_config(out, modelid, "mode 1"), out=str(out), voc_root=root)
    folder, sources = stages.folder(config, "mode 1"), list(seeds.pair(config).values())
    single = tuple(source.title for source in sources)
    asked_about = (single[0], *(f"after {title}" for title in single[1:-1]))
    steps = [Step(titles) for titles in zip(asked_about, single[1:], strict=True)]
    rules = (*single, *COMPARED, "oracle")
    how = seed_integration(config)
    names = class_names(root)
    counts = dict.fromkeys(rules, 0)
    sweep = Sweep(len(names), how)
    images = {}
    for place, image_id in enumerate(ids):
        truth = read_mask(mask_path(root, image_id), len(names))
        refined = read_mask(folder / f"{image_id}.png", len(names))
        if refined.shape != truth.shape:
            raise InputError(f"{out}, {image_id}: static SSDD is {refined.shape}, its true mask {truth.shape}")
        members = [read_seed(source.folder, image_id, truth.shape, None, len(names)) for source in sources]
        present = torch.from_numpy(read_present(root, image_id))[None]
        alone = [seed.mask() for seed in members]
        maps = np.stack(load_differences(store_path(folder, image_id))).reshape(2, len(steps), config.crop // 4, -1)
        maps = resize(torch.from_numpy(maps), truth.shape)
        masks = dict(zip(single, alone, strict=True)) | choices(members, maps, present, how, truth)
        masks["static SSDD"] = refined
        own = {rule: confusion(truth, mask, len(names)) for rule, mask in masks.items()}
        counts = {rule: counts[rule] + own[rule] for rule in rules}
        images[image_id] = {rule: mean_iou(count) for rule, count in own.items()}
        befores = before_and_after(alone, maps, present, how)
        for n, step in enumerate(steps):
            step.add(befores[n], alone[n + 1], maps[:, n], truth, masks, how.bias)
        if len(steps) == 1:
            sweep.add(place % 2, *alone, maps[:, 0], truth, present)
    figures = {rule: figures_of(count, names) for rule, count in counts.items()}
    return {
        "pair": single,
        "rules": figures,
        "share_of_gap": share_of_gap({rule: f["miou"] for rule, f in figures.items()}, single),
        "steps": [step.figures() for step in steps],
        "bias": chosen_bias(sweep.halves) if len(ids) > 1 and len(steps) == 1 else None,
        "network": network_figures(config),
        "images": images,
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


def network_figures(config: Config) -> dict[str, float]:
    """mIoU of the dynamic network's masks by their kind, as mode 3 stored them for val; none if it has not run."""
    path = stages.folder(replace(config, seed_source=""), "mode 3") / "result_val.json"
    stored = runs.read_config(path) if path.exists() else {}
    kinds = {kind: figures.get("miou") for kind, figures in stored.items() if isinstance(figures, dict)}
    return {kind: value for kind, value in kinds.items() if isinstance(value, float)}


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


def pairs_as_markdown(results: dict[str, dict[str, dict]], seen: str) -> str:
    """One row a pair, that is, a modelid: percent, mean ± standard deviation over its runs.

    Args:
        results: {modelid: {out: figures of `judge`}}.
    """
    lines = [
        f"| {seen} | each member alone | larger probability | flags alone | maps alone | static SSDD | oracle "
        "| network | + CRF | published, VOC |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for modelid, judged in results.items():
        found = list(judged.values())
        single = found[0]["pair"]

        def cell(rule: str, found: list[dict] = found) -> str:
            text = mean_and_spread([r["rules"][rule]["miou"] for r in found])
            known = [r["rules"][rule].get("miou_known") for r in found]
            return text if None in known else f"{text} (leaving 255 out {mean_and_spread(known)})"

        alone = ", ".join(f"{title} {cell(title)}" for title in single)
        networks = [mean_and_spread([r["network"].get(kind) for r in found]) for kind in ("mask", "mask after CRF")]
        cells = [alone, *(cell(rule) for rule in (*COMPARED, "oracle")), *networks]
        published = "; ".join(f"{title} {PUBLISHED[title]}" for title in single if title in PUBLISHED) or "–"
        lines.append(f"| {' ← '.join(single)} ({modelid}) | {' | '.join(cells)} | {published} |")
    return "\n".join(lines)


def as_markdown(results: dict[str, dict], seen: str) -> str:
    """Tables of all runs of one pair together, percent, mean ± standard deviation over the runs."""
    judged = list(results.values())
    single = judged[0]["pair"]
    classes = judged[0]["rules"][single[0]]["iou"]
    known = [c for c in classes if any(r["rules"][single[0]]["iou"][c] is not None for r in judged)]
    lines = [f"| {seen} | mIoU | {' | '.join(known)} |", f"|---|---|{'---|' * len(known)}"]
    for rule in judged[0]["rules"]:
        cells = [mean_and_spread([r["rules"][rule]["iou"][c] for r in judged]) for c in known]
        total = mean_and_spread([r["rules"][rule]["miou"] for r in judged])
        without = [r["rules"][rule].get("miou_known") for r in judged]
        note = "" if None in without else f" (leaving 255 out {mean_and_spread(without)})"
        lines.append(f"| {rule} | **{total}**{note} | {' | '.join(cells)} |")
    shares = [r["share_of_gap"] for r in judged]
    lines += ["", f"Of the way from the best single mask to the oracle, SSDD goes {mean_and_spread(shares)} %."]
    for n in range(len(single) - 1):
        lines += step_as_markdown([r["steps"][n] for r in judged])
    k, a = single[0], single[-1]
    lines += ["", "| images in which, by the mean IoU of their classes | % |", "|---|---|"]
    for label, holds in IMAGES.items():
        shown = [
            np.mean([holds(*(image[rule] for rule in (k, a, "static SSDD"))) for image in r["images"].values()])
            for r in judged
        ]
        lines.append(f"| {label.format(k=k, a=a)} | {mean_and_spread(shown)} |")
    lines.append("")
    for out, r in results.items():
        if r["bias"]:
            best = r["bias"]["best_on_first_half"]
            there = r["bias"]["sweep_of_second_half"]
            lines.append(
                f"{out}: best bias on every second image {best:+.1f}; on the others it gives {100 * there[best]:.2f}, "
                f"the published +0.4 {100 * there[0.4]:.2f}."
            )
    return "\n".join(lines)


def step_as_markdown(judged: list[dict]) -> list[str]:
    """Of one adviser: where it differs from what it was asked about, and what its maps know of that."""
    k, a = judged[0]["pair"]
    lines = ["", f"| of the pixels where {k} and {a} differ | % |", "|---|---|"]
    for name in (f"{k} right", f"{a} right", *COMPARED):
        shown = [r["pixels"][name] / r["pixels"]["differ"] if r["pixels"]["differ"] else None for r in judged]
        lines.append(f"| {name if 'right' in name else f'{name} right'} | {mean_and_spread(shown)} |")
    shown = [r["pixels"]["bias overruled"] / max(r["pixels"]["differ"], 1) for r in judged]
    lines.append(f"| the difference maps overrule the bias | {mean_and_spread(shown)} |")
    change = [mean_and_spread([r["change"][n] for r in judged]) for n in range(2)]
    detection = mean_and_spread([r["detection"] for r in judged])
    return [
        *lines,
        "",
        "Area under the ROC curve (50: it knows nothing) of the difference maps as a sign that "
        f"{k} and {a} differ: d_K {change[0]}, d_A {change[1]}; of σ(d_K) − σ(d_A) as a sign that {a} is right: "
        f"{detection}.",
    ]


# (knowledge, advice, ssdd) → whether an image counts; "hurts" and "helps" mean by more than a percent point.
IMAGES = {
    "{a} is worse than {k} by more than 1 point": lambda k, a, ssdd: a < k - 0.01,
    "{a} is better than {k} by more than 1 point": lambda k, a, ssdd: a > k + 0.01,
    "SSDD is better than {k}": lambda k, a, ssdd: ssdd > k,
    "SSDD is better than {a}": lambda k, a, ssdd: ssdd > a,
    "SSDD is worse than both": lambda k, a, ssdd: ssdd < min(k, a),
}


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("outs", nargs="+", type=Path, metavar="OUT", help="--out folder of a run after mode 1")
    parser.add_argument(
        "--modelid", nargs="+", default=["ssdd"], help="names of the runs in those folders, one a pair (default: ssdd)"
    )
    parser.add_argument("--voc-root", help="VOC folder (default: as the runs recorded it)")
    parser.add_argument("--split", default="train", help="list of the images (default: train)")
    parser.add_argument("--json", type=Path, help="also write all figures here, with those of every image")
    arguments = parser.parse_args(argv)
    named = {modelid: runs.repetitions(arguments.outs, modelid) for modelid in arguments.modelid}
    first = named[arguments.modelid[0]]
    root = arguments.voc_root or first[0]["voc_root"]
    ids = read_ids(root, arguments.split)
    if arguments.json:
        refuse_overwrite([arguments.json], files_read(arguments.outs, arguments.modelid, root, arguments.split))
    seen = f"{first[0]['preset']} preset, {arguments.split}, {len(ids)} images, {len(arguments.outs)} runs"
    results = {m: {str(out): judge(out, m, root, ids) for out in arguments.outs} for m in arguments.modelid}
    print(pairs_as_markdown(results, seen))
    for modelid, judged in results.items():
        print("\n" + as_markdown(judged, seen if len(results) == 1 else f"{modelid}: {seen}"))
    runs_named = [f"{out} (seed {config['seed']})" for out, config in zip(arguments.outs, first, strict=True)]
    print(f"\nRuns: {', '.join(runs_named)}.")
    if arguments.json:
        content = results if len(results) > 1 else next(iter(results.values()))
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
