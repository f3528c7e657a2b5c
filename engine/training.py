"""The training loop that modes 0, 2 and 4 and the two label networks share.

A run is a function of (Config, data, seed): order and augmentation are seeded by epoch, dropout by step, so a run that
goes on where it was saved ends where an uninterrupted one does.
"""

import hashlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from datasets.errors import InputError, Stopped
from engine import distributed
from engine.history import History, peak_memory
from engine.progress import progress
from engine.resume import Figures, Interruption, Standing, read_state, weights_are_finite, write_state
from models.crf import outlive_interruption
from script.make_pages import refresh_now_and_then
from settings.config import Config

# Losses are looked at this often: seeing one means waiting for the device.
STEPS_BETWEEN_LOOKS = 10


def cosine_rate(base: float, epochs: int) -> Callable[[float], float]:
    """lr(e) = base·½(cos(π·e/R) + 1), e the fractional epoch, R = int(1.2·epochs) (released program)."""
    period = int(1.2 * epochs)
    return lambda epoch: base * (math.cos(math.pi * epoch / period) + 1) / 2


def poly_rate(base: float, epochs: int, power: float) -> Callable[[float], float]:
    """lr(e) = base·(1 − e/epochs)^power (PSA)."""
    return lambda epoch: base * (1 - epoch / epochs) ** power


