"""The ledger of a run: its stages in order, the figure of each beside the expected one, and what is wrong first.

Nothing is taken from a run's word: figures are computed from its masks, and what can be checked mechanically is
(engine.ledger_checks). `tools.ledger` prints it, script/pages/ledger.py shows it.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from datasets import coco
from datasets.errors import InputError
from datasets.voc import CLASSES, class_names, list_path, mask_path, read_ids
from engine import notes, runs, stages
from engine.seeds import OLD_NAMES
from evaluation import expected
from evaluation.expected import AFTER, MASK, Expected
from evaluation.masks import evaluate
from settings import crf
from settings.config import Config, from_stored, preset, settings_of, with_network, with_recipe

EVALUATIONS = ("mode 3", "recurseed evaluate")  # write masks without and with CRF
# What may differ between runs whose figures are compared.
FREE = ("seed", "precision", "eval_batch", "seed_source")


@dataclass(frozen=True)
class Known:
    """What a run is held against.

    Attributes:
        settings: of each stage, by Entry.key, as a config.json holds them.
        figures: that are known.
        lists: how many images a list may have, by name.
    """

    settings: dict[tuple[str, str, str], dict]
    figures: tuple[Expected, ...]
    lists: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """A stage of a run that has run."""

    stage: str
    folder: Path  # its first one
    stored: dict  # its config.json; empty for files that others made
    source: str = ""  # the fixed seeds of modes 4 and 3

    @property
    def title(self) -> str:
        on = f", {self.network} on {self.source}" if self.source else "" if self.stored else ", imported"
        return stages.STAGES[self.stage].title + on

    @property
    def network(self) -> str:
        """That learned from fixed seeds."""
        return str(self.stored.get("network", "resnet38")) if self.source else "resnet38"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.stage, self.source, self.network


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        data: expected.VOC, COCO or DEMO; "" for own data.
        config: of its first stage.
    """

    out: Path
    modelid: str
    root: Path
    data: str
    config: Config
    entries: tuple[Entry, ...]
    missing: tuple[str, ...]  # for each stage of the chain that has not run, what to say


@dataclass(frozen=True)
class Finding:
    """What is wrong, or may be.

    Attributes:
        cause: one word, such as "list", "crf", "weights".
        text: for people.
        command: that tells, or mends.
    """

    cause: str
    text: str
    command: str


@dataclass
class Row:
    """A line of the ledger; figures in percent."""

    stage: str
    title: str
    what: str = ""
    split: str = ""
    images: int = 0
    here: float | None = None
    background: str = ""
    crf: str = ""
    expected: list[Expected] = field(default_factory=list)
    low: float | None = None
    high: float | None = None
    verdict: str = "done"
    findings: list[Finding] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        return bool(self.findings) or self.verdict.startswith("off")


def open_run(out: Path, modelid: str, root: str | None = None) -> Run:
    """What lies below an --out folder.

    Args:
        root: of the data set; None: as the run noted it.

    Raises:
        InputError: there is no such run, or its data set is not there.
    """
    filled = [(name, path, notes.read_config(path / "config.json")) for name, path in runs.folders_of(out, modelid)]
    filled = [(name, path, stored) for name, path, stored in filled if not _later_folder(out, modelid, name, path)]
    if not filled:
        raise InputError(f"{out} holds no run named '{modelid}': name the --out folder of one, and its --modelid")
    configs = [_checked(path, stored) for _, path, stored in filled]
    config = replace(configs[0], out=str(out), modelid=modelid, voc_root=root or configs[0].voc_root)
    if not list_path(config.voc_root, config.train_split).exists():
        raise InputError(f"{list_path(config.voc_root, config.train_split)} is missing: name the data with --voc-root")
    entries = [Entry(name, path, stored, _source(name, stored)) for name, path, stored in filled]
    chain, missing = _chain(config, entries)
    return Run(out, modelid, Path(config.voc_root), data_of(config.voc_root), config, tuple(chain), tuple(missing))


