"""What programs and README say about themselves is true of the code."""

import importlib
import re
from pathlib import Path

import pytest

from settings.config import voc

ROOT = Path(__file__).parent.parent
PROGRAMS = ["main_ssdd"] + [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("datasets", "prepare_labels", "script", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]
SOURCE = "".join(
    path.read_text(encoding="utf-8")
    for folder in ("datasets", "engine", "evaluation", "models", "modes", "prepare_labels", "settings", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_an_example(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main()
    said = capsys.readouterr().out
    assert end.value.code == 0
    typed = "main_ssdd.py" if name == "main_ssdd" else f"-m {name.removesuffix('.__main__')}"
    assert f"    python {typed}" in said


def test_programs_are_found():
    assert {"main_ssdd", "script.make_pages", "tools.predict", "prepare_labels.train_cls"} <= set(PROGRAMS)


def section(title: str) -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


def test_errors_in_the_readme_are_errors_of_the_programs():
    lines = re.findall(r"^\| `(.+?)` \|", section("What went wrong?"), re.M)
    assert len(lines) > 5
    joined = re.sub(r'"\s*f?"', "", SOURCE)  # strings over several lines
    for line in lines:
        for part in re.split(r"…|voc_root|=cuda|'", line):
            assert part.strip(" ;,") in joined, part


def test_links_in_the_documents_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                file, _, anchor = link.partition("#")
                target = path.parent / file if file else path
                assert target.exists(), link
                assert not anchor or anchor in anchors(target), link


def anchors(path):
    headings = re.findall(r"^#+ (.+)", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in headings}


def torchrun_commands() -> list[str]:
    """Those of main_ssdd.py in documents and programs, each in one line."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("main_*.py")]
    joined = [re.sub(r"\\+\n\s*", "", path.read_text(encoding="utf-8")) for path in paths]
    return re.findall(r"^.*torchrun .*main_ssdd\.py.*$", "\n".join(joined), re.M)


def test_batches_of_the_torchrun_commands_can_be_dealt_out():
    commands = torchrun_commands()
    assert len(commands) >= 3
    for command in commands:
        word = dict(re.findall(r"--([\w-]+)=(\S+)", command))
        machines = word.get("nnodes", "1")
        together = int(word["nproc_per_node"]) * (int(machines) if machines.isdecimal() else 2)
        assert int(word.get("bn", voc().bn)) % together == 0, command
