"""Archives in which people exchange seeds, difference maps and weights: a zip of PNG and safetensors files, no pickles.

`pack.json` says what it is and names every part with its length and SHA-256. Only parts that it names are read, each as
`masks/ID.png`, `maps/ID.safetensors` or `weights/NAME.safetensors`, so that no part can ask for another place.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import numpy as arrays
from safetensors import torch as tensors

from datasets.errors import InputError
from datasets.files import atomic_write, open_regular, open_zip

MANIFEST = "pack.json"
VERSION = 1
KINDS = ("seeds", "differences", "weights")
_PART = re.compile(r"(masks/\w[\w-]*\.png|maps/\w[\w-]*\.safetensors|weights/\w[\w-]*\.safetensors)")
_LARGEST = 1 << 36
_LARGEST_DIRECTORY = 1 << 25  # bytes; COCO's 82,783 images take 9 million
_LARGEST_MANIFEST = 1 << 25
_LONGEST_AGO = (1980, 1, 1, 0, 0, 0)  # the same content gives the same bytes


def write_archive(path: Path, about: dict, parts: Iterable[tuple[str, bytes]]) -> int:
    """Write an archive; how many parts it has.

    Args:
        about: what `pack.json` says beside its parts.
        parts: names and contents.
    """
    files = {}
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in parts:
            _add(archive, name, content)
            files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = {"version": VERSION} | about | {"files": files}
        _add(archive, MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    return len(files)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    packed = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    archive.writestr(zipfile.ZipInfo(name, _LONGEST_AGO), content, packed)


class Archive:
    """An open archive.

    Attributes:
        about: its `pack.json`.
        sizes: bytes of each part.
    """

    def __init__(self, archive: zipfile.ZipFile, about: dict):
        self._archive, self.about = archive, about
        self.sizes = {name: entry["bytes"] for name, entry in about["files"].items()}

    def read(self, name: str, most: int) -> bytes:
        """A part, which is what `pack.json` says.

        Raises:
            ValueError: it claims more than `most` bytes, or has another content.
        """
        if self.sizes[name] > most:
            raise ValueError(f"{name} claims {self.sizes[name]} bytes, at most {most} make sense")
        content = self._archive.read(name)
        if hashlib.sha256(content).hexdigest() != self.about["files"][name]["sha256"]:
            raise ValueError(f"{name} is not what pack.json says")
        return content


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """An archive of somebody else, of which nothing is believed.

    Raises:
        InputError: it is missing, damaged, no such archive, or what is read of it in the body cannot be used.
    """
    try:
        with open_regular(path, _LARGEST) as file, open_zip(file, _LARGEST, _LARGEST_DIRECTORY) as archive:
            parts = {part.filename: part.file_size for part in archive.infolist()}
            if len(parts) != len(archive.infolist()):
                raise ValueError("a part is there twice")
            if parts.get(MANIFEST, _LARGEST) > _LARGEST_MANIFEST:
                raise ValueError(f"it has no {MANIFEST} of reasonable size")
            about = json.loads(archive.read(MANIFEST))
            _check_manifest(about, parts)
            yield Archive(archive, about)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # on damaged files zipfile, json and safetensors raise nearly everything
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise InputError(f"{path} is refused: it is damaged or no archive of tools.pack ({reason})") from None


def _check_manifest(about, parts: dict[str, int]) -> None:
    """Raise where `pack.json` cannot be right, or names other parts than there are."""
    files = about["files"]
    if about["version"] != VERSION or about["kind"] not in KINDS:
        raise ValueError(f"version {about['version']!r}, kind {about['kind']!r}")
    strange = next((name for name in (*files, *parts) if name != MANIFEST and not _PART.fullmatch(name)), None)
    if strange:
        raise ValueError(f"it has a part {strange[:80]!r}, which can be no mask, map or weights")
    if {name: entry["bytes"] for name, entry in files.items()} | {MANIFEST: parts[MANIFEST]} != parts:
        raise ValueError("its parts are others than pack.json names")
    classes = about["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) and name.isprintable() for name in classes):
        raise ValueError("classes that are no names")


def packed_arrays(fields: dict[str, np.ndarray]) -> bytes:
    """Arrays, and one text a field, as safetensors."""
    plain = {name: np.frombuffer(str(v).encode(), np.uint8) if v.dtype.kind == "U" else v for name, v in fields.items()}
    return arrays.save({name: np.ascontiguousarray(value).reshape(value.shape) for name, value in plain.items()})


def unpacked_arrays(content: bytes, texts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The same back; `texts`: which of them are texts."""
    fields = arrays.load(content)
    for name in texts:
        fields[name] = np.array(fields[name].astype(np.uint8).tobytes().decode())
    return fields


def packed_weights(state: dict[str, torch.Tensor]) -> bytes:
    """A state dict as safetensors, which refuse tensors that share memory."""
    return tensors.save({name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()})


def unpacked_weights(content: bytes) -> dict[str, torch.Tensor]:
    try:
        return tensors.load(content)
    except SafetensorError as error:
        raise ValueError(f"its weights are no safetensors: {error}") from None