def _checked(path: Path, stored: dict) -> Config:
    """The Config that a stage noted; an InputError where what it noted cannot be."""
    try:
        made_from = stored.get("made_from", {})
        if not isinstance(made_from, dict) or not all(isinstance(value, str) for value in made_from.values()):
            raise ValueError("made_from must name files and their digests")
        return from_stored(stored)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path / 'config.json'} cannot be used ({error}); move {path} aside") from None


def _later_folder(out: Path, modelid: str, stage: str, path: Path) -> bool:
    """Whether a folder is not the first of its stage, which says it all."""
    return any(path == out / stages.filled(t, modelid) for t in stages.STAGES[stage].folders[1:])


def _source(stage: str, stored: dict) -> str:
    source = str(stored.get("seed_source", "")) if "seed_source" in settings_of(stage) else ""
    return OLD_NAMES.get(source, source)


def _chain(config: Config, entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """The entries in the order in which they were made, and what is missing of the systems that the run has begun."""
    found = {entry.key: entry for entry in entries}
    begun = {entry.stage for entry in entries if not entry.source}
    wanted: list[tuple[str, str, str]] = []
    for system in (stages.PSA + stages.SSDD, stages.ICD, stages.RECURSEED):
        if begun & set(system):
            wanted += [(stage, "", "resnet38") for stage in system]
    if config.superpixels:  # of others
        wanted = [key for key in wanted if key[0] != "make_superpixels"]
    fixed = dict.fromkeys(key[1:] for key in found if key[1])
    wanted += [(stage, *key) for key in fixed for stage in ("mode 4", "mode 3")]
    wanted += [key for key in found if key not in wanted]
    # Label files and weights of others have no config.json, and need no stages before them.
    folders = {key: stages.folder(config, key[0]) for key in wanted if key not in found and not key[1]}
    found |= {key: Entry(key[0], path, {}) for key, path in folders.items() if path.is_dir() and any(path.iterdir())}
    if not getattr(found.get(("make_aff_labels", "", "resnet38")), "stored", True):
        wanted = [key for key in wanted if key in found or key[0] not in ("make_cam_labels", "train_aff")]
    chain, missing = [], []
    for key in wanted:
        if key in found and not missing:
            chain.append(found[key])
        elif key not in found:
            stage, source, network = key
            own = replace(with_network(config, network) if source else config, seed_source=source)
            missing.append(f"{stages.folder(own, stage)} is missing: make it with `{stages.command(own, stage)}`")
    return chain, missing


def data_of(root: str | Path) -> str:
    """Which figures a data set has: VOC's, COCO's, the embedded set's; "" for others."""
    names = class_names(root)
    if (Path(root) / "demo.json").exists():
        return expected.DEMO
    return {CLASSES: expected.VOC, coco.CLASSES: expected.COCO}.get(names, "")


def published(run: Run) -> Known:
    """The published figures of a run's data, or what this project measured on the embedded set.

    Raises:
        InputError: the run has other data or another preset than any figures.
    """
    if not run.data:
        raise InputError(
            f"{run.root} has its own classes, for which nobody has figures: name a run of yours with --against"
        )
    needed = {expected.VOC: ("voc",), expected.COCO: ("coco", "voc"), expected.DEMO: ("demo",)}[run.data]
    if run.config.preset not in needed:
        raise InputError(
            f"{run.out} was made with --preset={run.config.preset} on {run.data} data: the figures there are belong to "
            f"--preset={needed[0]}; name a run of yours with --against"
        )
    reference = with_recipe(preset(run.config.preset), run.config.recipe)
    for name in ("width", "icd_width", "backbone_dilation"):
        if getattr(run.config, name) != getattr(reference, name):
            raise InputError(
                f"{run.out} was made with --{name}={getattr(run.config, name)}, the figures with "
                f"--{name}={getattr(reference, name)}: they are of another network; name a run of yours with --against"
            )
    figures = [e for e in expected.FIGURES if e.data == run.data and e.recipe in ("", run.config.recipe)]
    settings = {}
    for entry in run.entries:
        plain = json.loads(json.dumps(asdict(with_network(reference, entry.network))))
        epochs = plain["epochs"] or plain.get(stages.STAGES[entry.stage].epochs)
        settings[entry.key] = plain | {"epochs": epochs}
    return Known(settings, tuple(figures), expected.LISTS[run.data])


def measured(references: list[Run]) -> Known:
    """The same from finished runs of one's own."""
    figures: dict[tuple, list[float]] = {}
    for run in references:
        if run.missing:
            raise InputError(run.missing[0])
        for entry in run.entries:
            for row in measure(run, entry, ()):
                if row.here is not None:
                    figures.setdefault((entry.stage, row.what, row.split, *entry.key[1:]), []).append(row.here)
    first = references[0]
    source = "measured in " + ", ".join(str(run.out) for run in references)
    data = first.data or expected.DEMO
    found = [
        Expected(data, stage, what, tuple(values), source, split, on=on, network=network)
        for (stage, what, split, on, network), values in figures.items()
    ]
    return Known({entry.key: entry.stored for entry in first.entries}, tuple(found), {})


def measure(run: Run, entry: Entry, figures: tuple[Expected, ...]) -> list[Row]:
    """The lines of a stage: its figures, or one line that it is done."""
    used = crf.used_by(entry.stage, entry.stored)
    folders: dict[str, Path] = {}
    if entry.stage in EVALUATIONS:
        folders = {MASK: entry.folder / "mask", AFTER: entry.folder / "crf"}
    for seeds in stages.STAGES[entry.stage].seeds:
        folders[seeds.name] = run.out / stages.filled(seeds.folder, run.modelid)
    rows = []
    for number, (what, folder) in enumerate(folders.items()):
        row = Row(entry.stage, entry.title, what)
        about = (entry.stage, what, *entry.key[1:])
        row.expected = [e for e in figures if (e.stage, e.what, e.on, e.network) == about]
        row.split = (
            str(entry.stored.get("split", "val")) if entry.stage in EVALUATIONS else seeds_split(run, row.expected)
        )
        row.crf = crf.as_text(used).partition(":")[0].removeprefix("CRF ") if used and number else "none"
        _fill(run, row, folder)
        rows.append(row)
    return rows or [Row(entry.stage, entry.title)]


def seeds_split(run: Run, found: list[Expected]) -> str:
    """The list on which seeds are judged: that of the figure they are compared with, else train."""
    return found[0].split if found else "train" if list_path(run.root, "train").exists() else run.config.train_split


def _fill(run: Run, row: Row, folder: Path) -> None:
    """Figure and verdict of a line."""
    ids = read_ids(run.root, row.split)
    truths = [mask_path(run.root, image_id).exists() for image_id in ids]
    if not all(truths):
        row.verdict = f"no true masks of {row.split}"
        return
    found = evaluate(folder, run.root, ids)
    judged = [e for e in row.expected if e.judged and e.split == row.split]
    known_only = bool(judged) and judged[0].known_only
    row.here = 100 * found.get("miou_known", found["miou"]) if known_only else 100 * found["miou"]
    row.images = found["images"]
    row.background = f"best threshold, {found['threshold']:g}" if "threshold" in found else next(
        (e.background for e in judged if e.background), "")  # fmt: skip
    if not judged:
        row.verdict = "nothing to compare with"
        return
    row.low, row.high = expected.interval(judged)
    if row.low <= row.here <= row.high:
        row.verdict = "as expected"
    else:
        row.verdict = f"off by {row.here - (row.low if row.here < row.low else row.high):+.1f}"


def differing(entry: Entry, known: Known) -> dict[str, tuple]:
    """Settings that the stage's results depend on and that differ: {name: (here, there)}; FREE ones aside."""
    there = known.settings.get(entry.key, {})
    return {
        name: (entry.stored[name], there[name])
        for name in settings_of(entry.stage)
        if name not in FREE and name in entry.stored and name in there and entry.stored[name] != there[name]
    }
