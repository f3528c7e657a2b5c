"""What does static SSDD gain over the simplest rivals, and how much could be gained?

    python -m tools.seed_rivals demo demo1 demo2 --json rivals.json
    python -m tools.seed_rivals demo demo1 demo2 --modelid ssdd icd both        # a row a pair, then the tables of each

Each argument is the --out folder of a finished mode 1; several are repetitions with other seeds. The pair, of any
sources and advisers, is what that mode 1 was given. Rivals: always the knowledge (say, PSA), always an advice
(PSA+CRF), at each pixel the one with the larger probability, and SSDD without its DD-Net (the flags alone) or without
its flags (the maps alone), or with the maps weighed by their own spread, so that one standard deviation outweighs the
bias; that takes no true mask. Below them the other readings of the maps (--reading), as they are and by mean and
spread of their own score (evaluation/readings.py), and what each knows where the advice erases, grows or exchanges. The
oracle takes at each pixel the mask that is right (the knowledge where all or none is), so it is the ceiling of every
choice among them. True masks are used to judge only, but for the line about the bias, which is chosen on every second
image and judged on the others. A mask's unknown pixels (255) count as wrong, and its mIoU is also given without them.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datasets.errors import InputError, program
from datasets.files import atomic_write, refuse_among_others, refuse_overwrite
from datasets.seed_store import load_differences, read_seed, store_path
from datasets.voc import (
    CLASSES_FILE,
    class_names,
    image_size,
    list_path,
    mask_path,
    read_ids,
    read_mask,
    read_present,
)
from engine import runs, seeds, stages
from evaluation.masks import evaluate
from evaluation.metrics import confusion, mean_and_spread, mean_iou
from evaluation.readings import Detection, Spreads, by_mean_and_spread, masks_by_readings, rules_for
from evaluation.rivals import (
    COMPARED,
    Step,
    Sweep,
    before_and_after,
    choices,
    chosen_bias,
    figures_of,
    share_of_gap,
    weight_by_spread,
)
from models.inference import resize
from models.ssdd.steps import Integration
from modes.scores import kinds_of
from modes.ssdd.networks import seed_integration
from settings.config import Config
from settings.flags import Parser
from settings.ssdd import READINGS

# Seeds as published, percent on VOC's train_aug. ICD's leave out pixels whose seed is 255.
PUBLISHED = {"PSA": "52.5", "PSA+CRF": "48.0", "ICD": "60.2, leaving 255 out", "ICD+CRF": "62.2, leaving 255 out"}


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


def spreads_of_maps(
    folder: Path, sources: list[seeds.SeedSource], root: str, ids: list[str], how: Integration, side: int
) -> Spreads:
    """Of the score of each reading, over the pixels where an adviser differs from what it was asked about; no true mask
    is read."""
    spreads, classes = Spreads(), len(class_names(root))
    for image_id in ids:
        size = image_size(root, image_id)
        masks = [read_seed(source.folder, image_id, size, None, classes).mask() for source in sources]
        maps, present = (
            differences_of(folder, image_id, size, side),
            torch.from_numpy(read_present(root, image_id))[None],
        )
        before = before_and_after(masks, maps, present, how)
        for n, advice in enumerate(masks[1:]):
            spreads.add(before[n], advice, maps[:, n], present)
    return spreads


def differences_of(folder: Path, image_id: str, size: tuple[int, int], side: int) -> torch.Tensor:
    """The stored logits (d_K, d_A) of each of A advisers in the image's size, 2×A×H×W."""
    maps = np.stack(load_differences(store_path(folder, image_id)))
    return resize(torch.from_numpy(maps.reshape(2, -1, side, maps.shape[-1])), size)


