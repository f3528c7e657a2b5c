"""Regions without classes, as Segment Anything and other programs write them: they may overlap, or leave gaps.

Of each image either a folder FOLDER/ID of PNGs of 0 and 255, one a region, or one file FOLDER/ID.json of COCO run
lengths: a list of regions (or of objects whose `segmentation` they are), alone or as `annotations` of an object.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.coco import decode_region
from datasets.errors import InputError
from datasets.files import read_bytes
from datasets.voc import decode

MOST = 2048  # regions of an image
_LARGEST_JSON = 1 << 27
_MOST_CELLS = 1 << 30  # regions × pixels of one image


def segment_paths(folder: str | Path, image_id: str) -> list[Path]:
    """The files that hold an image's regions; none if there are none.

    Raises:
        InputError: the image has both kinds.
    """
    file, below = Path(folder) / f"{image_id}.json", Path(folder) / image_id
    if file.exists() and below.is_dir():
        raise InputError(f"{file} and {below} both hold regions of {image_id}: keep one of them")
    return [file] if file.exists() else sorted(below.glob("*.png")) if below.is_dir() else []


def need_segments(folder: str | Path, ids: list[str]) -> None:
    """Check before a long run that every image has its regions.

    Raises:
        InputError: they are missing; names the first.
    """
    missing = [image_id for image_id in ids if not segment_paths(folder, image_id)]
    if missing:
        raise InputError(
            f"the regions of {len(missing)} of {len(ids)} images are missing, first "
            f"{Path(folder) / missing[0]}.json (COCO run lengths), or {Path(folder) / missing[0]} (a folder of PNGs)"
        )


def read_segments(folder: str | Path, image_id: str, size: tuple[int, int]) -> np.ndarray:
    """The regions of an image, R×H×W bool, in the order of the file or of the names; R may be 0 in a JSON.

    Args:
        size: (H, W) of the image.

    Raises:
        InputError: they are missing, damaged, too many, or of another size.
    """
    need_segments(folder, [image_id])
    paths = segment_paths(folder, image_id)
    if paths[0].suffix == ".png":
        _refuse_too_many(paths[0].parent, len(paths), size)
        return np.stack([_read_png(path, size) for path in paths])
    return _read_json(paths[0], size)


def _refuse_too_many(path: Path, count: int, size: tuple[int, int]) -> None:
    if count > MOST or count * size[0] * size[1] > _MOST_CELLS:
        raise InputError(f"{path} has {count} regions of {size[1]}×{size[0]} pixels, too many: keep the larger ones")


def _read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    def pixels(image: Image.Image) -> np.ndarray:
        if image.mode not in ("L", "1"):
            raise InputError(f"{path} is a {image.mode} picture, needed: a grey PNG of 0 and 255")
        return np.array(image.convert("L"))

    found = decode(path, pixels, ("PNG",))
    if found.shape != tuple(size):
        raise InputError(f"{path}: the region is {found.shape}, its image {tuple(size)}; make it anew")
    if not np.isin(found, (0, 255)).all():
        raise InputError(f"{path} holds other values than 0 and 255, so it is no region; make it anew")
    return found > 0


def _read_json(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        content = json.loads(read_bytes(path, _LARGEST_JSON))
        entries = content["annotations"] if isinstance(content, dict) else content
        outlines = [entry.get("segmentation", entry) for entry in entries]
        _refuse_too_many(path, len(outlines), size)
        regions = [decode_region(outline, size) for outline in outlines]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, OverflowError, AttributeError) as error:
        what = f"regions of {size[1]}×{size[0]} pixels as COCO run lengths"
        raise InputError(f"{path} holds no {what} ({type(error).__name__}: {error})") from None
    return np.stack(regions) if regions else np.zeros((0, *size), bool)
