"""PASCAL VOC 2012, or own data in its layout: lists, photographs, image-level labels, classes, palette masks."""

import re
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.errors import InputError
from datasets.files import atomic_write

CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
IGNORE = 255
CLASSES_FILE = "classes.txt"

# A bare id, or the pair "/JPEGImages/ID.jpg /SegmentationClass/ID.png" that other programs' lists have.
_LIST_LINE = re.compile(r"^(?:/?JPEGImages/)?(?P<id>\w[\w-]*)(?:\.jpg)?(?:\s+\S+)?$")
_LARGEST_XML = 1 << 20


def colour_map() -> np.ndarray:
    """VOC's palette, 256×3 uint8: the bits of the index spread over red, green and blue."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


PALETTE = colour_map()


def class_names(root: str | Path) -> tuple[str, ...]:
    """The classes of a data set, background first: the lines of ROOT/classes.txt, or VOC's 20 where there is none.

    Raises:
        InputError: the file cannot be read, names a class twice, or more than the 254 that a mask can hold.
    """
    path = Path(root) / CLASSES_FILE
    try:
        return _class_names(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        return CLASSES
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of class names ({error})") from None


@cache
def _class_names(path: Path, stamp: int) -> tuple[str, ...]:
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = names[1:] if names[:1] == ["background"] else names
    twice = next((name for n, name in enumerate(names) if name in names[:n] or name == "background"), None)
    if twice:
        raise InputError(f"{path} names the class {twice!r} twice; background is always there")
    if not 0 < len(names) < IGNORE:
        raise InputError(f"{path} names {len(names)} classes, needed: 1 to {IGNORE - 1}, one a line")
    return ("background", *names)


def read_ids(root: str | Path, split: str) -> list[str]:
    """The image ids of ImageSets/Segmentation/`split`.txt, in the order of the file.

    Raises:
        InputError: there is no VOC at `root`, no such list, an empty one, or a line that is no id.
    """
    root = Path(root)
    if not (root / "JPEGImages").is_dir():
        raise InputError(
            f"no VOC at {root}: {root / 'JPEGImages'} is missing; link it there or name it with --voc-root "
            "(the demo's is made by `python -m datasets.demo demo/VOC2012`)"
        )
    path = list_path(root, split)
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: it must list the image ids of split '{split}', one a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of image ids ({error})") from None
    ids = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            match = _LIST_LINE.match(line.strip())
            if match is None:
                raise InputError(f"{path}, line {number}: {line.strip()[:60]!r} is not an image id")
            ids.append(match["id"])
    if not ids:
        raise InputError(f"{path} lists no image")
    return ids


def list_path(root: str | Path, split: str) -> Path:
    return Path(root) / "ImageSets" / "Segmentation" / f"{split}.txt"


def image_path(root: str | Path, image_id: str) -> Path:
    return Path(root) / "JPEGImages" / f"{image_id}.jpg"


def mask_path(root: str | Path, image_id: str) -> Path:
    return Path(root) / "SegmentationClass" / f"{image_id}.png"


def read_image(root: str | Path, image_id: str) -> np.ndarray:
    """The photograph of an id as H×W×3 uint8 RGB; grey, palette, alpha and CMYK files are converted.

    The pixels are taken as stored: an EXIF rotation is not applied, as VOC's masks know none.

    Raises:
        InputError: the file is missing, truncated, or no picture.
    """
    return open_image(image_path(root, image_id))


def open_image(path: Path) -> np.ndarray:
    """`read_image` for any file."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing, but a list names it") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); restore it or unlist its id") from None


def image_size(root: str | Path, image_id: str) -> tuple[int, int]:
    """(height, width) of an id's photograph, from the file's header."""
    path = image_path(root, image_id)
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); restore it or unlist its id") from None


def read_present(root: str | Path, image_id: str) -> np.ndarray:
    """Image-level labels from Annotations/<id>.xml: (C,) float32 of zeros and ones, background (first) always 1.

    Every object counts, also those marked difficult, as in PSA.

    Raises:
        InputError: the file is missing, no VOC annotation, or names an unknown class or none.
    """
    path, classes = Path(root) / "Annotations" / f"{image_id}.xml", class_names(root)
    present = np.zeros(len(classes), np.float32)
    present[0] = 1
    for name in read_names(path):
        if name not in classes[1:]:
            known = f"{len(classes) - 1} of {CLASSES_FILE}" if classes != CLASSES else "VOC's 20"
            raise InputError(f"{path} names the class {name[:40]!r}, which is none of {known}")
        present[classes.index(name)] = 1
    return present


def read_names(path: Path) -> list[str]:
    """The names of the objects in a VOC annotation, at least one.

    Raises:
        InputError: the file is missing, no VOC annotation, or names no object.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_XML + 1)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: every training image needs its annotation for the image labels") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    # VOC's files have no document type; refusing one keeps entity bombs and external entities out. A zero byte means
    # UTF-16, in which these words would not be seen.
    if len(data) > _LARGEST_XML or any(word in data for word in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
        raise InputError(f"{path} is not a VOC annotation (over 1 MiB, a document type, or not UTF-8)")
    try:
        names = [(element.text or "").strip() for element in ElementTree.fromstring(data).iterfind("object/name")]
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not readable XML ({error})") from None
    if not names:
        raise InputError(f"{path} names no object: nothing can be learned from an image without a label, unlist its id")
    return names


def read_mask(path: str | Path, classes: int = len(CLASSES)) -> np.ndarray:
    """A palette or grey PNG mask as H×W uint8: class indices, 255 = ignore.

    Raises:
        InputError: the file is missing, unreadable, or holds colours or indices that are no class.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise InputError(f"{path} is a {image.mode} picture, needed: a palette or grey PNG of class indices")
            mask = np.array(image)
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a mask ({error})") from None
    unknown = mask[(mask >= classes) & (mask != IGNORE)]
    if unknown.size:
        raise InputError(f"{path} holds the index {unknown[0]}, which is no class (0…{classes - 1}, 255 = ignore)")
    return mask


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write H×W class indices as a PNG with VOC's palette."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(PALETTE.tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
