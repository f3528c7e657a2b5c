"""A small drawn data set in exact VOC 2012 layout, for trying the whole method without the real photographs.

Every object has one telling part (a cat's head, a boat's sails) that alone gives its class away. Each class has usual
colours for the rest, from one pool that the scenery shares, so that a class activation map finds the part and misses
much of the rest, as it does on VOC. One side of every body fades into what lies behind it, and borders are soft, so
that a dense CRF loses more of the seeds than it mends, as on VOC too; docs/reproduction.md has the figures by which the
strength of both was chosen. The objects themselves are in `datasets.demo_objects`, what is behind them in
`datasets.demo_scenery`.

    python -m datasets.demo OUT [--train N --val N --seed S]
"""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from datasets.demo_objects import OBJECTS, Shape, Sketch
from datasets.demo_scenery import GROUNDS, POOL, SCALE, Canvas, coverage, scene, vary
from datasets.errors import InputError, program
from datasets.files import atomic_write, read_bytes, remove_partial
from datasets.voc import CLASSES, IGNORE, LARGEST_LIST, image_path, mask_path, write_mask
from settings.flags import Parser

VERSION = 9  # raise it when the drawing changes, here or beside it, so that sets made before are made anew
VAL_OFFSET = 500_000  # validation ids start here, so that they stay when more training images are asked for

Box = tuple[int, int, int, int]


class Thing(NamedTuple):
    """An object in its place: `matrix` (2, 3) takes its units to image pixels; its two masks are (h, w) bool."""

    shapes: list[Shape]
    matrix: np.ndarray
    mask: np.ndarray
    part: np.ndarray


def _place(
    rng: Generator, shapes: list[Shape], share: float, feet: np.ndarray, before: list[Thing], size: tuple[int, int]
) -> Thing | None:
    """Find a place where most of the object and of its telling part shows and none before is hidden too much.

    `share` is the wanted share of the image's area, `feet` the lowest and highest y to stand at, in pixels,
    and `size` the image's (height, width). Chance may find no place: None.
    """
    height, width = size
    parts = [shape for shape in shapes if shape.part]
    part_extent = np.ptp(np.vstack([shape.points for shape in parts]), axis=0).min()
    unit_area = coverage(shapes, np.array([[40, 0, 100], [0, 40, 120]], float), (160, 200)).sum() / 40**2
    smallest = max(42 / 2.4, 13 / part_extent)  # below this an object or its part is too small to be told
    scale = np.sqrt(share * height * width / unit_area)
    for _ in range(60):
        scale = max(0.985 * scale, smallest)
        angle = rng.normal(0, 0.08)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn[:, 0] *= rng.choice([-1, 1])
        matrix = np.column_stack([turn, (rng.uniform(0, width), rng.uniform(*feet))])
        wide = matrix + np.array([[0, 0, width], [0, 0, height]])  # sees also what is outside the image
        mask, part = (coverage(some, wide, (3 * height, 3 * width)) for some in (shapes, parts))
        inside = (slice(height, 2 * height), slice(width, 2 * width))
        thing = Thing(shapes, matrix, mask[inside], part[inside])
        if (
            thing.mask.sum() > 0.6 * mask.sum()
            and thing.part.sum() > 0.85 * part.sum()
            and all((old.mask & thing.mask).sum() < 0.35 * old.mask.sum() for old in before)
            and all((old.part & thing.mask).sum() < 0.15 * old.part.sum() for old in before)
        ):
            return thing
    return None


