"""Programs of this repository run one after the other and side by side, and what an earlier start has done is kept."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event

from datasets.errors import InputError
from datasets.files import atomic_write, read_bytes
from datasets.voc import mask_path, read_ids
from engine import notes, seeds, stages
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


def made_from(config: Config, splits: Sequence[str], labels: Path | None) -> dict[str, str]:
    """What jobs read that none of them has made, known by content; see `run_all`.

    Args:
        splits: lists of the images that they work on.
        labels: --out of the run whose label chain they take, if they make none.
    """
    ids = [image_id for split in splits for image_id in read_ids(config.voc_root, split)]
    sources = seeds.pair(replace(config, out=str(labels or config.out))).values()
    read = [source.folder for source in sources if (labels or not source.stage) and source.folder.is_dir()]
    read += [folder for folder in [seeds.segments_folder(config)] if folder]
    network = [stages.label_network(replace(config, out=str(labels)), "train_cls")] if labels else []
    return {
        "photographs or annotations": " ".join(notes.pictures_digest(config, split) for split in splits),
        "true masks": notes.digest_of(mask_path(config.voc_root, image_id) for image_id in ids),
        "seeds or labels": " ".join(
            [*(notes.digest(folder, by_content=True) for folder in read), notes.digest_of(network)]
        ),
    }


def run_all(out: Path, todo: list[Job], side_by_side: int, inputs: dict[str, str]) -> None:
    """Run the jobs; what an earlier start has done with the same settings is not done again.

    Args:
        out: receives a marker of each job in done/, and what its commands say in output/.
        todo: every job stands after the one that it needs.
        inputs: what each kind of thing that the jobs read holds.

    Raises:
        InputError: a job is done, but what it has read holds something else now. Or a command failed; names its log.
            Jobs that have begun are finished first.
    """
    for job in todo:
        # A marker of an older version says nothing of what its job has read, and is believed.
        before = _done(out, job).get("made_from", inputs)
        changed = next((what for what in inputs if before.get(what) != inputs[what]), None)
        if changed:
            raise InputError(f"{out}: {job.name} was made from other {changed} than are there now: give another --out")
    stop = Event()
    futures: dict[str, Future] = {}

    def one(job: Job) -> None:
        # A job stands after the one that it needs, so that one has begun and this cannot wait for ever.
        if job.after:
            futures[job.after].result()
        if _done(out, job):
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
        with atomic_write(_marker(out, job)) as temporary:
            content = _content(job) | {"made_from": inputs, "seconds": seconds}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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


def _marker(out: Path, job: Job) -> Path:
    return out / "done" / f"{job.name.replace(' ', '_')}.json"


def _content(job: Job) -> dict:
    return {"commands": job.commands, "config": json.loads(json.dumps(asdict(job.config)))}


def _done(out: Path, job: Job) -> dict:
    """The marker of a job that is done with these settings; empty if it is not."""
    stored, content = _read_marker(_marker(out, job)), _content(job)
    return stored if {key: stored.get(key) for key in content} == content else {}


def _read_marker(path: Path) -> dict:
    """What a job that is done left; nothing if it is not, or its marker is damaged, so that it is done again."""
    try:
        stored = json.loads(read_bytes(path, _LARGEST_MARKER))
        whole = type(stored["seconds"]) in (int, float) and type(stored.get("made_from", {})) is dict
        return stored if whole else {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return {}
