"""A small drawn data set in exact VOC 2012 layout, for trying the whole method without the real photographs.

Every object has one telling part (a cat's head, a boat's sail) that alone gives its class away. The colours and
textures of the rest are drawn from one pool that all classes and the scenery share, so that a class activation map
finds the part and misses the rest, as it does on VOC. A share of the objects fades into what lies behind it, so that
a dense CRF sometimes helps and sometimes harms.

    python -m datasets.demo OUT [--train N --val N --seed S]
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

VERSION = 1  # raise it when the drawing changes, so that sets made before are made anew
MARKER = "demo.json"
VAL_OFFSET = 500_000  # validation ids start here, so that they do not move when more training images are asked for
SCALE = 3  # everything is drawn this many times larger and then averaged down
VOC_INDEX = {"aeroplane": 1, "boat": 4, "bottle": 5, "bus": 6, "car": 7, "cat": 8, "pottedplant": 16, "sheep": 17}
VOID = 255
BODY = "body"  # stands for the colour and pattern that an object gets once its place is known

POOL = [
    (236, 234, 226), (214, 200, 168), (168, 168, 170), (98, 100, 104), (52, 50, 54), (112, 78, 52), (170, 130, 88),
    (150, 62, 50), (48, 62, 110), (92, 128, 168), (150, 186, 212), (92, 126, 62), (120, 118, 70), (196, 158, 62),
    (58, 118, 118),
]  # fmt: skip
PATTERNS = ["plain", "grain", "patches", "stripes"]


class Shape(NamedTuple):
    """A filled polygon, or a line where `width` is set. `points` (N, 2) and `width` are in units of the owner."""

    points: np.ndarray
    colour: tuple[int, int, int] | str
    pattern: str = "plain"
    part: bool = False
    width: float = 0.0


class Thing(NamedTuple):
    """An object with its place in the image: `matrix` (2, 3) takes its units to image pixels."""

    name: str
    shapes: list[Shape]
    matrix: np.ndarray


# --- Geometry: x to the right, y down, objects stand on y = 0 and are about 2 units wide ---


def _oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([x + rx * np.cos(t) * c - ry * np.sin(t) * s, y + rx * np.cos(t) * s + ry * np.sin(t) * c], 1)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _poly(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def _animal(rng: np.random.Generator, leg: float, leg_width: float) -> tuple[list[Shape], float]:
    """Legs and trunk of a four-legged animal, and the height of its back."""
    top = -(leg + rng.uniform(0.62, 0.78))
    shapes = [
        Shape(_box(x - leg_width, -leg - 0.25, x + leg_width, 0), BODY)
        for x in (-0.62, -0.38, 0.42, 0.66) + rng.uniform(-0.06, 0.06, 4)
    ]
    shapes.append(Shape(_oval(0, (top - leg) / 2, 0.85, (-leg - top) / 2 + 0.04), BODY))
    return shapes, top


def _cat(rng: np.random.Generator) -> list[Shape]:
    shapes, top = _animal(rng, rng.uniform(0.3, 0.45), 0.09)
    lift = rng.uniform(0.1, 0.75)
    tail = _poly((0.75, top + 0.2), (1.05, top + 0.1), (1.2, top - 0.4 * lift), (1.1, top - lift))
    shapes.append(Shape(tail, BODY, width=0.12))
    x, y, r = -0.85, top - 0.05, rng.uniform(0.38, 0.46)
    for side in (-1, 1):
        ear = np.array([(0.95, -0.25), (0.3, -0.9), (0.95, -1.45)]) * (side * r, r) + (x, y)
        shapes += [Shape(ear, BODY, part=True)]
        shapes += [Shape((ear - ear.mean(0)) * 0.6 + ear.mean(0), (232, 138, 148), part=True)]
    shapes.append(Shape(_oval(x, y, r, 0.86 * r), BODY, part=True))
    shapes.append(Shape(_oval(x, y + 0.42 * r, 0.48 * r, 0.34 * r), (244, 238, 228), part=True))
    for side in (-1, 1):
        shapes.append(Shape(_oval(x + side * 0.42 * r, y - 0.12 * r, 0.27 * r, 0.25 * r), (202, 222, 62), part=True))
        shapes.append(Shape(_oval(x + side * 0.42 * r, y - 0.12 * r, 0.09 * r, 0.23 * r), (18, 20, 16), part=True))
        for dy in (0.3, 0.45):
            whisker = _poly((x + side * 0.3 * r, y + 0.4 * r), (x + side * 1.35 * r, y + dy * r))
            shapes.append(Shape(whisker, (238, 236, 230), part=True, width=0.022))
    shapes.append(Shape(_poly((x - 0.15 * r, y + 0.2 * r), (x + 0.15 * r, y + 0.2 * r), (x, y + 0.42 * r)),
                        (226, 104, 122), part=True))  # fmt: skip
    return shapes


def _sheep(rng: np.random.Generator) -> list[Shape]:
    shapes, top = _animal(rng, rng.uniform(0.32, 0.45), 0.06)
    for angle in np.linspace(0, 2 * np.pi, 13)[:-1]:
        x, y = 0.78 * np.cos(angle), (top - 0.3) / 2 + 0.32 * np.sin(angle)
        shapes.append(Shape(_oval(x, y, 0.2, 0.19), BODY, "wool"))
    shapes.append(Shape(_oval(0, (top - 0.3) / 2, 0.8, 0.36), BODY, "wool"))
    x, y, r = -0.98, top + 0.08, rng.uniform(0.28, 0.34)
    for side in (-1, 1):
        ear = _oval(x + side * 1.1 * r, y - 0.3 * r, 0.55 * r, 0.24 * r, side * 0.4)
        shapes.append(Shape(ear, (226, 150, 140), part=True))
    shapes.append(Shape(_oval(x, y + 0.1 * r, 0.85 * r, 1.35 * r, 0.2), (34, 30, 32), part=True))
    for dx in (-0.55, 0, 0.55):
        shapes.append(Shape(_oval(x + dx * r, y - 1.0 * r, 0.45 * r, 0.42 * r), (246, 242, 230), "wool", part=True))
    for side in (-1, 1):
        shapes.append(Shape(_oval(x + side * 0.4 * r, y - 0.1 * r, 0.22 * r, 0.2 * r), (250, 248, 240), part=True))
        shapes.append(Shape(_oval(x + side * 0.4 * r, y - 0.1 * r, 0.09 * r, 0.11 * r), (10, 10, 10), part=True))
    shapes.append(Shape(_oval(x - 0.1 * r, y + 1.1 * r, 0.4 * r, 0.25 * r), (188, 150, 146), part=True))
    return shapes


def _wheels(xs: list[float], r: float) -> list[Shape]:
    return [
        Shape(_oval(x, -r, k * r, k * r), colour)
        for x in xs
        for k, colour in ((1.0, (30, 30, 32)), (0.55, (150, 150, 152)), (0.2, (60, 60, 62)))
    ]


def _bus(rng: np.random.Generator) -> list[Shape]:
    length, top = rng.uniform(1.15, 1.5), -rng.uniform(1.15, 1.4)
    shapes = [Shape(_box(-length, top, length, -0.17), BODY), Shape(_box(-length, -0.26, length, -0.15), (48, 48, 52))]
    shapes += _wheels([-0.62 * length, 0.62 * length], 0.24)
    band = (top + 0.3, top + 0.68)
    edges = np.linspace(-length + 0.06, length - 0.06, rng.integers(5, 8))
    shapes.append(Shape(_box(-length, band[0] - 0.04, length, band[1] + 0.04), (238, 238, 232), part=True))
    for x0, x1 in zip(edges[:-1], edges[1:], strict=True):
        shapes.append(Shape(_box(x0 + 0.04, band[0], x1 - 0.04, band[1]), (28, 44, 84), "glass", part=True))
    shapes.append(Shape(_box(-length + 0.08, top + 0.04, -length + 1.0, top + 0.24), (22, 22, 20), part=True))
    for k in range(5):
        x = -length + 0.16 + 0.16 * k
        shapes.append(Shape(_box(x, top + 0.08, x + 0.1, top + 0.2), (255, 186, 24), part=True))
    shapes.append(Shape(_oval(-length + 0.08, -0.4, 0.08, 0.08), (252, 246, 200)))
    return shapes


def _car(rng: np.random.Generator) -> list[Shape]:
    top, roof = -rng.uniform(0.55, 0.68), -rng.uniform(1.0, 1.15)
    front, back = rng.uniform(-0.6, -0.45), rng.uniform(0.55, 0.8)
    shapes = [
        Shape(_poly((-1.2, -0.18), (-1.22, top + 0.14), (-1.05, top + 0.02), (front, top - 0.02), (back + 0.25, top),
                    (1.15, top + 0.02), (1.22, top + 0.2), (1.2, -0.18)), BODY),
        Shape(_poly((front - 0.06, top), (front + 0.32, roof), (back - 0.12, roof), (back + 0.3, top)), BODY),
    ]  # fmt: skip
    shapes += _wheels([-0.72, 0.74], 0.25)
    middle = (front + back) / 2 + 0.1
    for pane in (
        _poly((front + 0.06, top), (front + 0.36, roof + 0.08), (middle - 0.04, roof + 0.08), (middle - 0.04, top)),
        _poly((middle + 0.04, top), (middle + 0.04, roof + 0.08), (back - 0.14, roof + 0.08), (back + 0.18, top)),
    ):
        shapes.append(Shape(pane, (120, 236, 232), "glass", part=True))
        shapes.append(Shape(np.vstack([pane, pane[:1]]), (20, 22, 24), part=True, width=0.035))
    shapes.append(Shape(_oval(-1.1, top + 0.2, 0.13, 0.1), (255, 240, 120), part=True))
    shapes.append(Shape(_box(1.06, top + 0.08, 1.21, top + 0.26), (224, 20, 24), part=True))
    if rng.random() < 0.5:
        shapes.append(Shape(_poly((back - 0.2, roof), (back + 0.1, roof - 0.45)), (30, 30, 32), width=0.025))
    return shapes


def _boat(rng: np.random.Generator) -> list[Shape]:
    deck, mast = -rng.uniform(0.5, 0.65), -rng.uniform(1.9, 2.2)
    shapes = [
        Shape(_poly((-1.25, deck - 0.08), (1.1, deck), (0.9, -0.02), (0.6, 0), (-0.7, 0), (-0.95, -0.1)), BODY),
        Shape(_box(0.15, deck - 0.28, 0.85, deck + 0.02), BODY),
        Shape(_poly((-1.2, deck), (-1.6, deck - 0.22)), (88, 64, 44), width=0.04),
        Shape(_poly((1.1, deck), (0.0, mast), (-1.6, deck - 0.22)), (70, 66, 62), width=0.018),
        Shape(_poly((0, deck), (0, mast)), (88, 64, 44), width=0.05),
    ]
    boom = deck - 0.34
    for corners in (
        _poly((0.05, mast + 0.1), (0.05, boom), (rng.uniform(0.65, 0.85), boom)),
        _poly((-0.06, mast + 0.25), (-0.06, boom), (-rng.uniform(0.6, 0.8), boom)),
    ):
        shapes.append(Shape(corners, (248, 244, 232), part=True))
        for low, high in ((0.2, 0.38), (0.58, 0.78)):
            left = [corners[0] + k * (corners[1] - corners[0]) for k in (low, high)]
            right = [corners[0] + k * (corners[2] - corners[0]) for k in (high, low)]
            shapes.append(Shape(np.array(left + right), (238, 104, 26), part=True))
    shapes.append(Shape(_poly((0, mast), (0.3, mast + 0.08), (0, mast + 0.16)), (216, 30, 40), part=True))
    return shapes


def _bottle(rng: np.random.Generator) -> list[Shape]:
    shoulder, neck = -rng.uniform(1.15, 1.4), rng.uniform(0.11, 0.15)
    top = shoulder - rng.uniform(0.75, 0.9)
    half = [(0.36, 0), (0.4, -0.06), (0.4, shoulder), (neck + 0.1, shoulder - 0.25), (neck, shoulder - 0.4), (neck, top)]
    outline = np.array(half + [(-x, y) for x, y in reversed(half)])
    low, high = -rng.uniform(0.25, 0.35), shoulder + rng.uniform(0.1, 0.2)
    middle = (low + high) / 2
    return [
        Shape(outline, BODY),
        Shape(_box(-0.32, shoulder + 0.05, -0.25, -0.1), (244, 246, 246)),
        Shape(_box(-0.4, high, 0.4, low), (246, 232, 186), part=True),
        Shape(_box(-0.4, high + 0.06, 0.4, high + 0.16), (20, 122, 58), part=True),
        Shape(_box(-0.4, low - 0.16, 0.4, low - 0.06), (20, 122, 58), part=True),
        Shape(_oval(0.0, middle, 0.22, 0.19), (204, 22, 40), part=True),
        Shape(_oval(0.0, middle, 0.1, 0.08), (246, 232, 186), part=True),
        Shape(_box(-neck - 0.05, top - 0.12, neck + 0.05, top + 0.08), (204, 22, 40), part=True),
    ]


def _aeroplane(rng: np.random.Generator) -> list[Shape]:
    r, sweep = rng.uniform(0.19, 0.25), rng.uniform(0.35, 0.6)
    y = -0.75
    fin = _poly((0.72, y - 0.5 * r), (1.15, y - 0.98), (1.5, y - 0.98), (1.36, y - 0.2 * r))
    stripe = np.array([fin[0] * 0.55 + fin[1] * 0.45, fin[0] * 0.25 + fin[1] * 0.75,
                       fin[3] * 0.25 + fin[2] * 0.75, fin[3] * 0.55 + fin[2] * 0.45])  # fmt: skip
    return [
        Shape(_poly((-0.2, y), (0.2 + sweep, y - 0.75), (0.38 + sweep, y - 0.75), (0.3, y)), BODY),
        Shape(fin, (206, 24, 118), part=True),
        Shape(stripe, (252, 238, 64), part=True),
        Shape(_poly((-1.45, y + 0.06), (-1.2, y - 0.7 * r), (-0.8, y - r), (0.7, y - r), (1.45, y - 0.35 * r),
                    (1.4, y - 0.05), (0.6, y + r), (-0.9, y + r), (-1.3, y + 0.7 * r)), BODY),
        Shape(_poly((-1.3, y - 0.3 * r), (-1.13, y - 0.75 * r), (-1.0, y - 0.72 * r), (-1.0, y - 0.3 * r)), (28, 34, 46)),
        *[Shape(_oval(x, y - 0.35 * r, 0.035, 0.045), (36, 42, 58)) for x in np.arange(-0.8, 0.7, 0.15)],
        Shape(_oval(-0.05, y + 0.32, 0.24, 0.09), (70, 72, 78)),
        Shape(_poly((-0.3, y + 0.3 * r), (0.35 + sweep, 0.0), (0.55 + sweep, 0.0), (0.28, y + 0.3 * r)), BODY),
        Shape(_poly((0.95, y), (1.4, y + 0.3), (1.6, y + 0.3), (1.4, y - 0.04)), (206, 24, 118), part=True),
    ]  # fmt: skip


def _pottedplant(rng: np.random.Generator) -> list[Shape]:
    pot = rng.uniform(0.65, 0.85)
    green = tuple(int(v) for v in np.array((62, 112, 48)) + rng.integers(-22, 23, 3))
    shapes = []
    tips = []
    for angle in np.linspace(-1.15, 1.15, rng.integers(6, 9)) + rng.uniform(-0.1, 0.1):
        length = rng.uniform(0.7, 1.15)
        tip = np.array([np.sin(angle), -np.cos(angle)]) * length + (0, -pot)
        shapes.append(Shape(_poly((0, -pot), tuple(tip)), (74, 104, 50), width=0.04))
        middle = tip * 0.62 + np.array([0, -pot]) * 0.38
        shapes.append(Shape(_oval(*middle, 0.42 * length, 0.15, angle - np.pi / 2), green, "leaf"))
        tips.append(tip)
    rim = 0.52
    shapes.append(Shape(_poly((-0.46, -pot), (0.46, -pot), (0.33, 0), (-0.33, 0)), BODY))
    shapes.append(Shape(_box(-rim, -pot - 0.08, rim, -pot + 0.1), BODY))
    for tip in tips[:: rng.integers(1, 3)]:
        r = rng.uniform(0.15, 0.2)
        for k in range(5):
            a = 2 * np.pi * k / 5
            petal = _oval(tip[0] + r * np.cos(a), tip[1] + r * np.sin(a), r * 0.75, r * 0.6, a)
            shapes.append(Shape(petal, (150, 58, 214), part=True))
        shapes.append(Shape(_oval(*tip, 0.55 * r, 0.55 * r), (255, 214, 40), part=True))
    return shapes


DRAW: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "aeroplane": _aeroplane, "boat": _boat, "bottle": _bottle, "bus": _bus,
    "car": _car, "cat": _cat, "pottedplant": _pottedplant, "sheep": _sheep,
}  # fmt: skip
USUAL_SCENE = {"aeroplane": "sky", "boat": "sea", "bottle": "room", "bus": "street", "car": "street", "cat": "room",
               "pottedplant": "room", "sheep": "field"}  # fmt: skip


# --- Painting ---


def _stencil(shape: Shape, matrix: np.ndarray, height: int, width: int) -> tuple[tuple[slice, slice], np.ndarray] | None:
    """The shape in pixels: the window (rows, columns) that holds it and a (h, w) bool mask there, None if outside."""
    points = shape.points @ matrix[:, :2].T + matrix[:, 2]
    thick = max(1, round(shape.width * float(np.hypot(*matrix[:, 0])))) if shape.width else 0
    low = np.maximum(np.floor(points.min(0)).astype(int) - thick, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + thick + 1, (width, height))
    if (high <= low).any():
        return None
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    points = np.rint((points - low) * 16).astype(np.int32)
    if thick:
        cv2.polylines(mask, [points], False, 1, thick, cv2.LINE_8, 4)
    else:
        cv2.fillPoly(mask, [points], 1, cv2.LINE_8, 4)
    return (slice(low[1], high[1]), slice(low[0], high[0])), mask.astype(bool)


def _coverage(shapes: list[Shape], matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    for shape in shapes:
        if (hit := _stencil(shape, matrix, height, width)) is not None:
            mask[hit[0]] |= hit[1]
    return mask


class Canvas:
    """The enlarged image, (h, w, 3) float32 RGB in 0..255, with the noise that all textures of the image share."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.size = (height * SCALE, width * SCALE)
        self.image = np.zeros((*self.size, 3), np.float32)
        cells = {"fine": (1.2, 1.2), "middle": (5, 5), "coarse": (20, 20), "flow": (2.5, 18)}  # in image pixels
        self.noise = {name: self._field(rng, height / dy, width / dx) for name, (dy, dx) in cells.items()}
        y, x = np.mgrid[: self.size[0], : self.size[1]].astype(np.float32) / SCALE
        self.stripes = np.sin((x * np.cos(0.7) + y * np.sin(0.7)) * rng.uniform(0.5, 1.1))

    def _field(self, rng: np.random.Generator, rows: float, columns: float) -> np.ndarray:
        cells = rng.standard_normal((int(rows) + 2, int(columns) + 2), np.float32)
        return cv2.resize(cells, self.size[::-1], interpolation=cv2.INTER_CUBIC)

    def texture(self, window: tuple[slice, slice], colour: tuple, pattern: str) -> np.ndarray:
        """(h, w, 3) float32 of the colour with its pattern, for a window of the canvas."""
        noise = {name: field[window] for name, field in self.noise.items()}
        base = np.asarray(colour, np.float32)
        light = 1 + 0.03 * noise["fine"] + 0.035 * noise["coarse"]
        if pattern == "grain":
            light += 0.1 * noise["fine"] + 0.06 * noise["middle"]
        elif pattern in ("leaf", "wool"):
            light += 0.06 * noise["fine"] + 0.14 * noise["middle"]
        elif pattern == "flow":
            light += 0.1 * noise["flow"] + 0.03 * noise["middle"]
        elif pattern == "glass":
            light += 0.14 * np.maximum(self.stripes[window], 0) + 0.06 * noise["coarse"]
        elif pattern == "patches":
            light += 0.45 * (noise["coarse"] + 0.3 * noise["middle"] > 0.35) * (1 if base.mean() < 110 else -1)
        elif pattern == "stripes":
            light += 0.28 * np.sign(self.stripes[window] + 0.2 * noise["middle"])
        return base * light[..., None]

    def paint(self, shapes: list[Shape], matrix: np.ndarray, body: tuple[tuple, str] | None = None) -> np.ndarray:
        """Paint over the image; matrix (2, 3) takes the units of the shapes to canvas pixels. The pixels showing the
        body's own colour come back, (h, w) bool."""
        own = np.zeros(self.size, bool)
        for shape in shapes:
            if (hit := _stencil(shape, matrix, *self.size)) is None:
                continue
            window, mask = hit
            colour, pattern = shape.colour, shape.pattern
            if colour == BODY:
                colour, pattern = body[0], body[1] if pattern == "plain" else pattern
            self.image[window][mask] = self.texture(window, colour, pattern)[mask]
            own[window][mask] = shape.colour == BODY
        return own


