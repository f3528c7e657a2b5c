"""What speed and memory are measured against: a made scene, plain versions of what was made fast, the memory in use."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.transforms import as_tensor, normalise
from models.psa.affinity import affinity_matrix, pair_affinities, pool_to_cells, seed_maps

SIZE = HEIGHT, WIDTH = 375, 500  # of a photograph of VOC


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A noisy image H×W×3 with two things in it, and CAMs 2×H×W that find the middle of each."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.full((HEIGHT, WIDTH, 3), (104, 128, 66), np.float32)
    cams = []
    for row, column, tall, wide, colour in ((150, 170, 95, 70, (190, 150, 110)), (230, 350, 80, 105, (70, 75, 105))):
        distance = ((y - row) / tall) ** 2 + ((x - column) / wide) ** 2
        image[distance < 1] = colour
        cams.append(np.exp(-2 * distance))
    for sigma, strength in ((0.5, 12), (3, 150), (12, 700)):  # grain, texture, light
        noise = rng.normal(0, strength, (HEIGHT, WIDTH, 3)).astype(np.float32)
        image += cv2.GaussianBlur(noise, (0, 0), sigma)
    return image.clip(0, 255).astype(np.uint8), np.stack(cams).astype(np.float32)


def dense_walk(pairs: Tensor, maps: Tensor) -> Tensor:
    """The walk by squaring the dense n×n matrix eight times, as published."""
    step = affinity_matrix(pairs, maps.shape[-2:], 8).to_dense()
    step /= step.sum(dim=0)
    for _ in range(8):
        step = step @ step
    return (maps.flatten(2)[0] @ step).view(maps.shape)


def walk_inputs(image: np.ndarray, cams: np.ndarray) -> tuple[Tensor, Tensor]:
    """Affinities of colour and pooled maps 1×K×h×w, which the random walk takes."""
    # 448 channels as AffinityNet's features have; made of the colours, so that the walk stops at edges.
    colours = pool_to_cells(normalise(as_tensor(image)[None]))
    features = 4 * colours.repeat(1, 150, 1, 1)[:, :448]
    return pair_affinities(features), pool_to_cells(seed_maps(torch.from_numpy(cams)))[None]


def growth(function: Callable[[], object]) -> float:
    """MB by which the process's memory is larger than before at its peak while `function` runs; nan but on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        function()
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = memory("VmRSS")
    function()
    return (memory("VmHWM") - before) / 1e6


def memory(what: str) -> int:
    """This process's VmRSS (now) or VmHWM (at most), bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))
