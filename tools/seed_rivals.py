"""What does static SSDD gain over the simplest rivals, and how much could be gained?

    python -m tools.seed_rivals demo demo1 demo2 --json rivals.json

Each argument is the --out folder of a finished mode 1; several are repetitions with other seeds. Rivals: always the
knowledge (PSA), always the advice (PSA+CRF), at each pixel the one with the larger probability, and SSDD without its
DD-Net (the flags alone) or without its flags (the maps alone). The oracle takes at each pixel the mask that is
right (the knowledge where both or none is), so it is the ceiling of every choice between the two. True masks are used
to judge only, but for the line about the bias, which is chosen on every second image and judged on the others.
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
from datasets.voc import CLASSES_FILE, IGNORE, class_names, list_path, mask_path, read_ids, read_mask
from engine import runs, seeds, stages
from evaluation.metrics import confusion, iou, mean_and_spread, mean_iou
from models.inference import resize
from models.ssdd.difference import integrate, missing_class_flags
from models.ssdd.steps import Integration, chosen
from modes.ssdd.networks import seed_integration
from settings.flags import Parser

# Beside the two masks alone and the oracle.
COMPARED = ("larger probability", "flags alone", "maps alone", "static SSDD")
BIASES = tuple(np.arange(-1.0, 1.05, 0.1).round(1).tolist())
BINS = 400  # of σ(d_K) − σ(d_A) in −1…1


def files_read(outs: list[Path], modelid: str, root: str, split: str) -> Iterator[Path]:
    """All files that the figures of some runs are made from."""
    ids = read_ids(root, split)
    yield from (list_path(root, split), Path(root) / CLASSES_FILE, *(mask_path(root, image_id) for image_id in ids))
    for out in outs:
        config = replace(runs.stored_config(out, modelid, "mode 1"), out=str(out), voc_root=root)
        for folder in (stages.folder(config, "mode 1"), *(source.folder for source in seeds.pair(config))):
            yield folder / "config.json"
            yield from (folder / f"{image_id}{ending}" for image_id in ids for ending in (".npz", ".png"))


def choices(
    knowledge: SeedMaps,
    advice: SeedMaps,
    differences: tuple[torch.Tensor, torch.Tensor],
    flags: torch.Tensor,
    how: Integration,
    truth: np.ndarray,
) -> dict[str, np.ndarray]:
    """The mask H×W of every rule that chooses between the two, but for static SSDD, whose masks lie in files.

    Args:
        differences: logits (d_K, d_A), 1×1×H×W.
        flags: 1×C, the classes that the advice lost.
        how: the integration of static SSDD, of which parts are left out.
        truth: the true mask, for the oracle.
    """
    # PSA's maps do not sum to 1, the CRF's do.
    sure = [maps.maps.max(axis=0) / np.maximum(maps.maps.sum(axis=0), 1e-12) for maps in (knowledge, advice)]
    k, a = knowledge.mask(), advice.mask()
    pair = [torch.from_numpy(mask.astype(np.int64))[None] for mask in (k, a)]
    alone = {
        f"{parts} alone": chosen(*pair, *differences, flags, how._replace(parts=parts))[0].numpy()
        for parts in ("flags", "maps")
    }
    oracle = np.where((a == truth) & (k != truth), a, k)
    return {"larger probability": np.where(sure[1] >= sure[0], a, k), **alone, "oracle": oracle}


def lost_classes(knowledge: SeedMaps, advice: SeedMaps, classes: int, poster: bool) -> torch.Tensor:
    """The integration's flags of one image, 1×C."""
    pair = [torch.from_numpy(maps.mask())[None] for maps in (knowledge, advice)]
    present = torch.zeros(1, classes)
    present[0, torch.from_numpy(knowledge.classes)] = 1
    return missing_class_flags(*pair, present, poster)


