"""A small drawn data set in exact VOC 2012 layout, for trying the whole method without the real photographs.

Every object has one telling part (a cat's head, a boat's sails) that alone gives its class away. Each class has usual
colours for the rest, from one pool that the scenery shares, so that a class activation map finds the part and misses
much of the rest, as it does on VOC. One side of every body fades into what lies behind it, and borders are soft, so
that a dense CRF loses more of the seeds than it mends, as on VOC too; docs/reproduction.md has the figures by which the
strength of both was chosen. The objects themselves are in `datasets.demo_objects`.

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

from datasets.demo_objects import BODY, OBJECTS, Shape, Sketch
from datasets.errors import InputError, program
from datasets.files import atomic_write, read_bytes, remove_partial
from datasets.voc import CLASSES, IGNORE, LARGEST_LIST, image_path, mask_path, write_mask
from settings.flags import Parser

VERSION = 9  # raise it when the drawing changes, here or in demo_objects, so that sets made before are made anew
VAL_OFFSET = 500_000  # validation ids start here, so that they stay when more training images are asked for
SCALE = 3  # everything is drawn this many times larger and then averaged down
# The colours that all bodies and the scenery share; below, the few of them that suit some scenery.
POOL = [
    (236, 234, 226), (214, 200, 168), (168, 168, 170), (98, 100, 104), (52, 50, 54), (112, 78, 52), (170, 130, 88),
    (150, 62, 50), (48, 62, 110), (92, 128, 168), (150, 186, 212), (92, 126, 62), (120, 118, 70), (196, 158, 62),
    (58, 118, 118),
]  # fmt: skip
WALLS, HILLS, LEAVES = [*POOL[:3], POOL[6], POOL[10]], POOL[9:13], POOL[11:13]
SKIES = [(84, 132, 196), (120, 150, 186), (160, 166, 176), (196, 150, 130), (70, 100, 160)]
GROUNDS = {
    "sea": ((70, 108, 128), "flow"),
    "field": ((104, 128, 66), "leaf"),
    "street": ((124, 122, 122), "grain"),
    "room": ((150, 118, 86), "flow"),
    "sky": ((112, 122, 76), "leaf"),
}
# How strongly a pattern mixes the noise fields: fine, middle, coarse, flow, stripes, patches.
PATTERNS = {
    "plain": (0.02, 0, 0.025, 0, 0, 0),
    "grain": (0.09, 0.045, 0.025, 0, 0, 0),
    "leaf": (0.06, 0.1, 0.025, 0, 0, 0),
    "flow": (0.02, 0.02, 0.02, 0.075, 0, 0),
    "glass": (0.02, 0, 0.045, 0, 0.045, 0),
    "stripes": (0.02, 0, 0.02, 0, 0.21, 0),
    "patches": (0.02, 0, 0.02, 0, 0, 0.19),
}

Box = tuple[int, int, int, int]


def _stencil(shape: Shape, matrix: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The shape in pixels: the window (rows, columns) that holds it and its bool mask there, None if it is outside.

    `matrix` (2, 3) takes the units of the shape to pixels, `size` is the (height, width) of the whole in pixels.
    """
    points = shape.points @ matrix[:, :2].T + matrix[:, 2]
    thick = max(1, round(shape.width * float(np.hypot(*matrix[:, 0])))) if shape.width else 0
    low = np.maximum(np.floor(points.min(0)).astype(int) - thick, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + thick + 1, size[::-1])
    if (high <= low).any():
        return None
    mask = np.zeros((high - low)[::-1], np.uint8)
    points = np.rint((points - low) * 16).astype(np.int32)  # four bits of each coordinate are its fraction
    if thick:
        cv2.polylines(mask, [points], False, 1, thick, cv2.LINE_8, 4)
    else:
        cv2.fillPoly(mask, [points], 1, cv2.LINE_8, 4)
    return (slice(low[1], high[1]), slice(low[0], high[0])), mask.astype(bool)


