"""tools/voc.py on small folders in VOC's layout."""

import pytest

from tools import voc
from tools.voc import main


def write_list(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids), encoding="ascii")


@pytest.fixture
def root(tmp_path):
    """Images a…f, empty files: VOC has a b in train, c d in val; SBD has b c e in train, d f in val."""
    root = tmp_path / "VOC2012"
    for folder, ending, ids in (("JPEGImages", "jpg", "abcdef"), ("Annotations", "xml", "abcdef")):
        (root / folder).mkdir(parents=True)
        for image_id in ids:
            (root / folder / f"{image_id}.{ending}").touch()
    (root / "SegmentationClass").mkdir()
    for image_id in "abcd":
        (root / "SegmentationClass" / f"{image_id}.png").touch()
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", "ab")
    write_list(lists / "val.txt", "cd")
    write_list(tmp_path / "sbd" / "train.txt", "ecb")
    write_list(tmp_path / "sbd" / "val.txt", "fd")
    return root


def train_aug(root):
    return root / "ImageSets" / "Segmentation" / "train_aug.txt"


def trainaug(root):
    main(["trainaug", "--voc-root", str(root), "--sbd", str(root.parent / "sbd")])


def check(root, capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", "--voc-root", str(root)])
    return end.value.code, capsys.readouterr().out


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.err.count("\n") == 1
    return said.err


def test_train_aug_is_the_union_without_val(root, capsys):
    trainaug(root)
    assert train_aug(root).read_text() == "a\nb\ne\nf\n"
    assert "4 images (the full data gives 10582)" in capsys.readouterr().out


def test_train_aug_of_full_size_has_no_remark(root, capsys, monkeypatch):
    monkeypatch.setattr(voc, "TRAIN_AUG_IMAGES", 4)
    trainaug(root)
    assert capsys.readouterr().out.endswith("train_aug.txt: 4 images\n")


def break_sbd(name, content=None):
    def change(root):
        path = root.parent / "sbd" / name
        path.unlink()
        if content is not None:
            path.write_text(content)

    return change


BAD_LISTS = {
    "no SBD train": (break_sbd("train.txt"), "sbd/train.txt cannot be read"),
    "no SBD val": (break_sbd("val.txt"), "sbd/val.txt cannot be read"),
    "empty": (break_sbd("val.txt", "\n"), "it is empty"),
    "not an id": (break_sbd("val.txt", "f\n../../etc/passwd\n"), "'../../etc/passwd'"),
    "not text": (break_sbd("val.txt", "\u00e9\n"), "sbd/val.txt cannot be read"),
    "no photograph": (lambda root: (root / "JPEGImages" / "e.jpg").unlink(), "e.jpg is missing, and 0 more of the 4"),
    "no VOC train": (lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(), "train.txt is missing"),
    "no VOC val": (lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), "val.txt is missing"),
}


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_train_aug_refuses(kind, root, capsys):
    change, reason = BAD_LISTS[kind]
    train_aug(root).write_text("as it was\n")
    change(root)
    said = refused(["trainaug", "--voc-root", str(root), "--sbd", str(root.parent / "sbd")], capsys)
    assert reason in said
    assert train_aug(root).read_text() == "as it was\n"


def test_check_of_a_complete_folder(root, capsys):
    trainaug(root)
    capsys.readouterr()
    code, said = check(root, capsys)
    assert code == 0
    assert line_of(said, "  JPEGImages").split() == ["JPEGImages", "6", ".jpg", "files"]
    assert line_of(said, "  train_aug.txt").split() == ["train_aug.txt", "4", "images"]
    for stage in ("label chain, modes 0-2", "mode 3 ", "mIoU in mode 3"):
        assert line_of(said, stage).endswith(" ok")
    assert line_of(said, "mode 3 --split test").endswith("missing: a usable test.txt")
    assert "needs train_aug.txt, JPEGImages, Annotations: ok" in line_of(said, "label chain")
    assert len(said.splitlines()) <= 24


def remove(name):
    return lambda root: (root / name).unlink()


INCOMPLETE = {
    "photograph of train": (remove("JPEGImages/e.jpg"), "label chain", "1 of 4 in JPEGImages (e)"),
    "annotation of train": (remove("Annotations/f.xml"), "label chain", "1 of 4 in Annotations (f)"),
    "list of train": (remove("ImageSets/Segmentation/train_aug.txt"), "label chain", "a usable train_aug.txt"),
    "photograph of val": (remove("JPEGImages/c.jpg"), "mode 3 ", "1 of 2 in JPEGImages (c)"),
    "list of val": (remove("ImageSets/Segmentation/val.txt"), "mode 3 ", "a usable val.txt"),
    "mask of val": (remove("SegmentationClass/d.png"), "mIoU in mode 3", "1 of 2 in SegmentationClass (d)"),
    "list of no ids": (lambda root: train_aug(root).write_text("b c d\n"), "label chain", "a usable train_aug.txt"),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_check_names_what_a_stage_lacks(kind, root, capsys):
    trainaug(root)
    capsys.readouterr()
    change, stage, lack = INCOMPLETE[kind]
    change(root)
    code, said = check(root, capsys)
    assert code == 1
    assert lack in line_of(said, stage)


def test_check_asks_no_masks_of_the_test_images(root, capsys):
    trainaug(root)
    write_list(root / "ImageSets/Segmentation/test.txt", "ef")
    code, said = check(root, capsys)
    assert code == 0
    assert line_of(said, "mode 3 --split test").endswith(" ok")


def test_check_names_only_the_first_of_many(root, capsys):
    trainaug(root)
    for image_id in "abef":
        (root / "JPEGImages" / f"{image_id}.jpg").unlink()
    assert "4 of 4 in JPEGImages (a, b, e …)" in check(root, capsys)[1]


def test_check_of_nothing(tmp_path, capsys):
    code, said = check(tmp_path / "absent", capsys)
    assert code == 1
    assert "no such folder" in said
    assert said.count("missing or empty") == 3
    assert "python -m tools.voc download" in said


def test_download_makes_the_list_and_says_how_to_link(root, monkeypatch, capsys):
    to = root.parent / "to"
    calls = []

    def fetch_voc(folder, year, image_set, download):
        calls.append((folder, year, image_set, download))
        (to / "VOCdevkit").mkdir()
        root.rename(to / "VOCdevkit" / "VOC2012")

    def fetch_sbd(folder, image_set, download):
        calls.append((folder, image_set, download))
        (root.parent / "sbd").rename(folder)

    monkeypatch.setattr(voc, "VOCSegmentation", fetch_voc)
    monkeypatch.setattr(voc, "SBDataset", fetch_sbd)
    main(["download", "--to", str(to)])
    assert calls == [(to, "2012", "trainval", True), (to / "SBD", "train", True)]
    assert train_aug(to / "VOCdevkit" / "VOC2012").read_text() == "a\nb\ne\nf\n"
    assert f"ln -s {to / 'VOCdevkit' / 'VOC2012'} voc_root" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("File not found or corrupted."), EOFError("cut")])
def test_failing_download_is_one_line(error, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(voc, "VOCSegmentation", fail)
    said = refused(["download", "--to", str(tmp_path / "to")], capsys)
    assert f"the download failed ({error})" in said
