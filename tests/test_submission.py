"""What is packed for VOC's evaluation server."""

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_ssdd
from datasets.errors import InputError
from datasets.voc import PALETTE, read_ids, read_mask, write_mask, write_submission
from engine import stages
from tests.conftest import as_flags
from tests.test_bad_input import refused


@pytest.fixture
def run_with_test(own_run):
    """A finished run with a test split: the photographs of val, whose true masks are gone."""
    lists = Path(own_run.voc_root) / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text((lists / "val.txt").read_text())
    for image_id in read_ids(own_run.voc_root, "test"):
        (Path(own_run.voc_root) / "SegmentationClass" / f"{image_id}.png").unlink()
    return own_run


def submit(config, path, *more):
    main_ssdd.main(["--mode=3", *as_flags(replace(config, split="test", submit=str(path))), *more])


def test_archive_holds_every_test_mask_as_the_server_takes_it(run_with_test, tmp_path, capsys):
    submit(run_with_test, tmp_path / "new" / "masks.tgz")
    assert "3 masks" in capsys.readouterr().out
    with tarfile.open(tmp_path / "new" / "masks.tgz", "r:gz") as archive:
        names = archive.getnames()
        assert all(member.isfile() for member in archive.getmembers())
        archive.extractall(tmp_path / "unpacked", filter="data")
    ids = read_ids(run_with_test.voc_root, "test")
    assert names == [f"results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png" for image_id in ids]
    for image_id, name in zip(ids, names, strict=True):
        with Image.open(tmp_path / "unpacked" / name) as image:
            assert image.mode == "P" and image.getpalette() == PALETTE.ravel().tolist()
            with Image.open(Path(run_with_test.voc_root) / "JPEGImages" / f"{image_id}.jpg") as photo:
                assert image.size == photo.size
            mask = stages.folder(run_with_test, "mode 3") / "crf" / f"{image_id}.png"
            assert np.array_equal(np.array(image), read_mask(mask))


def test_same_masks_same_bytes(run_with_test, tmp_path):
    for name in ("a.tgz", "b.tar.gz"):
        submit(run_with_test, tmp_path / name)
    assert (tmp_path / "a.tgz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def other_size(path):
    write_mask(path, read_mask(path)[1:])


def ignored_pixels(path):
    mask = read_mask(path).copy()
    mask[0, 0] = 255
    write_mask(path, mask)


def unknown_class(path):
    mask = read_mask(path).copy()
    mask[0, 0] = 21
    write_mask(path, mask)


@pytest.mark.parametrize("spoil", [other_size, ignored_pixels, unknown_class])
def test_a_mask_that_the_server_would_refuse_is_named_and_nothing_written(spoil, run_with_test, tmp_path, capsys):
    submit(run_with_test, tmp_path / "masks.tgz")
    (tmp_path / "masks.tgz").unlink()
    path = stages.folder(run_with_test, "mode 3") / "crf" / f"{read_ids(run_with_test.voc_root, 'test')[1]}.png"
    spoil(path)
    said = refused(lambda flags: submit(run_with_test, tmp_path / "masks.tgz"), [], tmp_path, capsys)
    assert str(path) in said
    assert list(tmp_path.glob("*masks.tgz")) == []


def test_missing_ids_are_counted(run_with_test, tmp_path):
    ids = read_ids(run_with_test.voc_root, "test")
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="3 of 3 masks are missing") as error:
        write_submission(tmp_path / "masks.tgz", tmp_path / "masks", run_with_test.voc_root, ids)
    assert ids[0] in str(error.value)


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode=3", "--submit=x.tgz"],
        ["--mode=3", "--split=val", "--submit=x.tgz"],
        ["--mode=0", "--split=test", "--submit=x.tgz"],
        ["--mode=3", "--split=test", "--submit=x.zip"],
    ],
)
def test_submit_where_it_makes_no_sense(flags, tiny_config, capsys):
    said = refused(main_ssdd.main, [*as_flags(tiny_config), *flags], tiny_config.out, capsys)
    assert "--submit" in said
