"""Processes that cannot work together say so in one line; two machines' torchruns meet, and start a lost run again."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main_recurseed
import main_ssdd
from datasets.errors import InputError
from engine import checkpoint, distributed, runs, stages
from engine.workers import at_most_cores
from prepare_labels import (
    make_aff_labels,
    make_cam_labels,
    make_icd_labels,
    make_superpixels,
    train_aff,
    train_cls,
    train_icd,
)
from tests.conftest import as_flags

ROOT = Path(__file__).parent.parent
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}
STARTED = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture
def started(monkeypatch):
    """As if torchrun had started this process as one of four."""
    for name, word in (STARTED | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, word)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    for name in ("set_device", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def test_a_driver_that_torch_does_not_like_is_no_reason_to_take_the_cpu(monkeypatch):
    def unavailable() -> bool:
        said = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\nMore"
        warnings.warn(said, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    with pytest.raises(
        InputError, match=r"driver on your system is too old \(found version 11040\).*--device=cpu"
    ) as e:
        distributed.start("auto")
    assert "\n" not in str(e.value)
    assert distributed.start("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.start("auto").type == "cpu"


def test_fewer_gpus_than_processes(monkeypatch, started, gpu):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match="4 processes on this machine, which has 2 GPUs: --nproc_per_node=2"):
            distributed.start(device)


def test_torch_without_nccl(monkeypatch, started, gpu):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(InputError, match=r"no NCCL.*--device=cpu"):
        distributed.start("cuda")


def test_a_gpu_too_old_for_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    device = torch.device("cuda:0")
    with pytest.raises(InputError, match=r"--precision=bfloat16: Tesla V100 .*--precision=auto"):
        distributed.computes_in_bfloat16(device, "bfloat16")
    assert not distributed.computes_in_bfloat16(device, "auto")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert distributed.computes_in_bfloat16(device, "bfloat16")
    assert not distributed.computes_in_bfloat16(device, "float32")


def test_layout_of_images_and_weights(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    plain, last = torch.contiguous_format, torch.channels_last
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"amx_bf16": able}, raising=False)
        assert distributed.memory_format(cpu, 1.0, "auto") == (last if able else plain)
        assert distributed.memory_format(cpu, 1.0, "float32") == plain
        assert distributed.memory_format(cpu, 0.125, "bfloat16") == plain
        assert distributed.memory_format(gpu, 0.125, "float32") == last


PROGRAMS = (train_cls, make_cam_labels, train_aff, make_aff_labels, make_superpixels, train_icd, make_icd_labels)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.STAGE if hasattr(program, "STAGE") else "icd")
def test_bfloat16_is_refused_before_a_folder_keeps_it(program, tiny_config, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(InputError, match=r"--precision=bfloat16: Tesla V100"):
        program.run(replace(tiny_config, device="cuda", precision="bfloat16"))
    assert not Path(tiny_config.out).exists()


def test_bfloat16_is_refused_before_a_mode_starts(tiny_config, gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    flags = as_flags(replace(tiny_config, device="cuda", precision="bfloat16"))
    for program, mode in ((main_ssdd, "all"), (main_recurseed, "train")):
        with pytest.raises(SystemExit, match="2"):
            program.main([f"--mode={mode}", *flags])
        assert "error: --precision=bfloat16: Tesla V100" in capsys.readouterr().err
    assert not Path(tiny_config.out).exists()


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [at_most_cores(wanted) for wanted in (0, 1, 16)] == [0, 1, 12]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [at_most_cores(wanted) for wanted in (0, 1, 16)] == [0, 1, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "24")
    assert [at_most_cores(wanted) for wanted in (0, 16)] == [0, 1]


JOIN = """
import sys
from datasets.errors import program
from engine import distributed
distributed.JOINING_SECONDS = int(sys.argv[1])
distributed._source = lambda: sys.argv[2]
@program
def main():
    distributed.start("cpu")
    print("joined")
