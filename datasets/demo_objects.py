"""The objects of the drawn data set, as shapes that `datasets.demo` then places and paints.

Units: x to the right, y down. Objects stand on y = 0, look to the left and are about 2.5 units wide. The order of the
random draws is part of each drawing: to change it changes the set (see VERSION in `datasets.demo`).
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

BODY = "body"  # stands for the colour and pattern that an object gets once its place is known
BLACK, DARK, GREY, WHITE, RED = (18, 20, 20), (46, 46, 50), (150, 150, 152), (246, 242, 232), (214, 24, 36)


class Shape(NamedTuple):
    """A filled polygon, or a line where `width` is set. `points` (N, 2) and `width` are in units of the owner.

    `colour` is (red, green, blue) in 0…255 or BODY, `pattern` a key of PATTERNS in `datasets.demo_scenery`,
    and `part` tells whether it belongs to the telling part.
    """

    points: np.ndarray
    colour: tuple | str
    pattern: str
    width: float
    part: bool


class Sketch:
    """Collects shapes in the order of painting. What is drawn while `part` is set belongs to the telling part."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        self.part = False

    def poly(self, points: list | np.ndarray, colour: tuple | str, pattern: str = "plain", width: float = 0) -> None:
        self.shapes.append(Shape(np.asarray(points, float), colour, pattern, width, self.part))

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: tuple | str, pattern: str = "plain") -> None:
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, pattern)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: tuple | str, pattern: str = "plain") -> None:
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        self.poly(np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1), colour, pattern)


def _trunk(s: Sketch, rng: Generator, leg_width: float) -> float:
    """Legs and trunk of a four-legged animal; the height of its back comes back."""
    leg = rng.uniform(0.3, 0.45)
    top = -leg - rng.uniform(0.62, 0.78)
    for x in rng.uniform((-0.68, -0.44, 0.36, 0.6), (-0.56, -0.32, 0.48, 0.72)):
        s.box(x - leg_width, -leg - 0.25, x + leg_width, 0, BODY)
    s.oval(0, (top - leg) / 2, 0.85, (-leg - top) / 2 + 0.04, BODY)
    return top


def _cat(s: Sketch, rng: Generator) -> None:
    top, lift = _trunk(s, rng, 0.09), rng.uniform(0.1, 0.75)
    s.poly([(0.75, top + 0.2), (1.05, top + 0.1), (1.2, top - 0.4 * lift), (1.1, top - lift)], BODY, width=0.12)
    x, y, r = -0.85, top - 0.05, rng.uniform(0.44, 0.54)
    s.part = True
    for side in (-1, 1):
        ear = np.array([(0.95, -0.25), (0.3, -0.9), (0.95, -1.45)]) * (side * r, r) + (x, y)
        s.poly(ear, BODY)
        s.poly(0.6 * ear + 0.4 * ear.mean(0), (232, 138, 148))
    s.oval(x, y, r, 0.86 * r, BODY)
    s.oval(x, y + 0.42 * r, 0.48 * r, 0.34 * r, WHITE)
    for side in (-1, 1):
        s.oval(x + side * 0.42 * r, y - 0.12 * r, 0.27 * r, 0.25 * r, (202, 222, 62))
        s.oval(x + side * 0.42 * r, y - 0.12 * r, 0.09 * r, 0.23 * r, BLACK)
        for slope in (0.3, 0.45):
            s.poly([(x + side * 0.3 * r, y + 0.4 * r), (x + side * 1.35 * r, y + slope * r)], WHITE, width=0.022)
    s.poly([(x - 0.15 * r, y + 0.2 * r), (x + 0.15 * r, y + 0.2 * r), (x, y + 0.42 * r)], (226, 104, 122))


def _sheep(s: Sketch, rng: Generator) -> None:
    top = _trunk(s, rng, 0.06)
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        s.oval(0.78 * np.cos(angle), (top - 0.3) / 2 + 0.32 * np.sin(angle), 0.2, 0.19, BODY)
    s.oval(0, (top - 0.3) / 2, 0.8, 0.36, BODY)
    x, y, r = -0.98, top + 0.08, rng.uniform(0.28, 0.34)
    s.part = True
    for side in (-1, 1):
        s.oval(x + side * 1.1 * r, y - 0.3 * r, 0.55 * r, 0.24 * r, (226, 150, 140))
    s.oval(x, y + 0.1 * r, 0.85 * r, 1.35 * r, (34, 30, 32))
    for dx in (-0.55, 0, 0.55):
        s.oval(x + dx * r, y - r, 0.45 * r, 0.42 * r, WHITE, "leaf")
    for side in (-1, 1):
        s.oval(x + side * 0.4 * r, y - 0.1 * r, 0.22 * r, 0.2 * r, WHITE)
        s.oval(x + side * 0.4 * r, y - 0.1 * r, 0.09 * r, 0.11 * r, BLACK)
    s.oval(x - 0.1 * r, y + 1.1 * r, 0.4 * r, 0.25 * r, (188, 150, 146))


