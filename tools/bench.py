"""How fast is it, and against what? Measured on the machine that it runs on, each row beside its baseline.

    python -m tools.bench                                  # all rows, at the published sizes (an hour on two cores)
    python -m tools.bench --preset demo --only step0 crf    # a quick look
    python -m tools.bench --write docs/benchmarks/cpu.json  # keep every single time
    python -m tools.bench --readme                         # put its tables into docs/benchmarks/README.md

Row and baseline take turns in one process, so that whatever else the machine does hits both. The weights are random,
which changes no time. Images are those of --split in --voc-root if they are there with their masks, else drawn.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datasets.demo import draw
from datasets.errors import InputError, program
from datasets.files import atomic_write
from datasets.transforms import as_tensor, draw_jitter, normalise
from datasets.voc import CLASSES, IGNORE, class_names, mask_path, read_ids, read_image, read_mask
from engine import distributed
from engine.workers import Workers, at_most_cores, crf_kernel
from evaluation.baselines import dense_walk, memory, scene, walk_inputs
from evaluation.bench_loader import each, loader_parts, loader_samples
from evaluation.bench_systems import icd_cases, recurseed_cases
from evaluation.bench_table import table, update_readme
from models.crf import dense_crf, masks_after_crf
from models.exact_crf import exact_crf, exact_masks
from models.inference import multiscale_probabilities
from models.psa.affinity import random_walk
from models.ssdd.difference import cross_entropy
from models.ssdd.segmentation import masked_prediction
from models.ssdd.steps import DynamicStep, StaticStep
from modes.ssdd.fixed import optimiser_of
from modes.ssdd.networks import (
    build,
    final_network,
    freeze_for_ssdd,
    integration,
    network_input,
    optimisers_of,
)
from settings.config import Config, preset, with_network
from settings.flags import Parser, add_flags, flags_of, parsed

ROWS = ("peak", "step0", "step2", "precompute", "evaluation", "crf", "labels", "loader", "final", "icd", "recurseed")

VOC_SIZE = (375, 500)


def timed(
    device: torch.device,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    **functions: Callable[[], object],
) -> dict[str, list[float]]:
    """Seconds of each call; the functions take turns, and each is called once before."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            synchronise(device)
            began = clock()
            function()
            synchronise(device)
            if turn:
                times[name].append(clock() - began)
    return times


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(
    what: str, times: list[float], amount: float, unit: str, base: tuple[str, list[float]] | None = None, **more
) -> dict:
    """What one line of the table is made from: `amount` units were done in each of `times` seconds."""
    made = {"what": what, "unit": unit, "rates": [amount / t for t in times], **more}
    if base is not None:
        made |= {"baseline": base[0], "baseline_rates": [amount / t for t in base[1]]}
    return made


def peak_memory(device: torch.device, function: Callable[[], object]) -> float | None:
    """Largest memory while `function` runs, GB: of the device, on the CPU of the whole process; None if unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 1e9
    if not Path("/proc/self/clear_refs").exists():
        function()
        return None
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    function()
    return memory("VmHWM") / 1e9


def peak_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """TFLOP/s of one large matrix product and of the backbone's commonest convolution, bfloat16 beside float32."""
    side, cells = (8192 if device.type == "cuda" else 2048), config.crop // 8
    inner, outer = (max(16, round(c * config.width)) for c in (512, 1024))
    factors = [torch.randn(side, side, device=device) for _ in range(2)]
    image = torch.randn(config.bn, inner, cells, cells, device=device)
    weight = torch.randn(outer, inner, 3, 3, device=device)
    layout = distributed.memory_format(device, config.width)
    halves = [t.bfloat16() for t in factors]
    laid = [t.bfloat16().contiguous(memory_format=layout) for t in (image, weight)]
    products = {
        "matrix product": (2 * side**3, lambda f: f[0] @ f[1], halves, factors),
        "3×3 convolution": (
            2 * image.numel() * 9 * outer,
            lambda f: nn.functional.conv2d(*f, padding=2, dilation=2),
            laid,
            [image, weight],
        ),
    }
    for name, (flop, function, fast, plain) in products.items():
        times = timed(device, 3 * repeats, fast=partial(function, fast), plain=partial(function, plain))
        base = ("float32", times["plain"])
        yield row(f"measured peak, {name}, bfloat16", times["fast"], flop / 1e12, "TFLOP/s", base)


