"""The training loop of every stage that trains.

A run is a function of (Config, data, seed): order and augmentation are seeded by epoch, dropout by step, so a run that
goes on where it was saved ends where an uninterrupted one does.
"""

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from datasets.errors import InputError, Stopped
from engine import distributed
from engine.history import History, Journal
from engine.loading import Batches, EpochOrder, seed_step
from engine.resume import Interruption, Standing, check_finite, read_state, weights_are_finite, write_state
from settings.config import Config

Losses = tuple[dict[str, Tensor], dict[str, Tensor]]  # what is minimised, and other figures; scalars on the device


def nothing(*_) -> None:
    """After a step of a run that keeps no average of its weights."""


@dataclass(frozen=True)
class Training:
    """What one training run is made of.

    Attributes:
        title: of the progress bar and of messages.
        folder: receives state.pth after every epoch and every `checkpoint_every` minutes, history.jsonl, tensorboard/.
        networks: what the state keeps, by name: networks in training, and averages of them.
        rate: learning rate at a fractional epoch; each parameter group multiplies it by its `factor`.
        batch: samples a step of all processes together, set by the flag `batch_flag`.
        losses: (batch, fractional epoch) → losses, whose sum is minimised, and other figures to log.
        after_epoch: called by every process with the number of complete epochs and, on the first process, the history,
            before the state is written; once more, without it, where a finished run's last weights are gone.
        refresh: of the pages, every few minutes.
        drop_rest: an epoch ends with its last whole batch, as statistics of the global batch need it.
        after_step: called with the number of complete steps of the run, say to move an average of the weights.
    """

    title: str
    folder: Path
    networks: dict[str, nn.Module]
    optimisers: list[torch.optim.Optimizer]
    rate: Callable[[float], float]
    samples: Dataset
    batch: int
    batch_flag: str
    losses: Callable[[dict, float], Losses]
    after_epoch: Callable[[int, History | None], None]
    refresh: Callable[[], None]
    drop_rest: bool = False
    after_step: Callable[[int], None] = nothing


def train(run: Training, config: Config, device: torch.device) -> None:
    """Train for `config.epochs` epochs, from where the run in its folder was last saved.

    Raises:
        InputError: a sample cannot be read, a loss is not finite (names the step and the images), memory ran out, or
            a process was lost.
        Stopped: by SIGTERM or SIGINT; the state is written.
    """
    if config.deterministic and device.type == "cuda":
        distributed.compute_deterministically()
    order = EpochOrder(len(run.samples), distributed.share(run.batch), config.seed, run.drop_rest)
    at = last_state(run, config.epochs, order.steps, device)
    if at.epoch == config.epochs:  # whoever has the last weights does not ask for a training
        run.after_epoch(at.epoch, None)
    batches = Batches(config, run.samples, order, device)
    journal = Journal(run.title, run.folder, at, order, config.epochs)
    with Interruption(config.checkpoint_every) as interruption, distributed.faults(run.batch_flag, run.batch):
        while at.epoch < config.epochs:
            order.start(at.epoch, at.step)
            journal.begin_epoch(at)
            for batch in batches:
                seed_step(config.seed, at.epoch, at.step)
                moment = at.epoch + at.step / order.steps
                rate = run.rate(moment)
                figures = train_step(run, batch, moment, rate)
                at.add(batch["id"], figures)
                run.after_step(at.epoch * order.steps + at.step)
                journal.note_step(at, rate)
                run.refresh()
                is_time, signal_number = interruption.asks()
                if signal_number or (is_time and at.step < order.steps):
                    save(run, at, order.steps)
                    interruption.saved()
                stop_if_asked(signal_number, run, config, at, order.steps)
            journal.end_epoch(at)
            run.after_epoch(at.epoch + 1, journal.history)
            at = Standing(at.epoch + 1)
            save(run, at, order.steps)
            interruption.saved()
            stop_if_asked(interruption.asks()[1], run, config, at, order.steps)
            distributed.barrier()
    journal.close()


def train_step(run: Training, batch: dict, moment: float, rate: float) -> dict[str, Tensor]:
    """Take one step of every optimiser; the losses and other figures of it."""
    for optimiser in run.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        optimiser.zero_grad(set_to_none=True)
    minimised, others = run.losses(batch, moment)
    sum(minimised.values()).backward()
    for optimiser in run.optimisers:
        optimiser.step()
    return {name: value.detach() for name, value in (minimised | others).items()}


def last_state(run: Training, epochs: int, steps: int, device: torch.device) -> Standing:
    """Where the run was last saved, its networks and optimisers filled; the beginning if it never was."""
    path = run.folder / "state.pth"
    if not path.exists():
        return Standing()
    at = read_state(path, epochs, steps, run.networks, run.optimisers)
    at.recent = [(step, ids, {k: v.to(device) for k, v in figures.items()}) for step, ids, figures in at.recent]
    return at


def save(run: Training, at: Standing, steps: int) -> None:
    """Keep the state on disk, unless a figure or a weight is not finite."""
    check_finite(at, steps, run.title)
    if not weights_are_finite(run.networks):
        raise InputError(f"{run.title}: weights not finite in epoch {at.epoch + 1}; the last checkpoint is kept")
    if distributed.rank() == 0:
        write_state(run.folder / "state.pth", at, steps, run.networks, run.optimisers)


def stop_if_asked(signal_number: int, run: Training, config: Config, at: Standing, steps: int) -> None:
    """Leave the program where a signal asked for it; the state is written."""
    if signal_number:
        name = signal.Signals(signal_number).name
        where = f"after {at.epoch} epochs and {at.step} of {steps} steps, saved in {run.folder / 'state.pth'}"
        again = "the same command again" + (" without --fresh" if config.fresh else "")
        raise Stopped(f"{run.title}: stopped by {name} {where}; give {again} to go on", 128 + signal_number)


def cosine_rate(base: float, epochs: int, warmup: float = 0) -> Callable[[float], float]:
    """lr(e) = base·½(cos(π·e/R) + 1), e the fractional epoch, R = int(1.2·epochs) (released program).

    Args:
        warmup: epochs over which a factor rises from 0 to 1 (ours).
    """
    period = int(1.2 * epochs)
    return lambda epoch: base * min(1, epoch / warmup if warmup else 1) * (math.cos(math.pi * epoch / period) + 1) / 2


def poly_rate(base: float, epochs: int, power: float) -> Callable[[float], float]:
    """lr(e) = base·(1 − e/epochs)^power (PSA)."""
    return lambda epoch: base * (1 - epoch / epochs) ** power


def sgd(groups: list[tuple[list[nn.Parameter], float]], momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over (parameters, factor on the learning rate); frozen parameters are left out."""
    chosen = [{"params": [p for p in parameters if p.requires_grad], "factor": factor} for parameters, factor in groups]
    return torch.optim.SGD(
        [group for group in chosen if group["params"]], lr=0, momentum=momentum, weight_decay=weight_decay, fused=True
    )