# --- Scenery: units are the image's width and height ---


def _vary(rng: np.random.Generator, colour: tuple, amount: int = 18) -> tuple:
    return tuple(np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 5, 250))


def _sky(rng: np.random.Generator, canvas: Canvas) -> None:
    high = [(84, 132, 196), (120, 150, 186), (160, 166, 176), (196, 150, 130), (70, 100, 160)][rng.integers(5)]
    ramp = np.linspace(0, 1, canvas.size[0], dtype=np.float32)[:, None, None]
    canvas.image[:] = np.float32(_vary(rng, high)) * (1 - ramp) + np.float32((226, 226, 222)) * ramp
    cloud = cv2.GaussianBlur(canvas.noise["coarse"] + 0.9 * canvas.noise["flow"] + 0.3 * canvas.noise["middle"], (0, 0), 4)
    cloud = np.clip(cloud - rng.uniform(0.0, 1.0), 0, 1)[..., None] * 0.8
    canvas.image += (np.float32((244, 242, 240)) - canvas.image) * cloud


def _tree(rng: np.random.Generator, x: float, y: float, size: float) -> list[Shape]:
    green = _vary(rng, [(58, 92, 44), (84, 110, 52), (120, 108, 50), (40, 70, 50)][rng.integers(4)])
    shapes = [Shape(_box(x - 0.06 * size, y - 0.5 * size, x + 0.06 * size, y), (84, 62, 46), "grain")]
    for _ in range(7):
        dx, dy = rng.uniform(-0.3, 0.3) * size, rng.uniform(-0.3, 0.3) * size
        shapes.append(Shape(_oval(x + dx, y - 0.75 * size + dy, 0.24 * size, 0.22 * size), _vary(rng, green, 10), "leaf"))
    return shapes


