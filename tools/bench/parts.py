"""Rows of what steps and passes are made of: arithmetic, CRFs, random walk, loader; and those of other systems."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datasets.voc import CLASSES
from engine import distributed
from engine.workers import Workers, at_most_cores, crf_kernel
from evaluation.baselines import dense_walk, scene, walk_inputs
from evaluation.bench_loader import each, loader_parts, loader_samples
from models.crf import dense_crf, masks_after_crf
from models.exact_crf import exact_crf, exact_masks
from models.psa.affinity import random_walk
from settings.config import Config
from tools.bench.inputs import VOC_SIZE, case, photographs_of
from tools.bench.timing import choose_kernels, peak_memory, row, timed


def peak_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """TFLOP/s of one large matrix product and of the backbone's commonest convolution, as the networks compute;
    bfloat16 beside float32. Where bfloat16 is only emulated, one such convolution would take a minute."""
    side, cells = (8192 if device.type == "cuda" else 2048), config.crop // 8
    inner, outer = (max(16, round(c * config.width)) for c in (512, 1024))
    factors = [torch.randn(side, side, device=device) for _ in range(2)]
    image = torch.randn(config.bn, inner, cells, cells, device=device)
    weight = torch.randn(outer, inner, 3, 3, device=device)
    layout = distributed.memory_format(device, config.width, config.precision)
    halved = distributed.computes_in_bfloat16(device, config.precision)
    kind = torch.bfloat16 if halved else torch.float32
    ours = [t.to(kind) for t in factors]
    laid = [t.to(kind, memory_format=layout) for t in (image, weight)]
    products = {
        "matrix product": (2 * side**3, lambda f: f[0] @ f[1], ours, factors),
        "3×3 convolution": (
            2 * image.numel() * 9 * outer,
            lambda f: nn.functional.conv2d(*f, padding=2, dilation=2),
            laid,
            [image, weight],
        ),
    }
    for name, (flop, function, fast, plain) in products.items():
        times = timed(device, 3 * repeats, fast=partial(function, fast), plain=partial(function, plain))
        base = ("float32" if halved else "float32, NCHW", times["plain"])
        kind = "bfloat16" if halved else "float32"
        yield row(f"measured peak, {name}, {kind}", times["fast"], flop / 1e12, "TFLOP/s", base)


def crf_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """The training step's CRF of a batch, with pydensecrf in workers and exactly, against pydensecrf in one thread."""
    side, kernel, count = config.crop // 4, crf_kernel(config), config.bn
    cases = [case(config, n, side) for n in range(max(count, 8))]
    images = torch.from_numpy(np.stack([image for image, _, _ in cases])).to(device)
    logits = torch.full((len(cases), len(CLASSES), side, side), -20.0)
    for n, (_, p, labels) in enumerate(cases):
        logits[n, labels] = torch.from_numpy(p).clamp(min=1e-9).log()
    present = (logits.amax((2, 3)) > -20).float().to(device)
    inputs = (images, logits.to(device), present)
    batch = [t[:count] for t in inputs]
    options = {"iterations": config.crf_train, "kernel": kernel}
    number = at_most_cores(max(1, config.workers))
    with Workers(number) as workers:
        functions = {
            "exact": lambda: exact_masks(*batch, **options)(),
            "workers": lambda: masks_after_crf(*batch, submit=workers.submit, **options)(),
            "one": lambda: masks_after_crf(*batch, **options)(),
        }
        times = timed(device, repeats, **functions)
        exact = exact_masks(*inputs, **options)()
        equal = (exact == masks_after_crf(*inputs, submit=workers.submit, **options)()).float().mean((1, 2))
        whole, halved = (
            exact_crf(images[:1], torch.softmax(inputs[1][:1], 1), present[:1], **options, half=half).argmax(1)
            for half in (False, True)
        )
    photographs = "photographs" if photographs_of(config) else "drawn images"
    what = f"CRF {side}×{side}, batch {count}, {config.crf_train} iterations"
    base = ("pydensecrf, one thread", times["one"])
    yield row(f"{what}, pydensecrf in {number} processes", times["workers"], count, "images/s", base)
    note = f"labels equal to pydensecrf's on {len(equal)} {photographs}: {100 * equal.mean():.2f} %, "
    note += f"worst {100 * equal.min():.2f} %; float16 against float32: {100 * (halved == whole).float().mean():.2f} %"
    yield row(f"{what}, exact on the device", times["exact"], count, "images/s", base, note=note)
    image, probabilities, labels = case(config, 0, max(VOC_SIZE))
    image, flat = image[: VOC_SIZE[0]].copy(), np.full((len(CLASSES), *VOC_SIZE), 1 / len(CLASSES), np.float32)
    flat[labels] += probabilities[:, : VOC_SIZE[0]]
    once = timed(device, repeats, one=lambda: dense_crf(image, flat, config.crf_eval, kernel))["one"]
    yield row(f"CRF of evaluation, {VOC_SIZE[1]}×{VOC_SIZE[0]}, pydensecrf, one thread", once, 1, "images/s")


def labels_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """PSA's random walk on an image of VOC's size; tools.bench_labels has the other stages of the label chain."""
    pairs, maps = (t.to(device) for t in walk_inputs(*scene()))
    # One takes some 40 ms: as long as another program has a core for, which halved the rate of two turns in three.
    walks = 8
    ours = lambda: [random_walk(pairs, maps) for _ in range(walks)]  # noqa: E731
    times = timed(device, repeats, ours=ours, plain=lambda: dense_walk(pairs, maps))
    one = [t / walks for t in times["ours"]]
    yield row("random walk, 500×375", one, 1, "images/s", ("dense power", times["plain"]))


def loader_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """Samples of mode 2 made by one process in one thread, against decoding the JPEGs alone; and what each part of
    making them takes. In seconds of the processor, as nothing here waits."""
    threads, count = (torch.get_num_threads(), cv2.getNumThreads()), 8
    with tempfile.TemporaryDirectory() as name:
        samples = loader_samples(config, Path(name), VOC_SIZE, [case(config, n, 500) for n in range(count)])
        parts = loader_parts(samples)
        functions = {part: partial(each, function, samples.ids) for part, function in parts.items()}
        functions["all"] = lambda: [samples[n] for n in range(count)]
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        try:
            times = timed(torch.device("cpu"), 3 * repeats, time.process_time, **functions)
        finally:
            torch.set_num_threads(threads[0])
            cv2.setNumThreads(threads[1])
    base = ("decoding the JPEG alone", times["JPEG"])
    spent = [f"{part} {1000 * statistics.median(times[part]) / count:.2f}" for part in parts]
    note = f"ms an image: {', '.join(spent)}"
    yield row("loader, mode 2, one core", times["all"], count, "images/s", base, note=note)


def system_rows(config: Config, device: torch.device, repeats: int, cases: Callable) -> Iterator[dict]:
    """The work of another system (evaluation.bench_systems), with the memory that it takes."""
    for work in cases(config, device, distributed.computes_in_bfloat16(device, config.precision)):
        choose_kernels(config, device, training=work.step)
        memory = peak_memory(device if work.on_device else torch.device("cpu"), work.ours)
        times = timed(device, repeats, ours=work.ours, plain=work.plain)
        base, note = (work.baseline, times["plain"]), {"note": f"peak memory {memory:.1f} GB"} if memory else {}
        yield row(work.what, times["ours"], work.amount, work.unit, base, **note)
        if work.step:
            with FlopCounterMode(display=False) as counter:
                work.plain()
            yield row(f"{work.what}, arithmetic", times["ours"], counter.get_total_flops() / 1e12, "TFLOP/s", base)
