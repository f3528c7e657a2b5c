"""The published method, number by number: tools.check_parity on the golden files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tools import check_parity

GOLDEN = Path(__file__).parent / "golden"


NAMES = "ssdd_a ssdd_c labels_a icd_a icdseed_a icdseed_c recurseed_a recurseed_c".split()


@pytest.mark.parametrize("name", NAMES)
def test_every_array_is_within_tolerance(name, capsys):
    good = check_parity.check_file(GOLDEN / f"{name}.npz", torch.device("cpu"), torch.float32)
    assert good, capsys.readouterr().out


def integration_file(folder: Path, **changes: np.ndarray) -> Path:
    with np.load(GOLDEN / "ssdd_a.npz") as golden:
        kept = {key: golden[key] for key in golden.files if key.startswith(("fn_", "crf_"))}
        kept |= {key: golden[key] for key in ("mask_k", "mask_a", "present", "img")}
    np.savez(folder / "ssdd_part.npz", **(kept | changes))
    return folder / "ssdd_part.npz"


def test_exit_status(tmp_path, capsys):
    check_parity.main([str(integration_file(tmp_path))])
    assert "FAIL" not in capsys.readouterr().out


def test_a_wrong_value_fails(tmp_path, capsys):
    with np.load(GOLDEN / "ssdd_a.npz") as golden:
        wrong = golden["crf_q3"] + 0.01
    with pytest.raises(SystemExit) as stop:
        check_parity.main([str(integration_file(tmp_path, crf_q3=wrong))])
    assert stop.value.code == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "FAIL" in line]
    assert len(lines) == 1 and "crf_q3" in lines[0]


def test_an_unchecked_key_fails(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        check_parity.main([str(integration_file(tmp_path, st_unheard_of=np.zeros(3)))])
    assert stop.value.code == 1
    assert "st_unheard_of" in capsys.readouterr().out


def test_no_golden_file(tmp_path, capsys):
    (tmp_path / "ssdd_x.npz").write_bytes(b"PK nothing")
    with pytest.raises(SystemExit) as stop:
        check_parity.main([str(tmp_path / "ssdd_x.npz")])
    assert stop.value.code == 2
    assert "ssdd_x.npz" in capsys.readouterr().err
