"""Static SSDD against the number of its images: what each run learns from, shares and is judged on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from datasets.errors import InputError
from datasets.voc import mask_path, read_ids
from evaluation.masks import evaluate
from evaluation.metrics import mean_and_spread
from settings.config import demo
from tests.conftest import as_flags, commands_here, tiny
from tests.test_bad_input import refused
from tools import growth, study
from tools.growth import Point, make_lists, points


def test_schedules():
    found = points(replace(demo(), static_epochs=3), [200, 800, 3200])
    assert [(p.images, p.epochs) for p in found if p.schedule == "equal epochs"] == [(200, 3), (800, 3), (3200, 3)]
    assert [(p.images, p.epochs) for p in found if p.schedule == "equal steps"] == [(200, 48), (800, 12), (3200, 3)]
    assert len({p.modelid for p in found}) == 5
    assert Point(200, "equal epochs", 3).modelid == Point(200, "equal steps", 3).modelid


def test_sizes_contain_the_smaller_ones_and_nobody_learns_what_is_held_out(own_voc, tmp_path):
    config = tiny(own_voc, tmp_path / "growth")
    without_mask = read_ids(own_voc, "train_aug")[:2]
    for image_id in without_mask:
        mask_path(own_voc, image_id).unlink()
    root = make_lists(config, [1, 2, 4])
    lists = {name: read_ids(root, name) for name in ("seen", "held", "judged", "all", "train1", "train2", "train4")}
    assert [len(ids) for ids in lists.values()] == [1, 1, 2, 5, 1, 2, 4]
    assert lists["seen"] == lists["train1"] and set(lists["train1"]) < set(lists["train2"]) < set(lists["train4"])
    assert not set(lists["held"]) & set(lists["train4"])
    assert set(lists["all"]) == {*lists["held"], *lists["train4"]} <= set(read_ids(own_voc, "train_aug"))
    assert not set(without_mask) & set(lists["judged"])
    assert make_lists(config, [1, 2, 4]) == root
    for sizes, text in (
        ([1, 6], "7 are needed"),
        ([3, 3], "6 of them with true masks"),
        ([2, 4], "give another --out"),
    ):
        with pytest.raises(InputError, match=text):
            make_lists(config, sizes)


@pytest.mark.parametrize("make", [lambda config: growth.make_lists(config, [1, 2]), study.hold_out])
def test_another_data_set_is_worked_on_and_none_is_written_over(make, own_voc, tmp_path):
    root = Path(make(tiny(own_voc, tmp_path / "study")))
    other = shutil.copytree(own_voc, tmp_path / "moved")
    assert make(tiny(other, tmp_path / "study")) == str(root)
    assert {path.resolve().parent for path in root.iterdir() if path.is_symlink()} == {other.resolve()}
    own = Path(shutil.copytree(other, tmp_path / "out" / "VOC2012"))
    shutil.move(own / "JPEGImages", tmp_path / "photographs")
    (own / "JPEGImages").symlink_to(tmp_path / "photographs")
    before = sorted(own.rglob("*"))
    with pytest.raises(InputError, match="would be written over"):
        make(tiny(own, tmp_path / "out"))
    assert sorted(own.rglob("*")) == before and (own / "JPEGImages").resolve() == tmp_path / "photographs"


def test_growth_is_measured_on_both_lists_and_labels_are_made_once(own_voc, tmp_path, monkeypatch, capsys):
    ran = commands_here(monkeypatch, growth)
    out = tmp_path / "growth"
    flags = [*as_flags(tiny(own_voc, out)), "--sizes", "2", "4", "--jobs=1"]
    growth.main(flags)
    said = capsys.readouterr().out
    assert len([command for command in ran if "prepare_labels.train_cls" in command]) == 1
    lists = {word for command in ran for word in command if word.startswith("--train-split")}
    assert lists == {f"--train-split={name}" for name in ("all", "train2", "train4", "judged")}
    done = len(ran)
    growth.main(flags)
    assert len(ran) == done == 4 + 2 * 3

    content = json.loads((out / "growth.json").read_text())
    rows, root = content["rows"], content["config"]["voc_root"]
    assert {(row["images"], row["schedule"], row["epochs"], row["steps"]) for row in rows} == {
        (2, "equal epochs", 1, 1), (4, "equal epochs", 1, 2), (2, "equal steps", 2, 2), (4, "equal steps", 1, 2),
    }  # fmt: skip
    assert len(rows) == 8
    for row in rows:
        ids = read_ids(root, {"learned from": "train2", "held out": "held"}[row["judged on"]])
        folder = out / "seed0" / "precompute" / f"images{row['images']}_epochs{row['epochs']}"
        expected = evaluate(folder, root, ids)["miou"]
        assert row["static SSDD"] == [pytest.approx(expected)]
        line = [row[name] for name in ("judged on", "images", "epochs", "steps")]
        (shown,) = [one for one in said.splitlines() if one.startswith(f"| {' | '.join(map(str, line))} |")]
        assert f"| {mean_and_spread([expected])} |" in shown
        trained = json.loads((out / "seed0" / "logs" / f"sssdd_{folder.name}" / "config.json").read_text())
        assert trained["train_split"] == f"train{row['images']}" and trained["epochs"] == row["epochs"]
    with Image.open(out / "growth.png") as picture:
        assert picture.width > 500

    # The labels of the same images once more, of another run.
    assert "--labels" in refused(growth.main, [*flags, "--labels", str(out / "seed0")], out, capsys)
    other = tmp_path / "other"
    again = [*as_flags(tiny(own_voc, other)), "--sizes", "2", "4", "--jobs=1", "--labels", str(out / "seed0")]
    ran.clear()
    growth.main(again)
    assert len(ran) == 2 * 3 and not any("prepare_labels" in word for command in ran for word in command)
    assert json.loads((other / "growth.json").read_text())["rows"] == rows


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--sizes", "4"], "--sizes"),
        (["--sizes", "4", "2"], "--sizes"),
        (["--seeds=0"], "--seeds"),
        (["--jobs=0"], "--jobs"),
        (["--epochs=3"], "--epochs"),
        (["--labels=nowhere"], "nowhere"),
        (["--sizes", "5", "6"], "give smaller --sizes"),
    ],
)
def test_what_cannot_work_is_refused(flags, text, own_voc, tmp_path, capsys):
    own = as_flags(tiny(own_voc, tmp_path / "growth"))
    assert text in refused(growth.main, [*own, *flags], Path(tmp_path / "growth"), capsys)
