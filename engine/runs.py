"""Folders that stages fill: which Config and inputs they belong to, and what a later stage takes from them."""

import glob
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from datasets.errors import InputError
from datasets.files import atomic_write, is_config, refuse_links, remove_partial
from datasets.voc import CLASSES_FILE, annotation_path, check_pixels, image_path, list_path, read_ids, read_present
from engine import distributed, locks, stages
from engine.notes import MADE_FROM, digest, notes_of, picture_digest, pictures_digest, read_config
from settings import crf
from settings.common import LARGEST_INPUT
from settings.config import Config, from_stored, settings_of
from settings.ssdd import INTEGRATION

PICTURES = "pictures"  # the photographs, among what a stage was made from


def claim_folder(folder: Path, config: Config, stage: str, made_from: list[Path]) -> None:
    """Write the Config beside what a stage makes; refuse a folder that other settings, inputs or programs have filled.

    With `config.fresh` the old folder is moved aside first. The first process does this, the others wait. Until the
    process ends the folder is locked, and what it is made from is kept as it is.

    Args:
        stage: a key of engine.stages.STAGES.
        made_from: files, known again by their content, and folders: those of earlier stages, known by what they were
            made from in turn, and those that flags name, known by their content.

    Raises:
        InputError: the folder's Config differs or is gone, another run works in it or fills an input, or inputs are of
            another preset, recipe or width, or lie in the folder.
    """
    if distributed.rank() == 0:
        _claim(folder, config, stage, made_from)
    distributed.barrier()
    if distributed.rank():
        locks.join(folder, distributed.rank())
        _check_inputs(config, made_from, config.train_split)


def claim(config: Config, stage: str, made_from: list[Path]) -> None:
    """Claim all folders of a stage for this run; see `claim_folder`."""
    folders = [stages.folder(config, stage, which) for which in range(len(stages.STAGES[stage].folders))]
    if distributed.rank() == 0:
        for folder in folders:  # all of them, before --fresh moves the first aside
            _lock(folder, made_from)
    for folder in folders:
        claim_folder(folder, config, stage, made_from)


_PACKAGES = ("torch", "torchvision", "numpy", "Pillow", "opencv-python-headless", "pydensecrf2")


def stage_folder(path: Path) -> Path | None:
    """The folder of the stage that left a file or folder; None if no stage of ours did."""
    near = (path, path.parent, path.parent.parent)
    return next((folder for folder in near if is_config(folder / "config.json")), None)


def _check_inputs(config: Config, made_from: list[Path], split: str) -> None:
    """Hold what other stages left, and refuse it if they had another preset, recipe or width.

    What --weights names is the user's own choice, and has been read already.
    """
    # Several inputs are of the same photographs, each of which is read once.
    picture = cache(partial(picture_digest, config.voc_root))
    for path in made_from:
        folder = stage_folder(path)
        if folder is None or str(path) == config.weights:
            continue
        locks.lock_for_reading(folder)
        stored = read_config(folder / "config.json")
        # The labels are the same under both recipes, and seeds are masks or maps, whatever network made them.
        made_by = stages.STAGES.get(str(stored.get("stage")))
        width = [] if made_by and made_by.seeds else ["width"]
        same = ("preset", *width, *(["recipe"] if str(stored.get("stage")).startswith("mode") else []))
        refuse_others(folder, stored, config, same)
        if distributed.rank() == 0:
            _need_current(config, folder, str(stored.get("stage")), split, picture)


def _need_current(config: Config, folder: Path, stage: str, split: str, picture: Callable[[str], str]) -> None:
    """Refuse an earlier stage's files of an image whose photograph or annotation has changed since."""
    if stage not in stages.STAGES or not list_path(config.voc_root, split).exists():
        return
    first = folder.with_name(Path(stages.STAGES[stage].folders[0]).name)  # of folders that are filled together
    notes = notes_of((folder if len(stages.STAGES[stage].folders) == 1 else first) / MADE_FROM)
    for image_id in read_ids(config.voc_root, split) if notes else ():
        if notes.get(image_id) not in (None, picture(image_id)):
            read_present(config.voc_root, image_id)  # says what is wrong with an annotation
            files = image_path(config.voc_root, image_id), annotation_path(config.voc_root, image_id)
            raise InputError(
                f"{folder} was made from another {files[0]} or {files[1]} than is there now: "
                f"make it again first: python {stages.STAGES[stage].command}"
            )