def _add(rng: Generator, canvas: Canvas, thing: Thing, coat: tuple[list[int], str], grounded: bool) -> np.ndarray:
    """Paint an object into the scene; its (h, w) bool mask at image size comes back."""
    matrix = thing.matrix * SCALE
    cover = coverage(thing.shapes, matrix, canvas.size)
    solid = cover.astype(np.float32)
    if grounded:
        lean, feet = rng.uniform(-0.25, 0.25), matrix[1, 2]
        fall = np.array([[1, -lean, lean * feet], [0, 0.22, 0.78 * feet + SCALE]])  # upright becomes lying
        shadow = cv2.blur(cv2.warpAffine(solid, fall, canvas.size[::-1]), (6 * SCALE, 3 * SCALE))
        canvas.image *= 1 - rng.uniform(0.25, 0.6) * shadow[..., None]
    behind = canvas.image.copy()
    around = cv2.resize(behind, None, fx=1 / 24, fy=1 / 24, interpolation=cv2.INTER_AREA)
    around = cv2.resize(around, canvas.size[::-1], interpolation=cv2.INTER_CUBIC)
    usual, pattern = coat
    colour = vary(rng, [POOL[k] for k in usual])
    around += rng.normal(0, 6, 3).astype(np.float32)
    around *= canvas.texture((slice(None), slice(None)), (1, 1, 1), pattern)
    own = canvas.paint(thing.shapes, matrix, (colour, pattern))
    # One side of the body takes on the colours behind it.
    y, x = np.nonzero(cover)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * (x - x.mean()) / np.ptp(x) + np.sin(angle) * (y - y.mean()) / np.ptp(y)
    fade = np.zeros_like(solid)
    fade[y, x] = np.clip(0.5 + 1.6 * along, 0, 0.9) * own[y, x]
    canvas.image += (around - canvas.image) * fade[..., None]
    relief = cv2.GaussianBlur(solid, (0, 0), 4 * SCALE)
    slope = cv2.Sobel(relief, -1, 0, 1, ksize=5) + rng.uniform(-0.9, 0.9) * cv2.Sobel(relief, -1, 1, 0, ksize=5)
    canvas.image *= (1 + np.clip(0.12 * slope, -0.13, 0.13))[..., None]
    alpha = cv2.GaussianBlur(solid, (0, 0), 1.8 * SCALE)[..., None]
    canvas.image = behind + (canvas.image - behind) * alpha
    return cv2.resize(solid, thing.mask.shape[::-1], interpolation=cv2.INTER_AREA) >= 0.5


def _photograph(rng: Generator, canvas: Canvas, height: int, width: int) -> np.ndarray:
    """Average the canvas down and give it light, lens and sensor: (h, w, 3) uint8."""
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle, warm = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.06)
    light = 1 + rng.uniform(0, 0.2) * (np.cos(angle) * x + np.sin(angle) * y) - rng.uniform(0, 0.2) * (x * x + y * y)
    image = image * (light * rng.uniform(0.9, 1.25))[..., None] * (1 + warm, 1, 1 - warm)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.2, 0.8))
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.9, 1.25) + rng.normal(0, rng.uniform(1.5, 5), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _annotate(shown: list[tuple[str, np.ndarray]], size: tuple[int, int]) -> tuple[np.ndarray, list[tuple[str, Box]]]:
    """(h, w) uint8 labels and boxes from what shows of each object, (h, w) bool. Borders are void, as in VOC."""
    labels, border, boxes = np.zeros(size, np.uint8), np.zeros(size, bool), []
    for name, mask in shown:
        labels[mask] = CLASSES.index(name)
        solid, square = mask.astype(np.uint8), np.ones((3, 3))
        border |= cv2.dilate(solid, square) != cv2.erode(solid, square)
        y, x = np.nonzero(mask)
        boxes.append((name, (int(x.min()) + 1, int(y.min()) + 1, int(x.max()) + 1, int(y.max()) + 1)))
    labels[border] = IGNORE
    return labels, boxes


def draw(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, Box]]]:
    """One image from (seed, index): (h, w, 3) uint8 RGB, (h, w) uint8 labels, and each object's class and box.

    Boxes are xmin, ymin, xmax, ymax in pixels counted from 1, as in VOC.
    """
    names = list(OBJECTS)
    block, turn = divmod(index - 1, len(names))
    first = names[np.random.default_rng((seed, 1, block)).permutation(len(names))[turn]]  # keeps the classes even
    rng = np.random.default_rng((seed, 2, index))
    long, short = int(rng.integers(152, 193)), int(rng.integers(128, 153))
    size = (short, long) if rng.random() < 0.75 else (long, short)
    wanted = [first]
    if rng.random() < 0.6:
        wanted.append(names[rng.integers(len(names))])
    if rng.random() < 0.15:
        wanted.append(wanted[-1])
    kind = OBJECTS[first][1] if rng.random() < 0.2 else str(rng.choice(list(GROUNDS)))
    canvas = Canvas(rng, *size)
    horizon = scene(rng, canvas, kind)
    shares = np.clip(np.exp(rng.normal(np.log((0.24, 0.17, 0.12)[len(wanted) - 1]), 0.45, len(wanted))), 0.045, 0.45)
    things: list[Thing] = []
    shown: list[tuple[str, np.ndarray]] = []
    for name, share in sorted(zip(wanted, shares, strict=True), key=lambda pair: pair[1]):  # the nearest comes last
        sketch = Sketch()
        sketch_object, _, coat = OBJECTS[name]
        sketch_object(sketch, rng)
        grounded = name != "aeroplane" or kind == "room" or rng.random() < 0.2
        near = horizon + (1 - horizon) * min(0.1 + 1.5 * share, 0.8)
        feet = np.array((near, near + 0.25 * (1 - horizon)) if grounded else (0.3, 0.95)) * size[0]
        thing = _place(rng, sketch.shapes, share, feet, things, size)
        if thing is not None:
            mask = _add(rng, canvas, thing, coat, grounded)
            things.append(thing)
            shown = [(other, old & ~mask) for other, old in shown] + [(name, mask)]
    return _photograph(rng, canvas, *size), *_annotate(shown, size)


