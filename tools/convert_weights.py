"""Turn published weights into a file that every program here loads with --weights.

    python -m tools.convert_weights ilsvrc-cls_rna-a1_cls1000_ep-0001.params weights/imagenet.pth

    python -m tools.convert_weights vgg16_20M.params weights/vgg16_20M.pth

IN is the MXNet file of ResNet-38 trained on ImageNet, of vgg16_20M or of a trained ICD (read with NumPy alone); or a
.pth state dict of PSA, SSDD or ICD, of a copy of vgg16_20M, or torchvision's vgg16, with or without `module.` before
its keys. OUT is a state dict in float32 under this project's keys; VGG16's is for input RGB − 127.
"""

import math
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.errors import InputError, program
from datasets.files import open_regular, read_bytes, refuse_overwrite
from engine.checkpoint import load_state, load_vgg, save
from models.icd.network import IcdNetwork
from models.resnet38 import ResNet38
from models.vgg16 import from_mxnet_names
from settings.flags import Parser

MXNET_FILE = struct.pack("<Q", 0x112)
ARRAY_V1, ARRAY_V2 = 0xF993FAC8, 0xF993FAC9
LARGEST_FILE = 1 << 36
DTYPES = {0: np.dtype("<f4"), 1: np.dtype("<f8"), 2: np.dtype("<f2")}
TORCH_FILES = (b"PK\x03\x04", b"\x80\x02")  # zip archive, and the format before PyTorch 1.6

BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
IMAGENET_CLASSIFIER = "linear1000_"
VGG16_FIRST = "conv1_1_weight"
VGG16_KEYS = ("conv1_1", "features.0.")
ENCODER = "encoder."
HEADS = ("fc8.", "f8_3.", "f8_4.", "f8_5.", "f9.", "seg_main.", "seg_sub.", "dd_head0.", "dd_head1.", "dd0.", "dd1.")


class Cursor:
    """Reads the bytes of a file in order; a size that the file claims is checked against what is left of it."""

    def __init__(self, path: Path, data: bytes):
        self.path, self.data, self.at = path, data, 0

    def refuse(self, what: str) -> InputError:
        return InputError(f"{self.path} is truncated or damaged at byte {self.at}: {what}; download it again")

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int, what: str) -> bytes:
        if count > self.left():
            raise self.refuse(f"{what} needs {count} bytes, {self.left()} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        """Little-endian numbers in the notation of `struct`."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}"), what))


def read_mxnet(path: str | Path) -> dict[str, np.ndarray]:
    """The named arrays of an MXNet .params file as float32, `arg:` and `aux:` stripped from the names.

    Raises:
        InputError: the file is truncated or damaged, holds sparse arrays or other numbers than floats, or a name twice.
    """
    path = Path(path)
    try:
        cursor = Cursor(path, read_bytes(path, LARGEST_FILE))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    cursor.take(len(MXNET_FILE), "the file's mark")
    _, count = cursor.numbers("QQ", "the file's header")
    # A list that grows with what was read, so that a false count costs nothing.
    arrays = []
    while len(arrays) < count:
        arrays.append(read_array(cursor))
    (name_count,) = cursor.numbers("Q", "the number of names")
    if name_count != count:
        raise cursor.refuse(f"{count} arrays, but {name_count} names")
    names = [read_name(cursor) for _ in range(name_count)]
    if cursor.left():
        raise cursor.refuse(f"{cursor.left()} bytes follow the last name")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{path} holds {twice[0]} more than once, so which one to take is unknown; download it again")
    return dict(zip(names, arrays, strict=True))


def read_array(cursor: Cursor) -> np.ndarray:
    """One array, in the form of MXNet 1.x (V2), of the versions just before (V1), or of 2016 (it begins with ndim)."""
    (first,) = cursor.numbers("I", "an array's header")
    if first == ARRAY_V2:
        (storage,) = cursor.numbers("i", "an array's storage type")
        if storage != 0:
            raise InputError(f"{cursor.path} holds a sparse array (storage type {storage}), only dense ones are read")
    if first in (ARRAY_V1, ARRAY_V2):
        (ndim,) = cursor.numbers("I", "an array's number of dimensions")
        side = "q"
    else:
        ndim, side = first, "I"
    if not 1 <= ndim <= 8:
        raise cursor.refuse(f"an array begins with 0x{first:x} and claims {ndim} dimensions")
    shape = cursor.numbers(f"{ndim}{side}", "an array's shape")
    if min(shape) < 1:
        raise cursor.refuse(f"an array claims the shape {shape}")
    _, _, flag = cursor.numbers("3i", "an array's device and number type")
    if flag not in DTYPES:
        raise InputError(f"{cursor.path} holds numbers of MXNet's type {flag}, read are float32, float64 and float16")
    size = math.prod(shape) * DTYPES[flag].itemsize
    values = np.frombuffer(cursor.take(size, f"an array of shape {shape}"), DTYPES[flag]).reshape(shape)
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite and is refused by name
        return values.astype(np.float32)


