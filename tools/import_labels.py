"""Bring the seeds that the authors' programs made (.npy files) into this project's store of maps.

    python -m tools.import_labels their/out_aff_crf prepare_labels/results/out_aff_crf --kind aff_crf
    python -m tools.import_labels their/out_aff prepare_labels/results/out_aff --kind aff --allow-pickle

out_cam and out_aff are pickled dictionaries. A pickle can run code, so they are read only with --allow-pickle, and then
by a reader that knows NumPy's arrays and nothing else. All files are checked before the first one is stored.
"""

import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from datasets.errors import InputError, program
from datasets.files import content_digest, open_regular, refuse_overwrite
from datasets.seed_store import load_maps, read_npy_header, save_maps, store_path
from datasets.voc import image_size, read_present
from datasets.weights import read_pickle
from engine import locks
from settings.config import Config
from settings.flags import Parser

KINDS = ("cam", "aff", "aff_crf")
FLOATS = ("f2", "f4", "f8")
LARGEST_FILE = 1 << 32
PICKLE_OVERHEAD = 1 << 16  # bytes, for the structure of a pickle around its arrays


class PickledDtype:
    """Stands in for numpy.dtype while a pickle is read."""

    def __init__(self, code: str, *_):
        self.code, self.order = code, "="

    def build(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self, codes: tuple[str, ...]) -> np.dtype:
        if self.code not in codes or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"numbers of type {self.order}{self.code}")
        return np.dtype(self.code).newbyteorder(self.order)


class PickledArray:
    """Stands in for numpy.ndarray: it keeps what the pickle holds and allocates nothing that the pickle only claims."""

    def __init__(self, *_):
        self.shape, self.type, self.fortran, self.content = None, None, False, None

    def build(self, state: tuple) -> None:
        _, self.shape, self.type, self.fortran, self.content = state

    def floats(self) -> np.ndarray:
        order = "F" if self.fortran else "C"
        return np.frombuffer(self.content, self.type.dtype(FLOATS)).reshape(self.shape, order=order)


def pickled_integer(dtype: PickledDtype, content: bytes) -> int:
    return int(np.frombuffer(content, dtype.dtype(("i4", "i8")))[0])


def pickled_bytes(text: str, _encoding: str) -> bytes:
    """How protocol 2 of pickle, which older NumPy used, has bytes: as text in Latin-1."""
    return text.encode("latin1")


STAND_INS = {
    "numpy ndarray": PickledArray,
    "numpy dtype": PickledDtype,
    "numpy.core.multiarray _reconstruct": PickledArray,
    "numpy._core.multiarray _reconstruct": PickledArray,
    "numpy.core.multiarray scalar": pickled_integer,
    "numpy._core.multiarray scalar": pickled_integer,
    "_codecs encode": pickled_bytes,
}


