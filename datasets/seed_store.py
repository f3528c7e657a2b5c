"""The store of seeds and difference maps, one compressed .npz file an image, no pickle; and one reader of all seeds.

A file describes itself: format version, class indices, size of the image, what made it. Maps at full size are kept in
8 bits (within 1/255 of their maximum, argmax kept); maps on the feature grid (the random walk's result) are kept in
float32, so that upsampling on reading is exact.
"""

import io
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from datasets.errors import InputError
from datasets.files import atomic_write, open_zip, read_bytes
from datasets.voc import IGNORE, read_mask
from settings.common import CELL

VERSION = 1
_LARGEST_SIDE = 1 << 14
_MOST_FIELDS = 16
LARGEST_STORE = 1 << 27  # bytes of one image's maps, unpacked
# What numpy itself writes. Its own reader takes any Python literal, and much longer.
_PLAIN_HEADER = re.compile(
    rb"\{'descr': '(?P<kind>[<>|][a-z]\d+)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d+, )*(?:\d+,?)?)\), \} *\n",
    re.I,
)


@dataclass(frozen=True)
class SeedMaps:
    """Maps of one image as they are stored, and `maps`, those at full size, made when they are first asked for."""

    classes: np.ndarray  # K class indices int64, 0 = background, 255 = unknown
    stored: np.ndarray  # K×H×W of any type, or K×h×w float32 on the feature grid
    made_by: str
    grid_of: tuple[int, int] | None = None  # (H, W) of the image where they are on its grid
    step: float = 1  # what 1 in `stored` stands for

    @cached_property
    def maps(self) -> np.ndarray:
        """K×H×W float32."""
        if self.grid_of is None:
            return self.stored * np.float32(self.step)
        height, width = self.grid_of
        padded = (CELL * self.stored.shape[2], CELL * self.stored.shape[1])  # OpenCV: width first
        whole = [cv2.resize(one, padded, interpolation=cv2.INTER_LINEAR) for one in self.stored]
        return np.stack(whole)[:, :height, :width]

    def mask(self) -> np.ndarray:
        """H×W int64: at each pixel the class with the largest value."""
        return self.classes[self.maps.argmax(axis=0)]


def store_path(folder: str | Path, image_id: str) -> Path:
    return Path(folder) / f"{image_id}.npz"


def save_maps(path: str | Path, classes: np.ndarray, maps: np.ndarray, size: tuple[int, int], made_by: str) -> None:
    """Store K×H×W maps of full size (8 bits), or K×h×w maps on the feature grid (float32).

    Args:
        classes: K class indices, ascending; 0 = background.
        maps: non-negative float32; h = ceil(H/8), w = ceil(W/8) marks the feature grid unless it is the full size.
        size: (H, W) of the image.
        made_by: what made the maps, for people.
    """
    full = maps.shape[1:] == tuple(size)
    if not full and maps.shape[1:] != grid_size(size):
        raise ValueError(f"maps of {maps.shape[1:]} fit neither the image {size} nor its grid {grid_size(size)}")
    fields = {
        "version": np.array(VERSION),
        "classes": np.asarray(classes, np.uint8),
        "size": np.array(size, np.int32),
        "made_by": np.array(made_by),
    }
    if full:
        fields["maps"], fields["peak"] = _to_bytes(maps)
    else:
        fields["maps"] = maps.astype(np.float32)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **fields)


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // CELL), -(-size[1] // CELL)