def refuse_others(folder: Path, stored: dict, config: Config, same: Sequence[str]) -> None:
    """Raise an InputError, which names both values, where an input's Config has another value of a field in `same`."""
    for name in same:
        if _differs(stored, asdict(config), name):
            raise InputError(
                f"{folder} was made with --{name}={stored[name]}, this run has --{name}={getattr(config, name)}: "
                "give the same, or another --out or --modelid"
            )


def need_same_pair(config: Config, folder: Path) -> None:
    """Refuse what mode 1 made of another knowledge or advice than this run names."""
    if (folder / "config.json").exists():
        refuse_others(folder, read_config(folder / "config.json"), config, ("knowledge", "advice"))


def need_same_seeds(config: Config, folder: Path, sources: list[Path]) -> None:
    """Refuse what mode 0 or 1 made of these seeds' folders if they have been made anew, or changed, since.

    Raises:
        InputError: names the folder of seeds.
    """
    if distributed.rank() or not is_config(folder / "config.json"):
        return
    now = _by_name(config, {}, sources)
    then = _as_now(read_config(folder / "config.json").get("made_from"), now)
    for name, source in zip(now, sources, strict=True):
        if then.get(name, now[name]) != now[name]:
            raise InputError(f"{folder} was made from {source} before it was changed: make {folder} anew with --fresh")


def _settings(config: Config, stage: str) -> list[str]:
    """The settings that this stage's results depend on in this run."""
    names = list(settings_of(stage))
    if stage == "mode 0" and len(config.advisers) > 1:  # each one is asked about what those before it left
        names += INTEGRATION
    if stage == "mode 1" and config.precompute_augmented:  # by chance
        names.append("seed")
    return names


def _by_name(config: Config, others: dict[str, str], paths: list[Path]) -> dict[str, str]:
    """`others`, and what each path is known by (`digest`) under its own name."""
    found = dict(others)
    for path in paths:
        name = path.name
        while name in found:
            name = f"{name}, another"
        found[name] = digest(path, by_content=path in _named(config))
    return found


def _lock(folder: Path, made_from: list[Path]) -> None:
    for path in made_from:
        if path.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise InputError(f"{path} is read here and would be written over: name another folder to read")
    locks.lock_for_writing(folder)


def _named(config: Config) -> set[Path]:
    """The folders that flags name; of whatever made them, a copy of an own store too, the files may have changed."""
    seeds = (config.knowledge, *config.advisers, config.seed_source)
    plain = (name.removeprefix(stages.MASKS).removeprefix(stages.SEGMENTS) for name in seeds)
    return {Path(name) for name in (*plain, config.superpixels, config.saliency)}