def _house(rng: np.random.Generator, x: float, y: float, w: float, h: float) -> list[Shape]:
    shapes = [Shape(_box(x, y - h, x + w, y), _vary(rng, POOL[rng.integers(len(POOL))]), "grain")]
    if rng.random() < 0.6:
        roof = _poly((x - 0.02, y - h), (x + w / 2, y - h - 0.12), (x + w + 0.02, y - h))
        shapes.append(Shape(roof, _vary(rng, (134, 74, 58)), "flow"))
    dark = _vary(rng, (70, 74, 82))
    for column in range(int(w / 0.09)):
        for row in range(int(h / 0.14)):
            x0, y0 = x + 0.03 + 0.09 * column, y - h + 0.04 + 0.14 * row
            shapes.append(Shape(_box(x0, y0, x0 + 0.04, y0 + 0.08), dark))
    return shapes


def _scene(rng: np.random.Generator, canvas: Canvas, kind: str) -> float:
    """Paint a background and return where its ground begins, as a share of the height."""
    _sky(rng, canvas)
    shapes: list[Shape] = []
    horizon = rng.uniform(0.35, 0.6) if kind != "sky" else rng.uniform(0.8, 0.97)
    if kind != "room":
        for _ in range(rng.integers(1, 3)):
            xs = np.linspace(-0.1, 1.1, 14)
            ys = horizon - rng.uniform(0.02, 0.2) * (0.5 + 0.5 * np.sin(xs * rng.uniform(2, 8) + rng.uniform(0, 6)))
            hill = np.vstack([np.stack([xs, ys], 1), [(1.1, 1), (-0.1, 1)]])
            shapes.append(Shape(hill, _vary(rng, [(104, 122, 138), (92, 114, 84), (128, 120, 96)][rng.integers(3)]), "leaf"))
    if kind == "street":
        x = -0.1
        while x < 1:
            w = rng.uniform(0.18, 0.4)
            shapes += _house(rng, x, horizon + 0.02, w, rng.uniform(0.18, horizon))
            x += w + rng.choice([0.0, 0.05, 0.15])
    if kind == "room":
        wall = _vary(rng, [(206, 192, 164), (176, 188, 190), (150, 160, 130), (190, 150, 130), (120, 124, 134)][rng.integers(5)])
        shapes.append(Shape(_box(-0.1, -0.1, 1.1, 1.1), wall, str(rng.choice(["plain", "grain"]))))
        if rng.random() < 0.5:
            step, line = rng.uniform(0.08, 0.16), _vary(rng, wall, 24)
            for v in np.arange(0, 1, step):
                shapes.append(Shape(_poly((v, 0), (v, horizon)), line, width=0.006))
                if rng.random() < 0.8:
                    shapes.append(Shape(_poly((0, v * horizon), (1, v * horizon)), line, width=0.006))
        for _ in range(rng.integers(1, 4)):
            x, y, w, h = rng.uniform(0, 0.8), rng.uniform(0.02, 0.2), rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.3)
            frame, inside = _vary(rng, POOL[rng.integers(len(POOL))]), _vary(rng, POOL[rng.integers(len(POOL))])
            shapes.append(Shape(_box(x, y, x + w, y + h), frame))
            shapes.append(Shape(_box(x + 0.02, y + 0.02, x + w - 0.02, y + h - 0.02), inside, "patches"))
        if rng.random() < 0.6:
            x, w, wood = rng.uniform(-0.1, 0.7), rng.uniform(0.25, 0.5), _vary(rng, (122, 86, 58))
            shapes.append(Shape(_box(x, horizon - rng.uniform(0.1, 0.3), x + w, horizon + 0.06), wood, "flow"))
            shapes.append(Shape(_poly((x, horizon - 0.05), (x + w, horizon - 0.05)), _vary(rng, (60, 44, 34)), width=0.008))
    else:
        for _ in range(rng.integers(0, 5)):
            shapes += _tree(rng, rng.uniform(0, 1), horizon + 0.02, rng.uniform(0.15, 0.4))
    ground, pattern = {
        "sea": ((70, 108, 128), "flow"), "field": ((104, 128, 66), "leaf"), "street": ((120, 118, 118), "grain"),
        "room": (POOL[rng.choice([1, 2, 5, 6, 3])], "flow"), "sky": ((96, 118, 72), "leaf"),
    }[kind]  # fmt: skip
    shapes.append(Shape(_box(-0.1, horizon, 1.1, 1.1), _vary(rng, ground, 26), pattern))
    if kind in ("street", "room") and rng.random() < 0.7:
        for x in np.linspace(-1.5, 2.5, 13):
            shapes.append(Shape(_poly((0.5 + (x - 0.5) * 0.4, horizon), (x, 1.05)), _vary(rng, (96, 92, 88)), width=0.006))
    if kind != "sea":
        for _ in range(rng.integers(0, 9)):
            y = rng.uniform(horizon + 0.03, 1)
            r = rng.uniform(0.01, 0.045)
            stone = _vary(rng, POOL[rng.integers(len(POOL))])
            shapes.append(Shape(_oval(rng.uniform(0, 1), y, r * 1.4, r), stone, "grain"))
    canvas.paint(shapes, np.array([[canvas.size[1], 0, 0], [0, canvas.size[0], 0]], float))
    return horizon


