"""The tables of the paper and its poster, from finished runs.

    python -m tools.paper_tables demo demo1 demo2 --into tables

Each argument is the --out folder of a run; several are repetitions with other seeds, and every figure is then mean ±
standard deviation over them. A row fills as far as its stages have run: raw seeds after mode 1, networks after mode 3,
also those of --mode=4 --seed_source=psa|psa_crf|ssdd|truth|… . Sources beside PSA's (ICD's, RecurSeed's, others' masks
that the run's pair names) get rows where they are there. Writes tables.md, tables.json, seeds.png and classes.png.

    python -m tools.paper_tables demo demo1 demo2 --recurseed classes seeds mixed --into tables

adds a table of RecurSeed's own networks, one row a --modelid: its seeds on train, and its masks on val.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets.errors import InputError, program
from datasets.files import atomic_write, refuse_overwrite
from datasets.voc import CLASSES, class_names, mask_path, read_ids
from engine import runs, stages
from engine.seeds import OLD_NAMES
from evaluation import expected
from evaluation.masks import evaluate
from evaluation.metrics import mean_and_spread
from settings.config import Config
from settings.flags import Parser

# Row → the seed source that it is about; dynamic SSDD has none, its network makes its own masks. The rows between are
# those of the run's pair, and of every other source that is there.
BEFORE = {"PSA": "psa", "PSA+CRF": "psa_crf"}
AFTER = {"static SSDD": "ssdd", "dynamic SSDD": "", "ground truth": stages.TRUTH}
NOTES = {
    "ICD": "ICD's published figures leave out pixels whose seed is 255 (train_aug); with saliency maps, a DeepLab-v2 "
    "trained on the seeds has 68.0 on VOC test.",
    "RecurSeed": "RecurSeed's published figures are of its own networks, not of one trained on its seeds: single-stage "
    "69.5 on VOC val (results page), multi-stage 72.4.",
}


def rows_of(outs: list[Path], modelid: str) -> dict[str, str]:
    """The table's rows: PSA's, the pair's, other sources that are there, SSDD's, the true masks."""
    between = {}
    for name, (_, written) in stages.sources().items():
        there = any((out / stages.filled(written.folder, modelid)).is_dir() for out in outs)
        if there and written not in (stages.CAM, stages.STATIC_SSDD):  # CAMs have no background
            between[written.title] = name
    for out in outs:
        path = out / stages.filled(stages.STAGES["mode 0"].folders[0], modelid) / "config.json"
        stored = runs.stored_config(out, modelid, "mode 0") if path.exists() else Config()
        for name in (stored.knowledge, *stored.advisers):
            if name.startswith(stages.MASKS):
                between[name] = name
    return BEFORE | between | AFTER


def measure(
    rows: dict[str, str], outs: list[Path], modelid: str, root: str, raw_ids: list[str], ids: list[str]
) -> dict:
    """{"raw", "network", "network + CRF"} → {row: {out folder: figures of evaluation.masks}}, for what is there."""
    written = stages.sources()
    found: dict[str, dict] = {"raw": {}, "network": {}, "network + CRF": {}}
    for row, source in rows.items():
        for column, measured in found.items():
            if column != "raw":
                below = [masks_folder(out, modelid, source) / {"network": "mask"}.get(column, "crf") for out in outs]
            elif source in written:
                below = [out / stages.filled(written[source][1].folder, modelid) for out in outs]
            elif source.startswith(stages.MASKS):
                below = [Path(source.removeprefix(stages.MASKS)) for _ in outs]
            else:
                continue
            image_ids = raw_ids if column == "raw" else ids
            there = zip(outs, below, strict=True)
            figures = {str(out): evaluate(folder, root, image_ids) for out, folder in there if folder.is_dir()}
            if figures:
                measured[row] = figures
    return found


def masks_folder(out: Path, modelid: str, source: str) -> Path:
    """What mode 3 made of the network that learned from a source."""
    names = [source, *(old for old, new in OLD_NAMES.items() if new == source)]
    folders = [out / stages.filled(stages.STAGES["mode 3"].folders[0], modelid, name) for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def measure_recurseed(modelids: list[str], outs: list[Path], root: str, raw_ids: list[str], ids: list[str]) -> dict:
    """{modelid: {column: {out folder: figures of evaluation.masks}}} of RecurSeed's own networks, for what is there."""
    seeds, masks = stages.STAGES["recurseed labels"].folders, stages.STAGES["recurseed evaluate"].folders[0]
    columns = {
        "seeds": (seeds[0], raw_ids),
        "seeds + CRF": (seeds[1], raw_ids),
        "masks": (f"{masks}/mask", ids),
        "masks + CRF": (f"{masks}/crf", ids),
    }
    found: dict[str, dict] = {}
    for modelid in modelids:
        found[modelid] = {}
        for column, (template, images) in columns.items():
            below = {out: out / stages.filled(template, modelid) for out in outs}
            there = {str(out): evaluate(folder, root, images) for out, folder in below.items() if folder.is_dir()}
            found[modelid][column] = there
    return found