def _to_bytes(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maps in steps of their common maximum/255, the winner of each pixel kept the winner."""
    peak = np.float32(max(maps.max(initial=0), 1e-12))
    scaled = maps / peak * 255
    rounded = np.rint(scaled)
    winner = maps.argmax(axis=0)[None]
    best = np.take_along_axis(rounded, winner, 0)
    # argmax takes the first of equals: an earlier map that rounding made equal must step down. It lies below the
    # winner, so at most one step below its true value, or the winner steps up instead.
    tied = (rounded == best) & (np.arange(len(maps))[:, None, None] < winner)
    up = tied.any(axis=0, keepdims=True) & (np.take_along_axis(scaled, winner, 0) >= best) & (best < 255)
    np.put_along_axis(rounded, winner, best + up, 0)
    rounded[tied & ~up] -= 1
    return rounded.clip(0, 255).astype(np.uint8), peak


def load_maps(path: str | Path, wanted: tuple[int, int] | None = None) -> SeedMaps:
    """Read a stored file as maps at the image's full size.

    Args:
        wanted: (H, W) that they must have; None: any.

    Raises:
        InputError: the file is missing, damaged, of another version, or of another size.
    """
    fields = read_fields(Path(path), ("classes", "size", "maps", "made_by"))
    classes, maps = fields["classes"], fields["maps"]
    if classes.ndim != 1 or not set(classes.tolist()) <= set(range(IGNORE)) or fields["size"].dtype.kind != "i":
        raise InputError(f"{path}: the fields classes or size cannot be right; make it anew")
    size = tuple(fields["size"].ravel().tolist())
    grid = len(size) == 2 and maps.dtype == np.float32 and maps.shape == (len(classes), *grid_size(size))
    full = len(size) == 2 and maps.dtype == np.uint8 and maps.shape == (len(classes), *size)
    full = full and "peak" in fields and fields["peak"].shape == () and fields["peak"].dtype == np.float32
    if not (grid or full) or not len(classes) or not 0 < min(size) <= max(size) < _LARGEST_SIDE:
        raise InputError(f"{path}: maps {maps.dtype} {maps.shape} do not fit the image size {size}; make it anew")
    if wanted is not None:
        _check_size(Path(path), size, wanted)
    if not np.isfinite(fields["peak"] if full else maps).all():
        raise InputError(f"{path}: the maps are not finite; make it anew")
    grid_of, step = (None, float(fields["peak"] / 255)) if full else (size, 1)
    return SeedMaps(classes.astype(np.int64), maps, str(fields["made_by"]), grid_of, step)


def seed_path(folder: str | Path, image_id: str) -> Path:
    """The file of an image's seed: a mask where there is one, else stored maps."""
    mask = Path(folder) / f"{image_id}.png"
    return mask if mask.exists() else store_path(folder, image_id)


def read_seed(
    folder: str | Path,
    image_id: str,
    size: tuple[int, int],
    present: np.ndarray | None = None,
    classes: int = IGNORE,
) -> SeedMaps:
    """A seed of any source as maps: stored maps, or a mask PNG as one map a class, with 255 for unknown pixels.

    Args:
        size: (H, W) of the image.
        present: (C,) label of the image, whose classes stored maps must have; None: not checked.
        classes: how many there are; a mask with a higher index is refused.

    Raises:
        InputError: missing, damaged, of another size, or of other classes.
    """
    path = seed_path(folder, image_id)
    if path.suffix == ".png":
        mask = read_mask(path, classes)
        _check_size(path, mask.shape, size)
        there = np.unique(mask).astype(np.int64)
        seed = SeedMaps(there, mask == there[:, None, None], "mask")
    else:
        seed = load_maps(path, size)
    checked = path.suffix == ".npz" and present is not None
    if checked and not np.array_equal(seed.classes, np.flatnonzero(present)):
        raise InputError(
            f"{path}: maps of classes {seed.classes.tolist()}, but the annotation says "
            f"{np.flatnonzero(present).tolist()}; delete the file and make it again"
        )
    return seed


def _check_size(path: Path, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Before maps of the size that a file claims are made."""
    if tuple(found) != tuple(wanted):
        raise InputError(
            f"{path}: maps are {tuple(found)}, the image is {tuple(wanted)}; delete the file and make it again"
        )


def save_differences(path: str | Path, d_k: np.ndarray, d_a: np.ndarray, made_by: str) -> None:
    """Store the static difference logits of one image, float32: h×w each, or A×h×w each of A advisers.

    Not compressed, which would take a tenth off the file and cost the loader of mode 2 more than the JPEG's header."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, version=np.array(VERSION), d_k=d_k, d_a=d_a, made_by=np.array(made_by))


def load_differences(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The logits (d_K, d_A) of one image as they were stored, h×w or A×h×w float32 each.

    Raises:
        InputError: the file is missing, damaged, or of another version.
    """
    fields = read_fields(Path(path), ("d_k", "d_a"))
    d_k, d_a = fields["d_k"], fields["d_a"]
    if d_k.dtype != np.float32 or d_k.ndim not in (2, 3) or d_a.dtype != np.float32 or d_a.shape != d_k.shape:
        raise InputError(f"{path}: not a pair of difference maps ({d_k.dtype} {d_k.shape}, {d_a.dtype} {d_a.shape})")
    if not (np.isfinite(d_k).all() and np.isfinite(d_a).all()):
        raise InputError(f"{path}: the maps are not finite; make it anew")
    return d_k.copy(), d_a.copy()  # writable, unlike what lies in the file's bytes


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """What an .npy file claims: its shape, whether it is in Fortran's order, its type; `file` then stands at its data.

    Raises:
        ValueError: the file is not an .npy file of version 1 or 2.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        begin = file.tell()
        plain = _PLAIN_HEADER.fullmatch(file.read(int.from_bytes(file.read(2), "little")))
        if plain:
            shape = tuple(int(side) for side in plain["shape"].split(b",") if side.strip())
            return shape, plain["fortran"] == b"True", np.dtype(plain["kind"].decode())
        file.seek(begin)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    return readers[version](file)


def _array(name: str, content: bytes) -> np.ndarray:
    """One field; numpy's own reader would make room for whatever shape the field claims."""
    file = io.BytesIO(content)
    shape, fortran, kind = read_npy_header(file)
    values = memoryview(content)[file.tell() :]
    if kind.hasobject or min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(values):
        raise ValueError(f"{name} claims to be {kind} of the shape {shape}")
    return np.frombuffer(values, kind).reshape(shape, order="F" if fortran else "C")


def read_fields(path: Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a stored file as they are.

    Raises:
        InputError: the file is missing, damaged, of another version, or lacks a `needed` one.
    """
    try:
        # Read at once: zipfile seeks some thirty times, each of which would ask the system.
        content = io.BytesIO(read_bytes(path, LARGEST_STORE))
        with open_zip(content, LARGEST_STORE) as archive:
            parts = archive.infolist()
            if len(parts) > _MOST_FIELDS:
                raise ValueError(f"over {_MOST_FIELDS} fields")
            fields = {part.filename.removesuffix(".npy"): _array(part.filename, archive.read(part)) for part in parts}
            str(fields.get("made_by"))  # numpy fails at letters that do not exist
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except Exception as error:  # on damaged files numpy and zipfile raise nearly everything
        raise InputError(f"{path} is damaged or no stored map ({error}); delete it and make it again") from None
    version = fields.get("version")
    if version is None or version.shape != () or version != VERSION or not all(key in fields for key in needed):
        raise InputError(f"{path}: not a map file of version {VERSION}; delete it and run the step that makes it")
    return fields
