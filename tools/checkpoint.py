"""Weights and training states on disk. Everything is loaded with weights_only, so no file can run code."""

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.files import atomic_write, open_regular

_LARGEST_FILE = 1 << 36
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
    """Whatever a torch file holds, as far as that is plain values and tensors that lie in the file.

    Raises:
        InputError: the file is missing, damaged, or holds or claims anything else.
    """
    try:
        with open_regular(path, _LARGEST_FILE) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    claimed = sum(part.file_size for part in archive.infolist())
                if claimed > Path(path).stat().st_size:  # torch does not compress
                    raise InputError(f"{path} is refused: its parts claim {claimed} bytes, more than the file has")
        with warnings.catch_warnings(action="ignore"):  # about files that are then refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is refused: it is damaged or holds more than tensors ({reason[:200]})") from None
    except Exception as error:  # on damaged files torch raises nearly everything
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{path} cannot be read as a torch file ({reason[:200]})") from None
    for name, tensor in _tensors(content):
        # A few bytes can claim to be a tensor of any size (an expanded one), which a copy would make real.
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path}: {name} is not a plain tensor that lies in the file; save the weights as such")
    return content


def _tensors(content) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dictionaries, lists and tuples, which may hold themselves, each with its last key."""
    left, seen = [("", content)], set()
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.items() if isinstance(value, dict) else ((name, part) for part in value)


def load_into(network: nn.Module, path: str | Path, new: tuple[str, ...] = (), unused: tuple[str, ...] = ()) -> None:
    """Fill `network` from a weights file.

    Args:
        new: prefixes of keys that may be missing in the file (layers that start fresh).
        unused: prefixes of keys in the file that are dropped.

    Raises:
        InputError: other keys are missing or left over, shapes differ (weights of another width), or values are not
            finite.
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
        if own[key].is_floating_point() and (value.dtype not in _FLOATS or not torch.isfinite(value).all()):
            raise InputError(f"{path}: {key} holds values that are not finite, or no floats ({value.dtype})")
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
