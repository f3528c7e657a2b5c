"""Programs of this repository run one after the other and side by side, and what an earlier start has done is kept."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from datasets.errors import InputError
from datasets.files import atomic_write, read_bytes
from settings.config import Config

_LARGEST_MARKER = 1 << 24


def nothing() -> None:
    """Before the commands of a job that needs no preparation."""


@dataclass(frozen=True)
class Job:
    """Commands that run one after the other, once another job is done.

    Attributes:
        config: what the commands were made from; with another one they run again.
        commands: of each what follows `python`.
        after: name of the job that it needs; empty: none.
        before: called before the commands.
    """

    name: str
    config: Config
    commands: list[list[str]]
    after: str = ""
    before: Callable[[], None] = nothing


def run_all(out: Path, todo: list[Job], side_by_side: int) -> None:
    """Run the jobs; what an earlier start has done with the same settings is not done again.

    Args:
        out: receives a marker of each job in done/, and what its commands say in output/.
        todo: every job stands after the one that it needs.

    Raises:
        InputError: a command failed; names its log. Jobs that have begun are finished first.
    """
    stop = Event()
    futures: dict[str, Future] = {}

    def one(job: Job) -> None:
        # A job stands after the one that it needs, so that one has begun and this cannot wait for ever.
        if job.after:
            futures[job.after].result()
        marker = out / "done" / f"{job.name.replace(' ', '_')}.json"
        content = {"commands": job.commands, "config": json.loads(json.dumps(asdict(job.config)))}
        stored = _read_marker(marker)
        if {key: stored.get(key) for key in content} == content:
            return
        if stop.is_set():
            raise InputError("stopped")
        started = time.perf_counter()
        try:
            job.before()
            for command in job.commands:
                run_command(command, out / "output" / f"{job.name.replace(' ', '_')}.txt")
        except BaseException:
            stop.set()
            raise
        seconds = time.perf_counter() - started
        with atomic_write(marker) as temporary:
            temporary.write_text(json.dumps(content | {"seconds": seconds}, indent=1) + "\n", encoding="utf-8")
        done = sum(future.done() for future in futures.values()) + 1
        print(f"{out}: {job.name} in {seconds / 60:.1f} min, {done} of {len(todo)} jobs", flush=True)

    with ThreadPoolExecutor(side_by_side) as pool:
        for job in todo:
            futures[job.name] = pool.submit(one, job)
        try:
            errors = [future.exception() for future in futures.values()]
        except KeyboardInterrupt:
            stop.set()
            raise
    first = next((e for e in errors if e is not None and str(e) != "stopped"), None)
    if first is not None:
        raise first


def run_command(command: list[str], log: Path) -> None:
    """Run a program of this repository on one thread; what it says goes to `log`.

    Raises:
        InputError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]
        raise InputError(f"`python {shlex.join(command)}` failed ({last.removeprefix('error: ')}); see {log}")


def minutes_of_work(out: Path) -> float:
    """Of all jobs that are done, over all starts."""
    return sum(_read_marker(path).get("seconds", 0) for path in (out / "done").glob("*.json")) / 60


def _read_marker(path: Path) -> dict:
    """What a job that is done left; nothing if it is not, or its marker is damaged, so that it is done again."""
    try:
        stored = json.loads(read_bytes(path, _LARGEST_MARKER))
        return stored if type(stored["seconds"]) in (int, float) else {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return {}
