"""Does difference detection learn more from more images? Static SSDD against the number of its training images.

    python -m datasets.demo demo3600/VOC2012 --train 3600
    python -m tools.growth --preset demo --voc-root demo3600/VOC2012 --out growth --sizes 200 800 3200
    python -m tools.growth --preset demo --voc-root demo3600/VOC2012 --out growth --labels demo3600   # made before

All sizes share one label chain (classifier, CAM, AffinityNet, PSA), made on all images: the seeds' quality stays the
same, and only mode 0's list grows. It is trained with an equal number of epochs, and with as many steps as the largest
size takes. Every size contains the smaller ones, and all are judged on the same two lists: the images of the smallest
size, which each of them has learned from, and as many that none of them has. Where the first is better than the second,
the DD-Net knows its images by heart. Interrupted, the same command goes on where it stopped. Ends with growth.md,
growth.json and growth.png. All flags of main_ssdd.py hold, but for those of one stage alone.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets.errors import InputError, program
from datasets.files import atomic_write
from datasets.linked import link_with_lists
from datasets.voc import list_path, mask_path, read_ids
from engine import runs, stages
from engine.commands import Job, made_from, minutes_of_work, run_all, run_command
from evaluation.metrics import mean_and_spread
from settings.config import Config
from settings.flags import Parser, add_flags, parsed

OF_ONE_STAGE = ("epochs", "fresh", "modelid", "seed_source", "split", "submit", "static_checkpoint")
SCHEDULES = ("equal epochs", "equal steps")
# The lists on which all sizes are judged, as the tables call them.
JUDGED = {"seen": "learned from", "held": "held out"}
LABELS = "prepare_labels"
# What is shown of a run, by its figures of tools.seed_rivals; those of the first adviser, if there are several.
SHOWN: dict[str, Callable[[dict], float | None]] = {
    "flags alone": lambda r: r["rules"]["flags alone"]["miou"],
    "static SSDD": lambda r: r["rules"]["static SSDD"]["miou"],
    "maps by their spread": lambda r: r["rules"]["SSDD, maps by their spread"]["miou"],
    "bias by kept classes": lambda r: r["rules"]["published, bias by kept classes"]["miou"],
    "share of the oracle's gap": lambda r: r["share_of_gap"],
    "maps overrule the bias": lambda r: (
        r["steps"][0]["pixels"]["bias overruled"] / max(r["steps"][0]["pixels"]["differ"], 1)
    ),
    "area of a change, d_K": lambda r: r["steps"][0]["change"][0],
    "area of σ(d_K) − σ(d_A)": lambda r: r["steps"][0]["detection"],
}
CHARTS = ("static SSDD", "share of the oracle's gap", "maps overrule the bias", "area of σ(d_K) − σ(d_A)")


@dataclass(frozen=True)
class Point:
    """One training of mode 0."""

    images: int
    schedule: str
    epochs: int

    @property
    def modelid(self) -> str:
        """The same where both schedules ask for the same."""
        return f"images{self.images}_epochs{self.epochs}"


def points(config: Config, sizes: list[int]) -> list[Point]:
    """Both schedules of every size; at the largest they are one."""
    epochs = {
        "equal epochs": [config.static_epochs for _ in sizes],
        "equal steps": [max(1, round(config.static_epochs * sizes[-1] / size)) for size in sizes],
    }
    return [Point(size, name, own) for name in SCHEDULES for size, own in zip(sizes, epochs[name], strict=True)]


def make_lists(config: Config, sizes: list[int]) -> str:
    """Make <out>/VOC2012: the user's VOC with a list of each size, drawn by chance, and those to judge on; its path.

    Raises:
        InputError: there are too few images, or too few with true masks; or there is one already, of other images.
    """
    source, root = Path(config.voc_root), Path(config.out) / "VOC2012"
    found = read_ids(source, config.train_split)
    needed = sizes[0] + sizes[-1]
    # The same for every --seed, so that runs differ in nothing else.
    drawn = [found[n] for n in np.random.default_rng(0).permutation(len(found))]
    masked = [image_id for image_id in drawn if mask_path(source, image_id).exists()][: 2 * sizes[0]]
    if len(found) < needed or len(masked) < 2 * sizes[0]:
        raise InputError(
            f"{list_path(source, config.train_split)} lists {len(found)} images: {needed} are needed, {sizes[-1]} to "
            f"learn from and {sizes[0]} held out, {2 * sizes[0]} of them with true masks; give smaller --sizes"
        )
    held, seen = masked[: sizes[0]], masked[sizes[0] :]
    chosen = set(masked)
    learned = (seen + [image_id for image_id in drawn if image_id not in chosen])[: sizes[-1]]
    lists = {"seen": seen, "held": held, "judged": seen + held, "all": learned + held}
    lists |= {f"train{size}": learned[:size] for size in sizes}
    link_with_lists(source, root, lists)
    return str(root)


def link_labels(labels: Path | None, out: Path) -> None:
    """Let a run find the label chain of another, if one is given.

    Raises:
        InputError: the run has begun with other labels.
    """
    link, wanted = out / LABELS, (labels / LABELS).resolve() if labels else None
    if link.exists() and (link.resolve() if link.is_symlink() else None) != wanted:
        raise InputError(f"{link} is not what --labels={labels} asks for: give the same as before, or another --out")
    if wanted and not link.exists():
        out.mkdir(parents=True, exist_ok=True)
        link.symlink_to(wanted)


def jobs(config: Config, chosen: list[Point], seeds: int, chain_is_made: bool) -> list[Job]:
    """Labels of every seed, then a mode 0 and 1 of every point; every job stands after the one that it needs."""
    first, rest = [], []
    for seed in range(config.seed, config.seed + seeds):
        own = replace(config, out=str(Path(config.out) / f"seed{seed}"), seed=seed)
        whole, name = replace(own, train_split="all"), f"seed{seed} labels"
        if not chain_is_made:
            start = [f"--weights={config.weights}"] if config.weights else []
            chain = [[*stages.arguments(whole, step), *(start if step == "train_cls" else [])] for step in stages.PSA]
            first.append(Job(name, whole, chain))
        for point in {point.modelid: point for point in chosen}.values():
            run = replace(own, modelid=point.modelid, static_epochs=point.epochs)
            commands = [
                stages.arguments(replace(run, train_split=split), mode)
                for split, mode in ((f"train{point.images}", "mode 0"), ("judged", "mode 1"))
            ]
            rest.append(Job(f"seed{seed} {point.modelid}", run, commands, "" if chain_is_made else name))
    return first + rest


def judged(config: Config, chosen: list[Point], seeds: int) -> dict[str, dict[str, list[dict]]]:
    """{list to judge on: {modelid: figures of tools.seed_rivals for each seed}}."""
    out = Path(config.out)
    outs = [str(out / f"seed{config.seed + n}") for n in range(seeds)]
    names = list(dict.fromkeys(point.modelid for point in chosen))
    found = {}
    for split in JUDGED:
        written, log = out / f"{split}.json", out / f"{split}.md"
        log.unlink(missing_ok=True)
        command = ["-m", "tools.seed_rivals", *outs, "--modelid", *names, "--voc-root", config.voc_root]
        run_command([*command, "--split", split, "--json", str(written)], log)
        results = json.loads(written.read_text(encoding="utf-8"))
        found[split] = {name: [results[name][one] for one in outs] for name in names}
    return found


def rows_of(config: Config, chosen: list[Point], found: dict[str, dict[str, list[dict]]]) -> list[dict]:
    """What is shown of every point on both lists: {"images", "schedule", …, title: [figure of each seed]}."""
    rows = []
    for split, title in JUDGED.items():
        for point in chosen:
            results = found[split][point.modelid]
            single = results[0]["pair"]
            alone = {name: [r["rules"][name]["miou"] for r in results] for name in (*single, "oracle")}
            about = asdict(point) | {"steps": point.epochs * -(-point.images // config.bn), "judged on": title}
            rows.append(about | alone | {name: [figure(r) for r in results] for name, figure in SHOWN.items()})
    return rows


def as_markdown(config: Config, rows: list[dict], seeds: int, labels: Path | None) -> str:
    """One row a training and list; percent, mean ± standard deviation over the seeds."""
    drawn = (Path(config.voc_root) / "demo.json").exists()
    data = "the embedded, drawn images: no VOC figure" if drawn else "the images of --voc-root"
    figures = [name for name, value in rows[0].items() if isinstance(value, list)]
    made = f"those of {labels}" if labels else "made on all images, those held out among them"
    of = f"seeds {config.seed} to {config.seed + seeds - 1}" if seeds > 1 else f"seed {config.seed}"
    lines = [
        f"Preset {config.preset}, recipe {config.recipe}, measured on {data}; {of}. "
        f"One label chain for all sizes ({made}), so only what the DD-Net learns from grows. "
        f"Each row is judged on the same {len(read_ids(config.voc_root, 'seen'))} images that all sizes learned "
        "from, or on as many that none did. Percent.",
        "",
        f"| judged on images | training images | epochs | steps | {' | '.join(figures)} |",
        f"|---|---|---|---|{'---|' * len(figures)}",
    ]
    done = set()
    for row in sorted(rows, key=lambda row: (row["judged on"], row["images"], row["epochs"])):
        key = tuple(row[name] for name in ("judged on", "images", "epochs", "steps"))
        if key not in done:  # a training that belongs to both schedules
            lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(mean_and_spread(row[f]) for f in figures)} |")
        done.add(key)
    return "\n".join(lines) + "\n"


def chart(rows: list[dict], title: str) -> Figure:
    """One panel a figure, against the number of training images; a colour a schedule, broken where held out."""
    picture = Figure(figsize=(10, 7), layout="constrained")
    picture.suptitle(title)
    colours = dict(zip(SCHEDULES, ("tab:blue", "tab:orange"), strict=True))
    marks = dict(zip(JUDGED.values(), ("o-", "s--"), strict=True))
    for axes, name in zip(picture.subplots(2, 2).flat, CHARTS, strict=True):
        for on, mark in marks.items():
            for schedule, colour in colours.items():
                own = [row for row in rows if row["schedule"] == schedule and row["judged on"] == on]
                there = [(row["images"], row[name]) for row in own if None not in row[name]]
                means = [100 * np.mean(values) for _, values in there]
                spreads = [100 * np.std(values, ddof=1) if len(values) > 1 else 0.0 for _, values in there]
                sizes = [images for images, _ in there]
                axes.errorbar(sizes, means, spreads, fmt=mark, color=colour, capsize=3, label=f"{schedule}, {on}")
            if name == "static SSDD":
                flags = 100 * np.mean(own[0]["flags alone"])
                axes.axhline(flags, color="grey", linestyle=mark[1:], linewidth=1, label=f"flags alone, {on}")
        axes.set(title=name, xscale="log", xlabel="training images", ylabel="mIoU, %" if name == CHARTS[0] else "%")
        sizes = sorted({row["images"] for row in rows})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=3)
    return picture


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[200, 800, 3200], help="training images (default: 200 800 3200)"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each size (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    parser.add_argument("--labels", type=Path, help="--out of a run whose label chain is taken, not made anew")
    add_flags(parser, "psa", "ssdd")
    config, arguments = parsed(parser, argv)
    given = [f"--{name}" for name in OF_ONE_STAGE if name in vars(arguments)]
    if given:
        raise InputError(f"{given[0]}: tools.growth sets it itself; --static_epochs gives the schedule")
    sizes, labels, seeds = arguments.sizes, arguments.labels, arguments.seeds
    if len(sizes) < 2 or sizes[0] < 1 or sizes != sorted(set(sizes)):
        raise InputError("--sizes: needs two numbers of images or more, each larger than the one before")
    if seeds < 1 or arguments.jobs < 1:
        raise InputError("--jobs and --seeds must be 1 or more")
    if labels:
        runs.need(labels / LABELS, "python -m prepare_labels.train_cls")
    if "out" not in vars(arguments):
        config = replace(config, out="growth")
    out = Path(config.out)
    # Runs on one thread: no worker processes; only the last checkpoint, no pictures.
    config = replace(config, workers=0, crf_workers=False, pictures=0, checkpoint_epochs=1 << 20, static_checkpoint=0)
    config = replace(config, voc_root=make_lists(config, sizes))
    chosen = points(config, sizes)
    for seed in range(config.seed, config.seed + seeds):
        link_labels(labels, out / f"seed{seed}")
    todo = jobs(config, chosen, seeds, chain_is_made=labels is not None)
    started = time.perf_counter()
    run_all(out, todo, arguments.jobs, made_from(config, ["all"], labels))
    minutes = (time.perf_counter() - started) / 60

    rows = rows_of(config, chosen, judged(config, chosen, seeds))
    text = as_markdown(config, rows, seeds, labels)
    content = {"config": asdict(config), "sizes": sizes, "rows": rows, "minutes_of_all_jobs": minutes_of_work(out)}
    for name, written in {"growth.md": text, "growth.json": json.dumps(content, indent=1) + "\n"}.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(written, encoding="utf-8")
    with atomic_write(out / "growth.png") as temporary:
        chart(rows, f"{config.preset} preset, {seeds} runs").savefig(temporary, format="png")
    print(text)
    print(f"growth: {minutes_of_work(out):.0f} min of work, {minutes:.0f} min since this start; all in {out}")


if __name__ == "__main__":
    main()