def _bus(s: Sketch, rng: Generator) -> None:
    end, top = rng.uniform(1.15, 1.5), -rng.uniform(1.15, 1.4)
    s.box(-end, top, end, -0.17, BODY)
    s.box(-end, -0.26, end, -0.15, DARK)
    for x in (-0.62 * end, 0.62 * end):
        s.oval(x, -0.25, 0.25, 0.25, BLACK)
        s.oval(x, -0.25, 0.14, 0.14, GREY)
    s.part = True
    s.box(-end, top + 0.26, end, top + 0.72, WHITE)
    edges = np.linspace(-end + 0.06, end - 0.06, rng.integers(5, 8))
    for left, right in pairwise(edges):
        s.box(left + 0.04, top + 0.3, right - 0.04, top + 0.68, (28, 44, 84), "glass")
    s.box(-end + 0.08, top + 0.04, -end + 1.0, top + 0.24, BLACK)
    for x in -end + 0.16 + 0.16 * np.arange(5):
        s.box(x, top + 0.08, x + 0.1, top + 0.2, (255, 186, 24))


def _boat(s: Sketch, rng: Generator) -> None:
    deck, mast, wood = -rng.uniform(0.5, 0.65), -rng.uniform(1.8, 2.1), (88, 64, 44)
    s.poly([(-1.25, deck - 0.08), (1.1, deck), (0.9, -0.02), (0.6, 0), (-0.7, 0), (-0.95, -0.1)], BODY)
    s.box(0.15, deck - 0.28, 0.85, deck + 0.02, BODY)
    s.poly([(-1.2, deck), (-1.6, deck - 0.22)], wood, width=0.05)
    s.poly([(1.1, deck), (0, mast), (-1.6, deck - 0.22)], DARK, width=0.018)
    s.poly([(0, deck), (0, mast)], wood, width=0.06)
    s.part = True
    for side, lower in ((1, 0.1), (-1, 0.25)):
        top, foot = np.array((0.05 * side, mast + lower)), np.array((0.05 * side, deck - 0.34))
        clew = np.array((side * rng.uniform(0.65, 0.85), foot[1]))
        s.poly([top, foot, clew], WHITE)
        for a, b in ((0.2, 0.38), (0.58, 0.78)):
            s.poly([top + k * (end - top) for k, end in ((a, foot), (b, foot), (b, clew), (a, clew))], (238, 104, 26))
    s.poly([(0, mast), (0.3, mast + 0.08), (0, mast + 0.16)], RED)


def _bottle(s: Sketch, rng: Generator) -> None:
    shoulder, neck, green = -rng.uniform(1.15, 1.4), rng.uniform(0.11, 0.15), (20, 122, 58)
    top = shoulder - rng.uniform(0.75, 0.9)
    half = [(0.36, 0), (0.4, -0.06), (0.4, shoulder), (neck, shoulder - 0.4), (neck, top)]
    s.poly(half + [(-x, y) for x, y in reversed(half)], BODY)
    s.box(-0.32, shoulder + 0.05, -0.25, -0.1, WHITE)
    low, high = -rng.uniform(0.25, 0.35), shoulder + rng.uniform(0.1, 0.2)
    s.part = True
    s.box(-0.4, high, 0.4, low, (246, 232, 186))
    s.box(-0.4, high + 0.06, 0.4, high + 0.16, green)
    s.box(-0.4, low - 0.16, 0.4, low - 0.06, green)
    s.oval(0, (low + high) / 2, 0.22, 0.19, RED)
    s.oval(0, (low + high) / 2, 0.1, 0.08, (246, 232, 186))
    s.box(-neck - 0.05, top - 0.12, neck + 0.05, top + 0.08, RED)


def _aeroplane(s: Sketch, rng: Generator) -> None:
    r, sweep, y, pink = rng.uniform(0.19, 0.25), rng.uniform(0.55, 0.8), -0.75, (206, 24, 118)
    s.poly([(-0.2, y), (sweep, y - 0.75), (sweep + 0.18, y - 0.75), (0.3, y)], BODY)
    nose = [(-1, y + r), (-1.45, y), (-1.2, y - 0.7 * r), (-0.8, y - r)]
    s.poly([*nose, (0.7, y - r), (1.45, y - 0.1), (0.6, y + r)], BODY)
    for x in np.arange(-1.1, 0.7, 0.15):
        s.oval(x, y - 0.35 * r, 0.035, 0.045, DARK)
    s.oval(-0.05, y + 0.32, 0.24, 0.09, DARK)
    s.poly([(-0.3, y + 0.3 * r), (sweep + 0.15, 0), (sweep + 0.35, 0), (0.28, y + 0.3 * r)], BODY)
    s.part = True
    s.poly([(0.45, y - 0.5 * r), (1.02, y - 1.2), (1.55, y - 1.2), (1.4, y - 0.1 * r)], pink)
    s.poly([(0.72, y - 0.56), (0.9, y - 0.9), (1.5, y - 0.9), (1.46, y - 0.56)], (252, 238, 64))
    s.poly([(0.8, y), (1.35, y + 0.45), (1.7, y + 0.45), (1.42, y - 0.04)], pink)


# How to draw an object, the scene it is met in most often, and its coat: the usual colours, by their places in POOL of
# `datasets.demo_scenery`, and the pattern.
OBJECTS = {
    "aeroplane": (_aeroplane, "sky", ([0, 2, 10], "plain")),
    "boat": (_boat, "sea", ([4, 5, 7], "flow")),
    "bottle": (_bottle, "room", ([11, 12, 14], "glass")),
    "bus": (_bus, "street", ([7, 8, 13], "plain")),
    "cat": (_cat, "room", ([3, 5, 6], "stripes")),
    "sheep": (_sheep, "field", ([0, 1], "leaf")),
}