def _claim(folder: Path, config: Config, stage: str, made_from: list[Path]) -> None:
    _lock(folder, made_from)
    split = config.split if stage == "mode 3" else config.train_split
    _check_inputs(config, made_from, split)
    own = json.loads(json.dumps(asdict(config)))
    # What a pass over the images is made from it knows image by image (engine.passes).
    pictures = {PICTURES: pictures_digest(config, split)} if stages.STAGES[stage].epochs else {}
    own["made_from"] = _by_name(config, pictures, made_from)
    relevant = {name: own[name] for name in (*_settings(config, stage), "made_from")}
    own["identity"] = hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:16]
    own["stage"] = stage
    own["crf_used"] = crf.used_by(stage, own)
    own["job"] = distributed.starters()
    images = list_path(config.voc_root, split)
    own["list"] = digest(images) if images.exists() else ""
    own["versions"] = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    path = folder / "config.json"
    if config.fresh and folder.exists() and not same_job(path):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(aside)
        locks.lock_for_writing(folder)  # a link may have led elsewhere
    refuse_links(folder)
    remove_partial(folder)
    if path.exists():
        stored = read_config(path)
        stored["made_from"] = _as_now(stored.get("made_from"), own["made_from"])
        names = [name for name in relevant if _differs(stored, relevant, name)]
        changed = [f"{name} {stored[name]}, now {relevant[name]}" for name in names]
        if changed:
            raise InputError(
                f"{folder} was made with other settings or inputs ({'; '.join(changed)}): "
                "give --fresh, which moves it aside, or another --out or --modelid"
            )
        return
    if any(path.is_file() for path in folder.rglob("*")):
        raise InputError(
            f"{folder} holds files, but no config.json, which says what made them: "
            "give --fresh, which moves it aside, or another --out or --modelid"
        )
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def same_job(path: Path) -> bool:
    """Whether the torchrun that started this process has claimed the folder before: it has started a lost run again."""
    try:
        before = read_config(path).get("job") if path.exists() else []
    except InputError:
        return False
    return isinstance(before, list) and any(name in before for name in distributed.starters())


def _as_now(stored, own: dict[str, str]) -> dict[str, str]:
    """What an older version noted of its inputs, as this one does: names without their folder, and no pictures."""
    stored = stored if isinstance(stored, dict) else {}
    plain = {str(name).rpartition("/")[2]: value for name, value in stored.items()}
    return ({PICTURES: own[PICTURES]} if PICTURES in own and PICTURES not in plain else {}) | plain


def _differs(stored: dict, own: dict, name: str) -> bool:
    """Fields that are newer than a stored Config do not count."""
    return name in stored and stored[name] != own[name]


def stored_config(out: Path, modelid: str, stage: str) -> Config:
    """The Config of a stage of a run below `out`.

    Raises:
        InputError: the stage has not run, or its Config is damaged.
    """
    path = out / stages.filled(stages.STAGES[stage].folders[0], modelid) / "config.json"
    need(path, f"python {stages.STAGES[stage].command}")
    try:
        return from_stored(read_config(path))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be used ({error}); move {path.parent} aside") from None


def image_ids(config: Config, split: str, scales: str = "") -> list[str]:
    """The images of a list, none of which is too large to work with.

    Args:
        scales: the setting of the scales, relative to the image, at which a network is given each.

    Raises:
        InputError: there is no such list, or one of its photographs is missing, no picture, or too large.
    """
    ids = read_ids(config.voc_root, split)
    if distributed.rank() == 0:
        limits = [(config.most_pixels, "a higher --most-pixels")]
        if scales:
            limits.append((int(LARGEST_INPUT / max(getattr(config, scales)) ** 2), f"smaller --{scales}"))
        check_pixels(config.voc_root, ids, *min(limits))
    return ids


def training_data(config: Config) -> list[Path]:
    """The files that say on which images and classes a stage works."""
    others = [Path(config.voc_root) / name for name in ("demo.json", CLASSES_FILE)]
    return [list_path(config.voc_root, config.train_split), *(path for path in others if path.exists())]


def need(path: str | Path, command: str) -> Path:
    """`path` if it exists.

    Raises:
        InputError: it does not; the message gives the command that makes it.
    """
    if not Path(path).exists():
        raise InputError(f"{path} is missing: make it with `{command}`")
    return Path(path)


