"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) through pydensecrf, alone or in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pydensecrf.densecrf as densecrf
import torch
from torch import Tensor


@dataclass(frozen=True)
class CrfKernel:
    """The pairwise terms; the published setting is the default. Distances in pixels, colours in 0…255."""

    gaussian_sxy: float = 3
    gaussian_weight: float = 3
    bilateral_sxy: float = 80
    bilateral_srgb: float = 13
    bilateral_weight: float = 10


def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, iterations: int, kernel: CrfKernel = CrfKernel()
) -> np.ndarray:
    """Mean-field inference with unary −log(clip(p, 1e-5, 1)); p need not sum to one.

    Args:
        image: H×W×3 uint8 RGB.
        probabilities: K×H×W float32, one map a label.
        iterations: mean-field steps; 3 while training, 10 otherwise.

    Returns:
        K×H×W float32 marginals.
    """
    labels, height, width = probabilities.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"CRF image is {image.dtype} {image.shape}, needed: uint8 {(height, width, 3)}")
    if labels == 1:
        return np.ones_like(probabilities, dtype=np.float32)
    crf = densecrf.DenseCRF2D(width, height, labels)
    unary = -np.log(np.clip(probabilities, 1e-5, 1.0)).reshape(labels, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=kernel.gaussian_sxy, compat=kernel.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=kernel.bilateral_sxy,
        srgb=kernel.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=kernel.bilateral_weight,
    )
    return np.array(crf.inference(iterations), dtype=np.float32).reshape(labels, height, width)


class CrfWorkers:
    """Runs dense CRFs in `workers` processes beside the caller; with 0 in the caller itself. A context manager.

    Leaving it without an exception waits for everything that was queued.
    """

    def __init__(self, workers: int):
        # Forking after CUDA or thread pools have started can deadlock the child.
        context = multiprocessing.get_context("forkserver")
        if workers:
            context.set_forkserver_preload(["models.crf"])
        self._most = 4 * workers
        self._queued: deque[Future] = deque()
        self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) if workers else None

    def submit(self, function, /, *args) -> Future:
        """Run `function(*args)` in a worker; both must be picklable."""
        if self._pool is not None:
            return self._pool.submit(function, *args)
        future: Future = Future()
        future.set_result(function(*args))
        return future

    def queue(self, function, /, *args) -> None:
        """`submit`, for work whose result nobody waits for; blocks while too much is under way, raises its errors."""
        self._queued.append(self.submit(function, *args))
        while len(self._queued) > self._most:
            self._queued.popleft().result()

    def __enter__(self) -> "CrfWorkers":
        return self

    def __exit__(self, kind, *exception) -> None:
        try:
            while self._queued and kind is None:
                self._queued.popleft().result()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    outlive_interruption()
    # A killed caller cannot tell its workers to leave.
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def outlive_interruption() -> None:
    """Let a worker process go on for a while when a terminal or a cluster interrupts all processes of a run.

    The one that they work for decides when to leave, and needs them to finish its step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(20, os._exit, [1]).start())


def masks_after_crf(
    images: Tensor, logits: Tensor, present: Tensor, iterations: int, kernel: CrfKernel, workers: CrfWorkers
) -> Callable[[], Tensor]:
    """Start the CRFs that give the advice of the first dynamic module: of the softmax over the present classes only.

    Args:
        images: N×h×w×3 uint8 RGB.
        logits: N×C×h×w.
        present: N×C image-level labels.

    Returns:
        A function that waits for the masks: N×h×w int64 on the device of `logits`, without gradient. Meanwhile the
        caller can go on with what does not need them.
    """
    probabilities = present_probabilities(logits, present).cpu().numpy()
    classes = [np.flatnonzero(row) for row in present.cpu().numpy()]
    futures = [
        workers.submit(_label_map, image, p[c], c, iterations, kernel)
        for image, p, c in zip(images.cpu().numpy(), probabilities, classes, strict=True)
    ]
    return lambda: torch.from_numpy(np.stack([future.result() for future in futures])).to(logits.device)


def present_probabilities(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present classes only, N×C×h×w float32 without gradient, 0 elsewhere."""
    masked = logits.detach().float().masked_fill(present[:, :, None, None] == 0, -torch.inf)
    return torch.softmax(masked, dim=1)


def _label_map(
    image: np.ndarray, probabilities: np.ndarray, classes: Iterable[int], iterations: int, kernel: CrfKernel
) -> np.ndarray:
    return np.asarray(classes)[dense_crf(image, probabilities, iterations, kernel).argmax(axis=0)].astype(np.int64)