def read_maps(path: Path, kind: str, classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The maps of one of the authors' files, K×H×W float32 in the order of `classes`.

    Args:
        kind: cam, aff (pickled dictionaries) or aff_crf (a plain array).
        classes: the K classes that the file must have, 0 = background.
        size: (H, W) of the image.

    Raises:
        InputError: the file is damaged, or of another kind, image, class list, or number type; or its values are not
            finite or negative.
    """
    shape = (len(classes), *size)
    try:
        with open_regular(path, LARGEST_FILE) as file:
            claimed, _, dtype = read_npy_header(file)
            left = path.stat().st_size - file.tell()
            if dtype.hasobject != (kind != "aff_crf"):
                raise ValueError("a pickled object" if dtype.hasobject else "a plain array, not a pickled dictionary")
            if kind == "aff_crf":
                maps = read_plain(file, claimed, dtype, shape, left)
            else:
                maps = read_pickled(file, claimed, kind, classes, size, left)
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        message = f"{path} cannot be imported as {kind} maps ({str(reason)[:300]})"
        raise InputError(f"{message}: give the --kind and --voc-root it was made with, or take it out") from None
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite and is refused
        maps = maps.astype(np.float32)
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise InputError(f"{path} holds values that are negative or not finite; take the file out or make it anew")
    return maps


def read_plain(
    file: BinaryIO, claimed: tuple[int, ...], dtype: np.dtype, shape: tuple[int, int, int], left: int
) -> np.ndarray:
    if claimed != shape:
        raise ValueError(f"it claims the shape {claimed}, image and annotation ask for {shape}")
    if dtype.kind != "f" or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{left} bytes of {dtype} are not {shape} floats")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_pickled(
    file: BinaryIO, claimed: tuple[int, ...], kind: str, classes: np.ndarray, size: tuple[int, int], left: int
) -> np.ndarray:
    if claimed != ():
        raise ValueError(f"it claims the shape {claimed}, a dictionary has none")
    # Float64 in protocol 2 takes the most: 8 bytes, each of them one or two of text.
    if left > len(classes) * math.prod(size) * 16 + PICKLE_OVERHEAD:
        raise ValueError(f"{left} bytes are more than {len(classes)} maps of {size} take")
    outer = read_pickle(file.read(left), STAND_INS)
    if not isinstance(outer, PickledArray) or not isinstance(outer.content, list) or len(outer.content) != 1:
        raise ValueError("its pickle is not one object in an array")
    (maps,) = outer.content
    # out_cam counts classes without background, out_aff with it.
    first = 1 if kind == "cam" else 0
    if not isinstance(maps, dict) or {key + first for key in maps} != set(classes.tolist()):
        keys = sorted(maps) if isinstance(maps, dict) else type(maps).__name__
        raise ValueError(f"it holds {keys}, the annotation asks for {[int(c) - first for c in classes]}")
    arrays = [maps[int(c) - first] for c in classes]
    strange = next((array for array in arrays if not isinstance(array, PickledArray) or array.shape != size), None)
    if strange is not None:
        raise ValueError(f"a map has the shape {getattr(strange, 'shape', None)}, the image {size}")
    return np.stack([array.floats() for array in arrays])


def stored(path: Path, made_by: str, classes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the store already has this import of an image, from a file of the same content.

    Raises:
        InputError: it has maps that something else made.
    """
    try:
        maps = load_maps(path)
    except InputError:
        return False
    maker = maps.made_by.partition(", file ")[0]
    if maker != made_by.partition(", file ")[0]:
        raise InputError(f"{path} was made by '{maker}': import into another folder, or remove this one")
    return maps.made_by == made_by and np.array_equal(maps.classes, classes) and maps.maps.shape[1:] == size


def import_labels(source: Path, target: Path, kind: str, voc_root: Path) -> tuple[int, int]:
    """Store all .npy files of `source` in `target`; what is there already, of the same content, is left.

    Returns:
        How many were imported and how many were there.

    Raises:
        InputError: there are none, one cannot be imported, or a run reads or fills the store; it is as it was.
    """
    files = sorted(source.glob("*.npy"))
    if not files:
        raise InputError(f"{source} holds no .npy file: name the folder out_{kind} that the authors' program filled")
    refuse_overwrite((store_path(target, path.stem) for path in files), files)
    locks.lock_for_writing(target, "OUT_DIR")
    todo = {}
    for path in tqdm(files, "checking", unit="image", disable=None):
        classes, size = wanted(path, kind, voc_root)
        made_by = f"import of the released program's out_{kind}, file {content_digest(path)}"
        if not stored(store_path(target, path.stem), made_by, classes, size):
            read_maps(path, kind, classes, size)
            todo[path] = made_by
    for path, made_by in tqdm(todo.items(), "storing", unit="image", disable=None):
        classes, size = wanted(path, kind, voc_root)
        save_maps(store_path(target, path.stem), classes, read_maps(path, kind, classes, size), size, made_by)
    return len(todo), len(files) - len(todo)


def wanted(path: Path, kind: str, voc_root: Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Classes (0 = background) and size (H, W) that the image of an .npy file asks for."""
    classes = np.flatnonzero(read_present(voc_root, path.stem))
    return classes[1:] if kind == "cam" else classes, image_size(voc_root, path.stem)


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN_DIR", type=Path, help="folder of the authors' .npy files")
    parser.add_argument("target", metavar="OUT_DIR", type=Path, help="folder of the store")
    parser.add_argument("--kind", required=True, choices=KINDS, help="which of the authors' folders IN_DIR is")
    parser.add_argument("--voc-root", type=Path, default=Config().voc_root, help="VOC 2012 folder (%(default)s)")
    parser.add_argument("--allow-pickle", action="store_true", help="read pickled files (cam and aff are)")
    arguments = parser.parse_args(argv)
    if arguments.kind != "aff_crf" and not arguments.allow_pickle:
        raise InputError(
            f"{arguments.source}: {arguments.kind} files are pickles, which can be made to run code; "
            "if you trust where they come from, give --allow-pickle"
        )
    imported, there = import_labels(arguments.source, arguments.target, arguments.kind, arguments.voc_root)
    print(f"{imported} imported into {arguments.target}, {there} were there already")


if __name__ == "__main__":
    main()
