"""What the checks of tools.check_gpu share: where they happen, a program tried in a process of its own, its verdict."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parent.parent.parent
WORKS, FAILS, IMPOSSIBLE = "works", "fails", "not possible here"
LONGEST = 1800  # seconds, of one program


class Verdict(NamedTuple):
    what: str
    verdict: str
    why: str

    def __str__(self) -> str:
        return f"{self.verdict:17s} {self.what}: {self.why}"


class Place(NamedTuple):
    """Where everything happens: the device, a scratch folder with a small data set, the folder of the report."""

    device: torch.device
    scratch: Path
    report: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def raw(self, name: str) -> Path:
        return self.report / "raw" / f"{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_')}.txt"


def start(place: Place, name: str, arguments: list[str]) -> subprocess.Popen:
    """A Python program in a process group of its own, which writes into a file of the report."""
    path = place.raw(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def ended(place: Place, name: str, process: subprocess.Popen) -> tuple[int | None, str]:
    """Exit status, None where it had to be killed, and what it said."""
    status = None
    try:
        status = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where somebody interrupts this program
        if status is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, place.raw(name).read_text(encoding="utf-8", errors="replace")


def run(place: Place, name: str, arguments: list[str]) -> Verdict:
    """Whether a program ends well; where it does not, the last thing that it said."""
    began = time.monotonic()
    status, said = ended(place, name, start(place, name, arguments))
    if status == 0:
        return Verdict(name, WORKS, f"{time.monotonic() - began:.0f} s")
    lines = [line for line in said.splitlines() if line.strip()]
    how = f"exit status {status}" if status is not None else f"no end within {LONGEST} s"
    return Verdict(name, FAILS, f"{how}; {lines[-1][:200] if lines else 'nothing said'} ({place.raw(name).name})")
