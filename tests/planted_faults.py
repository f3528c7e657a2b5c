"""Would the tests see it? Plants the faults of tests/faults_to_plant.py, one at a time, in a copy of this checkout.

    python -m tests.planted_faults                     all of them, two at a time
    python -m tests.planted_faults --only mode 3 48    those with these words in their line, or of this number

Each fault must make its tests fail within a minute. A line for each, then the totals; exit status 1 if one lives.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults_to_plant import FAULTS

ROOT = Path(__file__).parent.parent
SECONDS = 60  # of a processor's time; a machine that is busy with other things may take ten times as long
LIBRARIES = ("cv2", "PIL.Image", "pydensecrf.densecrf", "pytest", "sklearn.metrics", "torch.utils.tensorboard")
LIBRARIES += ("torch.nn.parallel", "torch.optim", "torchvision.transforms.v2")


class Fault(NamedTuple):
    number: int
    file: str
    name: str
    old: str
    new: str
    tests: str

    def __str__(self) -> str:
        return f"{self.number:3d} {self.file}: {self.name}"


def all_faults() -> list[Fault]:
    listed = [(file, *fault) for file, faults in FAULTS.items() for fault in faults]
    return [Fault(number, *fault) for number, fault in enumerate(listed, 1)]


def misplaced(faults: list[Fault], root: Path) -> list[str]:
    """A line for each fault whose old text is not there exactly once, or whose test is gone."""
    lines = []
    for fault in faults:
        path, test = root / fault.file, fault.tests.split("[")[0].split("::")
        count = path.read_text(encoding="utf-8").count(fault.old) if path.exists() else 0
        if count != 1:
            where = f"stands {count} times in {fault.file}" if path.exists() else f"{fault.file} is missing"
            lines.append(f"{fault}: the old text {where}; mend tests/faults_to_plant.py")
        elif fault.old == fault.new:
            lines.append(f"{fault}: it changes nothing")
        elif not (root / test[0]).exists() or f"def {test[1]}(" not in (root / test[0]).read_text(encoding="utf-8"):
            lines.append(f"{fault}: there is no test {fault.tests}; mend tests/faults_to_plant.py")
    return lines


def copy_checkout(folder: Path) -> Path:
    """The files that git knows or does not ignore, as they lie here."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def run_tests(copy: Path, tests: list[str], seconds: int) -> None:
    """In a process of its own: run pytest in a copy and end with its status."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    said = os.open(copy.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    sys.stdout, sys.stderr = (open(said, "a", encoding="utf-8", closefd=False) for _ in range(2))  # noqa: SIM115
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
    sys.argv = ["pytest"]
    for name, module in list(sys.modules.items()):
        path = Path(getattr(module, "__file__", None) or "/")
        if name != "__main__" and path.is_relative_to(ROOT) and ".venv" not in path.relative_to(ROOT).parts:
            del sys.modules[name]
    sys.modules.pop("tests", None)
    options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", f"--basetemp={copy.parent / 'pytest'}"]
    status = int(pytest.main([*options, *tests]))
    sys.stdout.flush()
    os._exit(status)


class Run:
    """The tests of a fault, under way in a copy where it is planted; without a fault, those of all."""

    def __init__(self, copy: Path, tests: list[str], seconds: int, fault: Fault | None = None):
        self.copy, self.fault, self.started = copy, fault, time.monotonic()
        self.until = self.started + 10 * seconds
        if fault:
            self.before = (copy / fault.file).read_text(encoding="utf-8")
            (copy / fault.file).write_text(self.before.replace(fault.old, fault.new), encoding="utf-8")
        self.process = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests, seconds))
        self.process.start()

    def end(self) -> tuple[int | None, str]:
        """Exit status of pytest, None where it took too long, and what it said last; the copy is as before."""
        self.process.join(max(0, self.until - time.monotonic()))
        status = self.process.exitcode
        with contextlib.suppress(ProcessLookupError):  # it leads a group of all that its tests started
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        if self.fault:
            (self.copy / self.fault.file).write_text(self.before, encoding="utf-8")
        said = (self.copy.parent / "said.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        shutil.rmtree(self.copy.parent / "pytest", ignore_errors=True)
        return status if status is not None and status >= 0 else None, (said or [""])[-1]


def plant_all(faults: list[Fault], copies: list[Path]) -> list[Fault]:
    """Plant as many at a time as there are copies, print a line for each; those that were not found.

    Beside the first ones all their tests run without a fault: they must pass, or their failing would say nothing.
    """
    under_way = [Run(copies[0], sorted({fault.tests for fault in faults}), 10 * SECONDS)]
    try:
        return _plant(list(faults), copies[1:], under_way)
    finally:
        for run in under_way:
            run.until = 0
            run.end()


def _plant(left: list[Fault], free: list[Path], under_way: list[Run]) -> list[Fault]:
    lives = []
    while left or under_way:
        while left and free:
            fault = left.pop(0)
            under_way.append(Run(free.pop(), [fault.tests], SECONDS, fault))
        wait = max(0, min(run.until for run in under_way) - time.monotonic())
        multiprocessing.connection.wait([run.process.sentinel for run in under_way], wait)
        for run in [r for r in under_way if not r.process.is_alive() or time.monotonic() >= r.until]:
            under_way.remove(run)
            free.append(run.copy)
            status, said = run.end()
            if run.fault is None and status != 0:
                raise RuntimeError(f"the tests do not pass without a fault: {said}")
            # 1: tests failed. All else but 0 is no verdict: they could not even be collected, or took too long.
            outcome = {0: "LIVES", 1: "found"}.get(status, f"NO VERDICT ({said if status else 'killed or too long'})")
            if run.fault:
                print(f"{outcome:6s} {time.monotonic() - run.started:5.1f} s  {run.fault}", flush=True)
                lives += [] if status == 1 else [run.fault]
    return lives


def chosen(faults: list[Fault], words: list[str] | None) -> list[Fault]:
    text = " ".join(words or []).strip()
    if text.replace(" ", "").isdigit():
        return [fault for fault in faults if str(fault.number) in text.split()]
    return [fault for fault in faults if text in str(fault)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="words in a fault's line, or numbers")
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time, each in a copy of its own (default: 2)")
    arguments = parser.parse_args(argv)
    faults = all_faults()
    wrong = misplaced(faults, ROOT)
    faults = chosen(faults, arguments.only)
    if wrong or not faults:
        print("\n".join(wrong) or f"no fault has {' '.join(arguments.only)!r} in its line", file=sys.stderr)
        return 2
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for library in LIBRARIES:  # once, not once a fault; of the project itself nothing is imported here
        importlib.import_module(library)
    with tempfile.TemporaryDirectory() as folder:
        copies = [copy_checkout(Path(folder) / str(number) / "checkout") for number in range(arguments.jobs)]
        try:
            lives = plant_all(faults, copies)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
    minutes = (time.monotonic() - started) / 60
    print(f"{len(faults)} faults planted, {len(faults) - len(lives)} found, {len(lives)} not, in {minutes:.1f} minutes")
    return 1 if lives else 0


if __name__ == "__main__":
    sys.exit(main())
