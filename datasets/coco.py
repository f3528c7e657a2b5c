"""COCO (Lin et al., ECCV 2014): the instances file of a split, its image-level labels, and masks painted from it.

`python -m tools.coco prepare` makes a data set in VOC's layout of it, once; everything else reads that.
"""

import json
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as rle

from datasets.errors import InputError
from datasets.files import read_bytes
from datasets.voc import IGNORE, read_objects

CLASSES = tuple(
    name.strip()
    for name in """
    background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
    umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
    skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich,
    orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,
    laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush
    """.split(",")
)
# Which of two instances a pixel belongs to, and what becomes of crowd regions. Results differ by points for that.
OVERLAPS = ("smaller", "later")
CROWDS = ("ignore", "class", "out")
_LARGEST_JSON = 1 << 31
LONGEST_OUTLINE = 1 << 22  # pixels


class Picture(NamedTuple):
    image_id: str  # the file's name without its ending, COCO_train2014_000000000009
    file_name: str
    size: tuple[int, int]  # height, width
    annotations: list[dict]  # as in the file


class Instances(NamedTuple):
    path: Path
    classes: tuple[str, ...]  # background first, then by category id
    index: dict[Any, int]  # category id → class index
    pictures: list[Picture]  # by id


def read_instances(path: Path) -> Instances:
    """Read an instances file, such as instances_train2014.json.

    Raises:
        InputError: it is missing, no JSON, or not what COCO's instances files are.
    """
    try:
        content = json.loads(read_bytes(path, _LARGEST_JSON))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: COCO has it in annotations_trainval2014.zip") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    try:
        categories = sorted((entry["id"], str(entry["name"])) for entry in content["categories"])
        index = {category: n for n, (category, _) in enumerate(categories, 1)}
        found = {entry["id"]: _picture(path, entry) for entry in content["images"]}
        for entry in content["annotations"]:
            if entry["category_id"] not in index or entry["image_id"] not in found:
                raise InputError(f"{path}: annotation {entry.get('id')} is of an unknown image or category")
            found[entry["image_id"]].annotations.append(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} is not an instances file of COCO ({reason}); take instances_train2014.json") from None
    pictures = sorted(found.values(), key=lambda picture: picture.image_id)
    if not 0 < len(index) < IGNORE or len(index) != len(categories) or not pictures:
        raise InputError(f"{path} has {len(categories)} categories and {len(pictures)} images; it cannot be used")
    names = {"background", *(name for _, name in categories)}
    if len(names) <= len(categories) or not all(0 < len(n) < 100 and n.isprintable() and n == n.strip() for n in names):
        raise InputError(f"{path} has a category without a plain name of its own, of under 100 characters")
    twice = next((a.image_id for a, b in pairwise(pictures) if a.image_id == b.image_id), None)
    if twice or len(found) != len(content["images"]):
        raise InputError(f"{path} has the image {twice or 'of one id'} twice")
    return Instances(path, ("background", *(name for _, name in categories)), index, pictures)


def _picture(path: Path, entry: dict) -> Picture:
    name, size = str(entry["file_name"]), (entry["height"], entry["width"])
    if not all(isinstance(side, int) and 0 < side < 1 << 14 for side in size):
        raise InputError(f"{path}: the image {name} is of the size {size}")
    return Picture(Path(name).stem, Path(name).name, size, [])


def picture_classes(instances: Instances, picture: Picture) -> list[str]:
    """Image-level label: the names of the classes that are annotated, crowds included, boxes without area not."""
    try:
        boxed = [a for a in picture.annotations if "bbox" not in a or min(a["bbox"][2:4], default=0) > 0]
    except TypeError:
        raise InputError(f"{instances.path}: a box of {picture.file_name} is not four numbers") from None
    return [instances.classes[c] for c in sorted({instances.index[a["category_id"]] for a in boxed})]


