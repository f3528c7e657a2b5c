"""PASCAL VOC 2012, or own data in its layout: lists, photographs, image-level labels, classes, palette masks."""

import gzip
import io
import re
import tarfile
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from datasets.errors import InputError
from datasets.files import atomic_write, open_regular, read_bytes

CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
IGNORE = 255
CLASSES_FILE = "classes.txt"

# A bare id, or the pair "/JPEGImages/ID.jpg /SegmentationClass/ID.png" that other programs' lists have.
_LIST_LINE = re.compile(r"^(?:/?JPEGImages/)?(?P<id>\w[\w-]*)(?:\.jpg)?(?:\s+\S+)?$")
_LARGEST_XML = 1 << 20
LARGEST_LIST = 1 << 24
# Of the many that Pillow knows; one of the others runs Ghostscript.
_FORMATS = ("JPEG", "PNG")
_LARGEST_PICTURE = 1 << 28
_MOST_PIXELS = 1 << 25
# A progressive JPEG of few bytes can ask for any number of passes over all its pixels.
_MOST_SCANS = 64
# Once, as images are read in several threads, and filters of warnings are those of the whole process.
warnings.filterwarnings("ignore", module=r"PIL\.")


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
    lines = read_bytes(path, _LARGEST_XML).decode("utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    names = names[1:] if names[:1] == ["background"] else names
    if not 0 < len(names) < IGNORE:
        raise InputError(f"{path} names {len(names)} classes, needed: 1 to {IGNORE - 1}, one a line")
    twice = next((name for n, name in enumerate(names) if name in names[:n] or name == "background"), None)
    if twice:
        raise InputError(f"{path} names the class {twice!r} twice; background is always there")
    return ("background", *names)


def read_ids(root: str | Path, split: str) -> list[str]:
    """The image ids of ImageSets/Segmentation/`split`.txt, in the order of the file.

    Raises:
        InputError: there is no VOC at `root`, no such list, an empty one, a line that is no id, or an id twice.
    """
    root = Path(root)
    if not (root / "JPEGImages").is_dir():
        raise InputError(
            f"no VOC at {root}: {root / 'JPEGImages'} is missing; link it there or name it with --voc-root "
            "(the demo's is made by `python -m datasets.demo demo/VOC2012`)"
        )
    path = list_path(root, split)
    try:
        lines = read_bytes(path, LARGEST_LIST).decode("ascii").replace("\r", "\n").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: it must list the image ids of split '{split}', one a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of image ids ({error})") from None
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            match = _LIST_LINE.match(line.strip())
            if match is None:
                raise InputError(f"{path}, line {number}: {line.strip()[:60]!r} is not an image id")
            if ids.setdefault(match["id"], number) != number:
                raise InputError(f"{path}, line {number}: {match['id']} is there already, in line {ids[match['id']]}")
    if not ids:
        raise InputError(f"{path} lists no image")
    return list(ids)


def list_path(root: str | Path, split: str) -> Path:
    return Path(root) / "ImageSets" / "Segmentation" / f"{split}.txt"


def image_path(root: str | Path, image_id: str) -> Path:
    return Path(root) / "JPEGImages" / f"{image_id}.jpg"


def annotation_path(root: str | Path, image_id: str) -> Path:
    return Path(root) / "Annotations" / f"{image_id}.xml"


def mask_path(root: str | Path, image_id: str) -> Path:
    return Path(root) / "SegmentationClass" / f"{image_id}.png"


def read_image(root: str | Path, image_id: str) -> np.ndarray:
    """The photograph of an id as H×W×3 uint8 RGB; grey, palette, alpha and CMYK files are converted.

    The pixels are taken as stored: an EXIF rotation is not applied, as VOC's masks know none.

    Raises:
        InputError: the file is missing, truncated, no picture, or too large.
    """
    return open_image(image_path(root, image_id))


def read_reduced(root: str | Path, image_id: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """`read_image` no larger than needed, and the (height, width) that the file has.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is several times quicker, but with no side of less than
    `side` pixels. VOC's own photographs are too small for that.

    Raises:
        InputError: as `read_image`.
    """

    def reduced(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        size = (image.height, image.width)
        image.draft(None, (side, side))
        return rgb(image), size

    return decode(image_path(root, image_id), reduced)


def open_image(path: Path) -> np.ndarray:
    """`read_image` for any file."""
    return decode(path, rgb)


def rgb(image: Image.Image) -> np.ndarray:
    """H×W×3 uint8."""
    if image.mode.startswith(("I", "F")):  # Pillow would cut off what is brighter than 255
        raise ValueError("more than 8 bits a channel")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def image_size(root: str | Path, image_id: str) -> tuple[int, int]:
    """(height, width) of an id's photograph, from the file's header."""
    return decode(image_path(root, image_id), lambda image: (image.height, image.width), scans=False)


def check_pixels(root: str | Path, ids: list[str], most: int, way_out: str = "a higher --most-pixels") -> None:
    """Refuse photographs that would fill the memory, before a long run: label making keeps maps of their size.

    Raises:
        InputError: one has more than `most` pixels (`way_out`: what else helps than shrinking it), or cannot be read.
    """
    for image_id in ids:
        height, width = image_size(root, image_id)
        if height * width > most:
            raise InputError(
                f"{image_path(root, image_id)} has {width}×{height} pixels, at most {most} are taken: shrink it "
                f"(`python -m tools.import_images` does), or give {way_out}"
            )


def decode(
    path: Path, what: Callable[[Image.Image], Any], formats: tuple[str, ...] = _FORMATS, scans: bool = True
) -> Any:
    """`what` of the picture that lies at `path`, whatever its name ends with; of animations the first frame.

    Args:
        formats: Pillow's names of those that are read.
        scans: whether those of a progressive JPEG are counted, which takes reading all of it.

    Raises:
        InputError: it is missing, damaged, of another format, or too large.
    """
    try:
        with open_regular(path, _LARGEST_PICTURE) as file:
            image = Image.open(file, formats=formats)
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels are too many, at most {_MOST_PIXELS}: shrink it")
            if scans and image.format in ("JPEG", "MPO") and _scans(file) > _MOST_SCANS:
                raise ValueError(f"over {_MOST_SCANS} progressive scans")
            return what(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing, but a list names it") from None
    except Exception as error:  # on damaged files Pillow raises nearly everything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read as a picture ({reason}); restore it or unlist its id") from None


def _scans(file: BinaryIO) -> int:
    place = file.tell()
    file.seek(0)
    count = file.read().count(b"\xff\xda")
    file.seek(place)
    return count


def read_present(root: str | Path, image_id: str, difficult: bool = True) -> np.ndarray:
    """Image-level labels from Annotations/<id>.xml: (C,) float32 of zeros and ones, background (first) always 1.

    Args:
        difficult: whether objects marked so count, as in PSA; ICD skips them unless nothing else is there.

    Raises:
        InputError: the file is missing, no VOC annotation, or names an unknown class or none.
    """
    path, classes = annotation_path(root, image_id), class_names(root)
    present = np.zeros(len(classes), np.float32)
    present[0] = 1
    for name in read_names(path, difficult):
        if name not in classes[1:]:
            known = f"{len(classes) - 1} of {CLASSES_FILE}" if classes != CLASSES else "VOC's 20"
            raise InputError(f"{path} names the class {name[:40]!r}, which is none of {known}")
        present[classes.index(name)] = 1
    return present


def read_objects(path: Path) -> list[ElementTree.Element]:
    """The objects of a VOC annotation.

    Raises:
        InputError: the file is missing or no VOC annotation.
    """
    try:
        data = read_bytes(path, _LARGEST_XML)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: every training image needs its annotation for the image labels") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read as a VOC annotation ({error})") from None
    # VOC's files have no document type; refusing one keeps entity bombs and external entities out. A zero byte means
    # UTF-16, in which these words would not be seen.
    if any(word in data for word in (b"<!DOCTYPE", b"<!ENTITY", b"\0")):
        raise InputError(f"{path} is not a VOC annotation (a document type, or not UTF-8)")
    try:
        return ElementTree.fromstring(data).findall("object")
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not readable XML ({error})") from None


def read_names(path: Path, difficult: bool = True) -> list[str]:
    """The names of the objects in a VOC annotation, at least one.

    Args:
        difficult: whether objects marked so are named where there are others.

    Raises:
        InputError: the file is missing, no VOC annotation, or names no object.
    """
    objects = read_objects(path)
    plain = [element for element in objects if (element.findtext("difficult") or "").strip() != "1"]
    names = _object_names(objects if difficult else plain) or _object_names(objects)
    if not names:
        raise InputError(f"{path} names no object: nothing can be learned from an image without a label, unlist its id")
    return names


def _object_names(objects: list[ElementTree.Element]) -> list[str]:
    return [(name.text or "").strip() for element in objects for name in element.iterfind("name")]


def read_mask(path: str | Path, classes: int = len(CLASSES)) -> np.ndarray:
    """A palette or grey PNG mask as H×W uint8: class indices, 255 = ignore.

    Raises:
        InputError: the file is missing, unreadable, or holds colours or indices that are no class.
    """
    path = Path(path)

    def indices(image: Image.Image) -> np.ndarray:
        if image.mode not in ("P", "L"):
            raise InputError(f"{path} is a {image.mode} picture, needed: a palette or grey PNG of class indices")
        return np.array(image)

    mask = decode(path, indices)
    unknown = mask[(mask >= classes) & (mask != IGNORE)]
    if unknown.size:
        raise InputError(f"{path} holds the index {unknown[0]}, which is no class (0…{classes - 1}, 255 = ignore)")
    return mask


def check_pictures(folder: str | Path, root: str | Path, ids: list[str], mode: str, what: str) -> None:
    """Check by their headers, before a long run, that a folder has a PNG of each photograph's size.

    Args:
        mode: Pillow's name of the kind of picture that is needed, RGB or L.
        what: the pictures are, for people.

    Raises:
        InputError: one is missing, no PNG, of another kind or size; names the first.
    """
    paths = [Path(folder) / f"{image_id}.png" for image_id in ids]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} {what} are missing, first {missing[0]}: every image needs one"
        )
    for image_id, path in zip(ids, paths, strict=True):
        found, size = decode(path, lambda image: (image.mode, (image.height, image.width)), ("PNG",))
        if found != mode:
            kind = {"RGB": "three channels that hold superpixel ids", "L": "8 bits of grey"}[mode]
            raise InputError(f"{path} is a {found} picture, needed: a PNG of {kind}")
        needed = image_size(root, image_id)
        if size != needed:
            raise InputError(f"{path} is {size[1]}×{size[0]} pixels, its photograph {needed[1]}×{needed[0]}; mend one")


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write H×W class indices as a PNG with VOC's palette."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(PALETTE.tobytes())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def write_submission(path: str | Path, masks: Path, root: str | Path, ids: list[str]) -> None:
    """Pack masks as VOC's evaluation server takes them for VOC 2012, competition 6 (segmentation, own training data).

    Palette PNGs of class indices, results/VOC2012/Segmentation/comp6_test_cls/<id>.png; the same masks give the same
    bytes.

    Args:
        path: the .tgz to write.
        masks: folder of <id>.png.

    Raises:
        InputError: a mask is missing, not of its photograph's size, no palette PNG, or has an index that is no class;
            then nothing is written.

    Reference:
        The PASCAL Visual Object Classes Challenge 2012 Development Kit, section "Submission of results".
    """
    missing = [image_id for image_id in ids if not (masks / f"{image_id}.png").exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(ids)} masks are missing in {masks}, first {missing[0]}.png: run --mode=3 again"
        )
    with atomic_write(path) as temporary, _packed(temporary) as archive:
        for image_id in sorted(ids):
            file = masks / f"{image_id}.png"
            mask = read_mask(file)
            if mask.shape != image_size(root, image_id):
                size = image_size(root, image_id)
                raise InputError(
                    f"{file}: the mask is {mask.shape}, its photograph {size}; delete it, run --mode=3 again"
                )
            if (mask == IGNORE).any():
                raise InputError(
                    f"{file} holds 255, which the server takes for no class; delete it, run --mode=3 again"
                )
            content = io.BytesIO()
            image = Image.fromarray(mask)
            image.putpalette(PALETTE.tobytes())
            image.save(content, format="PNG")
            entry = tarfile.TarInfo(f"results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png")
            entry.size = content.tell()
            content.seek(0)
            archive.addfile(entry, content)


@contextmanager
def _packed(path: Path) -> Iterator[tarfile.TarFile]:
    """A gzipped tar without the time of its making."""
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        yield archive
