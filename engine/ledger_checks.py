"""What is proven to be wrong with a stage of a run, by its own notes and files.

That is a list, weights, a CRF or settings other than the figures belong to. What is only likely: engine.ledger_causes.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.seed_store import load_maps, seed_path
from datasets.voc import CLASSES, IGNORE, list_path, mask_path, read_ids, read_mask
from engine import checkpoint, notes, stages
from engine.ledger import EVALUATIONS, Entry, Finding, Known, Run, differing
from evaluation import expected
from evaluation.masks import masks_of
from settings import crf
from settings.config import Config, settings_of

BATCHES = ("bn", "cls_batch", "aff_batch", "icd_batch", "recurseed_batch")
LOOKED_AT = 12  # images, where all would take long
PAIRS = {"make_aff_labels": "PSA", "make_icd_labels": "ICD", "recurseed labels": "RecurSeed"}


def findings_of(run: Run, number: int, known: Known) -> list[Finding]:
    """What is proven to be wrong with the `number`-th entry of a run, what matters most first.

    Args:
        known: what the run is held against.
    """
    entry = run.entries[number]
    checks = (
        check_list(run, number, known),
        check_weights(run, entry),
        check_crf(run, entry, known),
        check_boundary(run, entry),
        check_settings(entry, known),
    )
    return [finding for check in checks for finding in check]


def _digest(path: Path) -> str:
    return _digest_of(path, path.stat().st_mtime_ns)


@cache
def _digest_of(path: Path, _stamp: int) -> str:
    return notes.digest(path)


def split_of(entry: Entry) -> str:
    """The list that an entry worked on."""
    return str(entry.stored.get("split" if entry.stage == "mode 3" else "train_split", "train_aug"))


def check_list(run: Run, number: int, known: Known) -> Iterator[Finding]:
    """Whether the list is the one of the other stages, still the same, and of as many images as it should be."""
    entry = run.entries[number]
    split, noted = split_of(entry), entry.stored.get("list")
    path = list_path(run.root, split)
    command = f"wc -l {path}; python -m tools.voc check --voc-root {run.root}"
    if not noted or not path.exists():
        return
    noting = [e.stored.get("list") for e in run.entries if split_of(e) == split and e.stored.get("list")]
    if noted != noting[0]:
        yield Finding("list", f"it worked on another {split}.txt than the stages before it", command)
        return
    if notes.digest(path) != noted:
        if notes.digest(path) not in noting:  # else it was changed between two stages, and the later one says so
            yield Finding("list", f"{path} was changed after this stage had read it", command)
        return
    ids = read_ids(run.root, split)
    should = known.lists.get(split, ())
    if len(set(ids)) < len(ids):
        yield Finding("list", f"{path} names {len(ids) - len(set(ids))} images twice", command)
    elif should and len(ids) not in should:
        yield Finding("list", f"{path} has {len(ids)} images, {' or '.join(map(str, should))} are expected", command)
    judged = list_path(run.root, "val")
    if split == run.config.train_split and judged.exists() and (both := set(ids) & set(read_ids(run.root, "val"))):
        yield Finding("list", f"{path} has {len(both)} images of val, on which networks are judged", command)


def weights_of(entry: Entry) -> dict[str, Path]:
    """The weights files that an entry left, by name."""
    folder = entry.folder
    return {path.name: path for path in (*folder.glob("weights.pth"), *folder.glob("models/*.pth"))}


def maker_of(entry: Entry) -> str:
    """The stage whose weights an entry starts from; "" if it starts from none."""
    if entry.stage == "mode 3" and entry.source:
        return "mode 4"
    if entry.network != "resnet38":  # from ImageNet
        return ""
    if entry.stage == "mode 2" and entry.stored.get("dynamic_start") == "static":
        return "mode 0"
    inputs = stages.STAGES[entry.stage].inputs
    return next((name for name in inputs if stages.STAGES[name].epochs), "")


def check_weights(run: Run, entry: Entry) -> Iterator[Finding]:
    """Whether weights were loaded, are those that the next stages read, and are of this training."""
    given = {name: value for name, value in entry.stored.get("made_from", {}).items() if name.endswith(".pth")}
    by_key = {e.key: e for e in run.entries}
    maker = by_key.get((maker_of(entry), *entry.key[1:])) or by_key.get((maker_of(entry), "", "resnet38"))
    start = stages.STAGES[entry.stage].command
    if not entry.stored:
        return
    if run.data != expected.DEMO and not given and entry.stage in ("train_cls", "train_icd", "recurseed train"):
        yield Finding(
            "weights", "it learned from scratch: no ImageNet weights were given", f"python {start} --weights FILE"
        )
    if maker:
        left = weights_of(maker)
        for name, noted in given.items():
            readers = [e.stored.get("made_from", {}).get(name) for e in run.entries if maker_of(e) == maker.stage]
            if name not in left or (_digest(left[name]) != noted and _digest(left[name]) in readers):
                yield Finding(
                    "weights", f"it started from another {name} than {maker.title} left", f"python {start} --fresh"
                )
    for reader in run.entries:
        if maker_of(reader) != entry.stage or (entry.source and reader.key[1:] != entry.key[1:]):
            continue
        for name, path in weights_of(entry).items():
            noted = reader.stored.get("made_from", {}).get(name)
            others = [e.stored.get("made_from", {}).get(name) for e in run.entries if maker_of(e) == entry.stage]
            if noted and _digest(path) not in others:
                yield Finding(
                    "weights", f"{path} was changed after {reader.title} had read it", f"python {start} --fresh"
                )
                return
    yield from _check_description(entry, start)


def _check_description(entry: Entry, start: str) -> Iterator[Finding]:
    """Whether the last weights say the settings of the training in whose folder they lie; bare state dicts say none."""
    files = sorted(weights_of(entry).values(), key=lambda path: (path.stem[-4:], path.name))
    if not files:
        return
    try:
        config, classes = checkpoint.load_description(files[-1])
    except InputError as error:
        yield Finding("weights", str(error), f"python {start} --fresh")
        return
    if (config, classes) == (Config(), CLASSES):
        return
    own = {name: list(v) if isinstance(v := getattr(config, name), tuple) else v for name in settings_of(entry.stage)}
    other = [name for name, value in own.items() if name in entry.stored and entry.stored[name] != value]
    if other:
        text = f"{files[-1]} is of another training: {other[0]} {own[other[0]]}, here {entry.stored[other[0]]}"
        yield Finding("weights", text, f"python {start} --fresh")


def check_crf(run: Run, entry: Entry, known: Known) -> Iterator[Finding]:
    """Whether the CRF has the settings that the figures belong to, is the one that was noted, and was not left out."""
    if entry.stage not in crf.STAGES:
        return
    iterations, fields = crf.STAGES[entry.stage]
    should = crf.used_by(entry.stage, known.settings.get(entry.key, {}))
    name = should["setting"].split(",")[0] if should else "own"
    command = f"python {stages.STAGES[entry.stage].command} --fresh" + (
        f" --crf_setting={name}" if name != "own" else ""
    )
    other = {name: v for name, v in differing(entry, known).items() if name in (iterations, *fields)}
    if other:
        listed = ", ".join(f"{name} {here:g} instead of {there:g}" for name, (here, there) in other.items())
        yield Finding("crf", f"another CRF than that of the figures: {listed}", command)
    noted = entry.stored.get("crf_used")
    if noted and noted != crf.used_by(entry.stage, entry.stored):
        yield Finding("crf", f"{entry.folder}/config.json notes another CRF than its settings say", command)
    before, after = crf_pair(run, entry)
    ids = [i for i in read_ids(run.root, judged_split(run, entry)) if after and seed_path(after, i).exists()][
        :LOOKED_AT
    ]
    if not ids or not all(seed_path(before, image_id).exists() for image_id in ids):
        return
    if all(_same(before, after, image_id) for image_id in ids):
        yield Finding("crf", f"{after} holds the masks of {before}: the CRF was left out", command)
    used = crf.used_by(entry.stage, entry.stored)
    paths = [seed_path(after, image_id) for image_id in ids]
    said = [load_maps(path).made_by for path in paths if path.suffix == ".npz"]
    strange = next((text for text in said if "CRF " in text and used and not text.endswith(crf.as_text(used))), None)
    if strange:
        yield Finding("crf", f"maps in {after} were made by {strange!r}", command)


def crf_pair(run: Run, entry: Entry) -> tuple[Path | None, Path | None]:
    """The folders of the masks before and after the CRF of an entry, if it writes both."""
    if entry.stage in EVALUATIONS:
        return entry.folder / "mask", entry.folder / "crf"
    if entry.stage not in PAIRS:
        return None, None
    seeds = stages.STAGES[entry.stage].seeds
    return tuple(run.out / stages.filled(each.folder, run.modelid) for each in seeds)


def judged_split(run: Run, entry: Entry) -> str:
    return str(entry.stored.get("split", "val")) if entry.stage in EVALUATIONS else run.config.train_split


def _same(before: Path, after: Path, image_id: str) -> bool:
    first, second = (masks_of(folder, image_id, IGNORE)[None] for folder in (before, after))
    return first.shape == second.shape and bool(np.array_equal(first, second))


def check_boundary(run: Run, entry: Entry) -> Iterator[Finding]:
    """Whether VOC's true masks still have their boundary pixels, which do not count."""
    if entry.stage not in EVALUATIONS or run.data != expected.VOC:
        return
    split = judged_split(run, entry)
    truths = [mask_path(run.root, image_id) for image_id in read_ids(run.root, split)[:LOOKED_AT]]
    if truths and all(path.exists() and not (read_mask(path) == IGNORE).any() for path in truths):
        text = f"the true masks of {split} have no pixel 255: the boundary, which VOC leaves out, was painted over"
        yield Finding("boundary", text, f"python -m tools.voc check --voc-root {run.root}")


def check_settings(entry: Entry, known: Known) -> Iterator[Finding]:
    """Whether the batch, and the settings that are not the CRF's, are those of the figures."""
    fields = (crf.STAGES[entry.stage][0], *crf.STAGES[entry.stage][1]) if entry.stage in crf.STAGES else ()
    other = {name: pair for name, pair in differing(entry, known).items() if name not in fields}
    for cause, wrong in (
        ("batch", {name: pair for name, pair in other.items() if name in BATCHES}),
        ("settings", {name: pair for name, pair in other.items() if name not in BATCHES}),
    ):
        if wrong:
            listed = ", ".join(f"{name} {here} instead of {there}" for name, (here, there) in wrong.items())
            words = "images a step, all processes together" if cause == "batch" else "other settings than the figures'"
            yield Finding(cause, f"{words}: {listed}", f"python {stages.STAGES[entry.stage].command} --help")