def read_name(cursor: Cursor) -> str:
    (length,) = cursor.numbers("Q", "a name's length")
    name = cursor.take(length, "a name")
    try:
        return name.decode("ascii").removeprefix("arg:").removeprefix("aux:")
    except UnicodeDecodeError:
        raise cursor.refuse(f"{name[:40]!r} is not a name") from None


def backbone_shapes(width: float = 1.0) -> dict[str, tuple[int, ...]]:
    """Key → shape of every tensor of ResNet-38."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in ResNet38(width).state_dict().items()}


def icd_shapes() -> dict[str, tuple[int, ...]]:
    """Key → shape of every tensor of ICD's network, VGG16 included."""
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in IcdNetwork().state_dict().items()}


def known_to_icd(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What ICD's network has of a state dict, and the keys that were dropped: those of ImageNet's classifier.

    Raises:
        InputError: a layer of the published network has another shape.
    """
    known = icd_shapes()
    trained = "icd_bu_weight" in state
    kept = {key: tensor for key, tensor in state.items() if key in known and (trained or not key.startswith("fc8."))}
    for key, tensor in kept.items():
        # A trained network may know other classes than VOC's 20.
        own = known[key][1:] if key.startswith(("fc8.", "conv_ft.", "icd_")) else known[key]
        if tuple(tensor.shape)[-len(own) :] != own and own:
            raise InputError(
                f"{path}: {key} is {tuple(tensor.shape)}, in ICD's network {known[key]}: another network's"
            )
    # Cloned: a tensor that is a part of a larger one would be stored with all of it.
    return {key: tensor.detach().float().clone() for key, tensor in kept.items()}, [k for k in state if k not in kept]


def mxnet_name(key: str) -> str:
    """The MXNet file's name of a backbone key, as b4_5.conv_branch2a.weight → res4b5_branch2a_weight."""
    *layers, field = key.split(".")
    is_norm = layers[-1].startswith("bn")
    name = layers[-1]
    if len(layers) == 2:
        stage, _, repeat = layers[0].removeprefix("b").partition("_")
        branch = name.partition("_")[2]
        name = f"{'bn' if is_norm else 'res'}{stage}{'b' + repeat if repeat else 'a'}_{branch}"
    return f"{name}_{BATCH_NORM[field] if is_norm else field}"


def from_mxnet(path: Path, known: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """State dict of an MXNet file, and the names that were dropped.

    Args:
        known: keys of the backbone.

    Raises:
        InputError: see `read_mxnet`; or a name is none of ResNet-38's.
    """
    keys = {mxnet_name(key): key for key in known if not key.endswith("num_batches_tracked")}
    arrays = read_mxnet(path)
    if VGG16_FIRST in arrays:
        return known_to_icd(from_mxnet_names({name: torch.from_numpy(array) for name, array in arrays.items()}), path)
    dropped = [name for name in arrays if name.startswith(IMAGENET_CLASSIFIER)]
    unknown = [name for name in arrays if name not in keys and name not in dropped]
    if unknown:
        names = ", ".join(unknown[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
        raise InputError(
            f"{path} is another network's: ResNet-38 has no {names}; needed is ilsvrc-cls_rna-a1_cls1000_ep-0001.params"
        )
    return {keys[name]: torch.from_numpy(array) for name, array in arrays.items() if name in keys}, dropped


def from_torch(path: Path, known: Iterable[str]) -> tuple[dict[str, Tensor], list[str]]:
    """State dict of a .pth file with its floats in float32, and the keys that no network here has.

    Args:
        known: keys of the backbone.

    Raises:
        InputError: the file is damaged, holds anything but plain tensors, or none that is known here.
    """
    state = load_state(path)
    if any(key.removeprefix("arg:").startswith(VGG16_KEYS) for key in state):
        return known_to_icd(load_vgg(path), path)
    backbone = {ENCODER + key for key in known} | set(known)
    kept = {key: tensor for key, tensor in state.items() if key in backbone or key.startswith(HEADS)}
    if not kept:
        raise InputError(f"{path} holds no layer of PSA's or SSDD's networks; give one of their weights files")
    floats = {key: tensor.detach().float() if tensor.is_floating_point() else tensor for key, tensor in kept.items()}
    # Cloned: a tensor that is a part of a larger one would be stored with all of it.
    return {key: tensor.clone() for key, tensor in floats.items()}, [key for key in state if key not in kept]


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """State dict under this project's keys, and the names that were dropped.

    Raises:
        InputError: the file is missing, of neither kind, damaged, or holds values that are not finite.
    """
    path = Path(path)
    try:
        with open_regular(path, LARGEST_FILE) as file:
            start = file.read(8)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if start == MXNET_FILE:
        state, dropped = from_mxnet(path, backbone_shapes())
    elif start.startswith(TORCH_FILES):
        state, dropped = from_torch(path, backbone_shapes())
    else:
        raise InputError(f"{path} is neither an MXNet .params file nor a .pth file; give a published weights file")
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {key} holds values that are not finite; download it again")
    return state, dropped


def describe(state: dict[str, Tensor], dropped: list[str]) -> list[str]:
    """Lines that say which layers were found, dropped and missed, compared with ResNet-38 at the width in `state`."""
    if "conv1_1.weight" in state:
        return describe_vgg(state, dropped)
    known = backbone_shapes()
    found = {key.removeprefix(ENCODER): tuple(tensor.shape) for key, tensor in state.items()}
    found = {key: shape for key, shape in found.items() if key in known}
    heads = [key for key in state if key.startswith(HEADS)]
    lines = [f"found    {counted(found)}"]
    if heads:
        lines.append(f"besides  {counted(heads)}")
    if dropped:
        lines.append(f"dropped  {counted(dropped)}")
    sized = [key for key, shape in found.items() if shape and known[key]]
    if sized:
        widest = max(sized, key=lambda key: known[key][0])
        width = found[widest][0] / known[widest][0]
        shapes = backbone_shapes(width)
        missed = [key for key in known if key not in found and not key.endswith("num_batches_tracked")]
        # A very narrow network has no shortcut convolution where its numbers of channels fall together.
        misfits = [key for key in found if found[key] != shapes.get(key)]
        lines.append(f"missed   {counted(missed)}")
        if misfits:
            lines.append(f"misfits  {counted(misfits)} (shape is not that of width {width:g})")
        if missed or misfits:
            lines.append("not a whole ResNet-38: programs that need one will refuse it")
        else:
            lines.append(f"a whole ResNet-38 of width {width:g}")
    return lines


def describe_vgg(state: dict[str, Tensor], dropped: list[str]) -> list[str]:
    """The same for VGG16's and ICD's files, and which of them it is."""
    missed = [key for key in icd_shapes() if key not in state and not key.endswith("num_batches_tracked")]
    lines = [f"found    {counted(state)}", *([f"dropped  {counted(dropped)}"] if dropped else [])]
    if "icd_bu_weight" in state:
        return [*lines, f"missed   {counted(missed)}", "a trained ICD network"]
    if "fc6.weight" in state and "fc7.weight" in state:
        said = "vgg16_20M: VGG16 with fc6 and fc7; train_icd draws the rest"
    else:
        said = "VGG16's convolutions alone; train_icd draws fc6, fc7 and the rest"
    return [*lines, said, "whether its conv1_1 wants RGB or BGR cannot be seen from the file: RGB is assumed"]


def counted(keys: Iterable[str]) -> str:
    """A count and the layers, all of ResNet-38's at most, as '5 tensors: b2 (3), bn7 (2)'."""
    layers = Counter(".".join(key.split(".")[:-2] or key.split(".")[:1]) for key in keys)
    named = [layer if times == 1 else f"{layer} ({times})" for layer, times in layers.most_common(19)]
    more = f" and {len(layers) - 19} more layers" if len(layers) > 19 else ""
    return f"{layers.total()} tensors{': ' if named else ''}{', '.join(named)}{more}"


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", type=Path, help="published .params or .pth file")
    parser.add_argument("target", metavar="OUT", type=Path, help="weights file to write")
    arguments = parser.parse_args(argv)
    refuse_overwrite([arguments.target], [arguments.source])
    state, dropped = read_weights(arguments.source)
    save(arguments.target, state)
    print("\n".join([*describe(state, dropped), f"wrote {arguments.target}"]))


if __name__ == "__main__":
    main()
