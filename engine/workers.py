"""Work on CPU cores beside the device: dense CRFs, and the writing of what an image gave."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor

import cv2
import torch

from engine.distributed import processes_here
from models.crf import CrfKernel
from settings.config import Config


def at_most_cores(wanted: int) -> int:
    """`wanted` worker processes, but no more than this process' share of the cores, if it wants any at least one.

    Raises:
        InputError: LOCAL_WORLD_SIZE is no number of processes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, max(1, cores // processes_here()))


def crf_kernel(config: Config) -> CrfKernel:
    return CrfKernel(
        config.crf_gaussian_sxy,
        config.crf_gaussian_weight,
        config.crf_sxy,
        config.crf_srgb,
        config.crf_bilateral_weight,
    )


class Workers:
    """Runs functions in `workers` processes beside the caller; with 0 in the caller itself. A context manager.

    Leaving it without an exception waits for everything that was queued.
    """

    def __init__(self, workers: int):
        # Forking after CUDA or thread pools have started can deadlock the child.
        context = multiprocessing.get_context("forkserver")
        if workers:
            context.set_forkserver_preload(["models.crf"])
        self._most = 2 * workers  # waiting ones hold their arguments, 17 MB an image in mode 3
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

    def __enter__(self) -> "Workers":
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
    cv2.setNumThreads(0)
    outlive_interruption()
    # A killed caller cannot tell its workers to leave.
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def outlive_interruption() -> None:
    """Let a worker process go on for a while when a terminal or a cluster interrupts all processes of a run.

    The one that they work for decides when to leave, and needs them to finish its step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: threading.Timer(20, os._exit, [1]).start())
