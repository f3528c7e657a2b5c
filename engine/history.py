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
from engine.loading import EpochOrder
from engine.progress import progress
from engine.resume import Standing, check_finite

FILE = "history.jsonl"
COLUMNS = "pictures.json"
LARGEST = 1 << 28  # bytes
STEPS_BETWEEN_LOOKS = 10  # seeing a figure means waiting for the device


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


class Journal:
    """What a training run says while it runs: bar, a line an epoch, and on the first process its History."""

    def __init__(self, title: str, folder: Path, at: Standing, order: EpochOrder, epochs: int):
        self.title, self.order, self.epochs = title, order, epochs
        done = at.epoch + at.step / order.steps
        self.history = History(folder, done, order.steps) if distributed.rank() == 0 else None

    def begin_epoch(self, at: Standing) -> None:
        self.started, self.first = time.perf_counter(), at.step
        self.bar = progress(f"{self.title} {at.epoch + 1}/{self.epochs}", self.order.steps, unit="step")
        self.bar.update(at.step)

    def note_step(self, at: Standing, rate: float) -> None:
        """Now and then look at the figures; raises an InputError if they are not finite."""
        steps = self.order.steps
        if len(at.recent) == STEPS_BETWEEN_LOOKS or at.step == steps:
            means = check_finite(at, steps, self.title)
            for name, value in means.items():
                at.totals[name] = at.totals.get(name, 0.0) + value * len(at.recent)
            if self.history is not None:
                self.history.step(at.epoch * steps + at.step - 1, means | {"learning_rate": rate})
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
            at.recent = []
        self.bar.update()

    def end_epoch(self, at: Standing) -> None:
        self.bar.close()
        if self.history is None:
            return
        seconds = time.perf_counter() - self.started
        images = (self.order.samples - self.first * self.order.batch) * distributed.processes() / seconds
        means = "  ".join(f"{name} {total / self.order.steps:.4f}" for name, total in at.totals.items())
        print(f"{self.title}  epoch {at.epoch + 1}/{self.epochs}  {means}  {images:.1f} images/s", flush=True)
        noted = {"seconds": seconds, "images_per_second": images, "memory_gib": peak_memory()}
        self.history.epoch(at.epoch + 1, noted)

    def close(self) -> None:
        if self.history is not None:
            self.history.close()


def note_columns(
    folder: Path,
    rows: dict[str, dict[str, str]],
    masks: list[str],
    ids: list[str],
    about: str,
    scale: str,
    more: dict | None = None,
) -> None:
    """Say, for the pages, which pictures a run logs: COLUMNS in its folder.

    A picture lies in imgs/<id>_<epoch>_<what>.png, a photograph ("photo") in imgs/<id>.jpg, whatever the epoch.

    Args:
        rows: what → title of each picture of a row, by the title of the row.
        masks: the pictures among them that are masks.
        ids: the logged images.
        about: the pictures, for people.
        scale: what those in the colours of a scale show.
        more: what else the page of this stage needs.
    """
    content = {"rows": rows, "masks": masks, "ids": ids, "about": about, "scale": scale} | (more or {})
    with atomic_write(folder / COLUMNS) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


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