# --- Putting an image together ---


def _place(rng: np.random.Generator, name: str, share: float, horizon: float, flying: bool, before: list[Thing],
           height: int, width: int) -> Thing | None:  # fmt: skip
    """Find a place where the telling part shows, and hides none of those before; None when chance finds none."""
    shapes = DRAW[name](rng)
    unit = _coverage(shapes, np.array([[40, 0, 100], [0, 40, 120]], float), 160, 200).sum() / 40**2
    scale = max(np.sqrt(share * height * width / unit), 42 / 2.4)
    for _ in range(30):
        angle = rng.normal(0, 0.2 if flying else 0.06)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0])
        depth = np.clip(0.2 + 1.5 * share + rng.normal(0, 0.15), 0.08, 1.05)
        feet = height * (rng.uniform(0.3, 1.0) if flying else horizon + (1 - horizon) * depth)
        centre = np.array([rng.uniform(0.0, 1.0) * width, feet])
        thing = Thing(name, shapes, np.hstack([scale * turn @ mirror, centre[:, None]]))
        whole = _coverage(shapes, np.array([[scale, 0, 2 * width], [0, scale, 3 * height]]), 4 * height, 4 * width).sum()
        mask = _coverage(shapes, thing.matrix, height, width)
        part_shapes = [shape for shape in shapes if shape.part]
        whole_part = _coverage(part_shapes, thing.matrix + [[0, 0, width], [0, 0, height]], 3 * height, 3 * width).sum()
        part = _coverage(part_shapes, thing.matrix, height, width).sum()
        if mask.sum() < 0.6 * whole or part < 0.85 * whole_part:
            continue
        for other in before:
            old = _coverage(other.shapes, other.matrix, height, width)
            old_part = _coverage([shape for shape in other.shapes if shape.part], other.matrix, height, width)
            if (old & mask).sum() > 0.35 * old.sum() or (old_part & mask).sum() > 0.15 * old_part.sum():
                break
        else:
            return thing
    return None


