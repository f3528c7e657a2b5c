"""Weights and training states on disk. Everything is loaded with weights_only, so no file can run code."""

import hashlib
import json
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.files import atomic_write
from tools import distributed
from tools.config import Config


def load_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a .pth file, `module.` prefixes stripped, on the CPU.

    Raises:
        InputError: the file is missing, damaged, or holds anything but named tensors.
    """
    state = load(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise InputError(f"{path} is not a weights file: it must hold named tensors and nothing else")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def load(path: str | Path):
    """Whatever a torch file holds, as far as that is tensors and plain values."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is refused: it is damaged or holds more than tensors ({reason[:200]})") from None
    except Exception as error:  # on damaged files torch raises nearly everything
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{path} cannot be read as a torch file ({reason[:200]})") from None


def load_into(network: nn.Module, path: str | Path, new: tuple[str, ...] = (), unused: tuple[str, ...] = ()) -> None:
    """Fill `network` from a weights file.

    Args:
        new: prefixes of keys that may be missing in the file (layers that start fresh).
        unused: prefixes of keys in the file that are dropped.

    Raises:
        InputError: other keys are missing or left over, or shapes differ (weights of another width).
    """
    state = {key: value for key, value in load_state(path).items() if not key.startswith(unused)}
    own = network.state_dict()
    # Files by other programs may lack BatchNorm's step counter, which nothing here uses.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked") and not k.startswith(new)]
    extra = [key for key in state if key not in own]
    if missing or extra:
        counts = f"{len(missing)} keys missing, {len(extra)} unknown"
        raise InputError(f"{path} does not fit this network: {counts}, first: {(missing + extra)[0]}")
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"{path} is of another width or class list: {key} is {tuple(value.shape)}, "
                f"needed {tuple(own[key].shape)}; give the --width (and --head_dilation) that it was trained with"
            )
    network.load_state_dict(state, strict=False)


def save(path: str | Path, content) -> None:
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def save_weights(path: str | Path, network: nn.Module) -> None:
    """The network's state dict on the CPU; its keys are the released checkpoints' keys."""
    save(path, {key: value.detach().cpu().clone() for key, value in network.state_dict().items()})


def need(path: str | Path, command: str) -> Path:
    """`path` if it exists.

    Raises:
        InputError: it does not; the message gives the command that makes it.
    """
    if not Path(path).exists():
        raise InputError(f"{path} is missing: make it with `{command}`")
    return Path(path)


# Fields that say where and on what a program runs, not what comes out.
_FREE = ("voc_root", "out", "modelid", "weights", "fresh", "device", "precision")
_FREE += ("workers", "crf_workers", "split", "pictures", "eval_batch")


def claim_folder(folder: Path, config: Config, fields: tuple[str, ...] = (), *weights: str | Path) -> None:
    """Write the Config beside what a stage makes; refuse a folder that another Config or other weights have filled.

    With `config.fresh` the old folder is moved aside first. The first process does this, the others wait.

    Args:
        fields: the fields that matter to the stage; empty: all that change a result.
        weights: the files that the results are made with, known again by their digests.

    Raises:
        InputError: the folder's Config differs in one of them.
    """
    if distributed.rank() == 0:
        _claim(folder, config, fields, weights)
    distributed.barrier()


def _claim(folder: Path, config: Config, fields: tuple[str, ...], weights: tuple[str | Path, ...]) -> None:
    path = folder / "config.json"
    if config.fresh and folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(aside)
    own = json.loads(json.dumps(asdict(config)))
    own["made_with"] = " ".join(digest(path) for path in weights)
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            matter = fields or [name for name in own if name not in _FREE]
            changed = [name for name in (*matter, "made_with") if stored.get(name) != own[name]]
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} cannot be read as a Config ({error}); move {folder} aside") from None
        if changed:
            was, now = (" ".join(f"{name}={values.get(name)}" for name in changed) for values in (stored, own))
            raise InputError(f"{folder} was made with {was}, now {now}: give --fresh, or another --out or --modelid")
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def digest(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def numbered(folder: Path, name: str, epoch: int) -> Path:
    """The checkpoint of a run after `epoch` epochs; name: seg or ssdd."""
    return folder / "models" / f"{name}_{epoch:04d}.pth"


def finished(folder: Path, name: str, command: str, epoch: int = 0) -> Path:
    """The checkpoint that a finished training run left in `folder`.

    Args:
        command: what makes it, for the message.
        epoch: another checkpoint than the last.

    Raises:
        InputError: the run is not there or has not reached that epoch.
    """
    config = need(folder / "config.json", command)
    try:
        last = int(json.loads(config.read_text(encoding="utf-8"))["epochs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} cannot be read as a Config ({error}); move {folder} aside") from None
    if epoch and not numbered(folder, name, epoch).exists() and numbered(folder, name, last).exists():
        raise InputError(f"{folder} has no checkpoint of epoch {epoch} but the last, {last}: try --static-checkpoint=0")
    return need(numbered(folder, name, epoch or last), command)
