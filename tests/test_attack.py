"""What an independent attack found: results over inputs, changes that went unseen, small files that blow up."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import main_ssdd
from datasets import coco
from datasets.errors import InputError
from datasets.seed_store import load_maps, read_seed, save_maps, store_path
from datasets.voc import image_path, mask_path, read_ids, write_mask
from engine import distributed, passes, runs, stages
from tests.conftest import as_flags, labels_folder
from tests.test_bad_input import refused
from tools import eval_masks, pack, predict, seed_rivals


@pytest.mark.parametrize("name", ["seeds", "list", "annotation", "truth", "Config", "maps"])
def test_no_archive_and_no_table_lands_among_what_a_run_or_a_data_set_holds(name, own_run, tmp_path, capsys):
    out, root = Path(own_run.out), Path(own_run.voc_root)
    image_id = read_ids(root, "train")[0]
    victim = {
        "seeds": store_path(labels_folder(own_run, "out_aff"), image_id),
        "list": root / "ImageSets" / "Segmentation" / "train_aug.txt",
        "annotation": root / "Annotations" / f"{image_id}.xml",
        "truth": mask_path(root, image_id),
        "Config": out / "logs" / "dssdd_ssdd" / "config.json",
        "maps": store_path(stages.folder(own_run, "mode 1"), image_id),
    }[name]
    before = victim.read_bytes()
    own = ["--voc-root", str(root)]
    weights = out / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth"
    for program, flags in (
        (pack.main, [str(out), "--to", str(victim), "--what", "psa", *own]),
        (eval_masks.main, ["psa", "--out", str(out), "--split", "train", "--json", str(victim), *own]),
        (seed_rivals.main, [str(out), "--json", str(victim), *own]),
        (predict.main, [str(root / "JPEGImages"), "--weights", str(weights), "--out", str(victim.parent)]),
    ):
        assert "name another place" in refused(program, flags, tmp_path, capsys)
    assert victim.read_bytes() == before


def test_every_of_several_folders_of_one_name_is_known_by_its_content(own_run, tmp_path):
    folders = []
    for letter in "abc":
        folders.append(tmp_path / letter / "m")
        folders[-1].mkdir(parents=True)
        write_mask(folders[-1] / "x.png", np.full((4, 4), ord(letter) - 97, np.uint8))
    runs.claim_folder(tmp_path / "run", own_run, "mode 0", folders)
    for folder in folders:
        kept = (folder / "x.png").read_bytes()
        write_mask(folder / "x.png", np.full((4, 4), 9, np.uint8))
        with pytest.raises(InputError, match="other settings or inputs"):
            runs.claim_folder(tmp_path / "run", own_run, "mode 0", folders)
        (folder / "x.png").write_bytes(kept)
    runs.claim_folder(tmp_path / "run", own_run, "mode 0", folders)


def test_a_strangers_config_beside_masks_hides_no_change(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"tool": "grabcut"}))
    write_mask(tmp_path / "x.png", np.zeros((4, 4), np.uint8))
    before = runs.digest(tmp_path)
    write_mask(tmp_path / "x.png", np.ones((4, 4), np.uint8))
    assert runs.digest(tmp_path) != before and runs.stage_folder(tmp_path) is None


def test_a_region_that_changes_or_moves_is_seen_beside_any_other_picture(tmp_path):
    for name in ("overview.png", "one/1.png", "two/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_mask(tmp_path / name, np.zeros((4, 4), np.uint8))
    seen = {runs.digest(tmp_path)}
    os.rename(tmp_path / "one" / "1.png", tmp_path / "two" / "1.png")
    seen.add(runs.digest(tmp_path))
    write_mask(tmp_path / "two" / "1.png", np.ones((4, 4), np.uint8))
    seen.add(runs.digest(tmp_path))
    assert len(seen) == 3


def test_an_outline_that_pycocotools_could_not_count_is_refused():
    outline = [[-1280.0, -1280.0, 1280.0, 1280.0] * 2000 + [0.0, 0.0]]
    with pytest.raises(ValueError, match="outline longer than"):
        coco.decode_region(outline, (480, 640))
    assert coco.decode_region([[0, 0, 4, 0, 4, 4, 0, 4]], (8, 8)).sum() == 16


def test_maps_of_another_size_are_refused_before_they_are_enlarged(tmp_path):
    save_maps(store_path(tmp_path, "x"), np.array([0, 3]), np.ones((2, 12, 16), np.float32), (96, 128), "test")
    assert load_maps(store_path(tmp_path, "x"), (96, 128)).maps.shape == (2, 96, 128)
    with pytest.raises(InputError, match=r"maps are \(96, 128\), the image is \(4, 4\)"):
        read_seed(tmp_path, "x", (4, 4))
    write_mask(tmp_path / "y.png", np.zeros((50, 60), np.uint8))
    with pytest.raises(InputError, match=r"maps are \(50, 60\)"):
        read_seed(tmp_path, "y", (4, 4))


@pytest.mark.parametrize("flag", ["--out=--", "--crop=--", "--preset=--", "--cls_side=--"])
def test_two_dashes_are_no_value(flag, own_run, tmp_path, capsys):
    said = refused(main_ssdd.main, ["--mode=0", *as_flags(own_run), flag], tmp_path, capsys)
    assert flag.split("=")[0].replace("_", "") in said.replace("_", "").replace("-side", "side")


@pytest.mark.parametrize("word", ["0", "-1", "abc", ""])
def test_a_number_of_processes_that_cannot_be(word, monkeypatch):
    for name, value in (("WORLD_SIZE", word), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="WORLD_SIZE="):
        distributed.start("cpu")


def test_a_submission_does_not_replace_the_weights_it_comes_from(own_run, tmp_path, capsys):
    weights = tmp_path / "w.tgz"
    shutil.copy(Path(own_run.out) / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth", weights)
    before = weights.read_bytes()
    flags = as_flags(replace(own_run, split="test", weights=str(weights), submit=str(weights)))
    assert "written over" in refused(lambda f: main_ssdd.main(["--mode=3", *f]), flags, tmp_path, capsys)
    assert weights.read_bytes() == before


def test_a_pass_that_is_cut_leaves_nothing_of_another_photograph(own_run):
    """Killed while an image is made again, then the old photograph put back: its files are not taken for whole."""
    ids = read_ids(own_run.voc_root, "train_aug")
    folder = stages.folder(own_run, "mode 1")
    photo = image_path(own_run.voc_root, ids[0])
    before = photo.read_bytes()
    photo.write_bytes(image_path(own_run.voc_root, ids[1]).read_bytes())

    def cut():
        raise KeyboardInterrupt

    same = (own_run, "mode 1", folder, ids, lambda _: True, lambda: None)
    with pytest.raises(KeyboardInterrupt), passes.image_pass(*same) as left:
        assert list(left.to_do) == ids[:1]
        left.write(ids[0], cut)
    photo.write_bytes(before)
    with passes.image_pass(*same) as left:
        assert list(left.to_do) == ids[:1]


def test_notes_of_a_folder_that_nobody_finished_are_not_taken_for_an_older_versions(own_run, tmp_path):
    ids = read_ids(own_run.voc_root, "train_aug")
    done = set()
    for expected in (ids, ids):  # files came without a note: the process was killed between the two
        with passes.image_pass(own_run, "x", tmp_path, ids, done.__contains__, lambda: None) as left:
            assert list(left.to_do) == expected
        done.update(ids)
    older = tmp_path / "older"
    older.mkdir()
    for _ in range(2):
        with passes.image_pass(own_run, "x", older, ids, done.__contains__, lambda: None) as left:
            assert not left.to_do
    with passes.image_pass(own_run, "x", older, ids, done.__contains__, lambda: None, how="by its labels") as left:
        assert list(left.to_do) == ids
