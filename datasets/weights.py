"""Reading pickles and torch files that strangers made: nothing that they name runs, what they claim costs nothing.

torch.load is not used: its weights_only still makes room for whatever a file claims, and checks no checksum.
"""

import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from datasets.errors import InputError
from datasets.files import Metered, open_regular, open_zip

_LARGEST_FILE = 1 << 36
_LARGEST_PICKLE = 1 << 24  # bytes, of a torch file's structure without its tensors; ResNet-38's takes 50,000
_MOST_STEPS = 1 << 19  # of a pickle; ResNet-38's takes 10,000, with AdamW's state three times as many
_MOST_SHARED = 16  # each doubles at most what a walk through the content takes
_LONG_TEXT = 1 << 12
_MOST_DIMENSIONS = 8
_MAGIC = 0x1950A86A20F9469CFC6C  # of the files before torch 1.6
_VALUES = frozenset(
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8 INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT".split()
)
_MADE = {
    **{"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple},
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
}
_STORAGES = {
    f"torch {kind}Storage": dtype
    for kind, dtype in {
        **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
        **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
        "Bool": torch.bool,
    }.items()
}


def read_pickle(file: BinaryIO | Metered, known: dict[str, Any], stored: Callable[[Any], Any] | None = None) -> Any:
    """What a pickle of plain values, containers and `known` functions' results makes; `file` then stands behind it.

    Args:
        known: what "module name" stands for. An object gets its state through its method `build`; dictionaries none.
        stored: makes an object of a persistent id.

    Raises:
        Exception: it is damaged, too long, or asks for anything else; what it is depends on the damage.
    """
    stack, marks, memo, shared = [], [], {}, 0

    def taken(count: int | None = None) -> list:
        """The last `count` values, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        values = stack[start:]
        del stack[start:]
        return values

    for step, (code, argument, _position) in enumerate(pickletools.genops(file)):
        if step > _MOST_STEPS:
            raise ValueError(f"over {_MOST_STEPS} steps")
        name = code.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _MADE:
            stack.append(_MADE[name]())
        elif name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
            shared += _leads_on(stack[-1])
            if shared > _MOST_SHARED:  # sixty pairs of one pair make 2^60 steps for whoever walks through them
                raise ValueError("its parts are shared over and over")
        elif name == "MARK":
            marks.append(len(stack))
        elif name.startswith("TUPLE"):
            stack.append(tuple(taken(int(name[5:]) if name[5:] else None)))
        elif name in ("APPEND", "APPENDS"):
            values = taken(1 if name == "APPEND" else None)
            list.extend(stack[-1], values)
        elif name in ("SETITEM", "SETITEMS"):
            values = taken(2 if name == "SETITEM" else None)
            dict.update(stack[-1], _dictionary(zip(values[::2], values[1::2], strict=True)))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_named(argument if name == "GLOBAL" else " ".join(taken(2)), known))
        elif name == "REDUCE":
            function, arguments = taken(2)
            stack.append(function(*arguments))
        elif name == "BUILD":
            (state,) = taken(1)
            if not isinstance(stack[-1], dict):
                stack[-1].build(state)
        elif name == "BINPERSID" and stored:
            stack.append(stored(stack.pop()))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"{name} in a pickle")
    (content,) = stack
    return content


def _named(asked: str, known: dict[str, Any]) -> Any:
    if asked not in known:
        raise ValueError(f"it asks for {asked[:80].replace(' ', '.')}, which no tensor or array needs")
    return known[asked]


def _leads_on(value) -> bool:
    """Whether `value`, met again and again, makes much of little: containers of containers, lists, long texts."""
    if isinstance(value, str | bytes):
        return len(value) > _LONG_TEXT
    flat = isinstance(value, tuple) and len(value) < 16 and not any(isinstance(v, tuple | list | dict) for v in value)
    return isinstance(value, tuple | list | dict) and not flat


def _dictionary(pairs=()) -> dict:
    """Of keys that are quick to hash and to compare: long integers can be made to have all the same hash."""
    made = {}
    for key, value in pairs:
        if not (isinstance(key, str) or (isinstance(key, int) and abs(key) < 1 << 31)):
            raise ValueError(f"a {type(key).__name__} as a key")
        made[key] = value
    return made


class _Tensors:
    """Makes the tensors of a torch file, which get their values when all are known.

    Args:
        most: bytes that they may have.
    """

    def __init__(self, most: int):
        self.storages: dict[str, Tensor] = {}
        self._left, self._shown = most, 4 * most  # some may lie in the same storage
        make = {f"torch._utils {name}": self._tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
        parameter = {"torch._utils _rebuild_parameter": lambda tensor, *_: tensor}
        self.known = _STORAGES | make | parameter | {"collections OrderedDict": _dictionary}

    def storage(self, identity: tuple) -> Tensor:
        _, dtype, key, _, count, *view = identity
        if key not in self.storages:
            self._left -= count * dtype.itemsize
            if count < 0 or self._left < 0 or any(view):
                raise ValueError("its tensors claim more bytes than the file has")
            self.storages[str(key)] = torch.empty(count, dtype=dtype)
        return self.storages[key]

    def _tensor(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
        if len(size) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {len(size)} dimensions")
        tensor = storage.as_strided(size, stride, offset)
        self._shown -= tensor.numel() * tensor.element_size()
        if self._shown < 0:
            raise ValueError("its tensors claim more bytes than the file has")
        return tensor

    def fill(self, key: str, file: BinaryIO, count: int) -> None:
        """Read the `count` bytes of a storage."""
        values = self.storages.pop(key).view(torch.uint8).numpy().data
        if count != len(values) or file.readinto(values) != count:
            raise ValueError(f"its storage {key[:20]} is not {len(values)} bytes long")


def load(path: str | Path) -> Any:
    """Whatever a torch file holds, as far as that is plain values and tensors that lie in the file, on the CPU.

    What torch writes since 1.6 carries checksums, which are checked; the files before that are read as well.

    Raises:
        InputError: the file is missing, damaged, or holds or claims anything else.
    """
    try:
        with open_regular(path, _LARGEST_FILE) as file:
            size = file.seek(0, 2)
            file.seek(0)
            start, tensors = file.read(4), _Tensors(size)
            file.seek(0)
            content = (_read_archive if start == b"PK\3\4" else _read_old)(file, size, tensors)
            if tensors.storages:
                raise ValueError(f"{len(tensors.storages)} of its storages are missing")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # on damaged files nearly everything is raised
        reason = (str(error) or type(error).__name__).split("\n")[0][:200]
        raise InputError(
            f"{path} is refused: it is damaged or no .pth file of plain tensors ({reason}); get it again, or save its "
            "state dict alone; an MXNet .params file goes through `python -m tools.convert_weights` first"
        ) from None
    return content


def _read_archive(file: BinaryIO, size: int, tensors: _Tensors) -> Any:
    with open_zip(file, size) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder, order = name.removesuffix("data.pkl"), name.replace("data.pkl", "byteorder")
        if archive.getinfo(name).file_size > _LARGEST_PICKLE:
            raise ValueError(f"over {_LARGEST_PICKLE} bytes besides its tensors")
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("numbers of another byte order")
        content = read_pickle(archive.read(name), tensors.known, tensors.storage)
        for key in list(tensors.storages):
            with archive.open(f"{folder}data/{key}") as part:
                tensors.fill(key, part, archive.getinfo(part.name).file_size)
    return content


def _read_old(file: BinaryIO, size: int, tensors: _Tensors) -> Any:
    metered = Metered(file, min(size, _LARGEST_PICKLE))
    magic, _version, system = (read_pickle(metered, {}) for _ in range(3))
    if magic != _MAGIC or not system["little_endian"]:
        raise ValueError("the start of another kind of file")
    content = read_pickle(metered, tensors.known, tensors.storage)
    for key in read_pickle(metered, {}):
        width = tensors.storages[key].itemsize
        (count,) = struct.unpack("<q", file.read(8))
        tensors.fill(key, file, count * width)
    return content