def sgd(groups: list[tuple[list[nn.Parameter], float]], momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over (parameters, factor on the learning rate); frozen parameters are left out."""
    chosen = [{"params": [p for p in parameters if p.requires_grad], "factor": factor} for parameters, factor in groups]
    return torch.optim.SGD(
        [group for group in chosen if group["params"]], lr=0, momentum=momentum, weight_decay=weight_decay, fused=True
    )


class EpochOrder(Sampler):
    """(index, seed) pairs of one epoch for this process: a shuffle that depends on the run's seed and the epoch alone.

    Consecutive global batches are dealt out to the processes in turn, so their number does not change a batch.
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0
        self.skip = 0  # samples of this process at the epoch's start that are not to come again

    def __len__(self) -> int:
        return -(-self.length // distributed.processes())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        seeds = torch.randint(2**31, (self.length,), generator=generator)
        # Every process needs as many samples: the first ones come again.
        places = torch.arange(len(self) * distributed.processes()) % self.length
        places = places[distributed.rank() :: distributed.processes()]
        places = places[self.skip :]
        return iter(list(zip(order[places].tolist(), seeds[places].tolist(), strict=True)))


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

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict | InputError:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                return self.samples[index]
            except InputError as error:
                return error


def collate(samples: list[dict | InputError]) -> dict | InputError:
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
    return default_collate(samples)


def load_batches(
    config: Config, samples: Dataset, batch: int, sampler: Sampler, device: torch.device
) -> Iterator[dict]:
    """A DataLoader whose batches lie on `device` and whose readers' errors arrive as InputErrors."""
    loader = DataLoader(
        SeededSamples(samples),
        batch,
        sampler=sampler,
        num_workers=distributed.workers(config.workers),
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=config.workers > 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # not the global one: how often it is drawn from depends on the workers
    )
    while True:
        try:
            for content in loader:
                if isinstance(content, InputError):
                    raise content
                yield {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in content.items()}
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise InputError(f"{reason}; what is done is kept. If memory ran out, give a smaller --workers") from None
        yield None  # the end of an epoch; the loader's workers stay for the next


def _start_worker(_number: int) -> None:
    outlive_interruption()


def wrapped(step: nn.Module, device: torch.device) -> nn.Module:
    """The step, averaged over processes where there are several."""
    if distributed.processes() == 1:
        return step
    # A 1×1 convolution's gradient has ambiguous strides; copying it costs nothing that one would notice.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(step, device_ids=[device] if device.type == "cuda" else None)


def train(
    config: Config,
    title: str,
    folder: Path,
    device: torch.device,
    networks: dict[str, nn.Module],
    optimisers: list[torch.optim.SGD],
    rate: Callable[[float], float],
    samples: Dataset,
    batch: int,
    losses: Callable[[dict], tuple[dict[str, Tensor], dict[str, Tensor]]],
    after_epoch: Callable[[int, History | None], None],
    page: str,
    batch_flag: str = "--bn",
) -> None:
    """Train for `config.epochs` epochs, from where the run in `folder` was last saved.

    Args:
        title: of the progress bar.
        folder: receives state.pth after every epoch and every `config.checkpoint_every` minutes, history.jsonl and
            tensorboard/.
        networks: what is trained, by the name under which the state is kept.
        rate: learning rate at a fractional epoch.
        batch: samples a process and step.
        losses: batch → (losses, whose sum is minimised; other figures to log), all scalars on the device.
        after_epoch: called by every process with the number of complete epochs and, on the first process, the history,
            before the state is written.
        page: made anew every few minutes, with the index.
        batch_flag: sets `batch`; for the message when memory runs out.

    Raises:
        InputError: a sample cannot be read, a loss is not finite (names the step and the images), memory ran out, or
            a process was lost.
        Stopped: by SIGTERM or SIGINT; the state is written.
    """
    state_path = folder / "state.pth"
    order = EpochOrder(len(samples), config.seed)
    steps = -(-len(order) // batch)
    at = Standing()
    if state_path.exists():
        at = read_state(state_path, config.epochs, steps, networks, optimisers)
        at.unseen = [(step, ids, {k: v.to(device) for k, v in figures.items()}) for step, ids, figures in at.unseen]
    main = distributed.rank() == 0
    history = History(folder, at.epoch + at.step / steps, steps) if main else None
    batches = None

    def save() -> None:
        if at.unseen:
            look(at.unseen, title)
        if not weights_are_finite(networks):
            raise InputError(f"{title}: weights not finite in epoch {at.epoch + 1}; the last checkpoint is kept")
        if main:
            write_state(state_path, at, steps, networks, optimisers)
        interruption.saved()

    def leave(number: int) -> None:
        if number:
            how = f"stopped by {signal.Signals(number).name} after {at.epoch} epochs and {at.step} of {steps} steps"
            again = "the same command again" + (" without --fresh" if config.fresh else "")
            raise Stopped(f"{title}: {how}, saved in {state_path}; give {again} to go on", 128 + number)

    with Interruption(config.checkpoint_every) as interruption, distributed.faults(batch_flag, batch):
        while at.epoch < config.epochs:
            epoch = at.epoch
            order.epoch, order.skip = epoch, at.step * batch
            batches = batches or load_batches(config, samples, batch, order, device)
            started, before = time.perf_counter(), at.step
            bar = progress(f"{title} {epoch + 1}/{config.epochs}", steps, unit="step")
            bar.update(at.step)
            for content in iter(lambda it=batches: next(it), None):
                seed_step(config.seed, epoch, at.step)
                learning_rate = rate(epoch + at.step / steps)
                figures = train_step(content, optimisers, learning_rate, losses)
                at.unseen.append((epoch * steps + at.step, content["id"], figures))
                at.step += 1
                if len(at.unseen) == STEPS_BETWEEN_LOOKS or at.step == steps:
                    seen = look(at.unseen, title)
                    for name, value in seen.items():
                        at.totals[name] = at.totals.get(name, 0.0) + value * len(at.unseen)
                    if main:
                        history.step(epoch * steps + at.step - 1, seen | {"learning_rate": learning_rate})
                        refresh_now_and_then(config, page)
                    bar.set_postfix({name: f"{value:.3f}" for name, value in seen.items()}, refresh=False)
                    at.unseen = []
                bar.update()
                due, number = interruption.asks()
                if number or (due and at.step < steps):
                    save()
                leave(number)
            bar.close()
            seconds = time.perf_counter() - started
            images = (len(order) - before * batch) * distributed.processes() / seconds
            if main:
                means = "  ".join(f"{name} {total / steps:.4f}" for name, total in at.totals.items())
                print(f"{title}  epoch {epoch + 1}/{config.epochs}  {means}  {images:.1f} images/s", flush=True)
                noted = {"seconds": seconds, "images_per_second": images, "memory_gib": peak_memory()}
                history.epoch(epoch + 1, noted)
            after_epoch(epoch + 1, history)
            at = Standing(epoch + 1)
            save()
            leave(interruption.asks()[1])
            distributed.barrier()
    if main:
        history.close()


def train_step(
    content: dict, optimisers: list[torch.optim.SGD], learning_rate: float, losses: Callable
) -> dict[str, Tensor]:
    """Take one step of every optimiser; the losses and other figures of it."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * group["factor"]
        optimiser.zero_grad(set_to_none=True)
    minimised, others = losses(content)
    sum(minimised.values()).backward()
    for optimiser in optimisers:
        optimiser.step()
    return {name: value.detach() for name, value in (minimised | others).items()}


def look(unseen: list[Figures], title: str) -> dict[str, float]:
    """Means of the last steps' figures; one wait for the device.

    Raises:
        InputError: a figure is not finite.
    """
    names = list(unseen[0][2])
    values = torch.stack([torch.stack([figures[name].float() for name in names]) for _, _, figures in unseen]).cpu()
    for (step, ids, _), row in zip(unseen, values, strict=True):
        if not torch.isfinite(row).all():
            bad = ", ".join(f"{name} {value:g}" for name, value in zip(names, row.tolist(), strict=True))
            raise InputError(
                f"{title}: loss not finite at step {step} on images {' '.join(ids)} ({bad}); "
                "the last checkpoint is kept. Try a smaller --lr or --precision float32"
            )
    return dict(zip(names, values.mean(dim=0).tolist(), strict=True))
