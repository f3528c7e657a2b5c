"""Rows of training steps."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datasets.voc import CLASSES
from engine import distributed
from engine.workers import Workers, at_most_cores, crf_kernel
from models.crf import masks_after_crf
from models.exact_crf import exact_masks
from models.ssdd.difference import cross_entropy
from models.ssdd.segmentation import masked_prediction
from models.ssdd.steps import DynamicStep, StaticStep
from modes.ssdd.dynamic import exact_is_faster
from modes.ssdd.fixed import optimiser_of
from modes.ssdd.networks import build, final_network, freeze_for_ssdd, integration, network_input, optimisers_of
from settings.config import Config, with_network
from tools.bench.inputs import plain, training_batch
from tools.bench.timing import peak_memory, row, timed


def step_rows(config: Config, device: torch.device, repeats: int, mode: int) -> Iterator[dict]:
    """Training steps of a mode; of mode 2 also without its CRF.

    The baseline of mode 2 runs pydensecrf on one image after the other, as the released program does.
    """
    dynamic, functions = mode == 2, {}
    if config.crf == "auto":
        config = replace(config, crf="exact" if exact_is_faster(config, device) else "pydensecrf")
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


def trainer(
    config: Config, device: torch.device, dynamic: bool, fast: bool, crf: Callable | None
) -> Callable[[], None]:
    """One whole training step of mode 0 or 2 as a function; not `fast`: plain eager float32 in NCHW."""
    torch.manual_seed(config.seed)
    config, layout = (
        (config, distributed.memory_format(device, config.width, config.precision)) if fast else plain(config)
    )
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


def final_rows(config: Config, device: torch.device, repeats: int) -> Iterator[dict]:
    """Training steps of mode 4's DeepLabv3+ on two images of 513×513, its published side (demo: of its crop)."""
    side = 513 if config.preset == "voc" else config.crop
    x = torch.randn(2, 3, side, side, device=device)
    target = torch.randint(len(CLASSES), (2, -(-side // 4), -(-side // 4)), device=device)
    functions = {}
    for name, (own, layout) in {
        "ours": (config, distributed.memory_format(device, config.width, config.precision)),
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