def judge(out: Path, modelid: str, root: str, ids: list[str]) -> dict:
    """All figures of one run.

    Returns:
        "pair": titles of knowledge and advisers; "spread" of the maps and the "map_weight" that it asks for; "rules":
        {rule: {"miou", "iou": {class: float or None}}}, where masks hold 255 also "miou_known"; "images": {id: {rule:
        mean IoU of its classes}}; "share_of_gap"; "steps", one an adviser: "pair", "pixels" (how often which mask is
        right where the two differ, and what each rule makes of it), "change" (area under the ROC curve of d_K and of
        d_A as a sign that the masks differ), "detection" (that of σ(d_K) − σ(d_A) as a sign that the advice is right),
        "readings" ({reading: {kind of pixel: the same of its score}}); "flags": {reading: the --map_weight and
        --seed_bias that follow from its mean and spread}; "bias_by_kept_classes", a --seed_bias that does without
        true masks; "bias", of a single adviser.

    Raises:
        InputError: a map or mask is missing, damaged or of another size than its true mask.
    """
    config = replace(runs.stored_config(out, modelid, "mode 1"), out=str(out), voc_root=root)
    folder, sources = stages.folder(config, "mode 1"), list(seeds.pair(config).values())
    single = tuple(source.title for source in sources)
    asked_about = (single[0], *(f"after {title}" for title in single[1:-1]))
    rivals = (*COMPARED, *rules_for(len(single) - 1))
    steps = [Step(titles, rivals) for titles in zip(asked_about, single[1:], strict=True)]
    detections = [Detection() for _ in steps]
    rules = (*single, *rivals, "oracle")
    how = seed_integration(config)
    names = class_names(root)
    counts = dict.fromkeys(rules, 0)
    spreads = spreads_of_maps(folder, sources, root, ids, how, config.crop // 4)
    spread = spreads.of("published")[1]
    sweep = Sweep(len(names), how)
    images = {}
    for place, image_id in enumerate(ids):
        truth, refined = truth_and_refined(folder, root, image_id)
        members = [read_seed(source.folder, image_id, truth.shape, None, len(names)) for source in sources]
        present = torch.from_numpy(read_present(root, image_id))[None]
        alone = [seed.mask() for seed in members]
        maps = differences_of(folder, image_id, truth.shape, config.crop // 4)
        masks = dict(zip(single, alone, strict=True)) | choices(members, maps, present, how, spread, truth)
        masks |= masks_by_readings(alone, maps, present, how, spreads) | {"static SSDD": refined}
        own = {rule: confusion(truth, mask, len(names)) for rule, mask in masks.items()}
        counts = {rule: counts[rule] + own[rule] for rule in rules}
        images[image_id] = {rule: mean_iou(count) for rule, count in own.items()}
        befores = before_and_after(alone, maps, present, how)
        for n, step in enumerate(steps):
            step.add(befores[n], alone[n + 1], maps[:, n], truth, masks, how.bias)
            detections[n].add(befores[n], alone[n + 1], maps[:, n], truth)
        if len(steps) == 1:
            sweep.add(place % 2, *alone, maps[:, 0], truth, present)
    figures = {rule: figures_of(count, names) for rule, count in counts.items()}
    return {
        "pair": single,
        "spread": spread,
        "map_weight": weight_by_spread(how.bias, spread),
        "rules": figures,
        "share_of_gap": share_of_gap({rule: f["miou"] for rule, f in figures.items()}, single),
        "steps": [step.figures() | {"readings": d.areas()} for step, d in zip(steps, detections, strict=True)],
        "bias_by_kept_classes": spreads.bias_by_kept_classes(),
        "flags": {reading: flags_by_spread(how, spreads, reading) for reading in READINGS},
        "bias": chosen_bias(sweep.halves) if len(ids) > 1 and len(steps) == 1 else None,
        "network": network_figures(config),
        "images": images,
    }


def truth_and_refined(folder: Path, root: str, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """True mask and static SSDD's of an image.

    Raises:
        InputError: they differ in size, or one is missing or damaged.
    """
    classes = len(class_names(root))
    truth = read_mask(mask_path(root, image_id), classes)
    refined = read_mask(folder / f"{image_id}.png", classes)
    if refined.shape != truth.shape:
        raise InputError(f"{folder}, {image_id}: static SSDD is {refined.shape}, its true mask {truth.shape}")
    return truth, refined


def flags_by_spread(how: Integration, spreads: Spreads, reading: str) -> dict[str, float]:
    """What makes mode 1 follow a reading by its mean and spread, where the bias favours the advice."""
    own = by_mean_and_spread(how, reading, *spreads.of(reading))
    return {"map_weight": own.weight, "seed_bias": own.bias}


def network_figures(config: Config) -> dict[str, float]:
    """mIoU of the dynamic network's masks of val by their kind; none if mode 3 has not judged them."""
    config = replace(config, seed_source="")
    if not (stages.folder(config, "mode 3") / "result_val.json").exists():
        return {}
    ids = read_ids(config.voc_root, "val")
    return {kind: evaluate(masks, config.voc_root, ids)["miou"] for kind, masks in kinds_of(config, "mode 3").items()}


def pairs_as_markdown(results: dict[str, dict[str, dict]], seen: str) -> str:
    """One row a pair, that is, a modelid: percent, mean ± standard deviation over its runs.

    Args:
        results: {modelid: {out: figures of `judge`}}.
    """
    columns = (seen, "each member alone", *COMPARED, "oracle", "network", "+ CRF", "published, VOC")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
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
        lines.append(
            f"{out}: σ(d_K) − σ(d_A) spreads by {r['spread']:.3f} where the masks differ; maps by their spread: "
            f"--map_weight={r['map_weight']:.3g}."
        )
        lines.append(f"{out}: bias by kept classes: --seed_bias={r['bias_by_kept_classes']:.3g}.")
        for reading, flags in r["flags"].items():
            given = " ".join(f"--{name}={value:.3g}" for name, value in flags.items())
            lines.append(f"{out}: by mean and spread: --reading={reading} {given}.")
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
    pixels = judged[0]["pixels"]
    for name in (name for name in pixels if name not in ("differ", "bias overruled")):
        shown = [r["pixels"][name] / r["pixels"]["differ"] if r["pixels"]["differ"] else None for r in judged]
        lines.append(f"| {name if 'right' in name else f'{name} right'} | {mean_and_spread(shown)} |")
    shown = [r["pixels"]["bias overruled"] / max(r["pixels"]["differ"], 1) for r in judged]
    lines.append(f"| the difference maps overrule the bias | {mean_and_spread(shown)} |")
    change = [mean_and_spread([r["change"][n] for r in judged]) for n in range(2)]
    detection = mean_and_spread([r["detection"] for r in judged])
    areas = [r["readings"] for r in judged]
    columns = list(areas[0][READINGS[0]])
    table = [f"| reading: area as a sign that {a} is right | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for reading in READINGS:
        cells = [mean_and_spread([area[reading][kind] for area in areas]) for kind in columns]
        table.append(f"| {reading} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        *table,
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
        refuse_among_others(arguments.json)
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
