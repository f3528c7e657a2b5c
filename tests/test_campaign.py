"""A handful of what `make campaign` does at length, but for lost processes, of which tests/test_locks.py has one."""

import subprocess
import sys
from pathlib import Path


def test_a_few_kills_and_damaged_files_change_nothing():
    command = [sys.executable, "-m", "tests.campaign", "--kills=8", "--mutations=850", "--seed=1"]
    command += ["--roots=3", "--partial=4", "--ranks=0", "--flips=6", "--inputs=16"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "850 damaged files, 0 defects" in done.stdout
    for what in ("kills", "second data root", "deleted files", "damaged states", "inputs as outputs"):
        assert f"{what}, 0 that differ or fail" in done.stdout