def paint(instances: Instances, picture: Picture, overlap: str = "smaller", crowd: str = "ignore") -> np.ndarray:
    """The evaluation mask: H×W uint8, 0 background, classes from 1 in the order of the category ids, 255 ignore.

    Args:
        overlap: "smaller": of two instances the one with fewer pixels is on top; "later": the one later in the file.
        crowd: regions of many instances in one become 255 where nothing else is ("ignore"), are painted like any
            instance ("class"), or are left out ("out").

    Raises:
        InputError: an annotation has no outline that fits the image.
    """
    mask = np.zeros(picture.size, np.uint8)
    painted = []
    for annotation in picture.annotations:
        is_crowd = bool(annotation.get("iscrowd"))
        if is_crowd and crowd == "out":
            continue
        try:
            region = _encoded(annotation["segmentation"], picture.size)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
            where = f"annotation {annotation.get('id')} of {picture.file_name}"
            raise InputError(f"{instances.path}: {where} has no usable outline ({error})") from None
        if is_crowd and crowd == "ignore":
            _fill(mask, region, IGNORE)
        else:
            painted.append((region, instances.index[annotation["category_id"]]))
    if overlap == "smaller":
        painted.sort(key=lambda one: -int(rle.area(one[0])))
    for region, index in painted:
        _fill(mask, region, index)
    return mask


def _fill(mask: np.ndarray, region: dict, index: int) -> None:
    """Paint a region of a mask, in runs till now, as those of a large picture would fill the memory together."""
    mask[rle.decode(region).astype(bool)] = index


def _encoded(outline: list | dict, size: tuple[int, int]) -> dict:
    """Polygons or runs as pycocotools wants them. It takes numbers on trust, so they are looked at first."""
    height, width = size
    if isinstance(outline, list):
        far = 2 * max(size)
        for polygon in outline:
            if len(polygon) < 6 or len(polygon) % 2 or not all(-far <= value <= far for value in polygon):
                raise ValueError(f"a polygon of {len(polygon)} numbers that does not fit {width}×{height} pixels")
            # pycocotools walks along the outline in steps of a fifth of a pixel and counts them in 32 bits.
            x, y = np.array(polygon[::2], float), np.array(polygon[1::2], float)
            if np.abs(np.diff(x, append=x[:1])).sum() + np.abs(np.diff(y, append=y[:1])).sum() > LONGEST_OUTLINE:
                raise ValueError(f"an outline longer than {LONGEST_OUTLINE} pixels")
        return rle.merge(rle.frPyObjects(outline, height, width))
    counts = outline["counts"]
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"runs for the size {outline['size']}")
    if not isinstance(counts, list):
        counts = _run_lengths(counts)
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError("runs that do not add up to the image")
    return rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _run_lengths(packed: str) -> list[int]:
    """The run lengths that COCO packs into letters: 5 bits a letter, and from the fourth run on the difference to the
    one before the last. pycocotools unpacks them too, but leaves pixels as they were in memory where runs are missing.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in packed.encode("ascii"):
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("letters that are no run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("run lengths that end in the middle")
    return runs


def decode_region(outline: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Polygons or runs, packed or not, as H×W bool.

    Raises:
        ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError: they are none, or do not fit `size`.
    """
    return rle.decode(_encoded(outline, size)).astype(bool)


def read_boxed_names(path: Path) -> list[str]:
    """The names of the objects in a VOC annotation, difficult included, boxes without area not; it may have none.

    Raises:
        InputError: the file is missing or no VOC annotation.
    """
    try:
        return [(one.findtext("name") or "").strip() for one in read_objects(path) if _has_area(one)]
    except ValueError as error:
        raise InputError(f"{path} cannot be read as a VOC annotation ({error})") from None


def _has_area(one: ElementTree.Element) -> bool:
    box = one.find("bndbox")
    if box is None:
        return True
    left, top, right, bottom = (float(box.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
    return right > left and bottom > top
