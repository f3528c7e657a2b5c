"""The self-test of a GPU box: what it tries, when it says that something fails, and what it leaves."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from engine import stages
from settings.config import Config
from settings.flags import Parser, add_flags, parsed
from tools.check_gpu import __main__ as check_gpu
from tools.check_gpu import hardware, training, trial
from tools.check_gpu.trial import FAILS, IMPOSSIBLE, WORKS, Place, Verdict

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def place(tmp_path):
    return Place(CPU, tmp_path / "scratch", tmp_path / "report")


def test_a_program_works_or_its_last_line_says_why(place):
    assert trial.run(place, "good one", ["-c", "print('fine')"]).verdict == WORKS
    assert place.raw("good one").read_text() == "fine\n"
    bad = trial.run(place, "bad", ["-c", "import sys; print('first'); sys.exit('error: the reason\\n')"])
    assert bad.verdict == FAILS and "exit status 1; error: the reason (bad.txt)" in bad.why
    assert place.raw("bad").read_text() == "first\nerror: the reason\n\n"
    assert trial.run(place, "mute", ["-c", "import os; os._exit(3)"]).why.startswith("exit status 3; nothing said")


def test_a_program_that_hangs_is_ended_with_all_that_it_started(place, monkeypatch):
    monkeypatch.setattr(trial, "LONGEST", 5)
    child = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    made = trial.run(place, "hangs", ["-S", "-c", child])
    assert made.verdict == FAILS and "no end within 5 s" in made.why
    for word in place.raw("hangs").read_text().split():
        until = time.monotonic() + 10
        while alive(int(word)) and time.monotonic() < until:
            time.sleep(0.01)
        assert not alive(int(word))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def recorded(monkeypatch, module) -> list[tuple[str, list[str]]]:
    """What would be run, instead of running it."""
    commands = []

    def run(place, name, arguments):
        commands.append((name, arguments))
        place.raw(name).parent.mkdir(parents=True, exist_ok=True)
        place.raw(name).write_text("  st_seg  max abs  FAIL\n" if "bad" in str(place.report) else "")
        return Verdict(name, WORKS, "1 s")

    monkeypatch.setattr(module, "run", run)
    return commands


def config_of(arguments: list[str]) -> Config:
    """What a program makes of the flags that it would be run with."""
    parser = Parser()
    parser.add_argument("--mode")
    add_flags(parser)
    programs = ("main_ssdd.py", "main_recurseed.py")
    first = next(n for n, word in enumerate(arguments) if word in programs or word.startswith("prepare_labels."))
    return parsed(parser, arguments[first + 1 :])[0]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_every_program_is_tried_with_flags_that_it_takes(device, place, monkeypatch):
    commands = recorded(monkeypatch, training)
    place = place._replace(device=device)
    assert all(made.verdict == WORKS for made in training.program_verdicts(place))
    tried = [" ".join(arguments) for _, arguments in commands]
    for name in (*stages.PSA, *stages.ICD):
        assert any(f"-m prepare_labels.{name} " in one for one in tried)
    for words in (
        "main_ssdd.py --mode=all",
        "--mode=4 ",
        "--crf=exact",
        "main_recurseed.py --mode=all",
        "tools.predict",
    ):
        assert any(words in one for one in tried), words
    for name, arguments in commands:
        if name != "predict":
            config = config_of(arguments)
            assert config.device == device.type and config.out == str(place.scratch / "out")


def test_parity_is_tried_file_by_file_and_names_what_is_off(place, monkeypatch):
    commands = recorded(monkeypatch, hardware)
    assert len(list(hardware.parity_verdicts(place))) == len(commands) == 4
    monkeypatch.setattr(hardware.distributed, "computes_in_bfloat16", lambda device, precision: False)
    made = list(hardware.parity_verdicts(place._replace(device=CUDA, report=place.report / "bad")))
    verdicts = [one.verdict for one in made]
    assert len(made) == 16 and verdicts.count(IMPOSSIBLE) == 8  # a GPU without bfloat16
    assert made[0].verdict == FAILS and made[0].why == "outside their tolerance: st_seg"


@pytest.mark.parametrize(
    ("noise", "floor", "distance", "verdict"),
    [
        (0, 0, 0, WORKS),
        (0, 0, 1e-9, FAILS),
        (2e-7, 1e-6, 1.9e-6, WORKS),
        (2e-7, 1e-6, 2.1e-6, FAILS),
        (0, 1e-6, 9e-7, WORKS),
    ],
)
def test_runs_may_be_apart_as_far_as_equal_ones_are(noise, floor, distance, verdict, place, monkeypatch):
    monkeypatch.setattr(training, "apart", lambda one, other: distance)
    monkeypatch.setattr(training, "moved", lambda config: 1e-3)
    made = training.compared(place, "what", training.learning(place, "one"), noise, floor)
    assert made.verdict == verdict and f"{distance:.1e} apart" in made.why


def test_weights_that_did_not_learn_compare_nothing(place, monkeypatch):
    recorded(monkeypatch, training)
    monkeypatch.setattr(training, "moved", lambda config: 1e-6)
    (made,) = training.process_verdicts(place)
    assert made.verdict == FAILS and "moved by 1.0e-06 only" in made.why


def test_each_batch_is_compared_with_an_undisturbed_run_of_its_own(place, monkeypatch):
    commands, pairs = recorded(monkeypatch, training), []
    monkeypatch.setattr(training, "moved", lambda config: 1e-3)
    monkeypatch.setattr(training, "apart", lambda one, other: pairs.append((one.modelid, other.modelid)) or 9e-6)
    (made,) = training.process_verdicts(place)
    assert made.verdict == WORKS and pairs == [("whole4", "two")]
    assert [arguments[:2] for _, arguments in commands][-1] == ["-m", "torch.distributed.run"]
    batches = [config_of(arguments).bn for name, arguments in commands if name.startswith("mode 0")]
    assert batches == [4, 4]


def test_one_gpu_is_too_few_for_two_processes(place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (made,) = training.process_verdicts(place._replace(device=CUDA))
    assert made.verdict == IMPOSSIBLE


def test_a_run_that_cannot_be_stopped_fails(place, monkeypatch):
    monkeypatch.setattr(training, "undisturbed", lambda place: (None, 0.0))
    monkeypatch.setattr(training, "start", lambda place, name, arguments: trial.start(place, name, ["-c", ""]))
    (made,) = training.resume_verdicts(place)
    assert (made.verdict == FAILS and "SIGTERM gave exit status 0" in made.why) or str(-signal.SIGTERM) in made.why


def test_rows_of_the_benchmark_are_lines_with_the_share_of_the_peak(place, monkeypatch):
    rows = [
        {"what": "measured peak, 3×3 convolution, bfloat16", "unit": "TFLOP/s", "rates": [8.0]},
        {"what": "training step, arithmetic", "unit": "TFLOP/s", "rates": [1.0, 6.0, 9.0], "memory": 3.25},
        {
            "what": "loader",
            "unit": "images/s",
            "rates": [2.0],
            "baseline": "JPEG",
            "baseline_rates": [4.0],
            "note": "n",
        },
    ]

    def run(place, name, arguments):
        place.report.mkdir()
        Path(arguments[arguments.index("--write") + 1]).write_text(json.dumps({"rows": rows}))
        return Verdict(name, WORKS, "")

    monkeypatch.setattr(check_gpu, "run", run)
    said = [made.why for made in check_gpu.speed_verdicts(place)]
    assert said[1] == "6 TFLOP/s, 75 % of the measured convolution, peak memory 3.2 GB"
    assert said[2] == "2 images/s (JPEG: 4); n"


def test_a_gpu_is_timed_with_the_faster_crf_and_once_more_deterministically(place, monkeypatch):
    tried = []

    def run(place, name, arguments):
        tried.append(arguments)
        path = Path(arguments[arguments.index("--write") + 1])
        path.parent.mkdir(exist_ok=True)
        rows = [{"what": "step", "unit": "images/s", "rates": [2.0 - len(tried) / 2]}]
        path.write_text(json.dumps({"rows": rows}))
        return Verdict(name, WORKS, "")

    monkeypatch.setattr(check_gpu, "run", run)
    said = [(made.what, made.why) for made in check_gpu.speed_verdicts(place._replace(device=CUDA))]
    assert said == [("step", "1.5 images/s"), ("step, --deterministic", "1 images/s")]
    assert "--crf=auto" in tried[0] and "--deterministic" not in tried[0]
    assert tried[1][-4:] == ["--deterministic", "--only", "step0", "step2"]
    assert (place.report / "bench_deterministic.json").exists()


@pytest.mark.parametrize(("distance", "verdict"), [(9e-7, WORKS), (4e-6, WORKS), (6e-6, FAILS)])
def test_equal_runs_with_deterministic_kernels_are_no_farther_apart(distance, verdict, place, monkeypatch):
    commands = recorded(monkeypatch, training)
    monkeypatch.setattr(training, "undisturbed", lambda place: (None, 5e-7))
    monkeypatch.setattr(training, "apart", lambda one, other: distance if one.modelid != other.modelid else 0)
    (made,) = training.deterministic_verdicts(place)
    assert made.verdict == IMPOSSIBLE and not commands
    (made,) = training.deterministic_verdicts(place._replace(device=CUDA))
    assert made.verdict == verdict and f"{distance:.1e} apart, without it 5.0e-07" in made.why
    assert len(commands) == 2 and all("--deterministic" in arguments for _, arguments in commands)


def test_without_a_gpu_the_report_says_so_and_a_fault_gives_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = tmp_path / "box"
    check_gpu.main(["--only", "gpu", "crf", "--write", str(folder)])
    said = capsys.readouterr().out
    report = (folder / "report.md").read_text()
    assert said.startswith(f"{IMPOSSIBLE} ") and "exact CRF against pydensecrf" in said
    assert f"| {IMPOSSIBLE} | GPU |" in report and f"| {WORKS} | exact CRF against pydensecrf |" in report

    def breaking(place):
        yield Verdict("one", WORKS, "")
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setitem(check_gpu.CHECKS, "crf", breaking)
    with pytest.raises(SystemExit, match="1"):
        check_gpu.main(["--only", "crf", "gpu", "--write", str(folder)])
    said = capsys.readouterr().out
    assert (
        "fails             crf: CUDA error: an illegal memory access more" in said and "works             one" in said
    )
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        check_gpu.main(["--write", str(tmp_path / "file")])
    assert "is a file" in capsys.readouterr().err


def test_the_exact_crf_is_compared_with_pydensecrf(place, monkeypatch):
    other = hardware.masks_after_crf
    wrong = lambda *a, **o: lambda: (other(*a, **o)() + 1) % 21  # noqa: E731
    monkeypatch.setattr(hardware, "masks_after_crf", wrong)
    first, second = hardware.crf_verdicts(place)
    assert first.verdict == FAILS and second.verdict == WORKS
