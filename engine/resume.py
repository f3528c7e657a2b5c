"""Where a training run stands, kept on disk so that it goes on exactly, and the signals that ask it to leave."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.errors import InputError
from datasets.files import is_config
from engine import checkpoint, distributed
from engine.notes import read_config

Figures = tuple[int, list[str], dict[str, Tensor]]  # step of the epoch, ids, scalar losses and other figures


@dataclass
class Standing:
    """Where a run stands between two steps.

    There is no random state in it: order, augmentation and dropout are seeded by run, epoch and step.
    """

    epoch: int = 0  # complete ones
    step: int = 0  # complete ones of the epoch after those
    totals: dict[str, float] = field(default_factory=dict)  # sums of that epoch's figures over the steps noted
    recent: list[Figures] = field(default_factory=list)  # figures of the steps since, still on the device

    def add(self, ids: list[str], figures: dict[str, Tensor]) -> None:
        """One more step is complete."""
        self.recent.append((self.step, list(ids), figures))
        self.step += 1


def write_state(
    path: Path,
    at: Standing,
    steps: int,
    networks: dict[str, nn.Module],
    optimisers: Sequence[torch.optim.Optimizer],
) -> None:
    """Keep a run's standing with what it trains.

    Args:
        steps: in an epoch; a run that is dealt out in another way cannot go on within one.

    Raises:
        InputError: it cannot be written; what was kept before still is.
    """
    recent = [(step, ids, {name: v.cpu() for name, v in figures.items()}) for step, ids, figures in at.recent]
    content = {
        "identity": _identity(path.parent),
        "epoch": at.epoch,
        "step": at.step,
        "steps": steps,
        "totals": at.totals,
        "unseen": recent,
        "networks": {name: network.state_dict() for name, network in networks.items()},
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
    }
    checkpoint.save(path, content)


def read_state(
    path: Path,
    epochs: int,
    steps: int,
    networks: dict[str, nn.Module],
    optimisers: Sequence[torch.optim.Optimizer],
) -> Standing:
    """Fill networks and optimisers from a state file; where the run stands.

    Raises:
        InputError: the file is damaged, or of another run.
    """
    state = checkpoint.load(path)
    try:
        recent = [
            (int(step), list(ids), {name: v.reshape(()) for name, v in figures.items()})
            for step, ids, figures in state["unseen"]
        ]
        totals = {str(name): float(total) for name, total in state["totals"].items()}
        identity = _identity(path.parent)
        if state.get("identity", identity) != identity:  # older versions did not note it
            raise ValueError("it is the state of another run")
        at = Standing(int(state["epoch"]), int(state["step"]), totals, recent)
        if int(state["steps"]) != steps:
            raise ValueError(f"its epochs have {int(state['steps'])} steps, here {steps}: start as many processes")
        if not 0 <= at.epoch <= epochs or not 0 <= at.step <= steps or len(at.recent) > steps:
            raise ValueError(f"epoch {at.epoch}, step {at.step}")
        for name, network in networks.items():
            network.load_state_dict(state["networks"][name])
        for optimiser, content in zip(optimisers, state["optimisers"], strict=True):
            own = optimiser.state_dict()["param_groups"]  # rates and the like are the Config's
            optimiser.load_state_dict({"state": content["state"], "param_groups": own})
            for parameter, values in optimiser.state.items():
                for name, value in values.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} of the optimiser is {tuple(value.shape)}")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} does not fit this run ({reason}); start over with --fresh") from None
    if not weights_are_finite(networks):
        raise InputError(f"{path} holds weights that are not finite; start over with --fresh")
    return at


def _identity(folder: Path) -> str:
    """Of the run that fills a folder."""
    path = folder / "config.json"
    return str(read_config(path).get("identity")) if is_config(path) else ""


def check_finite(at: Standing, steps: int, title: str) -> dict[str, float]:
    """Means of the recent steps' figures; one wait for the device.

    Args:
        steps: of an epoch.

    Raises:
        InputError: a figure is not finite; names the step and its images.
    """
    if not at.recent:
        return {}
    names = list(at.recent[0][2])
    values = torch.stack([torch.stack([figures[n].float() for n in names]) for _, _, figures in at.recent]).cpu()
    for (step, ids, _), row in zip(at.recent, values, strict=True):
        if not torch.isfinite(row).all():
            bad = ", ".join(f"{name} {value:g}" for name, value in zip(names, row.tolist(), strict=True))
            raise InputError(
                f"{title}: loss not finite at step {at.epoch * steps + step} on images {' '.join(ids)} ({bad}); "
                "the last checkpoint is kept. Try --precision float32, which goes on from it; or, with --fresh, "
                "a lower learning rate or, in mode 2, --warmup_epochs=1"
            )
    return dict(zip(names, values.mean(dim=0).tolist(), strict=True))


def weights_are_finite(networks: dict[str, nn.Module]) -> bool:
    return all(torch.isfinite(p).all() for network in networks.values() for p in network.parameters())


class Interruption:
    """Asks, between steps, whether to save or to leave. A context manager.

    The first SIGTERM or SIGINT asks to save and leave; a second leaves at once.

    Args:
        minutes: between two saves.
    """

    def __init__(self, minutes: float):
        self.seconds, self.number, self._owner = 60 * minutes, 0, os.getpid()

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        self.saved()
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if os.getpid() != self._owner:  # a data loader's process, forked with this handler
            return
        self.number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        print(f"\n{name}: saving after this step; a second signal leaves at once", file=sys.stderr, flush=True)

    def saved(self) -> None:
        """Start the time to the next save."""
        self._since = time.monotonic()

    def asks(self) -> tuple[bool, int]:
        """Whether it is time to save, and the number of a signal that asks to leave or 0; the same in all processes."""
        due = time.monotonic() - self._since > self.seconds
        due, number = distributed.highest([int(due and distributed.rank() == 0), self.number])
        return bool(due or number), number