def _coverage(shapes: list[Shape], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where any of the shapes is: a bool mask of the given size (h, w); `matrix` (2, 3) as for `_stencil`."""
    mask = np.zeros(size, bool)
    for hit in (_stencil(shape, matrix, size) for shape in shapes):
        if hit is not None:
            mask[hit[0]] |= hit[1]
    return mask


class Canvas:
    """The enlarged image, (h, w, 3) float32 RGB in 0…255, with the noise that all textures of the image share."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        self.size = (height * SCALE, width * SCALE)
        self.image = np.zeros((*self.size, 3), np.float32)
        cells = ((1.2, 1.2), (5, 5), (20, 20), (2.5, 18))
        noise = [rng.standard_normal((int(height / dy) + 2, int(width / dx) + 2), np.float32) for dy, dx in cells]
        fine, middle, coarse, flow = (cv2.resize(n, self.size[::-1], interpolation=cv2.INTER_CUBIC) for n in noise)
        y, x = np.mgrid[: self.size[0], : self.size[1]].astype(np.float32) / SCALE
        stripes = np.sign(np.sin((0.76 * x + 0.64 * y) * np.float32(rng.uniform(0.5, 1.1))) + 0.2 * middle)
        self.noise = (fine, middle, coarse, flow, stripes, np.sign(coarse + 0.3 * middle - 0.2))

    def texture(self, window: tuple[slice, slice], colour: tuple, pattern: str) -> np.ndarray:
        """(h, w, 3) float32 of the colour with its pattern, for a window of the canvas."""
        mix = zip(PATTERNS[pattern], self.noise, strict=True)
        return (1 + sum(weight * field[window] for weight, field in mix if weight))[..., None] * np.float32(colour)

    def paint(self, shapes: list[Shape], matrix: np.ndarray, body: tuple[tuple, str] | None = None) -> np.ndarray:
        """Paint over the image; `matrix` (2, 3) takes the units of the shapes to canvas pixels.

        `body` is the colour and pattern for shapes that leave them open (BODY); scenery has none such.
        Returns the pixels where the body's own colour shows, (h, w) bool.
        """
        own = np.zeros(self.size, bool)
        for shape in shapes:
            if (hit := _stencil(shape, matrix, self.size)) is not None:
                window, mask = hit
                colour, pattern = body if shape.colour == BODY else (shape.colour, shape.pattern)
                np.copyto(self.image[window], self.texture(window, colour, pattern), where=mask[..., None])
                own[window][mask] = shape.colour == BODY
        return own


def _vary(rng: Generator, colours: list | tuple, amount: int = 18) -> tuple:
    """One of a list of colours, or the one colour given, a little changed: (red, green, blue)."""
    colour = colours[rng.integers(len(colours))] if isinstance(colours, list) else colours
    return tuple(np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 5, 250))


def _room(rng: Generator, s: Sketch, horizon: float) -> None:
    """A tiled wall down to the horizon, with pictures on it and a chest before it."""
    wall = _vary(rng, WALLS)
    s.box(0, 0, 1, 1, wall, str(rng.choice(["plain", "grain"])))
    tile = _vary(rng, wall)
    for v in np.arange(0, 1, rng.uniform(0.08, 0.16)):
        s.poly([(v, 0), (v, horizon)], tile, width=0.006)
        s.poly([(0, v * horizon), (1, v * horizon)], tile, width=0.006)
    for x, y, w, h in rng.uniform((0, 0.02, 0.12, 0.12), (0.8, 0.2, 0.3, 0.3), (rng.integers(1, 4), 4)):
        s.box(x, y, x + w, y + h, _vary(rng, POOL))
        s.box(x + 0.02, y + 0.02, x + w - 0.02, y + h - 0.02, _vary(rng, POOL), "patches")
    x, y = rng.uniform((-0.2, horizon - 0.3), (0.9, horizon - 0.1))
    s.box(x, y, x + 0.4, horizon + 0.06, _vary(rng, (122, 86, 58)), "flow")


