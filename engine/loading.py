"""From samples to batches on a device, in an order that is a function of the run's seed."""

import hashlib
from collections.abc import Iterable, Iterator

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.errors import InputError
from engine import distributed
from engine.workers import at_most_cores, outlive_interruption
from settings.config import Config

LOADERS = 16  # processes at most: at 120 images/s each they make more than a device takes
Key = tuple[int, int]  # the place of a sample and the seed of what is random in it


class EpochOrder:
    """The batches of one epoch for this process: a shuffle that depends on the run's seed and the epoch alone.

    Consecutive global batches are dealt out to the processes in turn, so their number does not change a batch.

    Args:
        length: samples.
        batch: samples a process and step.
        drop_rest: leave out what does not fill a last batch of all processes; else that batch is smaller.
    """

    def __init__(self, length: int, batch: int, seed: int, drop_rest: bool = False):
        self.length, self.batch, self.seed = length, batch, seed
        self.samples = -(-length // distributed.processes())  # of this process
        if drop_rest:
            self.samples = length // (batch * distributed.processes()) * batch
        self.steps = -(-self.samples // batch)
        self.start(0, 0)

    def start(self, epoch: int, step: int) -> None:
        """Which epoch the next iteration gives, from which of its steps on."""
        self.epoch, self.step = epoch, step

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        seeds = torch.randint(2**31, (self.length,), generator=generator)
        # Every process needs as many samples: the first ones come again.
        places = torch.arange(self.samples * distributed.processes()) % self.length
        places = places[distributed.rank() :: distributed.processes()]
        keys = list(zip(order[places].tolist(), seeds[places].tolist(), strict=True))
        return iter([keys[n * self.batch : (n + 1) * self.batch] for n in range(self.step, self.steps)])


def epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**31


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed what a step draws (dropout), of every device, by its place in the run; processes draw apart."""
    place = f"{seed} {epoch} {step} {distributed.rank()}"
    # torch's own generators take neighbouring seeds, and on CPUs half of their bits, as they are.
    torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:4]))


class SeededSamples(Dataset):
    """Makes a sample a function of its seed, and carries a reader's error out of a worker process whole."""

    def __init__(self, samples: Dataset):
        self.samples = samples

    def __getitem__(self, key: Key) -> dict | InputError:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return self.samples[index]
            except InputError as error:
                return error


def collate(samples: list[dict | InputError]) -> dict | InputError:
    return next((sample for sample in samples if isinstance(sample, InputError)), None) or default_collate(samples)


class Batches:
    """A DataLoader whose batches lie on `device` and whose readers' errors arrive as InputErrors.

    Each iteration asks `order` for its batches anew; worker processes stay for the next one.
    """

    def __init__(self, config: Config, samples: Dataset, order: Iterable[list[Key]], device: torch.device):
        self.device = device
        self.loader = DataLoader(
            SeededSamples(samples),
            batch_sampler=order,
            num_workers=at_most_cores(min(config.workers, LOADERS)),
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            persistent_workers=config.workers > 0,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # not the global one: how often it is drawn from depends on the workers
        )

    def __iter__(self) -> Iterator[dict]:
        for content in self.loader:
            if isinstance(content, InputError):
                raise content
            yield to_device(content, self.device)


def to_device(batch: dict, device: torch.device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _start_worker(_number: int) -> None:
    cv2.setNumThreads(0)  # the other cores have workers of their own
    outlive_interruption()
