"""Stages of the method on a tiny set, each in a process of its own, and what they leave, to be compared."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets.demo import make_demo
from engine import history, passes, stages
from tests.conftest import as_flags, tiny

MOST_PATIENCE = 300  # seconds a stage
STAGES = (*stages.PSA, *stages.SSDD, "mode 4", *stages.ICD, *stages.RECURSEED)
TRAINING = tuple(name for name in STAGES if stages.STAGES[name].epochs)
PASSES = tuple(name for name in STAGES if not stages.STAGES[name].epochs)
SOURCE = "ssdd"  # that mode 4 learns from


def run_stage(stage: str, flags: list[str]) -> None:
    """Run a stage in this process."""
    main, arguments = program_of(stage)
    main([*arguments, *flags])


def program_of(stage: str) -> tuple[Callable[[list[str]], None], list[str]]:
    """Its main function and the arguments that it gets before the flags."""
    first, *rest = arguments_of(stage)
    module = rest.pop(0) if first == "-m" else first.removesuffix(".py")
    return importlib.import_module(module).main, rest


def folders_of(stage: str) -> list[str]:
    """That it fills."""
    return [stages.filled(f, "ssdd", SOURCE if stage == "mode 4" else "") for f in stages.STAGES[stage].folders]


def arguments_of(stage: str) -> list[str]:
    """What follows `python` and stands before the flags."""
    source = [f"--seed_source={SOURCE}"] if stage == "mode 4" else []
    return [*stages.STAGES[stage].command.split(), *source]


def start(task: Callable[[], None], log: Path) -> int:
    """Run `task` in a process forked from this one, which has loaded everything already; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    signal.alarm(MOST_PATIENCE)  # its default: the process ends
    try:
        os.setsid()
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        task()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def do(task: Callable[[], None], log: Path) -> int:
    """`task` in a process of its own, to its end; its exit status, or the negative number of the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(task, log), 0)[1])


def flags_of(root: Path, out: Path, **fields) -> list[str]:
    epochs = dict.fromkeys(("static_epochs", "dynamic_epochs", "cls_epochs", "aff_epochs", "icd_epochs"), 2)
    # Of RecurSeed one epoch of classification alone, one with seeds, one with mixed images.
    epochs |= {"recurseed_epochs": 3, "recurseed_from": 2, "mix_from": 3}
    batches = dict.fromkeys(("bn", "cls_batch", "aff_batch", "icd_batch", "recurseed_batch"), 2) | {"eval_batch": 4}
    return as_flags(replace(tiny(root, out), **(epochs | batches | {"dropout": 1.0} | fields)))


def artefacts(folder: Path) -> dict[str, bytes]:
    """What is compared: every file but event files, which hold times, the stored Config, which holds paths, the lock,
    which holds the process, and the training state, which no later stage reads; of histories what is no time."""
    left_out = ("config.json", "state.pth", ".ssdd.lock", passes.MADE_FROM)
    found = {
        str(path.relative_to(folder)): steps_of(path) if path.name == history.FILE else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts and path.name not in left_out
    }
    # A pass that finds all done, as it was killed in its last moment, notes nothing.
    return {name: content for name, content in found.items() if content or not name.endswith(history.FILE)}


def steps_of(path: Path) -> bytes:
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if b'"step"' in line)


class Whole(NamedTuple):
    """What an undisturbed run of all stages left."""

    root: Path  # of the data
    out: Path
    seconds: dict[str, float]  # that each stage took


def whole_run(work: Path) -> Whole:
    whole = Whole(work / "VOC2012", work / "whole", {})
    for stage in STAGES:
        program_of(stage)  # loaded here, every later process has it
    make_demo(whole.root, train=6, val=3)
    for stage in STAGES:
        begun, log = time.monotonic(), work / "whole.log"
        if do(partial(run_stage, stage, flags_of(whole.root, whole.out)), log):
            raise RuntimeError(f"{stage} fails undisturbed:\n{log.read_text()}")
        whole.seconds[stage] = time.monotonic() - begun
    return whole


def lay_out(whole: Whole, stage: str, out: Path, with_own: bool = False) -> None:
    """Make `out` what it is before a stage, or after it."""
    shutil.rmtree(out, ignore_errors=True)
    for earlier in STAGES[: STAGES.index(stage) + with_own]:
        for folder in folders_of(earlier):
            shutil.copytree(whole.out / folder, out / folder)


def made(stage: str, out: Path) -> dict[str, bytes]:
    """All that is compared of what a stage left."""
    return {f"{folder}/{name}": content for folder in folders_of(stage)
            for name, content in artefacts(out / folder).items()}  # fmt: skip


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


class Found(NamedTuple):
    """What came of one kind of attack."""

    counts: dict[str, int]  # by outcome
    failures: list[str]

    def note(self, outcome: str, failure: str = "", log: Path | None = None) -> None:
        """Count one attack; `failure`, where there is one, is said at once, with the end of the log."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if failure:
            self.failures.append(failure)
            print(failure, log.read_text(errors="replace")[-2000:] if log else "", sep="\n", flush=True)
