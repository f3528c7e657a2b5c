"""What a stage notes about itself while it runs: history.jsonl, which the pages read, and the same for TensorBoard.

Each line of history.jsonl is one JSON object. With "step": the means of the last steps' figures. With "seconds": a
whole epoch, or a pass of a stage without epochs, with "images_per_second" and "memory_gib" (peak, of the GPU where
one is used, else of the process).
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from datasets.files import atomic_write, read_bytes
from engine import distributed

FILE = "history.jsonl"
LARGEST = 1 << 28  # bytes


class History:
    """Of a training run; kept by the first process.

    Args:
        folder: of the run; receives history.jsonl and tensorboard/.
        done: epochs trained before; what was noted after them is dropped, as it is trained again.
        steps: of an epoch.
    """

    def __init__(self, folder: Path, done: float, steps: int):
        self.path, self.steps = folder / FILE, steps
        kept = [line for line in read(folder) if line.get("epoch", 0) <= done + 1e-9]
        if done and kept:
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        else:
            self.path.unlink(missing_ok=True)
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=round(done * steps))

    def step(self, step: int, figures: dict[str, float]) -> None:
        """step: counted over the whole run."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        _append(self.path, {"step": step, "epoch": (step + 1) / self.steps} | figures)

    def epoch(self, epoch: int, figures: dict[str, float]) -> None:
        """epoch: complete ones."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, epoch * self.steps)
        _append(self.path, {"epoch": epoch} | figures)

    def picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """pixels: H×W×3 uint8, for TensorBoard only."""
        self.writer.add_image(name, pixels, epoch * self.steps, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def note_pass(folder: Path, images: int, started: float) -> None:
    """Note a pass over `images` images since `started` (time.perf_counter); the other processes did as many each."""
    seconds, images = time.perf_counter() - started, images * distributed.processes()
    if images:
        _append(folder / FILE, {"images": images, "seconds": seconds, "images_per_second": images / seconds,
                                "memory_gib": peak_memory()})  # fmt: skip


def read(folder: Path) -> list[dict]:
    """The lines of a stage's history, numbers by name; a last line that is still being written is left out."""
    lines = []
    try:
        for text in read_bytes(folder / FILE, LARGEST).decode("utf-8").splitlines():
            line = json.loads(text)
            if isinstance(line, dict) and all(isinstance(value, int | float) for value in line.values()):
                lines.append(line)
    except (OSError, ValueError, RecursionError):
        pass
    return lines


def peak_memory() -> float:
    """GiB: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 2**30


def _append(path: Path, line: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
