"""How much memory a training step needs, found without the memory and without the GPU.

The step runs on torch's fake tensors, which have a shape and no content. Counted is every tensor that lives at a time:
weights, gradients, the optimiser's state, activations and what comes and goes between. Not counted is what the
libraries take on top: a CUDA context (about half a GiB), cuDNN's and cuBLAS's workspaces, gaps between the
allocator's blocks, and the buckets of DistributedDataParallel (once the gradients).

    python -m evaluation.step_memory            prints the published networks' steps, some batches, both precisions,
                                                and how many images fit on GPUs of some sizes
"""

import argparse
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.crf import CrfKernel
from models.exact_crf import exact_masks
from models.resnet38 import train_with_frozen_batchnorm
from models.ssdd.ddnet import DDNet
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import DynamicStep, Integration, StaticStep

GPUS = (12, 24, 80)  # GB
ON_TOP = 1.5  # GB, room for what is not counted


class StepMemory(NamedTuple):
    """Bytes."""

    before: int  # weights and whatever else is there before the first step
    between: int  # between steps: the same, the optimiser's state, and the gradients where the step leaves them
    peak: int  # within a step


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations have made and that still live."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._freed, size)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def _freed(self, size: int) -> None:
        self.bytes -= size


def step_memory(prepare: Callable[[], Callable[[], None]]) -> StepMemory:
    """Run two steps on fake tensors, as the first one makes the optimiser's state that the second one finds.

    Args:
        prepare: makes networks, optimisers and a batch of tensors on the CPU, and returns the function that does one
            step with them. The step may not look at values (`.item()`, `nonzero`).
    """
    with FakeTensorMode(), _LiveBytes() as live:
        step = prepare()
        before = live.bytes
        step()
        between = live.bytes
        step()
    return StepMemory(before, between, live.peak)


def prepare_ssdd(
    batch: int, dynamic: bool, precision: torch.dtype, crop: int = 448, width: float = 1.0, dilation: int = 12
) -> Callable[[], None]:
    """One step of mode 0 or mode 2 as modes/ does it; the defaults are the published networks."""
    segmentation = SegmentationNetwork(21, width, dilation, with_sub=dynamic)
    ddnet = DDNet(2 if dynamic else 1, 21, width)
    small = crop // 4
    masks = [torch.zeros(batch, small, small, dtype=torch.int64) for _ in range(2)]
    if dynamic:

        def crf(images: Tensor, logits: Tensor, present: Tensor) -> Callable[[], Tensor]:
            return exact_masks(images, logits, present, 3, CrfKernel())

        step = DynamicStep(segmentation, ddnet, Integration(), 0.5, "ssdd1", crf)
        rest = torch.zeros(batch, small, small, 3, dtype=torch.uint8), masks[0]
    else:
        step = StaticStep(segmentation, ddnet, Integration())
        rest = masks
    train_with_frozen_batchnorm(step)
    segmentation.encoder.conv1a.requires_grad_(False)
    x, present = torch.zeros(batch, 3, crop, crop), torch.ones(batch, 21)
    learned = [p for p in step.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learned, lr=1e-3, weight_decay=2e-4, fused=True)

    def one_step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            result = step(x, present, *rest)
        (result.loss_seg + result.loss_dd).backward()
        optimiser.step()

    return one_step


def most_images(peaks: dict[int, int], gigabytes: float) -> int:
    """Images a step that fit on a GPU, by the line through the peaks (bytes, by images) of the two largest batches."""
    (few, low), (many, high) = sorted(peaks.items())[-2:]
    a_image = (high - low) / (many - few)
    return max(0, int(((gigabytes - ON_TOP) * 1e9 - low) / a_image + few))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="images a GPU")
    chosen = parser.parse_args(arguments)
    fits = []
    print("| step | precision | images | weights, GiB | peak, GiB |\n|---|---|---|---|---|")
    for name, dynamic in (("static", False), ("dynamic", True)):
        for precision in (torch.float32, torch.bfloat16):
            peaks = {}
            for batch in chosen.batches:
                memory = step_memory(lambda: prepare_ssdd(batch, dynamic, precision))  # noqa: B023
                peaks[batch] = memory.peak
                before, peak = (size / 2**30 for size in (memory.before, memory.peak))
                print(f"| {name} | {str(precision).split('.')[1]} | {batch} | {before:.2f} | {peak:.2f} |", flush=True)
            if len(peaks) > 1:
                fits.append((name, str(precision).split(".")[1], *(str(most_images(peaks, gb)) for gb in GPUS)))
    print(f"\n| step | precision | {' | '.join(f'images, {gb} GB' for gb in GPUS)} |\n|{'---|' * (2 + len(GPUS))}")
    for row in fits:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
