"""Faults of the machine: full disks, dead and lost processes, no memory, two runs in one folder."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import main_ssdd
from datasets.errors import InputError
from engine import checkpoint, distributed, runs, stages
from engine.loading import Batches
from engine.workers import Workers
from settings.config import demo
from tests.conftest import as_flags
from tests.test_training import CPU, Numbers

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("batch", "advice"), [(4, "try --bn=2"), (1, "--device=cpu")])
def test_out_of_memory_names_the_batch_to_try(batch, advice):
    with (
        pytest.raises(InputError, match=f"out of memory with --bn={batch}: .*{advice}"),
        distributed.faults("--bn", batch),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_other_errors_of_torch_are_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"), distributed.faults("--bn", 2):
        raise RuntimeError("shapes do not fit")


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / "run" / "imgs").mkdir(parents=True)
    (tmp_path / "run" / "imgs" / ".partial-1-x.png").write_bytes(b"half")
    runs.claim_folder(tmp_path / "run", demo(), "mode 0", [])
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["config.json"]


def test_full_disk_leaves_the_last_checkpoint(own_run):
    # A limit on the size of files stands in for the disk's end.
    state = Path(own_run.out) / "logs" / "sssdd_full" / "state.pth"
    flags = [*as_flags(own_run), "--mode=0", "--modelid=full", "--epochs=2"]
    limited = "import resource, sys, main_ssdd; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2)\n"
    limited += "main_ssdd.main(sys.argv[1:])"
    command = [sys.executable, "-c", limited, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "cannot write" in done.stderr and "File too large" in done.stderr
    assert not state.exists() and not list(Path(own_run.out).rglob(".partial*"))
    main_ssdd.main(flags)
    assert checkpoint.load(state)["epoch"] == 2


class Dying(Numbers, Dataset):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_data_loader_process_that_dies_is_one_line():
    batches = iter(Batches(replace(demo(), workers=1), Dying(), [[(0, 0), (1, 0)]], CPU))
    # It may show as an error anywhere in the main process, not only where the next batch is waited for.
    with pytest.raises(InputError, match=r"DataLoader worker .*smaller --workers"), distributed.faults("--bn", 2):
        next(batches)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_crf_process_that_dies_is_one_line(own_run, monkeypatch, capsys):
    monkeypatch.setattr("modes.ssdd.evaluate.write_masks", lambda *_: None)

    def queue(self, function, /, *arguments):
        self.submit(die).result()

    monkeypatch.setattr(Workers, "queue", queue)
    for path in stages.folder(own_run, "mode 3").rglob("*.png"):
        path.unlink()
    with pytest.raises(SystemExit) as end:
        main_ssdd.main([*as_flags(replace(own_run, workers=1)), "--mode=3"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: a CRF process died")


def hold_workers(sender) -> None:
    with Workers(1) as workers:
        sender.send(workers.submit(os.getpid).result())
        time.sleep(60)


def test_crf_processes_do_not_outlive_a_killed_run():
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    run = context.Process(target=hold_workers, args=(sender,))
    run.start()
    worker = receiver.recv()
    run.kill()
    run.join()
    end = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_image_that_vanishes_during_training_is_named_and_the_state_kept(own_run, capsys):
    flags = [*as_flags(own_run), "--mode=0", "--modelid=gone", "--pictures=0"]
    main_ssdd.main([*flags, "--epochs=1"])
    folder = Path(own_run.out) / "logs" / "sssdd_gone"
    kept = (folder / "state.pth").read_bytes()
    path = next((Path(own_run.voc_root) / "JPEGImages").glob("demo_0*.jpg"))
    path.unlink()
    (folder / "models" / "seg_0001.pth").unlink()
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"epochs": 1', '"epochs": 2'))
    with pytest.raises(SystemExit) as end:
        main_ssdd.main([*flags, "--epochs=2"])
    assert end.value.code == 2 and f"{path} is missing" in capsys.readouterr().err
    assert (folder / "state.pth").read_bytes() == kept


def test_a_lost_process_ends_all_within_a_minute_and_the_run_goes_on_exactly(own_run):
    models = {}
    for name in ("whole", "lost"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command += ["main_ssdd.py", "--mode=0", *as_flags(own_run), f"--modelid={name}", "--epochs=4", "--bn=2"]
        command += ["--checkpoint-every=1e-9", "--dropout=1", "--lr=0.001"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        folder = Path(own_run.out) / "logs" / f"sssdd_{name}"
        if name == "lost":
            run = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            while not (folder / "state.pth").exists():
                assert run.poll() is None
                time.sleep(0.01)
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
            begun = time.monotonic()
            run.communicate()
            assert run.returncode and time.monotonic() - begun < 60
            assert checkpoint.load(folder / "state.pth")["epoch"] < 4
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        models[name] = [checkpoint.load_state(folder / "models" / f"{kind}_0004.pth") for kind in ("seg", "ssdd")]
    for whole, lost in zip(models["whole"], models["lost"], strict=True):
        assert whole.keys() == lost.keys() and all(torch.equal(whole[key], lost[key]) for key in whole)
