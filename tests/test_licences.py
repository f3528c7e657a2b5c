"""What the program is installed with has a pinned version and a stated licence, and `make` says which Python fits."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def lines(name: str) -> list[str]:
    content = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in content if line]


def plain(name: str) -> str:
    """Names that pip takes for the same."""
    return re.sub(r"[-_.]+", "-", name).lower()


REQUIREMENTS = [Requirement(line) for line in lines("requirements.txt")]
CONSTRAINTS = {
    plain(name): Version(version) for name, version in (line.split("==") for line in lines("constraints.txt"))
}
LISTED = {
    plain(name)
    for row in (ROOT / "docs/licences.md").read_text().partition("## Packages")[2].splitlines()
    if row.startswith("| ")
    for name in row.split("|")[1].strip().split(", ")
}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_a_requirement_has_an_allowed_version_and_a_licence(requirement):
    name = plain(requirement.name)
    assert name in CONSTRAINTS, f"{name} is missing in constraints.txt"
    assert CONSTRAINTS[name] in requirement.specifier
    assert name in LISTED, f"{name} is missing in docs/licences.md"


def test_every_pinned_package_has_a_licence():
    assert not CONSTRAINTS.keys() - LISTED


def test_the_licence_file_is_the_one_that_the_citation_names():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    assert "\nlicense: MIT\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(("fits", "chosen"), [(False, True), (True, True), (False, False)])
def test_make_installs_the_pinned_versions_or_says_which_python_they_fit(fits, chosen, tmp_path):
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / "pins").write_text(f"# Python {here if fits else '2.7'}\n")
    # A Python that runs -c, and writes down what else it and the pip of its environment are asked for.
    (tmp_path / "python").write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        "mkdir -p .venv/bin; printf '#!/bin/sh\\necho \"$@\" > asked\\n' > .venv/bin/pip; chmod +x .venv/bin/pip\n"
    )
    (tmp_path / "python").chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    command = ["make", ".venv/installed", "PYTHON=./python", f"CONSTRAINTS={'pins' if chosen else ''}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if chosen and not fits:
        said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert done.returncode and len(said) == 1 and "is for Python 2.7" in said[0] and "CONSTRAINTS=" in said[0]
        assert not (tmp_path / "asked").exists() and not (tmp_path / ".venv").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert ("-c pins" in (tmp_path / "asked").read_text()) == chosen
        assert (tmp_path / ".venv/installed").exists()
