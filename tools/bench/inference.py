"""Rows of the passes over all images: mode 1, and one image of mode 3."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.samples.seeds import SeedSamples
from datasets.transforms import as_tensor, normalise
from engine import distributed
from evaluation.bench_loader import loader_samples
from models.inference import multiscale_probabilities
from models.ssdd.steps import StaticStep
from modes.ssdd import precompute
from modes.ssdd.networks import build, integration, network_input
from settings.config import Config
from tools.bench.inputs import VOC_SIZE, case, plain, training_batch
from tools.bench.timing import row, synchronise, timed

UNCOUNTED = 2  # batches


def precompute_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """Mode 1's forward pass."""
    functions = {}
    batch = training_batch(replace(config, bn=config.eval_batch), device)
    ours = config, distributed.memory_format(device, config.width, config.precision)
    for name, (own, layout) in {"ours": ours, "plain": plain(config)}.items():
        step = StaticStep(*build(own, False), integration(own)).to(device, memory_format=layout).eval()
        functions[name] = partial(predict, step, batch, device, own.precision, layout)
    times = timed(device, repeats, **functions)
    base = ("float32, NCHW", times["plain"])
    what = f"mode 1, batch {config.eval_batch}"
    yield row(what, times["ours"], config.eval_batch, "images/s", base, step=1)


class Watched(StaticStep):
    """A StaticStep that notes when each prediction begins and ends."""

    def __init__(self, config: Config, device: torch.device):
        super().__init__(*build(config, False), integration(config))
        self.device, self.moments = device, []

    def predict(self, *inputs: Tensor) -> tuple:
        synchronise(self.device)
        began = time.perf_counter()
        result = super().predict(*inputs)
        synchronise(self.device)
        self.moments.append((began, time.perf_counter()))
        return result


def pass_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """Mode 1 as it runs, with its loader and with workers that store: the share of the wall time that is the network's.

    A time is that from a batch's prediction to the next one's, or to the end of the pass. The first batches do not
    count, as the processes start beside them: that is once in a pass over 10,582 images.
    """
    torch.manual_seed(config.seed)
    size, layout = config.eval_batch, distributed.memory_format(device, config.width, config.precision)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = [case(config, n, max(VOC_SIZE)) for n in range(8)]
        cases = [images[n % len(images)] for n in range(size * (UNCOUNTED + repeats))]
        stored = loader_samples(config, root, VOC_SIZE, cases)
        samples = SeedSamples(str(root), stored.ids, stored.seeds, config.crop)
        step = Watched(config, device).to(device, memory_format=layout).eval()
        own = replace(config, voc_root=str(root), out=str(root / "out"))
        folder = root / "out" / "maps"
        folder.mkdir(parents=True)
        precompute.write_maps(own, step, samples, folder, device, lambda: None)
        end = time.perf_counter()
    counted = step.moments[UNCOUNTED:]
    times = [after - before for before, after in pairwise([*(began for began, _ in counted), end])]
    network = [ended - began for began, ended in counted]
    note = f"{100 * sum(network) / sum(times):.1f} % of the wall time is the network's"
    yield row(f"mode 1, batch {size}, whole pass", times, size, "images/s", ("network within it", network), note=note)


@torch.inference_mode()
def predict(step: StaticStep, batch: dict, device: torch.device, precision: str, layout: torch.memory_format) -> None:
    with distributed.autocast(device, precision):
        x = network_input({"image": batch["image"]}, layout)
        step.predict(x, batch["present"], batch["knowledge"], batch["advice"])


def evaluation_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """One image of mode 3 through the network: all scales, image and mirror in one batch, against one by one."""
    torch.manual_seed(config.seed)
    layout = distributed.memory_format(device, config.width, config.precision)
    image, _, _ = case(config, 0, config.eval_size)
    x = normalise(as_tensor(image)[None].to(device))
    slow, _ = build(plain(config)[0], False)
    slow.to(device).eval()
    fast, _ = build(config, False)
    fast.to(device, memory_format=layout).eval()

    def ours() -> None:
        with distributed.autocast(device, config.precision):
            multiscale_probabilities(fast, x.contiguous(memory_format=layout), config.eval_scales)

    @torch.no_grad()
    def one_by_one() -> None:
        size = x.shape[-2:]
        for scale in config.eval_scales:
            scaled = nn.functional.interpolate(x, [int(s * scale) for s in size], mode="bilinear")
            for view in (scaled, scaled.flip(-1)):
                logits = nn.functional.interpolate(slow.main_logits(view), scale_factor=8, mode="bilinear")
                nn.functional.interpolate(torch.softmax(logits, 1), size, mode="bilinear")

    times = timed(device, repeats, ours=ours, plain=one_by_one)
    base = ("float32, one pass a scale and mirror", times["plain"])
    yield row(f"evaluation, image of {config.eval_size}, network", times["ours"], 1, "images/s", base)