def _add(rng: np.random.Generator, canvas: Canvas, thing: Thing, flying: bool) -> np.ndarray:
    """Paint an object into the scene; its (h, w) bool mask at image size comes back."""
    matrix = thing.matrix * SCALE
    cover = _coverage(thing.shapes, matrix, *canvas.size)
    rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    if not flying:
        feet = matrix[1, 2]
        lean = rng.uniform(-0.8, 0.8)
        squash = np.array([[1, -lean * 0.3, lean * 0.3 * feet], [0, 0.22, 0.78 * feet + SCALE]])
        shadow = cv2.warpAffine(cover.astype(np.float32), squash, canvas.size[::-1], flags=cv2.INTER_NEAREST)
        shadow = cv2.blur(shadow, (6 * SCALE, 3 * SCALE))
        canvas.image *= 1 - rng.uniform(0.25, 0.6) * shadow[..., None]
    behind = canvas.image.copy()
    around = cv2.resize(behind, None, fx=1 / 24, fy=1 / 24, interpolation=cv2.INTER_AREA)
    around = cv2.resize(around, canvas.size[::-1], interpolation=cv2.INTER_CUBIC)
    local = around[cover].mean(0)
    colours = [_vary(rng, POOL[k]) for k in rng.permutation(len(POOL))]
    weak = rng.random() < 0.36
    colour = next(c for c in colours if weak or np.abs(np.array(c) - local).sum() > 110)
    own = canvas.paint(thing.shapes, matrix, (colour, str(rng.choice(PATTERNS, p=[0.4, 0.3, 0.15, 0.15]))))
    if weak:
        y, x = np.mgrid[: canvas.size[0], : canvas.size[1]].astype(np.float32)
        a = rng.uniform(0, 2 * np.pi)
        along = np.cos(a) * (x - columns.mean()) / np.ptp(columns) + np.sin(a) * (y - rows.mean()) / np.ptp(rows)
        fade = (np.clip(0.75 + 1.4 * along, 0.15, 0.88) * own)[..., None]
        canvas.image += (around + rng.normal(0, 6, 3).astype(np.float32) - canvas.image) * fade
    soft = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), SCALE * (4.0 if thing else 1))
    light = rng.uniform(-0.9, 0.9)
    gy, gx = cv2.Sobel(soft, -1, 0, 1, ksize=5), cv2.Sobel(soft, -1, 1, 0, ksize=5)
    canvas.image *= (1 + np.clip(0.12 * (gy + light * gx), -0.25, 0.25) * cover)[..., None]
    alpha = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), SCALE * (0.9 if weak else 0.4))[..., None]
    canvas.image = behind + (canvas.image - behind) * alpha
    h, w = canvas.size[0] // SCALE, canvas.size[1] // SCALE
    return cv2.resize(cover.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA) >= 0.5