def judge(out: Path, modelid: str, root: str, ids: list[str]) -> dict:
    """All figures of one run.

    Returns:
        "pair": titles of knowledge and advice; "rules": {rule: {"miou", "iou": {class: float or None}}}, "images":
        {id: {rule: mean IoU of its classes}},
        "share_of_gap", "pixels" (how often which mask is right where they differ, and what each rule makes of it),
        "change" (area under the ROC curve of d_K and of d_A as a sign that the masks differ), "detection" (that of
        σ(d_K) − σ(d_A) as a sign that the advice is right), "bias".

    Raises:
        InputError: a map or mask is missing, damaged or of another size than its true mask.
    """
    config = replace(runs.stored_config(out, modelid, "mode 1"), out=str(out), voc_root=root)
    folder, pair = stages.folder(config, "mode 1"), seeds.pair(config)
    single = tuple(source.title for source in pair)
    rules = (*single, *COMPARED, "oracle")
    how = seed_integration(config)
    names = class_names(root)
    counts = dict.fromkeys(rules, 0)
    halves = [dict.fromkeys(BIASES, 0) for _ in range(2)]
    pixels = dict.fromkeys(("differ", *(f"{name} right" for name in single), *COMPARED, "bias overruled"), 0)
    changes, histograms = np.zeros((2, 2, BINS)), np.zeros((2, BINS))
    images = {}
    for place, image_id in enumerate(ids):
        truth = read_mask(mask_path(root, image_id), len(names))
        refined = read_mask(folder / f"{image_id}.png", len(names))
        both = [read_seed(source.folder, image_id, truth.shape, None, len(names)) for source in pair]
        if refined.shape != truth.shape:
            raise InputError(f"{out}, {image_id}: static SSDD is {refined.shape}, its true mask {truth.shape}")
        flags = lost_classes(*both, len(names), how.poster_flags)
        d_k, d_a = (
            resize(torch.from_numpy(d)[None, None], truth.shape) for d in load_differences(store_path(folder, image_id))
        )
        k, a = (seed.mask() for seed in both)
        masks = dict(zip(single, (k, a), strict=True)) | choices(*both, (d_k, d_a), flags, how, truth)
        masks["static SSDD"] = refined
        own = {rule: confusion(truth, mask, len(names)) for rule, mask in masks.items()}
        counts = {rule: counts[rule] + own[rule] for rule in rules}
        images[image_id] = {rule: mean_iou(count) for rule, count in own.items()}

        differ = (k != a) & (truth != IGNORE)
        right_k, right_a = differ & (k == truth), differ & (a == truth)
        pixels["differ"] += int(differ.sum())
        pixels[f"{single[0]} right"] += int(right_k.sum())
        pixels[f"{single[1]} right"] += int(right_a.sum())
        for rule in COMPARED:
            pixels[rule] += int((differ & (masks[rule] == truth)).sum())

        predicted = [torch.sigmoid(d)[0, 0].numpy() for d in (d_k, d_a)]
        for histogram, change in zip(changes, predicted, strict=True):
            for row, where in enumerate(((k == a) & (truth != IGNORE), differ)):
                histogram[row] += np.histogram(change[where], BINS, (0, 1))[0]
        score = predicted[0] - predicted[1]
        pixels["bias overruled"] += int(overrules(score[differ], how.bias).sum())
        for row, right in enumerate((right_k, right_a)):
            histograms[row] += np.histogram(score[right], BINS, (-1, 1))[0]
        # Only where the masks differ does the bias matter.
        same = confusion(np.where(differ, IGNORE, truth), k, len(names))
        at = [torch.from_numpy(mask[differ].astype(np.int64)).view(1, 1, -1) for mask in (k, a)]
        at_d = [d[:, :, torch.from_numpy(differ)].unsqueeze(2) for d in (d_k, d_a)]
        for bias in BIASES:
            by_bias = integrate(*at, *at_d, flags, bias, how.bg).flatten().numpy()
            count = same + confusion(truth[differ], by_bias, len(names))
            halves[place % 2][bias] = halves[place % 2][bias] + count

    figures = {rule: {"miou": mean_iou(count), "iou": by_class(names, iou(count))} for rule, count in counts.items()}
    return {
        "pair": single,
        "rules": figures,
        "share_of_gap": share_of_gap({rule: f["miou"] for rule, f in figures.items()}, single),
        "pixels": pixels,
        "change": [area_under_roc(*histogram) for histogram in changes],
        "detection": area_under_roc(*histograms),
        "bias": chosen_bias(halves) if len(ids) > 1 else None,
        "images": images,
    }


def overrules(score: np.ndarray, bias: float) -> np.ndarray:
    """Where σ(d_K) − σ(d_A) decides otherwise than the bias would alone; flags and background term left aside."""
    return (score + bias >= 0) != (bias >= 0)