def parts_of(config: Config) -> list[str]:
    """What the network of a RecurSeed run learned from; CertainMix never starts before RecurSeed."""
    starts = {"classification": 1, "RecurSeed": config.recurseed_from}
    starts["CertainMix"] = max(config.recurseed_from, config.mix_from)
    return [title for title, epoch in starts.items() if epoch <= config.epochs]


def learned_from(config: Config) -> str:
    """The same, and how, for people."""
    start = ", from given weights" if config.weights else ""
    rates = f"{config.recurseed_optimiser} {config.recurseed_lr:g}, average {config.average_decay:g}{start}"
    return f"{' + '.join(parts_of(config))}; {config.epochs} epochs, {rates}"


def recurseed_as_markdown(found: dict, outs: list[Path]) -> str:
    """One row a run of RecurSeed, percent, mean ± standard deviation over the outs."""
    published = next(e for e in expected.FIGURES if e.stage == "recurseed evaluate" and e.data == expected.VOC)
    lines = [
        "",
        "RecurSeed's own networks: seeds of the training images by the image-level labels, masks without labels.",
        "",
        "| run | learned from | made of | seeds | + CRF | masks | + CRF | published on VOC: masks + CRF, val |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for modelid, columns in found.items():
        trained, made = (runs.stored_config(outs[0], modelid, f"recurseed {mode}") for mode in ("train", "labels"))
        cells = [modelid, learned_from(trained), made.recurseed_maps, *(cell(figures) for figures in columns.values())]
        theirs = f"{published.figures[0]}, single-stage" if "CertainMix" in parts_of(trained) else "–"
        lines.append(f"| {' | '.join(cells)} | {theirs} |")
    return "\n".join(lines) + "\n"


def cell(figures: dict[str, dict] | None, name: str | None = None) -> str:
    """Mean ± spread of the mIoU, or of a class's IoU, over the runs."""
    if not figures:
        return "–"
    known = [f.get("miou_known") for f in figures.values()]
    note = f" (leaving 255 out {mean_and_spread(known)})" if name is None and None not in known else ""
    return mean_and_spread([f["miou"] if name is None else f["iou"][name] for f in figures.values()]) + note


def as_markdown(
    rows: dict[str, str],
    found: dict,
    configs: list[dict],
    outs: list[Path],
    splits: list[tuple[str, int]],
    root: Path,
) -> str:
    preset, recipe = configs[0]["preset"], configs[0]["recipe"]
    (raw_split, raw_count), (split, count) = splits
    classes = class_names(root)
    data = "VOC 2012" if classes == CLASSES else "its own classes"
    data = "the embedded, drawn images: no VOC figure" if (root / "demo.json").exists() else data
    lines = [
        f"Preset {preset}, recipe {recipe}, measured on {data}. Raw seeds: {raw_split}, {raw_count} images; networks: "
        f"{split}, {count} images. Percent; mean ± standard deviation where there are several runs.",
        "",
        "Runs: " + ", ".join(f"{out} (seed {c['seed']})" for out, c in zip(outs, configs, strict=True)) + ".",
        "",
        "| seeds | raw seeds | network trained on them | network + CRF | runs | published on VOC: raw, train "
        "| published on VOC: network, val |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts = sorted({len(found[column][row]) for column in found if found[column].get(row)})
        number = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(sum(counts))
        cells = [cell(found[column].get(row)) for column in found]
        published = [str(table.get(row, "–")) for table in (expected.RAW, expected.NETWORK)]
        lines.append(f"| {row} | {' | '.join([*cells, number, *published])} |")
    lines += [line for title, note in NOTES.items() if title in rows for line in ("", note)]
    lines += [
        "",
        "Network + CRF, class by class. PSA: trained on PSA seeds here; as published, PSA's own network.",
        "",
        "| class | PSA | dynamic SSDD | gain | published on VOC: PSA | published on VOC: SSDD | published gain |",
        "|---|---|---|---|---|---|---|",
    ]
    pair = [found["network + CRF"].get(row) for row in ("PSA", "dynamic SSDD")]
    for n, name in enumerate([*classes, None]):
        cells = [*(cell(figures, name) for figures in pair), gain(*pair, name)]
        if classes == CLASSES:
            rows = expected.CLASSES.items()
            before, after = (values[n] if name else expected.CLASS_MEAN[row] for row, values in rows)
            cells += [f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"]
        else:
            cells += ["–"] * 3
        lines.append(f"| {name or '**mIoU**'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gain(before: dict | None, after: dict | None, name: str | None) -> str:
    """Mean difference over the runs that have both."""
    both = [out for out in before or () if out in (after or ())]
    pairs = [[f[out]["miou"] if name is None else f[out]["iou"][name] for f in (before, after)] for out in both]
    if not pairs or any(value is None for pair in pairs for value in pair):
        return "–"
    return f"{100 * np.mean([b - a for a, b in pairs]):+.1f}"


def charts(rows: dict[str, str], found: dict, title: str) -> dict[str, Figure]:
    """seeds.png: mIoU of raw seeds and networks; classes.png: IoU of each class of the networks."""

    def spread(values: list[float | None]) -> tuple[float, float] | None:
        if not values or any(v is None for v in values):
            return None
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    mious = {
        column: [spread([f["miou"] for f in measured.get(row, {}).values()]) for row in rows]
        for column, measured in found.items()
    }
    pictures = {"seeds.png": bars(f"mIoU, {title}", list(rows), mious)}
    networks = found["network + CRF"]
    figures = [f["iou"] for measured in networks.values() for f in measured.values()]
    shown = [c for c in (figures[0] if figures else ()) if any(f[c] is not None for f in figures)]
    if shown:
        classes = {
            row: [spread([f["iou"][c] for f in figures.values()]) for c in shown] for row, figures in networks.items()
        }
        pictures["classes.png"] = bars(f"IoU, networks + CRF, {title}", shown, classes)
    return pictures


def bars(title: str, groups: list[str], series: dict[str, list[tuple[float, float] | None]]) -> Figure:
    """One group of bars a label, one colour a series.

    Args:
        series: {name: (value, spread) or None for each group}, values in 0…1; the spread is drawn as ±.
    """
    figure = Figure(figsize=(max(6, 0.3 * len(groups) * len(series)), 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(series)
    for n, (name, values) in enumerate(series.items()):
        there = [(place, *value) for place, value in enumerate(values) if value is not None]
        places, heights, spreads = zip(*there, strict=True) if there else ((), (), ())
        middles = [place + (n - (len(series) - 1) / 2) * width for place in places]
        errors = [100 * spread for spread in spreads]
        axes.bar(middles, [100 * h for h in heights], width, yerr=errors if any(errors) else None, label=name)
    axes.set(title=title, ylim=(0, 100), ylabel="%")
    axes.set_xticks(range(len(groups)), groups, rotation=45 if len(groups) > 6 else 0)
    axes.legend()
    return figure


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("outs", nargs="+", type=Path, metavar="OUT", help="--out folder of a run")
    parser.add_argument("--modelid", default="ssdd", help="name of the run in those folders (default: ssdd)")
    parser.add_argument("--recurseed", nargs="+", default=[], metavar="ID", help="runs of RecurSeed, in a table apart")
    parser.add_argument("--voc-root", help="VOC folder (default: as the runs recorded it)")
    parser.add_argument("--raw-split", default="train", help="list on which raw seeds are judged (default: train)")
    parser.add_argument("--split", default="val", help="list on which networks are judged (default: val)")
    parser.add_argument("--into", type=Path, default=Path("tables"), help="folder for the tables (default: tables)")
    arguments = parser.parse_args(argv)
    configs = runs.repetitions(arguments.outs, arguments.modelid)
    root = arguments.voc_root or configs[0]["voc_root"]
    raw_ids, ids = (read_ids(root, split) for split in (arguments.raw_split, arguments.split))
    rows = rows_of(arguments.outs, arguments.modelid)
    for modelid in arguments.recurseed:
        runs.repetitions(arguments.outs, modelid)
    names = [arguments.modelid, *arguments.recurseed]
    folders = [folder for out in arguments.outs for name in names for _, folder in runs.folders_of(out, name)]
    masks = [folder / kind for folder in folders for kind in ("mask", "crf")]
    others = [Path(name.removeprefix(stages.MASKS)) for name in rows.values() if name.startswith(stages.MASKS)]
    refuse_overwrite([arguments.into], [*folders, *masks, *others, mask_path(root, "").parent])
    found = measure(rows, arguments.outs, arguments.modelid, root, raw_ids, ids)
    theirs = measure_recurseed(arguments.recurseed, arguments.outs, root, raw_ids, ids)
    if not any(found.values()):
        raise InputError(f"{arguments.outs[0]} has neither seeds nor masks yet: run prepare_labels and the modes first")
    splits = [(arguments.raw_split, len(raw_ids)), (arguments.split, len(ids))]
    text = as_markdown(rows, found, configs, arguments.outs, splits, Path(root))
    if theirs:
        text += recurseed_as_markdown(theirs, arguments.outs)
    about = {
        "preset": configs[0]["preset"],
        "recipe": configs[0]["recipe"],
        "runs": {str(out): config["seed"] for out, config in zip(arguments.outs, configs, strict=True)},
        "raw_split": arguments.raw_split,
        "split": arguments.split,
    }
    published = {"raw": expected.RAW, "network": expected.NETWORK, "classes": expected.CLASSES}
    content = {"about": about, "measured": found, "recurseed": theirs, "published_on_voc_in_percent": published}
    for name, written in {"tables.md": text, "tables.json": json.dumps(content, indent=1) + "\n"}.items():
        with atomic_write(arguments.into / name) as temporary:
            temporary.write_text(written, encoding="utf-8")
    title = f"{about['preset']} preset, {arguments.split}, {len(arguments.outs)} runs"
    for name, picture in charts(rows, found, title).items():
        with atomic_write(arguments.into / name) as temporary:
            picture.savefig(temporary, format="png")
    print(text)
    print(f"wrote tables.md, tables.json and charts into {arguments.into}")


if __name__ == "__main__":
    main()
