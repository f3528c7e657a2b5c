"""What tools.bench times of ICD and RecurSeed: each piece of work with the plain one that it is compared with.

The weights are random, which changes no time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from datasets.transforms import as_tensor
from datasets.voc import CLASSES
from evaluation.baselines import HEIGHT, WIDTH, scene
from models.icd.network import IcdNetwork
from models.icd.optimiser import Momentum
from models.icd.seeds import class_maps, icd_seed
from models.icd.step import IcdStep
from models.icd.superpixels import felzenszwalb, merged, region_means
from models.recurseed.network import RecurSeedNetwork
from models.recurseed.steps import RecurSeedStep
from models.vgg16 import subtract_mean
from settings.config import Config

MOST_ON_CPU = 4  # images a step of ICD there, of the published 32: a rate an image, so that the row ends in minutes


@dataclass(frozen=True)
class Case:
    what: str
    amount: float  # done by one call
    unit: str
    ours: Callable[[], object]
    baseline: str
    plain: Callable[[], object]
    step: bool = False  # a training step, whose arithmetic is counted too
    on_device: bool = True


def icd_cases(config: Config, device: torch.device, bfloat16: bool) -> Iterator[Case]:
    """Superpixels and their merging, a training step, seeds."""
    image, _ = scene()
    features = np.random.default_rng(0).normal(size=(512, 65, 65)).astype(np.float32)
    ids = felzenszwalb(image, config.superpixel_threshold, config.superpixel_least)
    means = region_means(features, ids)
    most = config.superpixel_most

    def superpixels() -> None:
        own = felzenszwalb(image, config.superpixel_threshold, config.superpixel_least)
        merged(own, region_means(features, own), most)

    what = f"ICD, superpixels and merging of {ids.max() + 1} to {most}, {WIDTH}×{HEIGHT}, features apart"
    search = partial(merged_by_search, ids, means, most)
    yield Case(
        what,
        1,
        "images/s",
        superpixels,
        "the merging alone, by a search of all pairs each time",
        search,
        on_device=False,
    )

    torch.manual_seed(0)
    batch = config.icd_batch if device.type == "cuda" else min(config.icd_batch, MOST_ON_CPU)
    fast, plain = (icd_step(config, device, batch, half) for half in (bfloat16, False))
    what = f"ICD, training step, crop {config.icd_crop}, batch {batch}"
    yield Case(what, batch, "images/s", fast, "float32", plain, step=True)

    network = icd_network(config).to(device).eval()
    photograph, classes = as_tensor(image).to(device), torch.tensor([3, 8], device=device)

    def seeds(half: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            icd_seed(*class_maps(network, photograph, classes, config.icd_side), classes)

    what = f"ICD, seed of {WIDTH}×{HEIGHT} in a square of {config.icd_side}, without CRF"
    yield Case(what, 1, "images/s", partial(seeds, bfloat16), "float32", partial(seeds, False))


def merged_by_search(ids: np.ndarray, means: np.ndarray, most: int) -> np.ndarray:
    """models.icd.superpixels.merged, with all similarities computed anew for each pair that is joined."""
    ids, means = ids.copy(), means.copy()
    sizes = np.bincount(ids.ravel()).astype(np.float64)
    while len(sizes) > most:
        units = means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
        similarity = units @ units.T + 1 - (sizes[:, None] + sizes) / ids.size
        similarity[np.tril_indices(len(sizes))] = -np.inf
        low, high = np.unravel_index(similarity.argmax(), similarity.shape)
        means[low] = (sizes[low] * means[low] + sizes[high] * means[high]) / (sizes[low] + sizes[high])
        sizes[low] += sizes[high]
        means, sizes = np.delete(means, high, axis=0), np.delete(sizes, high)
        ids[ids == high] = low
        ids[ids > high] -= 1
    return ids


def icd_network(config: Config) -> IcdNetwork:
    return IcdNetwork(len(CLASSES) - 1, config.icd_width, config.icd_batchnorm, config.dropout)


def icd_step(config: Config, device: torch.device, batch: int, half: bool) -> Callable[[], None]:
    """One whole training step as a function."""
    network = icd_network(config)
    step = IcdStep(network, config.superpixel_most + 1).to(device).train()
    optimiser = Momentum(network.parameter_groups(config.icd_lr, config.icd_weight_decay), config.icd_lr)
    side = config.icd_crop
    x = subtract_mean(torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device))
    present = torch.zeros(batch, len(CLASSES), device=device)
    present[:, [0, 8]] = 1
    cell = torch.arange(side, device=device) * 8 // side
    superpixels = (8 * cell[:, None] + cell).expand(batch, -1, -1)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            result = step(x, present, superpixels, 1.0)
        result.loss.backward()
        optimiser.step()

    return run


def recurseed_cases(config: Config, device: torch.device, bfloat16: bool) -> Iterator[Case]:
    """Seeds of a batch by SCG and PAMR, against the forward pass that they come from, both without gradient."""
    torch.manual_seed(0)
    step = (
        RecurSeedStep(RecurSeedNetwork(len(CLASSES), config.recurseed_width)).to(device).train().requires_grad_(False)
    )
    side, batch = config.recurseed_crop, config.recurseed_batch
    x = torch.randn(batch, 3, side, side, device=device)
    present = torch.zeros(batch, len(CLASSES), device=device)
    present[:, [0, 8]], present[::3, 15] = 1, 1
    inside = torch.ones(batch, side, side, dtype=torch.bool, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        output = step.network(x)

    def seeds() -> None:
        step.seeds(output, x, present, inside)

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return step.network(x).seg

    what = f"RecurSeed, SCG + PAMR + CertainFilter, {side}×{side}, batch {batch}"
    yield Case(what, batch, "images/s", seeds, f"one forward pass, {'bfloat16' if bfloat16 else 'float32'}", forward)
