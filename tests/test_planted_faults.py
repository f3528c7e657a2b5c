"""The list of faults fits the tree; planting them all is `python -m tests.planted_faults`."""

import pytest

from tests.planted_faults import ROOT, Fault, all_faults, chosen, main, misplaced, plant_all


def test_every_fault_can_be_planted():
    faults = all_faults()
    assert misplaced(faults, ROOT) == []
    assert len(faults) >= 200 and len({(fault.file, fault.old, fault.new) for fault in faults}) == len(faults)


def test_a_moved_file_text_or_test_is_one_line(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one():\n    pass\n")
    (tmp_path / "code.py").write_text("x = 1\ny = 1\nz = 2\n")
    fault = Fault(7, "code.py", "wrong z", "z = 2", "z = 3", "tests/test_a.py::test_one")
    assert misplaced([fault], tmp_path) == []
    for change, said in (
        ({"file": "moved.py"}, "moved.py is missing"),
        ({"old": "= 1"}, "stands 2 times in code.py"),
        ({"old": "q = 1"}, "stands 0 times in code.py"),
        ({"new": "z = 2"}, "changes nothing"),
        ({"tests": "tests/test_a.py::test_two"}, "no test tests/test_a.py::test_two"),
    ):
        (line,) = misplaced([fault._replace(**change)], tmp_path)
        assert said in line and "\n" not in line


def test_faults_are_chosen_by_words_or_numbers(capsys):
    faults = all_faults()
    assert [fault.number for fault in chosen(faults, ["3", "5"])] == [3, 5]
    assert {fault.file for fault in chosen(faults, ["modes/ssdd/static.py"])} == {"modes/ssdd/static.py"}
    assert chosen(faults, None) == faults
    assert main(["--only", "no", "such", "fault"]) == 2
    assert "no such fault" in capsys.readouterr().err


def planted(test: str, tmp_path, faults: dict[str, tuple[str, str]]) -> list[str]:
    """The names of the faults that plant_all does not find in a checkout of one file with one test."""
    copies = [tmp_path / number / "checkout" for number in "12"]
    for copy in copies:
        copy.mkdir(parents=True)
        (copy / "thing.py").write_text("x = 1\n")
        (copy / "test_thing.py").write_text(f"def test_x():\n    import thing\n    {test}\n")
    listed = [Fault(1, "thing.py", name, *change, "test_thing.py::test_x") for name, change in faults.items()]
    lives = [fault.name for fault in plant_all(listed, copies)]
    assert all((copy / "thing.py").read_text() == "x = 1\n" for copy in copies)
    return lives


def test_a_fault_is_found_lives_or_gets_no_verdict(tmp_path, capfd):
    ways = {"seen": "2", "unseen": "1.0", "kills": "__import__('os').kill(__import__('os').getpid(), 9)"}
    lives = planted("assert thing.x == 1", tmp_path, {name: ("1", new) for name, new in ways.items()})
    assert sorted(lives) == ["kills", "unseen"]
    said = {line.rsplit(" ", 1)[1]: line.split()[0] for line in capfd.readouterr().out.splitlines()}
    assert said == {"seen": "found", "unseen": "LIVES", "kills": "NO"}


def test_tests_that_fail_without_a_fault_end_it(tmp_path):
    with pytest.raises(RuntimeError, match=r"do not pass without a fault: .*1 failed"):
        planted("assert thing.x == 3", tmp_path, {"any": ("1", "2")})