def by_class(names: tuple[str, ...], values: np.ndarray) -> dict[str, float | None]:
    return {name: float(v) if np.isfinite(v) else None for name, v in zip(names, values, strict=True)}


def share_of_gap(figures: dict[str, float], single: tuple[str, str]) -> float | None:
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


def as_markdown(results: dict[str, dict], seen: str) -> str:
    """Tables of all runs together, percent, mean ± standard deviation over the runs."""
    judged = list(results.values())
    single = judged[0]["pair"]
    k, a = single
    classes = judged[0]["rules"][k]["iou"]
    known = [c for c in classes if any(r["rules"][k]["iou"][c] is not None for r in judged)]
    lines = [f"| {seen} | mIoU | {' | '.join(known)} |", f"|---|---|{'---|' * len(known)}"]
    for rule in judged[0]["rules"]:
        cells = [mean_and_spread([r["rules"][rule]["iou"][c] for r in judged]) for c in known]
        total = mean_and_spread([r["rules"][rule]["miou"] for r in judged])
        lines.append(f"| {rule} | **{total}** | {' | '.join(cells)} |")
    shares = [r["share_of_gap"] for r in judged]
    lines += ["", f"Of the way from the best single mask to the oracle, SSDD goes {mean_and_spread(shares)} %."]
    lines += ["", f"| of the pixels where {k} and {a} differ | % |", "|---|---|"]
    for name in (f"{k} right", f"{a} right", *COMPARED):
        shown = [r["pixels"][name] / r["pixels"]["differ"] if r["pixels"]["differ"] else None for r in judged]
        label = name if "right" in name else f"{name} right"
        lines.append(f"| {label} | {mean_and_spread(shown)} |")
    shown = [r["pixels"]["bias overruled"] / max(r["pixels"]["differ"], 1) for r in judged]
    lines.append(f"| the difference maps overrule the bias | {mean_and_spread(shown)} |")
    lines += ["", "| images in which, by the mean IoU of their classes | % |", "|---|---|"]
    for label, holds in IMAGES.items():
        label = label.format(k=k, a=a)
        shown = [
            np.mean([holds(*(image[rule] for rule in (*single, "static SSDD"))) for image in r["images"].values()])
            for r in judged
        ]
        lines.append(f"| {label} | {mean_and_spread(shown)} |")
    change = [mean_and_spread([r["change"][n] for r in judged]) for n in range(2)]
    detection = mean_and_spread([r["detection"] for r in judged])
    lines += [
        "",
        "Area under the ROC curve (50: it knows nothing) of the difference maps as a sign that "
        f"{k} and {a} differ: d_K {change[0]}, d_A {change[1]}; of σ(d_K) − σ(d_A) as a sign that {a} is right: "
        f"{detection}.",
    ]
    for out, r in results.items():
        if r["bias"]:
            best = r["bias"]["best_on_first_half"]
            there = r["bias"]["sweep_of_second_half"]
            lines.append(
                f"{out}: best bias on every second image {best:+.1f}; on the others it gives {100 * there[best]:.2f}, "
                f"the published +0.4 {100 * there[0.4]:.2f}."
            )
    return "\n".join(lines)


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
    parser.add_argument("--modelid", default="ssdd", help="name of the run in those folders (default: ssdd)")
    parser.add_argument("--voc-root", help="VOC folder (default: as the runs recorded it)")
    parser.add_argument("--split", default="train", help="list of the images (default: train)")
    parser.add_argument("--json", type=Path, help="also write all figures here, with those of every image")
    arguments = parser.parse_args(argv)
    configs = runs.repetitions(arguments.outs, arguments.modelid)
    root = arguments.voc_root or configs[0]["voc_root"]
    ids = read_ids(root, arguments.split)
    if arguments.json:
        refuse_overwrite([arguments.json], files_read(arguments.outs, arguments.modelid, root, arguments.split))
    results = {}
    for out in arguments.outs:
        results[str(out)] = judge(out, arguments.modelid, root, ids)
    seen = f"{configs[0]['preset']} preset, {arguments.split}, {len(ids)} images, {len(results)} runs"
    print(as_markdown(results, seen))
    named = [f"{out} (seed {config['seed']})" for out, config in zip(results, configs, strict=True)]
    print(f"\nRuns: {', '.join(named)}.")
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
