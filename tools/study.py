"""The differences between paper and released program, and the parts of the integration, each switched alone.

    python -m tools.study --preset demo --out study

Every run learns on four fifths of the train list and is judged on the last fifth, so nothing is chosen on val; the
lists are made in <out>/VOC2012, which links to --voc-root. Seeds share what a difference does not touch: one label
chain a seed, one mode 0 for all differences that begin later, one mode 1 for those of mode 2. Runs go side by side,
each on one thread; --variant-seeds=0 stops after the static seeds. Interrupted, the same command goes on where it
stopped. Ends with study.md and study.json, and with the tables of tools.seed_rivals (rivals.md) and tools.paper_tables
(tables/) of the recipe's own runs. All flags of main_ssdd.py hold, but for those of one stage alone.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets.errors import InputError, program
from datasets.files import atomic_write
from datasets.linked import link_with_lists
from datasets.samples.seeds import SeedSamples
from datasets.voc import list_path, read_ids
from engine import seeds, stages
from engine.commands import Job, made_from, minutes_of_work, run_all, run_command
from evaluation.masks import evaluate
from evaluation.metrics import mean_and_spread
from settings.config import Config
from settings.flags import Parser, add_flags, parsed
from settings.ssdd import PARTS

BASE = "base"  # modelid of the runs with the recipe as it is
HELD_OUT = 5  # every fifth image
EVERY_EPOCH = ("--checkpoint-epochs=1",)  # of mode 0 is kept: mode 1 may take an earlier one (difference 8)
OF_ONE_STAGE = ("epochs", "fresh", "modelid", "seed_source", "split", "submit")
FIXED = ("psa", "psa_crf", "ssdd", "truth")  # seeds that networks are trained on alone


@dataclass(frozen=True)
class Variant:
    number: str  # of the difference in docs/reproduction.md
    what: str
    fields: dict
    first: int  # the first mode that it touches


def variants(config: Config) -> dict[str, Variant]:
    """Each difference the other way round, by the modelid of its runs."""
    epoch = max(1, round(11 / 16 * config.static_epochs))
    flip = {
        "advice": "knowledge",
        "knowledge": "advice",
        "lost": "poster",
        "poster": "lost",
        "ssdd1": "ssdd2",
        "ssdd2": "ssdd1",
    }
    used = (0.1, 0.1) if config.seed_bias == config.bias else (config.bias, config.bg)
    chosen = [
        ("1", "bias_favours", {"bias_favours": flip[config.bias_favours]}, 1),
        ("2", "flag_rule", {"flag_rule": flip[config.flag_rule]}, 1),
        ("3", "swap_maps", {"swap_maps": not config.swap_maps}, 2),
        ("4", "precompute_augmented", {"precompute_augmented": not config.precompute_augmented}, 1),
        ("5", "move_maps", {"move_maps": not config.move_maps}, 2),
        ("6", "seed_target", {"seed_target": flip[config.seed_target]}, 2),
        ("7", "momentum", {"momentum": 0.0 if config.momentum else 0.9}, 0),
        ("8", "static_checkpoint", {"static_checkpoint": 0 if config.static_checkpoint else epoch}, 1),
        ("9", "seed_bias", {"seed_bias": used[0], "seed_bg": used[1]}, 1),
    ]
    return {
        name: Variant(number, ", ".join(f"{k} = {v}" for k, v in fields.items()), fields, first)
        for number, name, fields, first in chosen
    }


def parts(config: Config) -> dict[str, Variant]:
    """The integration, in the seeds and in mode 2's modules, reduced to each of its parts."""
    others = [name for name in PARTS if name != config.integration]
    return {f"only_{name}": Variant("", f"integration = {name}", {"integration": name}, 1) for name in others}


def switched(config: Config) -> dict[str, Variant]:
    return variants(config) | parts(config)


