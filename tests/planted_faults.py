"""Would the tests see it? Plants the faults of tests/faults_to_plant.py, one at a time, in a copy of this checkout.

    python -m tests.planted_faults                     all of them, two at a time
    python -m tests.planted_faults --only mode 3 48    those with these words in their line, or of this number

Each fault must make its tests fail within a minute. A line for each, then the totals; exit status 1 if one lives.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.faults_to_plant import FAULTS

ROOT = Path(__file__).parent.parent
SECONDS = 60


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


def run_tests(copy: Path, tests: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status of pytest in a copy, None where it took too long, and what it said last."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory(dir=copy.parent) as temporary:
        command.append(f"--basetemp={temporary}/pytest")
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, errors="replace", timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return None, f"over {seconds} s"
    return done.returncode, (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]


def plant(fault: Fault, copy: Path) -> tuple[bool, str]:
    """Whether its tests find the fault, and a line about it; the copy is as before."""
    path = copy / fault.file
    before, started = path.read_text(encoding="utf-8"), time.monotonic()
    path.write_text(before.replace(fault.old, fault.new), encoding="utf-8")
    try:
        status, said = run_tests(copy, [fault.tests], SECONDS)
    finally:
        path.write_text(before, encoding="utf-8")
    # 1: tests failed, among them by a fault that keeps the module from loading. All else is no verdict.
    outcome = {0: "LIVES", 1: "found"}.get(status, f"NO VERDICT ({said})")
    return status == 1, f"{outcome:6s} {time.monotonic() - started:5.1f} s  {fault}"


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
    started, lives = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as threads:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(arguments.jobs):
            copies.put(copy_checkout(Path(folder) / str(number) / "checkout"))
        # Without a fault the same tests pass, or their failing would say nothing.
        first = copies.get()
        status, said = run_tests(first, sorted({fault.tests for fault in faults}), 600)
        copies.put(first)
        if status != 0:
            print(f"the tests fail without any fault: {said}", file=sys.stderr)
            return 2

        def planted(fault: Fault) -> tuple[bool, str]:
            copy = copies.get()
            try:
                return plant(fault, copy)
            finally:
                copies.put(copy)

        for fault, (found, line) in zip(faults, threads.map(planted, faults), strict=True):
            print(line, flush=True)
            if not found:
                lives.append(fault)
    minutes = (time.monotonic() - started) / 60
    print(f"{len(faults)} faults planted, {len(faults) - len(lives)} found, {len(lives)} not, in {minutes:.1f} minutes")
    return 1 if lives else 0


if __name__ == "__main__":
    sys.exit(main())
