"""Folders that stages fill: which Config and inputs they belong to, and what a later stage takes from them."""

import fcntl
import glob
import hashlib
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from datasets.errors import InputError
from datasets.files import atomic_write, open_regular, read_bytes, remove_partial
from datasets.voc import CLASSES_FILE, list_path
from engine import distributed
from settings.config import Config

_LARGEST_CONFIG = 1 << 20

_NETWORK = ("width", "backbone_dilation")
_SEGMENTATION = (*_NETWORK, "head_dilation")
_TRAINING = ("dropout", "seed", "crop", "epochs")
_LABEL_TRAINING = (*_NETWORK, *_TRAINING, "label_weight_decay", "label_power")
_SSDD_TRAINING = (*_SEGMENTATION, *_TRAINING, "bn", "lr", "weight_decay", "momentum")
_CRF = ("crf_sxy", "crf_srgb", "crf_bilateral_weight", "crf_gaussian_sxy", "crf_gaussian_weight")
_SEED = ("seed_bias", "seed_bg", "bias_favours", "flag_rule")

# The settings that a stage's results depend on; the rest may differ from one start to the next.
STAGE_FIELDS = {
    "train_cls": (*_LABEL_TRAINING, "cls_side", "cls_batch", "cls_lr", "cls_optimiser"),
    "make_cam_labels": (*_NETWORK, "cam_scales", "alpha_low", "alpha_high", "crf_labels", *_CRF),
    "train_aff": (*_LABEL_TRAINING, "aff_batch", "aff_lr"),
    "make_aff_labels": (*_NETWORK, "alpha_walk", "walk_power", "walk_log_steps", "crf_labels", *_CRF),
    "mode 0": (*_SSDD_TRAINING, "static_side"),
    "mode 1": (*_SEGMENTATION, "crop", "precompute_augmented", *_SEED),
    "mode 2": (
        *(*_SSDD_TRAINING, "dynamic_side", "alpha", "bias", "bg", *_SEED),
        *("swap_maps", "move_maps", "seed_target", "crf", "crf_train", *_CRF),
    ),
    "mode 4": (*_SSDD_TRAINING, "static_side", "seed_source"),
    "mode 3": (*_SEGMENTATION, "eval_size", "eval_scales", "crf_eval", *_CRF),
}


def claim_folder(folder: Path, config: Config, stage: str, made_from: list[Path]) -> None:
    """Write the Config beside what a stage makes; refuse a folder that other settings or inputs have filled.

    With `config.fresh` the old folder is moved aside first. The first process does this, the others wait. The folder
    is locked until the process ends.

    Args:
        stage: a key of STAGE_FIELDS.
        made_from: weights and lists, known again by their content, and folders of earlier stages, known by what they
            were made from in turn.

    Raises:
        InputError: the folder's Config differs, another run works in it, or inputs are of another preset, recipe or
            width.
    """
    if distributed.rank() == 0:
        _claim(folder, config, stage, made_from)
    distributed.barrier()


# Locks of the folders that this process has claimed, kept to its end.
_locks: dict[Path, TextIO] = {}
_PACKAGES = ("torch", "torchvision", "numpy", "Pillow", "opencv-python-headless", "pydensecrf2")


