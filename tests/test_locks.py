"""One run fills a folder, any number read it, never both at once; and all processes of a run end together."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.voc import image_size, read_ids, read_present
from engine import locks, notes, runs, stages
from prepare_labels import make_aff_labels
from settings.config import demo
from tests.conftest import as_flags
from tools import import_labels

ROOT = Path(__file__).parent.parent


def holder(call: str, folder: Path) -> subprocess.Popen:
    """Another process that holds `folder` by a call of engine.locks, and a child of it that outlives it."""
    code = (
        "import os, sys, time; from pathlib import Path; from engine import locks\n"
        f"folder = Path(sys.argv[1]); {call}\n"
        "if os.fork() == 0: os.close(1); time.sleep(3); os._exit(0)\n"
        "print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "locked\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def test_second_run_in_a_folder_is_refused_until_the_first_is_dead(tmp_path):
    folder = tmp_path / "logs" / "run"
    other = holder("locks.lock_for_writing(folder)", folder)
    with pytest.raises(InputError, match=rf"in use by another run \(process {other.pid} on .*--modelid"):
        runs.claim_folder(folder, demo(), "mode 0", [])
    with pytest.raises(InputError, match="in use by another run"):
        runs.claim_folder(folder, replace(demo(), fresh=True), "mode 0", [])
    assert not folder.exists()
    end(other)
    runs.claim_folder(folder, demo(), "mode 0", [])
    runs.claim_folder(folder, demo(), "mode 0", [])  # the same process may
    stored = notes.read_config(folder / "config.json")
    assert torch.__version__.startswith(stored["versions"]["torch"]) and "python" in stored["versions"]


def test_a_run_counts_as_alive_as_long_as_one_of_its_processes(tmp_path):
    first = holder("locks.lock_for_writing(folder)", tmp_path / "run")
    second = holder("locks.join(folder, 1)", tmp_path / "run")
    end(first)
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "run").mkdir()
    for name in ("run", "link"):
        with pytest.raises(InputError, match=rf"in use by another run \(process {first.pid}"):
            locks.lock_for_writing(tmp_path / name)
        with pytest.raises(InputError, match=rf"in use by another run \(process {first.pid}"):
            locks.lock_for_reading(tmp_path / name)
    end(second)
    locks.lock_for_reading(tmp_path / "link")
    locks.lock_for_writing(tmp_path / "run")


def test_what_a_run_reads_is_not_made_anew_meanwhile(own_run, capsys):
    walked = stages.folder(own_run, "make_aff_labels")
    before = {path.name: path.stat().st_mtime_ns for path in walked.iterdir()}
    read = "from settings.config import demo; from engine import runs; from dataclasses import replace\n"
    read += (
        f"runs.claim_folder(Path({own_run.out!r}) / 'x', replace(demo(), width={own_run.width}), 'mode 0', [folder])"
    )
    reader = holder(read, walked)
    with pytest.raises(SystemExit) as refusal:
        make_aff_labels.main([*as_flags(own_run), "--fresh"])
    said = capsys.readouterr().err
    assert refusal.value.code == 2 and f"{walked} is being read by another run" in said and said.count("\n") == 1
    assert before == {path.name: path.stat().st_mtime_ns for path in walked.iterdir()}
    locks.lock_for_reading(walked)  # others may read it too
    end(reader)
    make_aff_labels.main([*as_flags(own_run), "--fresh"])
    assert walked.with_name("out_aff.old1").is_dir()


def test_what_a_run_fills_is_not_read_meanwhile(own_run):
    walked = stages.folder(own_run, "make_aff_labels")
    writer = holder("locks.lock_for_writing(folder)", walked)
    with pytest.raises(InputError, match=rf"out_aff is in use by another run \(process {writer.pid}"):
        runs.claim_folder(Path(own_run.out) / "x", own_run, "mode 0", [walked])
    end(writer)


SLOW_PASS = """
import os, sys, time
from prepare_labels import make_aff_labels
def store(*arguments):
    print("rank", os.environ["RANK"], os.getpid(), flush=True)
    time.sleep(100)
make_aff_labels.store_psa = store
make_aff_labels.main(sys.argv[1:])
"""


def test_nothing_is_imported_into_what_a_run_reads(own_run, tmp_path, capsys):
    store, (image_id, *_) = tmp_path / "store", read_ids(own_run.voc_root, "train")
    shape = (len(np.flatnonzero(read_present(own_run.voc_root, image_id))), *image_size(own_run.voc_root, image_id))
    (tmp_path / "theirs").mkdir()
    np.save(tmp_path / "theirs" / f"{image_id}.npy", np.ones(shape, np.float32))
    command = [str(tmp_path / "theirs"), str(store), "--kind=aff_crf", f"--voc-root={own_run.voc_root}"]
    reader = holder("locks.lock_for_reading(folder)", store)
    with pytest.raises(SystemExit, match="2"):
        import_labels.main(command)
    assert "being read by another run: wait for it, or give another OUT_DIR" in capsys.readouterr().err
    assert not store.exists()
    end(reader)
    import_labels.main(command)
    assert [path.name for path in store.iterdir()] == [f"{image_id}.npz"]


def test_a_process_that_is_left_alone_ends_within_seconds(own_run, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_PASS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(tmp_path / "slow.py"), *as_flags(own_run), "--fresh"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    agent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = {}
    while len(pids) < 2:
        line = agent.stdout.readline()
        assert line
        if line.startswith("rank"):
            _, rank, pid = line.split()
            pids[rank] = int(pid)
    for pid in (agent.pid, pids["0"]):
        os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    said = agent.communicate(timeout=60)[1]  # when all who can write there are gone
    assert time.monotonic() - begun < 20
    assert "error: torchrun is gone" in said and "Traceback" not in said
    locks.lock_for_writing(stages.folder(own_run, "make_aff_labels"))