def jobs(config: Config, seeds: int, variant_seeds: int) -> list[Job]:
    """Every job stands after the one that it needs."""
    bases, rest = [], []
    for seed in range(config.seed, config.seed + seeds):
        own = replace(config, out=str(Path(config.out) / f"seed{seed}"), modelid=BASE, seed=seed)
        start = [f"--weights={config.weights}"] if config.weights else []
        chain = [[*stages.arguments(own, step), *(start if step == "train_cls" else [])] for step in stages.PSA]
        static = [[*stages.arguments(own, "mode 0"), *EVERY_EPOCH], stages.arguments(own, "mode 1")]
        base = f"seed{seed} labels and static"
        bases.append(Job(base, own, [*chain, *static], ""))
        if seed >= config.seed + variant_seeds:
            continue
        dynamic = [stages.arguments(own, stage) for stage in ("mode 2", "mode 3")]
        rest.append(Job(f"seed{seed} {BASE}", own, dynamic, base))
        for source in FIXED:
            fixed = replace(own, seed_source=source)
            commands = [stages.arguments(fixed, stage) for stage in ("mode 4", "mode 3")]
            rest.append(Job(f"seed{seed} fixed {source}", fixed, commands, base))
        for name, variant in switched(config).items():
            other = replace(own, modelid=name, **variant.fields)
            modes = stages.SSDD[variant.first :]
            commands = [[*stages.arguments(other, m), *(EVERY_EPOCH if m == "mode 0" else ())] for m in modes]
            share = partial(share_with_base, Path(other.out), name, variant.first)
            rest.append(Job(f"seed{seed} {name}", other, commands, base, share))
    return bases + rest


def share_with_base(out: Path, name: str, first: int) -> None:
    """Let a variant that begins with mode `first` find the base's results of the modes before it."""
    for stage in stages.SSDD[: min(first, 2)]:
        link, target = (out / stages.filled(stages.STAGES[stage].folders[0], modelid) for modelid in (name, BASE))
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target.name)


def hold_out(config: Config) -> str:
    """Make <out>/VOC2012: the user's VOC with a fifth of train as val; its path.

    Raises:
        InputError: there is one already, of other images.
    """
    source, root = Path(config.voc_root), Path(config.out) / "VOC2012"
    train, everything = read_ids(source, "train"), read_ids(source, config.train_split)
    held = train[HELD_OUT - 1 :: HELD_OUT]
    if not held:
        raise InputError(f"{list_path(source, 'train')} lists {len(train)} images: at least {HELD_OUT} are needed")
    kept = set(held)
    lists = {
        "train": [image_id for image_id in train if image_id not in kept],
        config.train_split: [image_id for image_id in everything if image_id not in kept],
        "val": held,
    }
    link_with_lists(source, root, lists)
    return str(root)


def measure(config: Config, variant_seeds: int) -> dict:
    """{modelid: {"seeds" (only where a difference touches them), "network", "network + CRF": mIoU of each seed}}."""
    root = config.voc_root
    train, val = read_ids(root, "train"), read_ids(root, "val")
    found: dict[str, dict[str, list[float]]] = {}
    for name in [BASE, *switched(config)]:
        first = 1 if name == BASE else switched(config)[name].first
        masks = stages.filled(stages.STAGES["mode 3"].folders[0], name)
        columns = {"network": f"{masks}/mask", "network + CRF": f"{masks}/crf"}
        if first < 2:
            columns = {"seeds": stages.filled(stages.sources()["ssdd"][1].folder, name), **columns}
        found[name] = {
            column: [
                evaluate(Path(config.out) / f"seed{seed}" / folder, root, train if column == "seeds" else val)["miou"]
                for seed in range(config.seed, config.seed + variant_seeds)
            ]
            for column, folder in columns.items()
        }
    return found


def one_sided(config: Config) -> tuple[int, int]:
    """Training images whose difference map lacks changed or unchanged pixels (difference 10), and all images."""
    ids = read_ids(config.voc_root, config.train_split)
    own = replace(config, out=str(Path(config.out) / f"seed{config.seed}"))
    pair = {name: source.folder for name, source in seeds.pair(own).items()}
    samples = SeedSamples(config.voc_root, ids, pair, config.crop)
    shares = [float((s["knowledge"] != s["advice"]).float().mean()) for s in (samples[n] for n in range(len(ids)))]
    return sum(share in (0.0, 1.0) for share in shares), len(ids)