def lock(folder: Path) -> None:
    """Keep other runs out of a folder until this process ends, however it ends.

    Raises:
        InputError: another process has it, or the lock cannot be written.
    """
    path = folder.absolute().with_name(f".{folder.name}.lock")
    if path in _locks:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        # Of fcntl's two kinds the one that belongs to the process: loader workers that outlive it keep nothing.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read(100).strip() or "unknown"
        file.close()
        if not isinstance(error, BlockingIOError | PermissionError):
            raise InputError(f"{path} cannot be locked ({error.strerror}): give an --out that can be") from None
        raise InputError(
            f"{folder} is in use by another run ({owner}): wait for it, or give another --out or --modelid"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _locks[path] = file


def _check_inputs(config: Config, made_from: list[Path]) -> None:
    """Refuse what stages of another preset, recipe or width left; what --weights names is the user's own choice."""
    for path in made_from:
        made_by = (path if path.is_dir() else path.parent) / "config.json"
        if str(path) != config.weights and made_by.exists():
            stored = read_config(made_by)
            # The labels are the same under both recipes.
            same = ("preset", "width", *(["recipe"] if str(stored.get("stage")).startswith("mode") else []))
            refuse_others(made_by.parent, stored, config, same)


def refuse_others(folder: Path, stored: dict, config: Config, same: tuple[str, ...]) -> None:
    """Raise an InputError, which names both values, where an input's Config has another value of a field in `same`."""
    for name in same:
        if _differs(stored, asdict(config), name):
            raise InputError(
                f"{folder} was made with --{name}={stored[name]}, this run has --{name}={getattr(config, name)}: "
                "give the same, or another --out or --modelid"
            )


def _claim(folder: Path, config: Config, stage: str, made_from: list[Path]) -> None:
    _check_inputs(config, made_from)
    lock(folder)
    own = json.loads(json.dumps(asdict(config)))
    own["made_from"] = {f"{path.parent.name}/{path.name}": digest(path) for path in made_from}
    relevant = {name: own[name] for name in (*STAGE_FIELDS[stage], "made_from")}
    own["identity"] = hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:16]
    own["stage"] = stage
    images = list_path(config.voc_root, config.split if stage == "mode 3" else config.train_split)
    own["list"] = digest(images) if images.exists() else ""
    own["versions"] = {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    path = folder / "config.json"
    if config.fresh and folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(aside)
    remove_partial(folder)
    if path.exists():
        stored = read_config(path)
        names = [name for name in relevant if _differs(stored, relevant, name)]
        changed = [f"{name} {stored[name]}, now {relevant[name]}" for name in names]
        if changed:
            raise InputError(
                f"{folder} was made with other settings or inputs ({'; '.join(changed)}): "
                "give --fresh, which moves it aside, or another --out or --modelid"
            )
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def _differs(stored: dict, own: dict, name: str) -> bool:
    """Fields that are newer than a stored Config do not count."""
    return name in stored and stored[name] != own[name]


def read_config(path: Path) -> dict:
    """The Config that a stage left.

    Raises:
        InputError: it is damaged.
    """
    try:
        stored = json.loads(read_bytes(path, _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a Config ({error}); move {path.parent} aside") from None
    if not isinstance(stored, dict):
        raise InputError(f"{path} is no Config; move {path.parent} aside")
    return stored


def digest(path: Path) -> str:
    """What a file holds, or what a stage's folder was made from; empty for a folder that no stage of ours filled."""
    if path.is_dir():
        config = path / "config.json"
        return str(read_config(config).get("identity", "")) if config.exists() else ""
    try:
        with open_regular(path, 1 << 36) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from None


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


def weights_or(config: Config, default: Path, command: str) -> Path:
    """The file that --weights names, else what an earlier stage left.

    Raises:
        InputError: it is not there.
    """
    if config.weights and not Path(config.weights).is_file():
        raise InputError(f"--weights={config.weights}: there is no such file")
    return Path(config.weights) if config.weights else need(default, command)


def need_maps(paths: list[Path], command: str) -> None:
    """Check that a store is complete before a long run starts on it.

    Raises:
        InputError: maps are missing; the message gives the command that makes them.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} maps are missing, first {missing[0]}: make them with `{command}`"
        )


def numbered(folder: Path, name: str, epoch: int) -> Path:
    """The checkpoint of a run after `epoch` epochs; name: seg or ssdd."""
    return folder / "models" / f"{name}_{epoch:04d}.pth"


def finished(folder: Path, name: str, command: str, config: Config, epoch: int = 0) -> Path:
    """The checkpoint that a finished training run left in `folder`.

    Args:
        command: what makes it, for the message.
        config: of the stage that takes it; the networks must be the same.
        epoch: another checkpoint than the last.

    Raises:
        InputError: the run is not there, has not reached that epoch, or trained another network.
    """
    path = need(folder / "config.json", command)
    stored = read_config(path)
    refuse_others(folder, stored, config, ("preset", "recipe", *_SEGMENTATION))
    last = stored.get("epochs")
    if type(last) is not int or not 0 < last < 1_000_000:
        raise InputError(f"{path} is no Config of a training run; move {folder} aside")
    if epoch and not numbered(folder, name, epoch).exists() and numbered(folder, name, last).exists():
        raise InputError(f"{folder} has no checkpoint of epoch {epoch} but the last, {last}: try --static-checkpoint=0")
    return need(numbered(folder, name, epoch or last), command)


# Where each stage leaves its Config, below --out; {} stands for the modelid.
_FILLED = {
    "prepare_labels/results/cls": "train_cls",
    "prepare_labels/results/out_cam": "make_cam_labels",
    "prepare_labels/results/aff": "train_aff",
    "prepare_labels/results/out_aff": "make_aff_labels",
    "prepare_labels/results/out_aff_crf": "make_aff_labels",
    "logs/sssdd_{}": "mode 0",
    "precompute/{}": "mode 1",
    "logs/dssdd_{}": "mode 2",
    "logs/fixed_*_{}": "mode 4",
    "validation/{}": "mode 3",
    "validation/fixed_*_{}": "mode 3",
}


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
        for pattern, stage in _FILLED.items():
            for path in sorted(out.glob(f"{pattern.format(glob.escape(modelid))}/config.json")):
                # Several folders of one stage (mode 4, mode 3) are told apart by their names.
                found.setdefault(str(out), {})[f"{stage}, {path.parent.relative_to(out)}"] = read_config(path)
        if str(out) not in found:
            raise InputError(f"{out} holds no run named '{modelid}': name the --out folder of one, and its --modelid")
    first_out, first = next(iter(found.items()))
    for out, stages in found.items():
        for title, config in stages.items():
            one = next(iter(first.values()))
            for name in ("preset", "recipe"):
                if _differs(one, config, name):
                    raise InputError(
                        f"{first_out} has --{name}={one[name]}, but {out} ({title}) --{name}={config[name]}: "
                        "these are no repetitions of one run, make a table of each"
                    )
            if title not in first:
                continue
            for name in STAGE_FIELDS[title.split(",")[0]]:
                if name != "seed" and _differs(first[title], config, name):
                    raise InputError(
                        f"{title}: {first_out} has --{name}={first[title][name]}, but {out} --{name}={config[name]}: "
                        "these are no repetitions of one run, make a table of each"
                    )
            lists = [c.get("made_from", {}) for c in (first[title], config)]
            for name in lists[0].keys() & lists[1].keys():
                if name.endswith((".txt", ".json")) and lists[0][name] != lists[1][name]:
                    raise InputError(f"{title}: {first_out} and {out} were made from different {name}")
    configs = [next(iter(stages.values())) for stages in found.values()]
    seeds = [config.get("seed") for config in configs]
    if len(set(seeds)) < len(outs):
        raise InputError(f"{', '.join(map(str, outs))} have the seeds {seeds}: name each run once, of different seeds")
    return configs
