"""Weights and training states on disk. Everything is loaded with weights_only, so no file can run code."""

import pickle
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.files import atomic_write


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
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise InputError(f"{path} is refused: it holds more than tensors, {asked[1]}, which can run code") from None
        also = "an MXNet .params file goes through `python -m tools.convert_weights` first"
        raise InputError(f"{path} is refused: it is damaged or no .pth file; {also}") from None
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
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # how torch reports a full disk
            raise InputError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def save_weights(path: str | Path, network: nn.Module) -> None:
    """The network's state dict on the CPU; its keys are the released checkpoints' keys."""
    save(path, {key: value.detach().cpu().clone() for key, value in network.state_dict().items()})