def need_all(paths: list[Path], command: str) -> None:
    """Check that a store is complete before a long run starts on it.

    Raises:
        InputError: maps are missing; the message gives the command that makes them.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} maps are missing, first {missing[0]}: make them with `{command}`"
        )


def start_weights(config: Config, stage: str) -> Path:
    """The weights that --weights names, else those of the label network that `stage` trained.

    Raises:
        InputError: they are not there.
    """
    return given_weights(config) or need(stages.label_network(config, stage), stages.command(config, stage))


def given_weights(config: Config) -> Path | None:
    """The weights that --weights names, if it names any.

    Raises:
        InputError: they are not there.
    """
    if config.weights and not Path(config.weights).is_file():
        raise InputError(f"--weights={config.weights}: there is no such file")
    return Path(config.weights) if config.weights else None


def last_checkpoint(config: Config, stage: str, network: str, epoch: int = 0) -> Path:
    """The checkpoint that a finished training stage of this run left.

    Args:
        config: of the stage that takes it; the networks must be the same.
        network: seg, ssdd or recurseed.
        epoch: another checkpoint than the last.

    Raises:
        InputError: the run is not there, has not reached that epoch, or trained another network.
    """
    folder, command = stages.folder(config, stage), stages.command(config, stage)
    path = need(folder / "config.json", command)
    stored = read_config(path)
    same = ["preset", "recipe", "width", "backbone_dilation", "head_dilation"]
    refuse_others(folder, stored, config, [*same, *(("knowledge", "advice") if stage == "mode 0" else ())])
    last = stored.get("epochs")
    if type(last) is not int or not 0 < last < 1_000_000:
        raise InputError(f"{path} is no Config of a training run; move {folder} aside")
    at_last = stages.checkpoint_path(folder, network, last)
    if epoch and not stages.checkpoint_path(folder, network, epoch).exists() and at_last.exists():
        raise InputError(f"{folder} has no checkpoint of epoch {epoch} but the last, {last}: --static_checkpoint=0")
    return need(stages.checkpoint_path(folder, network, epoch or last), command)


def folders_of(out: Path, modelid: str) -> Iterator[tuple[str, Path]]:
    """The stages of a run that left a Config below `out`, with their folders; also those on every fixed seed."""
    for name, stage in stages.STAGES.items():
        for template in stage.folders:
            for fixed in ("", "fixed_*_") if "{fixed}" in template else ("",):
                pattern = template.format(modelid=glob.escape(modelid), fixed=fixed)
                yield from ((name, path.parent) for path in sorted(out.glob(f"{pattern}/config.json")))


def repetitions(outs: list[Path], modelid: str) -> list[dict]:
    """The Configs of runs that only the seed tells apart, so that their figures may stand in one table.

    Args:
        outs: the --out folder of each run.

    Raises:
        InputError: no stage of ours filled a folder, or two stages or runs differ in preset, recipe, training data or a
            setting that their results depend on, or two runs have the same seed.
    """
    found: dict[str, dict[str, dict]] = {}
    for out in outs:
        for name, folder in folders_of(out, modelid):
            # Several folders of one stage (mode 4, mode 3) are told apart by their names.
            found.setdefault(str(out), {})[f"{name}, {folder.relative_to(out)}"] = read_config(folder / "config.json")
        if str(out) not in found:
            raise InputError(f"{out} holds no run named '{modelid}': name the --out folder of one, and its --modelid")
    first_out, first = next(iter(found.items()))
    for out, filled in found.items():
        for title, config in filled.items():
            one = next(iter(first.values()))
            for name in ("preset", "recipe"):
                if _differs(one, config, name):
                    raise InputError(
                        f"{first_out} has --{name}={one[name]}, but {out} ({title}) --{name}={config[name]}: "
                        "these are no repetitions of one run, make a table of each"
                    )
            if title not in first:
                continue
            for name in settings_of(title.split(",")[0]):
                if name not in ("seed", "eval_batch") and _differs(first[title], config, name):
                    raise InputError(
                        f"{title}: {first_out} has --{name}={first[title][name]}, but {out} --{name}={config[name]}: "
                        "these are no repetitions of one run, make a table of each"
                    )
            lists = [c.get("made_from", {}) for c in (first[title], config)]
            for name in lists[0].keys() & lists[1].keys():
                if name.endswith((".txt", ".json")) and lists[0][name] != lists[1][name]:
                    raise InputError(f"{title}: {first_out} and {out} were made from different {name}")
    configs = [next(iter(filled.values())) for filled in found.values()]
    seeds = [config.get("seed") for config in configs]
    if len(set(seeds)) < len(outs):
        raise InputError(f"{', '.join(map(str, outs))} have the seeds {seeds}: name each run once, of different seeds")
    return configs