def as_markdown(config: Config, found: dict, nan: tuple[int, int], variant_seeds: int, counts: tuple[int, int]) -> str:
    """One row a difference: what it adds to the base's mIoU with the same seed, percent points."""
    drawn = (Path(config.voc_root) / "demo.json").exists()
    data = "the embedded, drawn images: no VOC figure" if drawn else "VOC 2012"
    columns = ("seeds", "network", "network + CRF")
    lines = [
        f"Preset {config.preset}, recipe {config.recipe}, measured on {data}; seeds {config.seed} to "
        f"{config.seed + variant_seeds - 1}. Raw static seeds: {counts[0]} training images; networks: {counts[1]} "
        "images held out of train. First row: mIoU in percent; the others: percent points more or less than it with "
        "the same seed; mean ± standard deviation over the seeds.",
        "",
        "| # | switched | raw static seeds | network | network + CRF |",
        "|---|---|---|---|---|",
        f"| – | nothing | {' | '.join(mean_and_spread(found[BASE][column]) for column in columns)} |",
    ]
    for name, variant in variants(config).items():
        cells = [
            signed([a - b for a, b in zip(found[name][column], found[BASE][column], strict=True)])
            if column in found[name]
            else "not touched"
            for column in columns
        ]
        lines.append(f"| {variant.number} | {variant.what} | {' | '.join(cells)} |")
    note = f"NaN in the released program for {nan[0]} of {nan[1]} training images, here a side without pixels counts 0"
    lines.append(f"| 10 | cannot be switched | {note} | | |")
    lines.append("| 11 | cannot be switched | the same masks, only judged | | |")
    lines += [
        "",
        "What each part of the integration brings, in the raw seeds and inside mode 2; mIoU in percent:",
        "",
        "| the mask is chosen by | raw static seeds | network | network + CRF |",
        "|---|---|---|---|",
    ]
    chosen_by = {name: variant.fields["integration"] for name, variant in parts(config).items()}
    for name, what in {BASE: config.integration, **chosen_by}.items():
        cells = [mean_and_spread(found[name][column]) for column in columns]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def signed(differences: list[float]) -> str:
    text = mean_and_spread(differences)
    return text if np.mean(differences) < 0 else f"+{text}"


def compared_networks(config: Config, variant_seeds: int, minutes: dict[str, float]) -> str:
    """Write study.md, which comes back, and study.json: what every switch does to seeds and networks."""
    found, nan = measure(config, variant_seeds), one_sided(config)
    counts = tuple(len(read_ids(config.voc_root, split)) for split in ("train", "val"))
    text = as_markdown(config, found, nan, variant_seeds, counts)
    content = {"config": asdict(config), "miou": found, "one_sided_images": nan, **minutes}
    for name, written in {"study.md": text, "study.json": json.dumps(content, indent=1) + "\n"}.items():
        with atomic_write(Path(config.out) / name) as temporary:
            temporary.write_text(written, encoding="utf-8")
    return text


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of labels and static SSDD (default: 5)")
    parser.add_argument("--variant-seeds", type=int, default=3, help="of those, with networks (default: 3; 0: none)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    add_flags(parser, "psa", "ssdd")
    config, arguments = parsed(parser, argv)
    given = [f"--{name}" for name in OF_ONE_STAGE if name in vars(arguments)]
    if given:
        raise InputError(f"{given[0]}: the study sets it itself; give the schedule with --static_epochs and the like")
    if not 0 <= arguments.variant_seeds <= arguments.seeds or arguments.jobs < 1:
        raise InputError("--jobs must be 1 or more, --variant-seeds 0 or more, --seeds at least as many")
    if "out" not in vars(arguments):
        config = replace(config, out="study")
    out = Path(config.out)
    # Runs on one thread: no worker processes; only the last checkpoint, no pictures.
    config = replace(config, workers=0, crf_workers=False, pictures=0, checkpoint_epochs=1 << 20)
    config = replace(config, voc_root=hold_out(config))
    todo = jobs(config, arguments.seeds, arguments.variant_seeds)
    started = time.perf_counter()
    run_all(out, todo, arguments.jobs, made_from(config, [config.train_split, "val"], None))
    minutes = (time.perf_counter() - started) / 60

    work = minutes_of_work(out)
    if arguments.variant_seeds:
        minutes_of = {"minutes_of_this_start": minutes, "minutes_of_all_jobs": work}
        print(compared_networks(config, arguments.variant_seeds, minutes_of))
    runs = [str(out / f"seed{config.seed + n}") for n in range(arguments.seeds)]
    own = [f"--modelid={BASE}", "--voc-root", config.voc_root]
    rivals, tables = out / "rivals.md", out / "output" / "tables.txt"
    for log in (rivals, tables):
        log.unlink(missing_ok=True)
    run_command(["-m", "tools.seed_rivals", *runs, *own, "--json", str(out / "rivals.json")], rivals)
    print(rivals.read_text(encoding="utf-8"))
    if arguments.variant_seeds:
        with_networks = runs[: arguments.variant_seeds]
        run_command(["-m", "tools.paper_tables", *with_networks, *own, "--into", str(out / "tables")], tables)
        print(tables.read_text(encoding="utf-8"))
    print(f"study: {len(todo)} jobs, {work:.0f} min of work, {minutes:.0f} min since this start; all in {out}")


if __name__ == "__main__":
    main()
