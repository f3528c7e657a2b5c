"""Training that is saved within an epoch and stopped by signals."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.errors import InputError, Stopped
from engine import checkpoint, history, stages
from prepare_labels import train_cls
from tests.conftest import as_flags, labels_folder, tiny
from tests.test_training import Stop, Toy, stop_at_step

ROOT = Path(__file__).parent.parent
EVERY_STEP = 1e-9  # minutes


def same(one: Toy, other: Toy) -> bool:
    return torch.equal(one.state(), other.state())


def epoch_lines(text: str) -> list[str]:
    """The lines with an epoch's averages, without the speed."""
    return re.findall(r"epoch .*(?=  \S+ images/s)", text)


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize(("workers", "looks"), [(0, 10), (0, 1), (1, 10)])
def test_a_run_that_stops_at_any_step_ends_bit_by_bit_where_the_whole_one_does(
    workers, looks, momentum, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(history, "STEPS_BETWEEN_LOOKS", looks)  # figures of a stopped epoch: seen already, or not yet
    whole = Toy(tmp_path / "whole", momentum).run()
    lines = epoch_lines(capsys.readouterr().out)
    assert len(lines) == 3
    for step in range(1, 9) if workers == 0 else (4,):
        folder = tmp_path / f"stopped {step}"
        stopped = Toy(folder, momentum, checkpoint_every=EVERY_STEP, workers=workers)
        stop_at_step(stopped, step)
        with pytest.raises(Stop):
            stopped.run()
        continued = Toy(folder, momentum, checkpoint_every=EVERY_STEP, workers=workers).run()
        # No step is taken twice, and of the samples before it none is read again.
        assert stopped.steps + continued.steps == whole.steps
        assert same(continued, whole)
        # The averages that are printed are those of whole epochs.
        assert epoch_lines(capsys.readouterr().out)[-3:] == lines


def test_a_run_killed_at_every_single_step_ends_where_the_whole_one_does(tmp_path):
    whole = Toy(tmp_path / "whole").run()
    for _ in range(8):
        toy = Toy(tmp_path / "run", checkpoint_every=EVERY_STEP)
        stop_at_step(toy, 1)
        with pytest.raises(Stop):
            toy.run()
    assert same(Toy(tmp_path / "run").run(), whole)


def send_at_step(toy: Toy, step: int, *numbers: int) -> None:
    losses = toy.losses

    def sending(batch, epoch):
        if len(toy.steps) == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return losses(batch, epoch)

    toy.losses = sending


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 4, 5, 8])  # also the last of an epoch and of the run
def test_signal_saves_and_leaves_and_the_run_goes_on_exactly(number, step, tmp_path):
    whole = Toy(tmp_path / "whole").run()
    before = signal.getsignal(number)
    toy = Toy(tmp_path / "run")
    send_at_step(toy, step, number)
    with pytest.raises(Stopped, match="give the same command again to go on") as stopped:
        toy.run()
    assert stopped.value.status == 128 + number and "state.pth" in str(stopped.value)
    assert signal.getsignal(number) is before
    continued = Toy(tmp_path / "run").run()
    assert toy.steps + continued.steps == whole.steps and len(toy.steps) == step + 1
    assert same(continued, whole)


def test_signal_after_the_last_step_of_an_epoch_is_not_lost(tmp_path):
    toy = Toy(tmp_path)
    toy.epochs = type("Epochs", (), {"append": staticmethod(lambda _: os.kill(os.getpid(), signal.SIGTERM))})()
    with pytest.raises(Stopped, match="after 1 epochs and 0 of 3 steps"):
        toy.run()
    assert checkpoint.load(tmp_path / "state.pth")["epoch"] == 1


def test_the_state_of_another_run_is_refused(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"identity": name}))
        toy = Toy(tmp_path / name, checkpoint_every=EVERY_STEP)
        stop_at_step(toy, 2)
        with pytest.raises(Stop):
            toy.run()
    shutil.copy(tmp_path / "other" / "state.pth", tmp_path / "one" / "state.pth")
    with pytest.raises(InputError, match="it is the state of another run"):
        Toy(tmp_path / "one").run()
    Toy(tmp_path / "other").run()


def test_second_signal_leaves_at_once(tmp_path):
    code = (
        "import os, signal; from engine.resume import Interruption\n"
        "with Interruption(1):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('noted', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "noted\n" and "a second signal leaves at once" in done.stderr


def test_with_fresh_the_line_says_to_leave_it_out(tmp_path):
    toy = Toy(tmp_path, fresh=True)
    send_at_step(toy, 1, signal.SIGINT)
    with pytest.raises(Stopped, match="again without --fresh to go on"):
        toy.run()


def test_a_checkpoint_of_broken_weights_is_not_written(tmp_path):
    toy = Toy(tmp_path, checkpoint_every=EVERY_STEP)
    losses = toy.losses

    def breaking(batch, epoch):
        minimised, others = losses(batch, epoch)
        return {"loss": minimised["loss"] * (math.nan if len(toy.steps) == 3 else 1)}, others

    toy.losses = breaking
    with pytest.raises(InputError, match="loss not finite at step 2"):
        toy.run()
    state = checkpoint.load(tmp_path / "state.pth")
    assert (state["epoch"], state["step"]) == (0, 2)
    assert all(torch.isfinite(tensor).all() for tensor in state["networks"]["network"].values())


@pytest.mark.parametrize(
    "change",
    [
        {"step": 99},
        {"step": -1},
        {"epoch": 9},
        {"steps": 7},
        {"unseen": 3},
        {"totals": [1]},
        {"optimisers": [{"state": {0: {"momentum_buffer": torch.zeros(5, 5)}}, "param_groups": []}]},
        {"networks": {"network": {k: v * math.nan for k, v in torch.nn.Linear(2, 2).state_dict().items()}}},
    ],
    ids=str,
)
def test_state_of_another_run_is_refused(change, tmp_path):
    toy = Toy(tmp_path, checkpoint_every=EVERY_STEP)
    stop_at_step(toy, 2)
    with pytest.raises(Stop):
        toy.run()
    path = tmp_path / "state.pth"
    checkpoint.save(path, checkpoint.load(path) | change)
    with pytest.raises(InputError, match=re.escape(str(path))):
        Toy(tmp_path).run()


def test_training_draws_from_torch_alone(own_run):
    # So there is no state of Python's or NumPy's generators to keep.
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    import main_ssdd

    main_ssdd.main([*as_flags(own_run), "--mode=0", "--modelid=other", "--dropout=1"])
    main_ssdd.main([*as_flags(own_run), "--mode=2", "--fresh", "--dropout=1"])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_classifier_from_scratch_goes_on_exactly_within_its_last_epoch(tiny_voc, tmp_path, monkeypatch):
    # Its BatchNorm statistics start anew before that epoch.
    configs = [replace(tiny(tiny_voc, tmp_path / name), cls_epochs=2, dropout=1.0) for name in ("whole", "stopped")]
    train_cls.run(configs[0])
    loss, calls = torch.nn.functional.multilabel_soft_margin_loss, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:  # of 2 steps an epoch
            raise Stop
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "multilabel_soft_margin_loss", stopping)
        with pytest.raises(Stop):
            train_cls.run(replace(configs[1], checkpoint_every=EVERY_STEP))
    assert checkpoint.load(labels_folder(configs[1], "cls") / "state.pth")["step"] == 1
    train_cls.run(configs[1])
    weights = [stages.label_network(config, "train_cls").read_bytes() for config in configs]
    assert weights[0] == weights[1]
