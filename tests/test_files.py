"""No program writes over what it reads, and every fault of the machine is one line that says where."""

import errno
import os

import numpy as np
import pytest
import torch

from datasets.errors import InputError, program
from datasets.files import refuse_overwrite
from datasets.voc import list_path, mask_path, read_ids
from engine import checkpoint, runs
from models.ssdd.segmentation import SegmentationNetwork
from tests.conftest import tiny
from tools import convert_weights, eval_masks, import_images, predict


def refused(main, flags: list, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(flag) for flag in flags])
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1, said
    return said


def test_one_file_under_other_names_is_the_same(tmp_path):
    (tmp_path / "a").write_text("original")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "folder").mkdir()
    for name in ("a", "hard", "soft", "folder/../a"):
        with pytest.raises(InputError, match="written over"):
            refuse_overwrite([tmp_path / "new", tmp_path / name], [tmp_path / "other", tmp_path / "a"])
        with pytest.raises(InputError, match="written over"):
            refuse_overwrite([tmp_path / "a"], [tmp_path / name])
    refuse_overwrite([tmp_path / "new", tmp_path / "a"], [tmp_path / "other", tmp_path / "new"])


def test_predict_spares_its_pictures_and_weights(tmp_path, tiny_voc, capsys):
    config = tiny(tiny_voc, tmp_path)
    network = SegmentationNetwork(21, config.width, config.head_dilation, False, 0.0, config.backbone_dilation)
    checkpoint.save_weights(tmp_path / "w.pt2", network, config)
    (tmp_path / "photos").mkdir()
    photo = tmp_path / "photos" / "cat.png"
    photo.write_bytes(mask_path(tiny_voc, read_ids(tiny_voc, "val")[0]).read_bytes())
    before = photo.read_bytes(), (tmp_path / "w.pt2").read_bytes()
    flags = [tmp_path / "photos", "--weights", tmp_path / "w.pt2"]
    assert "cat.png" in refused(predict.main, [*flags, "--out", tmp_path / "photos"], capsys)
    assert "w.pt2" in refused(predict.main, [*flags, "--export", tmp_path / "w.pt2"], capsys)
    assert before == (photo.read_bytes(), (tmp_path / "w.pt2").read_bytes())


def test_convert_weights_and_eval_masks_spare_what_they_read(tmp_path, tiny_voc, capsys):
    torch.save({"bn7.weight": torch.ones(2)}, tmp_path / "w.pth")
    before = (tmp_path / "w.pth").read_bytes()
    refused(convert_weights.main, [tmp_path / "w.pth", tmp_path / "w.pth"], capsys)
    assert (tmp_path / "w.pth").read_bytes() == before
    truths = mask_path(tiny_voc, "x").parent
    flags = [truths, "--voc-root", tiny_voc, "--split", "val", "--json"]
    for path in (list_path(tiny_voc, "val"), mask_path(tiny_voc, read_ids(tiny_voc, "val")[0])):
        before = path.read_bytes()
        assert path.name in refused(eval_masks.main, [*flags, path], capsys)
        assert path.read_bytes() == before


def test_import_images_spares_annotations_that_lie_where_its_own_go(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    predict.Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    annotation = tmp_path / "own" / "Annotations" / "a.xml"
    annotation.parent.mkdir(parents=True)
    annotation.write_text("<annotation><object><name>cat</name><bndbox/></object></annotation>")
    before = annotation.read_bytes()
    flags = [tmp_path / "photos", annotation.parent, "--to", tmp_path / "own"]
    assert "a.xml" in refused(import_images.main, flags, capsys)
    assert annotation.read_bytes() == before


def test_a_stage_does_not_fill_a_folder_that_it_reads(tmp_path):
    (tmp_path / "precompute" / "ssdd").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "precompute")
    for masks in (tmp_path / "precompute" / "ssdd", tmp_path / "link" / "ssdd"):
        with pytest.raises(InputError, match=r"ssdd is read here and would be written over"):
            runs.claim_folder(tmp_path / "precompute" / "ssdd", tiny(tmp_path, tmp_path), "mode 1", [masks])


@pytest.mark.parametrize("main", [predict.main, eval_masks.main, convert_weights.main, import_images.main])
def test_bad_flags_are_one_line(main, capsys):
    assert "--no-such-flag" in refused(main, ["a", "b", "--no-such-flag"], capsys) or main is not convert_weights.main


def test_faults_without_a_file_name_say_who_met_them(capsys):
    def write(_flags) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = refused(program(write), [], capsys)
    assert "test_files.write" in said and os.strerror(errno.ENOSPC) in said


def test_memory_that_runs_out_is_one_line(capsys):
    def fill(_flags) -> None:
        raise MemoryError

    assert "memory" in refused(program(fill), [], capsys)