def _xml(name: str, height: int, width: int, boxes: list[tuple[str, Box]]) -> str:
    """What VOC's annotation file says of an image of that size and of its objects, as far as anybody here reads it."""
    objects = "".join(
        f"\t<object>\n\t\t<name>{kind}</name>\n\t\t<difficult>0</difficult>\n\t\t<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>\n\t</object>\n"
        for kind, (x0, y0, x1, y1) in boxes
    )
    size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
    head = f"\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>\n\t<size>{size}</size>\n"
    return f"<annotation>\n{head}\t<segmented>1</segmented>\n{objects}</annotation>\n"


def _files(root: Path, index: int) -> tuple[Path, Path, Path]:
    """Photograph, annotation and mask of an image."""
    name = f"demo_{index:06d}"
    return image_path(root, name), root / "Annotations" / f"{name}.xml", mask_path(root, name)


def _make_one(index: int, root: Path, seed: int) -> None:
    cv2.setNumThreads(1)
    image, labels, boxes = draw(seed, index)
    jpg, xml, png = _files(root, index)
    with atomic_write(jpg) as path:
        Image.fromarray(image).save(path, "JPEG", quality=90)
    with atomic_write(xml) as path:
        path.write_text(_xml(jpg.stem, *labels.shape, boxes))
    write_mask(png, labels)


def make_demo(root: str | Path, train: int = 400, val: int = 120, seed: int = 0) -> None:
    """Write `train` + `val` images with labels in VOC 2012 layout under root, unless they are there already.

    Images of a larger set that was there before stay, but no list names them.

    Raises:
        InputError: the folder holds other photographs (their lists would be lost), or cannot be written to.
    """
    root = Path(os.path.realpath(root))
    if train < 1 or val < 0 or seed < 0:
        raise InputError("the demo needs a --train of 1 or more, a --val and a --seed of 0 or more")
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; name a folder")
    splits = {"train": range(1, train + 1), "val": range(VAL_OFFSET + 1, VAL_OFFSET + val + 1)}
    splits["train_aug"] = splits["train"]
    lists = {split: root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in splits}
    indices = [*splits["train"], *splits["val"]]
    wanted = {path for index in indices for path in _files(root, index)}
    marker, record = root / "demo.json", json.dumps({"version": VERSION, "train": train, "val": val, "seed": seed})
    if marker.exists() and marker.read_text() == record and all(path.exists() for path in [*wanted, *lists.values()]):
        return
    listed = [line for path in lists.values() if path.exists() for line in read_bytes(path, LARGEST_LIST).split()]
    if any("demo_" not in path.name for path in root.glob("JPEGImages/*")) or any(b"demo_" not in i for i in listed):
        raise InputError(f"{root} holds or lists photographs that are not the demo's; name an empty folder")
    marker.unlink(missing_ok=True)
    remove_partial(root)
    job = partial(_make_one, root=root, seed=seed)
    if len(indices) < 32:
        for index in indices:
            job(index)
    else:
        # Fresh processes: a fork would inherit the threads of whatever the caller has loaded.
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(job, indices, chunksize=8))
    for split, path in lists.items():
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{_files(root, index)[0].stem}\n" for index in splits[split]))
    with atomic_write(marker) as temporary:
        temporary.write_text(record)


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("out", help="folder that the data set is written to")
    parser.add_argument("--train", type=int, default=400, help="number of training images")
    parser.add_argument("--val", type=int, default=120, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other images")
    arguments = parser.parse_args(argv)
    make_demo(arguments.out, arguments.train, arguments.val, arguments.seed)


if __name__ == "__main__":
    main()
