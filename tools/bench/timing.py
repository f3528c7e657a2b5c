"""Times and memory of functions that take turns, and the line of the table that is made from them."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine import distributed
from evaluation.baselines import memory
from settings.config import Config


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


def choose_kernels(config: Config, device: torch.device, training: bool) -> None:
    """Let torch choose kernels as it does for the program that a row stands for."""
    distributed.start(config.device, ("--bn", config.bn) if training else None)
    if training and config.deterministic and device.type == "cuda":
        distributed.compute_deterministically()


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
