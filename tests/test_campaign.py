"""A handful of what `make campaign` does at length: runs killed with kill -9, and damaged files for every reader."""

import subprocess
import sys
from pathlib import Path


def test_a_few_kills_and_damaged_files_change_nothing():
    command = [sys.executable, "-m", "tests.campaign", "--kills=8", "--mutations=850", "--seed=1"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "850 damaged files, 0 defects" in done.stdout
    assert " kills in " in done.stdout and " 0 runs that differ or fail" in done.stdout
