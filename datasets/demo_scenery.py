"""What the drawn data set is painted on: the canvas with its textures, and the scenery behind the objects."""

import cv2
import numpy as np
from numpy.random import Generator

from datasets.demo_objects import BODY, Shape, Sketch

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


def coverage(shapes: list[Shape], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
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


def vary(rng: Generator, colours: list | tuple, amount: int = 18) -> tuple:
    """One of a list of colours, or the one colour given, a little changed: (red, green, blue)."""
    colour = colours[rng.integers(len(colours))] if isinstance(colours, list) else colours
    return tuple(np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 5, 250))


def _room(rng: Generator, s: Sketch, horizon: float) -> None:
    """A tiled wall down to the horizon, with pictures on it and a chest before it."""
    wall = vary(rng, WALLS)
    s.box(0, 0, 1, 1, wall, str(rng.choice(["plain", "grain"])))
    tile = vary(rng, wall)
    for v in np.arange(0, 1, rng.uniform(0.08, 0.16)):
        s.poly([(v, 0), (v, horizon)], tile, width=0.006)
        s.poly([(0, v * horizon), (1, v * horizon)], tile, width=0.006)
    for x, y, w, h in rng.uniform((0, 0.02, 0.12, 0.12), (0.8, 0.2, 0.3, 0.3), (rng.integers(1, 4), 4)):
        s.box(x, y, x + w, y + h, vary(rng, POOL))
        s.box(x + 0.02, y + 0.02, x + w - 0.02, y + h - 0.02, vary(rng, POOL), "patches")
    x, y = rng.uniform((-0.2, horizon - 0.3), (0.9, horizon - 0.1))
    s.box(x, y, x + 0.4, horizon + 0.06, vary(rng, (122, 86, 58)), "flow")


def _outdoors(rng: Generator, s: Sketch, horizon: float, kind: str) -> None:
    """Hills, then houses if it is a street, then trees, all on the horizon."""
    for _ in range(rng.integers(1, 3)):
        x = np.linspace(0, 1, 14)
        y = horizon - rng.uniform(0.02, 0.2) * (0.5 + 0.5 * np.sin(x * rng.uniform(2, 8) + rng.uniform(0, 6)))
        s.poly([*zip(x, y, strict=True), (1, 1), (0, 1)], vary(rng, HILLS), "leaf")
    x = -0.1 if kind == "street" else 1.0
    while x < 1:
        w, top = rng.uniform(0.18, 0.4), horizon - rng.uniform(0.15, 0.85 * horizon)
        s.box(x, top, x + w, horizon + 0.02, vary(rng, POOL), "grain")
        s.poly([(x - 0.02, top), (x + w / 2, top - 0.12), (x + w + 0.02, top)], vary(rng, (134, 74, 58)), "flow")
        for u in np.arange(x + 0.03, x + w - 0.05, 0.09):
            for v in np.arange(top + 0.04, horizon - 0.06, 0.14):
                s.box(u, v, u + 0.04, v + 0.08, (70, 74, 82))
        x += w + rng.choice([0.0, 0.05, 0.15])
    for x, size in rng.uniform((0, 0.15), (1, 0.4), (rng.integers(0, 5), 2)):
        s.box(x - 0.05 * size, horizon - 0.5 * size, x + 0.05 * size, horizon + 0.02, (84, 62, 46), "grain")
        green = vary(rng, LEAVES)
        for dx, dy in rng.uniform(-0.3 * size, 0.3 * size, (7, 2)):
            s.oval(x + dx, horizon - 0.75 * size + dy, 0.24 * size, 0.22 * size, vary(rng, green, 10), "leaf")


def scene(rng: Generator, canvas: Canvas, kind: str) -> float:
    """Paint a background and return where its ground begins, as a share of the height."""
    ramp = np.linspace(0, 1, canvas.size[0], dtype=np.float32)[:, None, None]
    canvas.image[:] = np.float32(vary(rng, SKIES)) * (1 - ramp) + np.float32((226, 226, 222)) * ramp
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
    s.box(0, horizon, 1, 1, vary(rng, GROUNDS[kind][0], 30), GROUNDS[kind][1])
    if kind in ("street", "room") and rng.random() < 0.7:
        for x in np.linspace(-1.5, 2.5, 13):
            s.poly([(0.3 + x * 0.4, horizon), (x, 1.05)], (92, 88, 84), width=0.006)
    stones = 0 if kind == "sea" else rng.integers(0, 9)
    for x, y, r in rng.uniform((0, horizon + 0.03, 0.01), (1, 1, 0.04), (stones, 3)):
        s.oval(x, y, 1.4 * r, r, vary(rng, POOL), "grain")
    canvas.paint(s.shapes, np.array([[canvas.size[1], 0, 0], [0, canvas.size[0], 0]], float))
    return horizon
