"""Weights and training states on disk. Files are read by datasets/weights.py, so none can run code.

A weights file is a state dict, as the released ones are, or {"state_dict", "config", "classes"}, which says by itself
what network it belongs to.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.files import atomic_write
from datasets.transforms import MEAN, STD
from datasets.voc import CLASSES, class_names
from datasets.weights import load
from models.vgg16 import from_any_names
from settings.config import FIELDS, Config, from_stored
from settings.field import RUN, STAGE

# A key of each kind of network; some have those of later kinds too.
SYSTEMS = {
    "aspp.aspp1.atrous_conv.weight": "recurseed",
    "icd_bu_weight": "icd",
    "seg_main.seg2.weight": "ssdd",
    "dd0.pred_abc.weight": "ddnet",
    "fc8.weight": "psa",
    "f9.weight": "psa",
}
WIDTH = "--width (and --head_dilation)"  # flags that set the width of most networks
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from a .pth file, `module.` prefixes stripped, on the CPU.

    Raises:
        InputError: the file is missing, damaged, or holds anything but named tensors.
    """
    state = load(path)
    if _described(state):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise InputError(f"{path} is not a weights file: it must hold named tensors and nothing else")
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def load_description(path: str | Path) -> tuple[Config, tuple[str, ...]]:
    """The Config that a weights file's network was trained with, and its classes, background first.

    A bare state dict is taken for one of the published network on VOC.

    Raises:
        InputError: the file is damaged, or what it says cannot be.
    """
    content = load(path)
    if not _described(content):
        return Config(), CLASSES
    try:
        config, classes = from_stored(content["config"]), tuple(content["classes"])
        if not (1 < len(classes) < 255 and all(isinstance(name, str) for name in classes)):
            raise ValueError("classes must be 2 to 254 names")
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{path}: its Config or classes cannot be used ({type(error).__name__}: {error})") from None
    return config, classes


def need_classes(path: str | Path, root: str | Path) -> None:
    """Refuse weights of other classes, or of another order of them, than the data set at `root` has.

    A bare state dict names none. With as many as VOC has it is taken for VOC's; otherwise the order must be believed,
    and their number is checked when the network is filled.

    Raises:
        InputError: see above; or the file is damaged.
    """
    known, classes = load_description(path)[1], class_names(root)
    if known != classes and (len(classes) == len(CLASSES) or _described(load(path))):
        raise InputError(f"{path} knows other classes ({' '.join(known)[:200]}) than {root} has")


def system_of(path: str | Path) -> str:
    """What a weights file holds, by the keys of its state dict: the network of `recurseed`, `icd` or `ssdd`, SSDD's
    `ddnet`, or one of PSA's two, `psa`; what has no key of any is taken for ssdd's.

    Raises:
        InputError: it is no weights file.
    """
    state = load_state(path)
    return next((system for key, system in SYSTEMS.items() if key in state), "ssdd")


def _described(content) -> bool:
    return isinstance(content, dict) and content.keys() == {"state_dict", "config", "classes"}


def load_into(
    network: nn.Module, path: str | Path, new: tuple[str, ...] = (), unused: tuple[str, ...] = (), flags: str = WIDTH
) -> None:
    """Fill `network` from a weights file.

    Args:
        new: prefixes of keys that may be missing in the file (layers that start fresh).
        unused: prefixes of keys in the file that are dropped.
        flags: that set the network's width, for the message.

    Raises:
        InputError: other keys are missing or left over, shapes differ (weights of another width), or values are not
            finite.
    """
    fill(
        network, {key: value for key, value in load_state(path).items() if not key.startswith(unused)}, path, new, flags
    )


def fill(
    network: nn.Module,
    state: dict[str, Tensor],
    path: str | Path,
    new: tuple[str, ...] = (),
    flags: str = WIDTH,
) -> None:
    """`load_into` for a state dict that was brought under the network's keys; `path` is where it came from.

    Args:
        flags: that set the network's width, for the message.
    """
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
                f"needed {tuple(own[key].shape)}; give the {flags} that it was trained with"
            )
        if own[key].is_floating_point() and (value.dtype not in _FLOATS or not torch.isfinite(value).all()):
            raise InputError(f"{path}: {key} holds values that are not finite, or no floats ({value.dtype})")
    network.load_state_dict(state, strict=False)


def fill_icd(network: nn.Module, state: dict[str, Tensor], path: str | Path, new: tuple[str, ...] = ()) -> None:
    """`fill` for ICD's network."""
    fill(network, state, path, new, "--icd_width")


def load_vgg(path: str | Path) -> dict[str, Tensor]:
    """State dict of VGG16 or of ICD's network under our keys, for input RGB − 127, from a .pth file under any names.

    Raises:
        InputError: see `load_state`; or it is neither's.
    """
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    try:
        state = from_any_names(load_state(path), mean, std)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path} is no VGG16: {error} is missing or has another shape") from None
    if "conv1_1.weight" not in state:
        raise InputError(
            f"{path} is no VGG16: it has no conv1_1; needed is vgg16_20M (python -m tools.convert_weights) or "
            "torchvision's vgg16"
        )
    return state


def save(path: str | Path, content) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # Of a full disk torch says that its archive is at an unexpected place; the system's reason lies behind it.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def save_weights(
    path: str | Path, network: nn.Module, config: Config | None = None, classes: tuple[str, ...] = CLASSES
) -> None:
    """The network's state dict on the CPU, whose keys are the released checkpoints' keys; with `config` also what one
    needs to use it."""
    state = {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
    if config is None:
        save(path, state)
        return
    # Where and on what a training ran says nothing about its network: without it the same training gives the same file.
    kept = {name: getattr(config, name) for name, entry in FIELDS.items() if entry.metadata["reach"] in (RUN, STAGE)}
    save(path, {"state_dict": state, "config": kept, "classes": list(classes)})