main()
"""


def joining(rank: int, port: int, seconds: int = 60, source: str = "same", **more: str) -> subprocess.Popen:
    names = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} | more
    command = [sys.executable, "-c", JOIN, str(seconds), source]
    return subprocess.Popen(
        command, cwd=ROOT, env=QUIET | names, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("rank", "address"), [(0, "localhost"), (1, "localhost"), (0, "no.invalid"), (1, "no.invalid")]
)
def test_a_machine_that_cannot_be_reached_ends_the_run(rank, address):
    alone = joining(rank, port := free_port(), seconds=3, MASTER_ADDR=address)
    said = alone.communicate(timeout=120)[1]
    assert alone.returncode == 2 and said.count("\n") == 1, said
    assert said.startswith("error: ") and f"{address}:{port} must be open" in said, said


@pytest.mark.parametrize("other", ["same", "older"])
def test_machines_of_different_code_are_refused(other):
    port = free_port()
    pair = [joining(0, port), joining(1, port, source=other)]
    for process in pair:
        said, errors = process.communicate(timeout=240)
        if other == "same":
            assert process.returncode == 0 and said == "joined\n", errors
        else:
            assert process.returncode == 2 and "run different code (the program's source)" in errors, errors


def test_a_machine_without_a_gpu_among_others_is_refused_before_they_are_joined():
    # A thread stands for a machine; a process whose driver is broken takes the CPU, as --device=auto says.
    store, kinds = torch.distributed.HashStore(), ("cuda", "cuda", "cpu")

    def refusal(place: int) -> str:
        with pytest.raises(InputError) as refused:
            distributed._check_others(store, place, len(kinds), torch.device(kinds[place]))
        return str(refused.value)

    with ThreadPoolExecutor(len(kinds)) as machines:
        for said in machines.map(refusal, range(len(kinds))):
            assert re.search(r" computes on cuda and .* on cpu: give all of them the same --device", said)


def test_processes_started_again_meet_each_other_and_not_those_before():
    # torchrun keeps one store for all its attempts, and its machines may count these differently.
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for attempt, counts in enumerate(("00", "10")):
        pair = []
        for rank in (0, 1):
            again = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": counts[rank]}
            pair.append(joining(rank, store.port, seconds=40, **again))
            time.sleep(5 * attempt)  # so that the first one reads what the store still says of the second
        for process in pair:
            said, errors = process.communicate(timeout=120)
            assert process.returncode == 0 and said == "joined\n", (counts, errors)


def test_the_digest_follows_the_source(tmp_path, monkeypatch):
    before = distributed._source()
    assert before == distributed._source() and len(before) == 64
    (tmp_path / "engine").mkdir()
    (tmp_path / "main.py").write_text("1")
    monkeypatch.setattr(distributed, "__file__", str(tmp_path / "engine" / "distributed.py"))
    digests = {distributed._source()}
    for name, content in (("main.py", "2"), ("engine/new.py", ""), ("README.md", "2")):
        (tmp_path / name).write_text(content)
        digests.add(distributed._source())
    assert len(digests) == 3  # all but the last


def test_fresh_moves_aside_once_a_job(own_run, monkeypatch):
    folder = stages.folder(own_run, "mode 0")
    aside = folder.with_name(f"{folder.name}.old1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job 7")
    fresh = replace(own_run, fresh=True)
    for attempt in range(2):  # the second time torchrun has started it again
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/torchelastic_a/job 7_b/attempt_{attempt}/0/error.json")
        runs.claim_folder(folder, fresh, "mode 0", [])
        assert aside.exists() and not aside.with_name(f"{folder.name}.old2").exists()
    for file in ("/tmp/torchelastic_c/job 7_d/attempt_0/0/error.json", ""):  # another start with the same --rdzv-id
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", file)
        runs.claim_folder(folder, fresh, "mode 0", [])
    assert aside.with_name(f"{folder.name}.old3").exists()


def test_torchrun_names_its_starts(tmp_path):
    said = tmp_path / "said"
    (tmp_path / "lost.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom engine import distributed\n"
        f"open({str(said)!r}, 'a').write(f'{{distributed.starters()}}\\n')\nsys.exit(1)\n"
    )
    for _ in range(2):
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=1", "--max-restarts=1", "--rdzv-id=7"]
        torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
        subprocess.run([sys.executable, *torchrun, str(tmp_path / "lost.py")], env=QUIET, capture_output=True)
    first, again, second, last = said.read_text().splitlines()
    assert first == again != second == last and "[]" not in (first, second)


def workers_of(agent: int) -> list[int]:
    """The processes that a torchrun has started."""
    tasks = Path(f"/proc/{agent}/task").glob("*/children")
    found = [int(word) for task in tasks for word in task.read_text().split()]
    return [pid for pid in found if b"main_ssdd.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes below /proc")
def test_two_machines_meet_and_a_lost_worker_is_started_again(own_run):
    endpoint = f"localhost:{free_port()}"
    flags = [*as_flags(own_run), "--mode=0", "--bn=4", "--lr=2e-5", "--epochs=10"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max-restarts=3"]
    torchrun += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test", "main_ssdd.py"]
    command = [*torchrun, *flags, "--modelid=two", "--checkpoint-every=1e-9", "--fresh"]
    agents = [
        subprocess.Popen(command, cwd=ROOT, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        state = stages.folder(replace(own_run, modelid="two"), "mode 0") / "state.pth"
        until = time.monotonic() + 240
        while not state.exists() and time.monotonic() < until and all(agent.poll() is None for agent in agents):
            time.sleep(0.01)
        os.kill(workers_of(agents[1].pid)[0], signal.SIGKILL)
        kept = checkpoint.load(state)
        assert (kept["epoch"], kept["step"]) < (9, 2)
        said = [agent.communicate(timeout=1200)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert not state.parent.with_name(f"{state.parent.name}.old1").exists()  # gone on with, not started over
    main_ssdd.main([*flags, "--modelid=one"])
    weights = [
        checkpoint.load_state(Path(own_run.out) / "logs" / f"sssdd_{name}" / "models" / "seg_0010.pth")
        for name in ("one", "two")
    ]
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], rtol=0, atol=1e-5), key


def test_an_error_without_a_text_is_named_by_its_kind(monkeypatch):
    def empty(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch, "zeros", empty)
    with pytest.raises(InputError, match="--device=cpu cannot be used here: AssertionError"):
        distributed.start("cpu")