def training_batch(config: Config, device: torch.device) -> dict:
    """A batch of `config.bn` images as the loader makes it."""
    cases = [case(config, n, config.crop) for n in range(config.bn)]
    small = [case(config, n, config.crop // 4) for n in range(config.bn)]
    present = torch.zeros(config.bn, len(CLASSES))
    for n, (_, _, labels) in enumerate(small):
        present[n, labels] = 1
    masks = torch.stack([torch.from_numpy(labels[p.argmax(0)]) for _, p, labels in small])
    orders, factors = zip(*(draw_jitter() for _ in cases), strict=True)
    batch = {
        "factors": torch.stack(factors),
        "image": torch.stack([as_tensor(image) for image, _, _ in cases]),
        "present": present,
        "knowledge": masks,
        "advice": masks.roll(2, -1),
        "small": torch.from_numpy(np.stack([image for image, _, _ in small])),
    }
    return {"order": orders} | {key: value.to(device) for key, value in batch.items()}


def plain(config: Config) -> tuple[Config, torch.memory_format]:
    """Config and layout of the baselines."""
    return replace(config, precision="float32", compile=False), torch.contiguous_format


def trainer(
    config: Config, device: torch.device, dynamic: bool, fast: bool, crf: Callable | None
) -> Callable[[], None]:
    """One whole training step of mode 0 or 2 as a function; not `fast`: plain eager float32 in NCHW."""
    torch.manual_seed(config.seed)
    config, layout = (config, distributed.memory_format(device, config.width)) if fast else plain(config)
    segmentation, ddnet = build(config, dynamic)
    how = integration(config)
    if dynamic:
        step = DynamicStep(segmentation, ddnet, how, config.alpha, config.seed_target, crf)
    else:
        step = StaticStep(segmentation, ddnet, how)
    step.to(device, memory_format=layout)
    freeze_for_ssdd(step, step.segmentation)
    optimisers = optimisers_of(step, config)
    batch = training_batch(config, device)

    def run() -> None:
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        with distributed.autocast(device, config.precision):
            x = network_input(batch, layout)
            masks = (batch["small"], batch["knowledge"]) if dynamic else (batch["knowledge"], batch["advice"])
            result = step(x, batch["present"], *masks)
        (result.loss_seg + result.loss_dd).backward()
        for optimiser in optimisers:
            optimiser.step()

    return run


def step_rows(config: Config, device: torch.device, repeats: int, mode: int) -> Iterator[dict]:
    """Training steps of a mode; of mode 2 also without its CRF.

    The baseline of mode 2 runs pydensecrf on one image after the other, as the released program does.
    """
    dynamic, functions = mode == 2, {}
    with Workers(at_most_cores(config.workers) if config.crf_workers else 0) as workers:
        options = {"iterations": config.crf_train, "kernel": crf_kernel(config)}
        exact = partial(exact_masks, **options)
        ours = exact if config.crf == "exact" else partial(masks_after_crf, submit=workers.submit, **options)
        functions["ours"] = trainer(config, device, dynamic, True, ours)
        functions["ours"]()  # torch.compile takes memory of its own
        memory = peak_memory(device, functions["ours"])
        if dynamic:
            without = lambda images, logits, present: partial(masked_prediction, logits, present)  # noqa: E731
            functions["without"] = trainer(config, device, True, True, without)
        functions["plain"] = trainer(config, device, dynamic, False, partial(masks_after_crf, **options))
        with FlopCounterMode(display=False) as counter:
            functions["plain"]()  # the exact CRF's arithmetic is no network's
        times = timed(device, repeats, **functions)
    base = ("float32, NCHW" + ", pydensecrf in one thread" * dynamic, times["plain"])
    flop = counter.get_total_flops() / 1e12
    what = f"training step, mode {mode}, batch {config.bn}"
    yield row(what, times["ours"], config.bn, "images/s", base, tflop=flop, memory=memory, step=mode, batch=config.bn)
    yield row(f"{what}, arithmetic", times["ours"], flop, "TFLOP/s", base)
    if dynamic:
        base = ("without CRF", times["without"])
        yield row(f"{what}, CRF {config.crf}", times["ours"], config.bn, "images/s", base)


def final_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """Training steps of mode 4's DeepLabv3+ on two images of 513×513, its published side (demo: of its crop)."""
    side = 513 if config.preset == "voc" else config.crop
    x = torch.randn(2, 3, side, side, device=device)
    target = torch.randint(len(CLASSES), (2, -(-side // 4), -(-side // 4)), device=device)
    functions = {}
    for name, (own, layout) in {
        "ours": (config, distributed.memory_format(device, config.width)),
        "plain": plain(config),
    }.items():
        torch.manual_seed(config.seed)
        own = with_network(own, "deeplabv3plus")
        network = final_network(own, len(CLASSES)).to(device, memory_format=layout).train()
        given = x.contiguous(memory_format=layout)
        functions[name] = partial(final_step, own, network, optimiser_of(own, network), given, target)
    memory = peak_memory(device, functions["ours"])
    with FlopCounterMode(display=False) as counter:
        functions["plain"]()
    times, flop = timed(device, repeats, **functions), counter.get_total_flops() / 1e12
    what = f"training step, mode 4, deeplabv3plus, batch 2, {side}×{side}"
    yield row(what, times["ours"], 2, "images/s", ("float32, NCHW", times["plain"]), tflop=flop, memory=memory)


def final_step(
    config: Config, network: nn.Module, optimiser: torch.optim.Optimizer, x: torch.Tensor, target: torch.Tensor
) -> None:
    optimiser.zero_grad(set_to_none=True)
    with distributed.autocast(x.device, config.precision):
        logits = network(x)
    cross_entropy(logits, target).backward()
    optimiser.step()


def precompute_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """Mode 1's forward pass."""
    functions = {}
    batch = training_batch(replace(config, bn=config.eval_batch), device)
    ours = config, distributed.memory_format(device, config.width)
    for name, (own, layout) in {"ours": ours, "plain": plain(config)}.items():
        step = StaticStep(*build(own, False), integration(own)).to(device, memory_format=layout).eval()
        functions[name] = partial(predict, step, batch, device, own.precision, layout)
    times = timed(device, repeats, **functions)
    base = ("float32, NCHW", times["plain"])
    what = f"mode 1, batch {config.eval_batch}"
    yield row(what, times["ours"], config.eval_batch, "images/s", base, step=1)


@torch.inference_mode()
def predict(step: StaticStep, batch: dict, device: torch.device, precision: str, layout: torch.memory_format) -> None:
    with distributed.autocast(device, precision):
        x = network_input({"image": batch["image"]}, layout)
        step.predict(x, batch["present"], batch["knowledge"], batch["advice"])


def evaluation_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """One image of mode 3 through the network: all scales, image and mirror in one batch, against one by one."""
    torch.manual_seed(config.seed)
    layout = distributed.memory_format(device, config.width)
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


def case(config: Config, number: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image side×side×3, probabilities K×side×side of a blurred and disturbed true mask, and its K labels."""
    root, ids = config.voc_root, photographs_of(config)
    if ids:
        image_id = ids[number % len(ids)]
        image, mask = read_image(root, image_id), read_mask(mask_path(root, image_id))
    else:
        image, mask, _ = draw(config.seed, number + 1)
    image = cv2.resize(image, (side, side))
    mask = cv2.resize(np.where(mask == IGNORE, 0, mask).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    labels = np.union1d(mask, [0]).astype(np.int64)
    rng = np.random.default_rng(number)
    disturbed = []
    for label in labels:
        smooth = cv2.GaussianBlur((mask == label).astype(np.float32), (0, 0), side / 20)
        noise = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), side / 22)
        disturbed.append(2 * np.log(smooth + 1e-3) + noise / noise.std())
    scores = np.exp(np.stack(disturbed) - np.max(disturbed, axis=0))
    return image, (scores / scores.sum(0)).astype(np.float32), labels


def photographs_of(config: Config) -> list[str]:
    """Ids of --split that have a true mask, if VOC's own images are in --voc-root."""
    root = Path(config.voc_root)
    if not (root / "JPEGImages").is_dir() or (root / "demo.json").exists():
        return []
    return [image_id for image_id in read_ids(root, config.split) if mask_path(root, image_id).exists()]


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
        memory = peak_memory(device if work.on_device else torch.device("cpu"), work.ours)
        times = timed(device, repeats, ours=work.ours, plain=work.plain)
        base, note = (work.baseline, times["plain"]), {"note": f"peak memory {memory:.1f} GB"} if memory else {}
        yield row(work.what, times["ours"], work.amount, work.unit, base, **note)
        if work.step:
            with FlopCounterMode(display=False) as counter:
                work.plain()
            yield row(f"{work.what}, arithmetic", times["ours"], counter.get_total_flops() / 1e12, "TFLOP/s", base)


def measure(config: Config, device: torch.device, repeats: int, only: list[str]) -> Iterator[dict]:
    functions = {
        "peak": peak_rows,
        "step0": partial(step_rows, mode=0),
        "step2": partial(step_rows, mode=2),
        "precompute": precompute_rows,
        "evaluation": evaluation_rows,
        "crf": crf_rows,
        "labels": labels_rows,
        "loader": loader_rows,
        "icd": partial(system_rows, cases=icd_cases),
        "recurseed": partial(system_rows, cases=recurseed_cases),
        "final": final_rows,
    }
    for name in only:
        yield from functions[name](config, device, repeats)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units = [u for u in ("amx_bf16", "avx512_bf16") if getattr(torch.cpu, "get_capabilities", dict)().get(u)]
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, bfloat16 units: {', '.join(units) or 'none'}"


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure")
    parser.add_argument("--repeats", type=int, default=5, help="turns a row (default: 5)")
    parser.add_argument("--write", type=Path, metavar="FILE.json", help="keep the raw times here")
    parser.add_argument("--readme", action="store_true", help="measure nothing, make its tables")
    add_flags(parser, "ssdd")
    config, arguments = parsed(parser, argv)
    if arguments.readme:
        update_readme(Path("docs/benchmarks/README.md"))
        return
    if arguments.write and arguments.write.suffix != ".json":
        raise InputError(f"--write={arguments.write}: must end in .json")
    if arguments.repeats < 1:
        raise InputError(f"--repeats={arguments.repeats}: must be 1 or more")
    if class_names(config.voc_root) != CLASSES:
        raise InputError(f"--voc-root={config.voc_root} has its own classes: the benchmark needs VOC's, or no images")
    device = distributed.start(config.device)
    result = {
        "machine": machine(device),
        "device": device.type,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "command": " ".join(["python -m tools.bench", *command_of(arguments, config)]),
        "config": {name: getattr(config, name) for name in ("preset", "static_epochs", "dynamic_epochs", "bn", "crf")},
        "rows": [],
    }
    for made in measure(config, device, arguments.repeats, arguments.only):
        result["rows"].append(made)
        print(f"{made['what']}: {statistics.median(made['rates']):.3g} {made['unit']}", flush=True)
        if arguments.write:
            with atomic_write(arguments.write) as temporary:
                temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print()
    print(table(result))


def command_of(arguments: argparse.Namespace, config: Config) -> list[str]:
    """The command line without paths, which mean nothing to others."""
    own = preset(config.preset)
    flags = flags_of(replace(config, voc_root=own.voc_root, out=own.out))
    chosen = [] if list(arguments.only) == list(ROWS) else ["--only", *arguments.only]
    images = [f"--split={config.split}"] if photographs_of(config) else []
    return [*flags, *images, *chosen, f"--repeats={arguments.repeats}"]


if __name__ == "__main__":
    main()
