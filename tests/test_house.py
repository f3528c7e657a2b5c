"""The rooms of the house: imports point down, functions can be read in one sitting, no room holds too much."""

import ast
import subprocess
from pathlib import Path

import pytest

from engine import stages
from settings.config import FIELDS

ROOT = Path(__file__).parent.parent
# The floor of each room; a file imports from its own room and from lower floors.
FLOOR = {"settings": 0, "datasets": 1, "models": 1, "evaluation": 2, "engine": 3, "script": 4, "modes": 5}
FLOOR |= {"prepare_labels": 5, "entry": 6, "tools": 7}


def files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.js"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    found = [Path(name) for name in listed] or [p.relative_to(ROOT) for p in ROOT.rglob("*.py")]
    return [path for path in found if path.parts[0] != "tests" and (ROOT / path).exists()]


PROGRAMS = [path for path in files() if path.suffix == ".py"]


def room(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else "entry"


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    return {module.split(".")[0] for module in modules if module}


@pytest.mark.parametrize("path", PROGRAMS, ids=str)
def test_imports_point_down(path):
    own = room(path)
    for other in imported(path) & FLOOR.keys():
        assert other == own or FLOOR[other] < FLOOR[own], f"{path} imports {other}"
    # A program of tools/ is no part of another one, unless both are one program in a folder.
    if own == "tools" and len(path.parts) == 2:
        assert "tools" not in imported(path), f"{path} imports another program"


@pytest.mark.parametrize("path", [p for p in PROGRAMS if room(p) in ("engine", "modes")], ids=str)
def test_functions_fit_on_a_page_and_signatures_on_a_line(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, (
                f"{path}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
            )
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([a for a in given if a.arg != "self"]) <= 8, f"{path}: {node.name} takes {len(given)} arguments"


def test_no_room_holds_a_third_of_the_code():
    lines: dict[str, int] = {}
    for path in files():
        lines[room(path)] = lines.get(room(path), 0) + (ROOT / path).read_text(encoding="utf-8").count("\n")
    largest = max(lines, key=lines.get)
    assert lines[largest] <= 0.3 * sum(lines.values()), (largest, lines)


def test_settings_name_stages_that_exist_and_stages_name_earlier_ones():
    for name, entry in FIELDS.items():
        assert set(entry.metadata["stages"]) <= stages.STAGES.keys(), name
    names = list(stages.STAGES)
    for place, (name, stage) in enumerate(stages.STAGES.items()):
        assert set(stage.inputs) <= set(names[:place]), name
        assert stage.epochs in ("", *FIELDS), name
        assert all(seeds.folder in stage.folders for seeds in stage.seeds), name
