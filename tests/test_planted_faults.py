"""The list of faults fits the tree; planting them all is `python -m tests.planted_faults`."""

from tests.planted_faults import ROOT, Fault, all_faults, chosen, main, misplaced


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