def _photograph(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """Average the canvas down and give it light, lens and sensor: (h, w, 3) uint8."""
    h, w = canvas.size[0] // SCALE, canvas.size[1] // SCALE
    image = cv2.resize(canvas.image, (w, h), interpolation=cv2.INTER_AREA)
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    a = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.25) * (np.cos(a) * x + np.sin(a) * y) - rng.uniform(0, 0.2) * (x * x + y * y)
    warm = rng.normal(0, 0.06)
    image = image * (light * rng.uniform(0.75, 1.15))[..., None] * (1 + warm, 1.0, 1 - warm)
    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.8))
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.75, 1.1)
    image = image + rng.normal(0, rng.uniform(1.5, 5), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[str, tuple[int, int, int, int]]]]:
    """One image from (seed, index): (h, w, 3) uint8 RGB, (h, w) uint8 labels, and each object's class and box.

    Boxes are xmin, ymin, xmax, ymax in pixels counted from 1, as in VOC.
    """
    names = list(DRAW)
    block, turn = divmod(index - 1, len(names))
    first = names[np.random.default_rng((seed, 1, block)).permutation(len(names))[turn]]  # keeps classes even
    rng = np.random.default_rng((seed, 2, index))
    long, short = int(rng.integers(152, 193)), int(rng.integers(128, 153))
    height, width = (short, long) if rng.random() < 0.75 else (long, short)
    wanted = [first]
    if rng.random() < 0.62:
        wanted.append(names[rng.integers(len(names))])
    if rng.random() < 0.15:
        wanted.append(wanted[rng.integers(len(wanted))])
    kind = USUAL_SCENE[first] if rng.random() < 0.6 else str(rng.choice(["sea", "field", "street", "room", "sky"]))
    canvas = Canvas(rng, height, width)
    horizon = _scene(rng, canvas, kind)
    shares = np.clip(np.exp(rng.normal(np.log((0.24, 0.16, 0.11)[len(wanted) - 1]), 0.45, len(wanted))), 0.045, 0.45)
    things: list[Thing] = []
    labels = np.zeros((height, width), np.uint8)
    masks: list[np.ndarray] = []
    for name, share in sorted(zip(wanted, shares, strict=True), key=lambda pair: pair[1]):
        flying = kind == "sky" or (name == "aeroplane" and kind != "room" and rng.random() < 0.75)
        if (thing := _place(rng, name, share, horizon, flying, things, height, width)) is None:
            continue
        things.append(thing)
        mask = _add(rng, canvas, thing, flying)
        masks = [old & ~mask for old in masks] + [mask]
        labels[mask] = VOC_INDEX[name]
    if not things:
        raise RuntimeError(f"no place found for any object of image {index}")
    boxes = []
    border = np.zeros((height, width), bool)
    for thing, mask in zip(things, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((thing.name, (int(xs[0]) + 1, int(ys[0]) + 1, int(xs[-1]) + 1, int(ys[-1]) + 1)))
        m = mask.astype(np.uint8)
        border |= cv2.dilate(m, np.ones((3, 3))) != cv2.erode(m, np.ones((3, 3)))
    labels[border] = VOID
    return _photograph(rng, canvas), labels, boxes


# --- Files ---


def _colour_map() -> list[int]:
    """The 256 VOC colours, flat: the bits of an index are dealt out to red, green and blue, highest bit first."""
    return [sum(((i >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for i in range(256) for c in range(3)]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, path)


def _xml(name: str, shape: tuple[int, int], boxes: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    objects = "".join(
        f"\t<object>\n\t\t<name>{kind}</name>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>\n\t\t\t<xmin>{x0}</xmin>\n"
        f"\t\t\t<ymin>{y0}</ymin>\n\t\t\t<xmax>{x1}</xmax>\n\t\t\t<ymax>{y1}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        for kind, (x0, y0, x1, y1) in boxes
    )
    return (
        f"<annotation>\n\t<folder>VOC2012</folder>\n\t<filename>{name}.jpg</filename>\n\t<size>\n"
        f"\t\t<width>{shape[1]}</width>\n\t\t<height>{shape[0]}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>1</segmented>\n{objects}</annotation>\n"
    )


def _files(root: Path, name: str) -> tuple[Path, Path, Path]:
    return root / f"JPEGImages/{name}.jpg", root / f"Annotations/{name}.xml", root / f"SegmentationClass/{name}.png"


def _make_one(index: int, root: Path, seed: int) -> None:
    cv2.setNumThreads(1)
    name = f"demo_{index:06d}"
    image, labels, boxes = draw(seed, index)
    mask = Image.fromarray(labels, "P")
    mask.putpalette(_colour_map())
    jpg, xml, png = _files(root, name)
    _write(jpg, lambda path: Image.fromarray(image).save(path, "JPEG", quality=90))
    _write(xml, lambda path: path.write_text(_xml(name, labels.shape, boxes)))
    _write(png, lambda path: mask.save(path, "PNG"))


def make_demo(root: str | Path, train: int = 400, val: int = 120, seed: int = 0) -> None:
    """Write `train` + `val` images with labels in VOC 2012 layout under root, unless they are there already."""
    root = Path(root)
    indices = {"train": range(1, train + 1), "val": range(VAL_OFFSET + 1, VAL_OFFSET + val + 1)}
    names = {split: [f"demo_{i:06d}" for i in numbers] for split, numbers in indices.items()}
    wanted = {path for split in names.values() for name in split for path in _files(root, name)}
    lists = {"train": names["train"], "train_aug": names["train"], "val": names["val"]}
    paths = {split: root / f"ImageSets/Segmentation/{split}.txt" for split in lists}
    marker, record = root / MARKER, json.dumps({"version": VERSION, "train": train, "val": val, "seed": seed})
    complete = all(path.exists() for path in wanted | set(paths.values()))
    if complete and marker.exists() and marker.read_text() == record:
        return
    marker.unlink(missing_ok=True)
    for path in [*wanted, *paths.values()]:
        path.parent.mkdir(parents=True, exist_ok=True)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        for path in (root / folder).glob("*demo_*"):
            if path not in wanted:
                path.unlink()
    todo = [*indices["train"], *indices["val"]]
    job = partial(_make_one, root=root, seed=seed)
    if len(todo) < 32:
        for index in todo:
            job(index)
    else:
        # Fresh processes, because a fork would inherit the threads of whatever the caller has loaded.
        with multiprocessing.get_context("spawn").Pool() as pool:
            pool.map(job, todo, chunksize=8)
    for split, ids in lists.items():
        _write(paths[split], lambda path, ids=ids: path.write_text("".join(f"{name}\n" for name in ids)))
    _write(marker, lambda path: path.write_text(record))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder that the data set is written to")
    parser.add_argument("--train", type=int, default=400, help="number of training images")
    parser.add_argument("--val", type=int, default=120, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other images")
    arguments = parser.parse_args()
    make_demo(arguments.out, arguments.train, arguments.val, arguments.seed)