def _outdoors(rng: Generator, s: Sketch, horizon: float, kind: str) -> None:
    """Hills, then houses if it is a street, then trees, all on the horizon."""
    for _ in range(rng.integers(1, 3)):
        x = np.linspace(0, 1, 14)
        y = horizon - rng.uniform(0.02, 0.2) * (0.5 + 0.5 * np.sin(x * rng.uniform(2, 8) + rng.uniform(0, 6)))
        s.poly([*zip(x, y, strict=True), (1, 1), (0, 1)], _vary(rng, HILLS), "leaf")
    x = -0.1 if kind == "street" else 1.0
    while x < 1:
        w, top = rng.uniform(0.18, 0.4), horizon - rng.uniform(0.15, 0.85 * horizon)
        s.box(x, top, x + w, horizon + 0.02, _vary(rng, POOL), "grain")
        s.poly([(x - 0.02, top), (x + w / 2, top - 0.12), (x + w + 0.02, top)], _vary(rng, (134, 74, 58)), "flow")
        for u in np.arange(x + 0.03, x + w - 0.05, 0.09):
            for v in np.arange(top + 0.04, horizon - 0.06, 0.14):
                s.box(u, v, u + 0.04, v + 0.08, (70, 74, 82))
        x += w + rng.choice([0.0, 0.05, 0.15])
    for x, size in rng.uniform((0, 0.15), (1, 0.4), (rng.integers(0, 5), 2)):
        s.box(x - 0.05 * size, horizon - 0.5 * size, x + 0.05 * size, horizon + 0.02, (84, 62, 46), "grain")
        green = _vary(rng, LEAVES)
        for dx, dy in rng.uniform(-0.3 * size, 0.3 * size, (7, 2)):
            s.oval(x + dx, horizon - 0.75 * size + dy, 0.24 * size, 0.22 * size, _vary(rng, green, 10), "leaf")


def _scene(rng: Generator, canvas: Canvas, kind: str) -> float:
    """Paint a background and return where its ground begins, as a share of the height."""
    ramp = np.linspace(0, 1, canvas.size[0], dtype=np.float32)[:, None, None]
    canvas.image[:] = np.float32(_vary(rng, SKIES)) * (1 - ramp) + np.float32((226, 226, 222)) * ramp
    _, middle, coarse, flow, _, _ = canvas.noise
    cloud = cv2.GaussianBlur(coarse + 0.9 * flow + 0.3 * middle, (0, 0), 4)
    cloud = np.clip(cloud - rng.uniform(0, 1), 0, 1)[..., None] * 0.8
    canvas.image += (245 - canvas.image) * cloud

    s = Sketch()  # in units of the image's width and height
    horizon = rng.uniform(0.75, 0.9) if kind == "sky" else rng.uniform(0.35, 0.6)
    if kind == "room":
        _room(rng, s, horizon)
    else:
        _outdoors(rng, s, horizon, kind)
    s.box(0, horizon, 1, 1, _vary(rng, GROUNDS[kind][0], 30), GROUNDS[kind][1])
    if kind in ("street", "room") and rng.random() < 0.7:
        for x in np.linspace(-1.5, 2.5, 13):
            s.poly([(0.3 + x * 0.4, horizon), (x, 1.05)], (92, 88, 84), width=0.006)
    stones = 0 if kind == "sea" else rng.integers(0, 9)
    for x, y, r in rng.uniform((0, horizon + 0.03, 0.01), (1, 1, 0.04), (stones, 3)):
        s.oval(x, y, 1.4 * r, r, _vary(rng, POOL), "grain")
    canvas.paint(s.shapes, np.array([[canvas.size[1], 0, 0], [0, canvas.size[0], 0]], float))
    return horizon


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
    unit_area = _coverage(shapes, np.array([[40, 0, 100], [0, 40, 120]], float), (160, 200)).sum() / 40**2
    smallest = max(42 / 2.4, 13 / part_extent)  # below this an object or its part is too small to be told
    scale = np.sqrt(share * height * width / unit_area)
    for _ in range(60):
        scale = max(0.985 * scale, smallest)
        angle = rng.normal(0, 0.08)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turn[:, 0] *= rng.choice([-1, 1])
        matrix = np.column_stack([turn, (rng.uniform(0, width), rng.uniform(*feet))])
        wide = matrix + np.array([[0, 0, width], [0, 0, height]])  # sees also what is outside the image
        mask, part = (_coverage(some, wide, (3 * height, 3 * width)) for some in (shapes, parts))
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
    cover = _coverage(thing.shapes, matrix, canvas.size)
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
    colour = _vary(rng, [POOL[k] for k in usual])
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
    horizon = _scene(rng, canvas, kind)
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
