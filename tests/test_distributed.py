"""Several processes: what torchrun starts gives what one process gives."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main_ssdd
from datasets.errors import InputError
from datasets.voc import IGNORE, mask_path, read_ids, read_mask, write_mask
from engine import checkpoint, distributed, stages
from modes.ssdd import dynamic, fixed, networks, static
from prepare_labels import train_aff, train_cls
from tests.conftest import as_flags
from tests.test_bad_input import refused

ROOT = Path(__file__).parent.parent


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_gpu_gets_an_index(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    for name in ("auto", "cuda", "cuda:3"):
        assert distributed.start(name).index == chosen[-1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"WORLD_SIZE=4 .*torchrun"):
        distributed.start("cuda:0")
    for name, word in (("RANK", "3"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, word)
    joined = lambda backend, device_id, **_: chosen.append((backend, device_id.index))  # noqa: E731
    monkeypatch.setattr(torch.distributed, "init_process_group", joined)
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: None)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(distributed, "_store", lambda place, count: None)
    monkeypatch.setattr(distributed, "_check_others", lambda *_: None)
    assert distributed.start("cuda:0").index == 2
    assert chosen == [0, 0, 3, 2, ("nccl", 2)]


def test_a_batch_that_cannot_be_dealt_out_evenly_is_refused(monkeypatch, own_run, capsys):
    for name, word in (("WORLD_SIZE", "3"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, word)
    folder = stages.folder(own_run, "train_cls")
    before = (folder / "config.json").read_bytes()
    for program, flag in ((train_cls, "--cls_batch=16"), (train_aff, "--aff_batch=8")):
        said = refused(program.main, [*as_flags(own_run), flag], folder, capsys)
        assert f"{flag}: 3 processes share these images; give a multiple of 3" in said
    for mode in (static, dynamic, fixed):
        with pytest.raises(InputError, match="--bn=4: 3 processes"):
            mode.run(replace(own_run, bn=4, seed_source="truth"))
    assert (folder / "config.json").read_bytes() == before


def test_pictures_take_no_more_memory_at_once_than_a_step_of_one_process(monkeypatch, tiny_config):
    def recorded(samples, count, batch):
        raise InputError(f"pictures of {batch}")

    monkeypatch.setattr(networks, "PictureSamples", recorded)
    monkeypatch.setattr(distributed, "processes", lambda: 4)
    with pytest.raises(InputError, match=r"^pictures of 2$"):
        networks.train_ssdd(replace(tiny_config, bn=8), "mode 0", torch.device("cpu"), *[None] * 5)


def test_frozen_buffers_are_not_sent_and_gradients_are_not_copied(monkeypatch):
    made = []
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda step, **options: made.append(options))
    for device in (torch.device("cuda:1"), torch.device("cpu")):
        distributed.data_parallel(torch.nn.Linear(1, 1), device)
    assert [options["device_ids"] for options in made] == [[torch.device("cuda:1")], None]
    assert all(options["gradient_as_bucket_view"] and not options["broadcast_buffers"] for options in made)


def test_kernels_are_chosen_for_training_and_for_repeating_it(monkeypatch):
    reset = []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: reset.append(device.index))
    distributed.start("cuda:0")
    assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    distributed.start("cuda:0", ("--bn", 2))
    assert torch.backends.cudnn.benchmark
    assert reset == [0, 0]  # the peak is each stage's own
    try:
        distributed.compute_deterministically()
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


# The tolerance lies between ten times what rounding does and what a fault does. At this rate the weights of one and of
# two processes differ by 8.5e-7 in mode 0 and 3.4e-7 in mode 4. In mode 2, which learns from its own masks, a pixel may
# tip: 1.5e-5, 4.6e-6 and 6.8e-6 with seeds 0 to 2, and 1.5e-8 before one does. Means over each process's own pixels
# instead of all make it 5.1e-5, 3.6e-4 and 2.8e-5 in the modes; gradients that are not averaged, 1.3e-4 in mode 0.
@pytest.mark.parametrize(
    ("mode", "run", "tolerance"), [(0, "sssdd", 1e-5), (2, "dssdd", 1.5e-4), (4, "fixed_truth", 1e-5)]
)
def test_two_processes_train_as_one_with_the_same_global_batch(mode, run, tolerance, own_run):
    # Batches of 4, dealt out to two processes: 20 steps. Without dropout; jitter is seeded by sample.
    weights = {}
    (stages.folder(own_run, "mode 1").parent / "one").symlink_to(own_run.modelid)
    (stages.folder(own_run, "mode 1").parent / "two").symlink_to(own_run.modelid)
    path = mask_path(own_run.voc_root, read_ids(own_run.voc_root, "train")[0])
    truth = read_mask(path).copy()
    truth[len(truth) // 4 :] = IGNORE  # so that mode 4 knows fewer pixels in one process than in the other
    write_mask(path, truth)
    for name in ("one", "two"):
        flags = [*as_flags(own_run), f"--modelid={name}", "--bn=4", "--lr=2e-5", "--epochs=10"]
        flags += ["--seed_source=truth"] if mode == 4 else []
        if name == "one":
            main_ssdd.main([f"--mode={mode}", *flags])
        else:
            torchrun("main_ssdd.py", f"--mode={mode}", *flags)
        models = Path(own_run.out) / "logs" / f"{run}_{name}" / "models"
        networks = ("seg",) if mode == 4 else ("seg", "ssdd")
        weights[name] = [checkpoint.load_state(models / f"{network}_0010.pth") for network in networks]
    start = checkpoint.load_state(stages.label_network(own_run, "train_cls"))
    trained = weights["one"][0]
    # Learning moved the weights far more than the tolerance.
    assert max((trained[f"encoder.{k}"] - v).abs().max() for k, v in start.items() if k != "fc8.weight") > 5e-5
    for one, two in zip(*weights.values(), strict=True):
        for key, value in one.items():
            assert torch.allclose(value, two[key], rtol=0, atol=tolerance), (
                key,
                float((value - two[key]).abs().max()),
            )


def test_shards_of_unequal_length_are_complete(own_run):
    folder = stages.folder(own_run, "mode 1")
    before = {path.name: path.read_bytes() for end in ("npz", "png") for path in folder.glob(f"*.{end}")}
    for path in [*sorted(folder.glob("*.npz"))[1:], min(folder.glob("*_dk.png"))]:
        path.unlink()
    torchrun("main_ssdd.py", "--mode=1", *as_flags(own_run), "--eval-batch=1")
    assert {name for name in before if (folder / name).read_bytes() == before[name]} == set(before)
