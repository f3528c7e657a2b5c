"""Own pictures and classes: what is imported, and four classes of other names through the whole method."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_ssdd
from datasets.errors import InputError
from datasets.files import PARTIAL
from datasets.seed_store import load_maps
from datasets.voc import CLASSES, class_names, read_ids, read_image, read_mask, read_present, write_mask
from engine import checkpoint, stages
from prepare_labels import make_aff_labels, make_cam_labels, train_aff, train_cls
from tests.conftest import as_flags, tiny
from tests.test_pages import data_of
from tools import import_images
from tools.predict import Predictor

# The demo's classes under names that no program here knows, in another order.
OTHER = {"aeroplane": "toy & plane", "boat": "ship", "bottle": "Flasche", "bus": "a coach"}


def images_of(root: Path, split: str) -> dict[str, list[str]]:
    present = {image_id: np.flatnonzero(read_present(root, image_id))[1:] for image_id in read_ids(root, split)}
    labels = {i: [OTHER[CLASSES[c]] for c in found if CLASSES[c] in OTHER] for i, found in present.items()}
    return {image_id: names for image_id, names in labels.items() if names}


@pytest.fixture
def own_data(tiny_voc, tmp_path):
    """A folder of pictures and its CSV, from the drawn set."""
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "labels"])
        for split in ("train", "val"):
            for image_id, names in images_of(tiny_voc, split).items():
                path = tmp_path / "photos" / split / f"{image_id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(read_image(tiny_voc, image_id)).save(path)
                rows.writerow([f"{split}/{image_id}.png", ";".join(names)])
    return tmp_path


def test_four_classes_of_other_names_go_through_the_whole_method(tiny_voc, own_data, capsys):
    root = own_data / "data"
    import_images.main([str(own_data / "photos"), str(own_data / "labels.csv"), "--to", str(root), "--val", "0.3"])
    names = (
        "background",
        *sorted({name for split in ("train", "val") for n in images_of(tiny_voc, split).values() for name in n}),
    )
    assert class_names(root) == names and len(names) == 5
    for split in ("train", "val"):
        for image_id in read_ids(root, split):
            source = image_id.removeprefix("train_").removeprefix("val_")
            labels = images_of(tiny_voc, image_id.split("_")[0])[source]
            assert {names[c] for c in np.flatnonzero(read_present(root, image_id))[1:]} == set(labels)
            assert read_image(root, image_id).shape == read_image(tiny_voc, source).shape
            truth = read_mask(tiny_voc / "SegmentationClass" / f"{source}.png")
            new = np.full_like(truth, 255)
            for old, name in enumerate(CLASSES):
                if old == 0 or name in OTHER:
                    new[truth == old] = names.index(OTHER.get(name, name))
            write_mask(root / "SegmentationClass" / f"{image_id}.png", new)
    config = tiny(root, own_data / "out")
    flags = as_flags(config)
    for program in (train_cls, make_cam_labels, train_aff, make_aff_labels):
        program.main(flags)
    main_ssdd.main(["--mode=all", *flags])
    for image_id in read_ids(root, "train"):
        stored = load_maps(stages.folder(config, "make_aff_labels") / f"{image_id}.npz")
        assert stored.classes.tolist() == np.flatnonzero(read_present(root, image_id)).tolist()
    result = json.loads((stages.folder(config, "mode 3") / "result_val.json").read_text())
    assert tuple(result["mask"]["iou"]) == names
    weights = stages.folder(config, "mode 2") / "models" / "seg_0001.pth"
    assert checkpoint.load_description(weights)[1] == names
    assert checkpoint.load_state(weights)["seg_main.seg2.weight"].shape[0] == 5
    predictor, image_id = Predictor(weights, "cpu"), read_ids(root, "val")[0]
    expected = read_mask(stages.folder(config, "mode 3") / "crf" / f"{image_id}.png", 5)
    assert np.array_equal(predictor.mask(read_image(root, image_id)), expected)
    for page in ("labels", "dssdd", "val"):
        data = data_of(Path(config.out) / "script" / f"{page}.html")
        assert data["view"] != "nothing" and tuple(c["name"] for c in data["classes"]) == names
    # Another list of as many names is refused, not mixed up.
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    for mode, said in (("3", "knows other classes"), ("0", "names the class")):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main_ssdd.main([f"--mode={mode}", *flags, "--fresh"])
        assert said in capsys.readouterr().err


def test_xml_files_do_as_well_as_a_csv(tiny_voc, tmp_path):
    import_images.main(
        [str(tiny_voc / "JPEGImages"), str(tiny_voc / "Annotations"), "--to", str(tmp_path / "data"), "--val=0"]
    )
    assert read_ids(tmp_path / "data", "train") == sorted(read_ids(tiny_voc, "train") + read_ids(tiny_voc, "val"))
    for image_id in read_ids(tmp_path / "data", "train"):
        here, there = class_names(tmp_path / "data"), CLASSES
        present = read_present(tmp_path / "data", image_id), read_present(tiny_voc, image_id)
        assert {here[c] for c in np.flatnonzero(present[0])} == {there[c] for c in np.flatnonzero(present[1])}


def test_split_depends_on_names_alone(own_data):
    lists = []
    for name in ("one", "two"):
        import_images.main(
            [str(own_data / "photos"), str(own_data / "labels.csv"), "--to", str(own_data / name), "--val=0.5"]
        )
        lists.append([read_ids(own_data / name, split) for split in ("train", "val")])
        rows = (own_data / "labels.csv").read_text().splitlines()
        (own_data / "labels.csv").write_text("\n".join(reversed(rows[1:])) + "\n")
    assert lists[0] == lists[1] and not set(lists[0][0]) & set(lists[0][1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no picture"),
        ("train/absent.png,cat\n", "no pictures below"),
        ("{first},\n", "line 1: needs a file name"),
        ("{first}\n", "at least one class"),
        ("\0", "names no picture|cannot be read|at least one class"),
        ("{first},background\n", "always there"),
    ],
)
def test_bad_labels_end_in_one_line(own_data, capsys, content, said):
    first = next((own_data / "photos").rglob("*.png")).relative_to(own_data / "photos")
    (own_data / "bad.csv").write_text(content.format(first=first))
    with pytest.raises(SystemExit) as end:
        import_images.main([str(own_data / "photos"), str(own_data / "bad.csv"), "--to", str(own_data / "data")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert any(part in error for part in said.split("|"))
    assert not (own_data / "data").exists()


@pytest.mark.parametrize("label", ["sea\ncow", "cat\x07", "a\u2028b", "a\x85b"])
def test_labels_that_training_would_refuse_are_not_imported(own_data, label):
    first = next((own_data / "photos").rglob("*.png")).relative_to(own_data / "photos")
    (own_data / "bad.csv").write_text(f'{first},"{label}"\n', newline="")
    with pytest.raises(InputError, match=r"bad\.csv: the class .* control character or line break"):
        import_images.import_images(own_data / "photos", own_data / "bad.csv", own_data / "data", 0.0)
    assert not (own_data / "data").exists()


def import_of(own_data, *flags: str) -> None:
    import_images.main(
        [str(own_data / "photos"), str(own_data / "labels.csv"), "--to", str(own_data / "data"), "--val=0.3", *flags]
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_broken_pictures_are_all_named_and_the_import_goes_on(own_data, capsys):
    import_of(own_data)
    whole = contents(own_data / "data")
    (own_data / "data").rename(own_data / "whole")
    pictures = sorted((own_data / "photos").rglob("*.png"))
    broken = {pictures[0]: pictures[0].read_bytes(), pictures[2]: pictures[2].read_bytes()}
    for path in broken:
        path.write_bytes(b"no picture")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        import_of(own_data)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(str(path) in line for path, line in zip(broken, sorted(said[:2]), strict=True))
    assert f"2 of {len(pictures)} pictures" in said[2] and "--skip-broken" in said[2]
    for path, content in broken.items():
        path.write_bytes(content)
    import_of(own_data)
    assert contents(own_data / "data") == whole
    with pytest.raises(SystemExit):
        import_of(own_data)
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["classes.txt", "Annotations/mine.xml", "ImageSets/mine"])
def test_no_file_of_a_user_is_taken_for_the_data_set(name, own_data, capsys):
    own = own_data / "data" / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("mine")
    with pytest.raises(SystemExit):
        import_of(own_data)
    assert "is there already" in capsys.readouterr().err
    assert contents(own_data / "data") == {name: b"mine"}


def test_half_written_files_of_other_programs_stay(own_data):
    other = own_data / "data" / "mine" / f"{PARTIAL}x"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    import_of(own_data)
    assert other.read_text() == "mine"


def test_broken_pictures_are_left_out_when_asked(own_data, capsys):
    pictures = sorted((own_data / "photos").rglob("*.png"))
    pictures[0].write_bytes(b"no picture")
    import_of(own_data, "--skip-broken")
    ids = read_ids(own_data / "data", "train") + read_ids(own_data / "data", "val")
    assert len(ids) == len(pictures) - 1 and not any(i.endswith(f"_{pictures[0].stem}") for i in ids)
    assert "1 pictures cannot be used" in capsys.readouterr().out
    for path in pictures:
        path.write_bytes(b"no picture")
    (own_data / "data").rename(own_data / "before")
    with pytest.raises(SystemExit):
        import_of(own_data, "--skip-broken")


def test_killed_imports_go_on_and_others_are_not_mixed_in(own_data, monkeypatch):
    import_of(own_data)
    whole = contents(own_data / "data")
    (own_data / "data").rename(own_data / "whole")
    read, done = import_images.read_photo, []

    def killed(path: Path) -> np.ndarray:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        return read(path)

    monkeypatch.setattr(import_images, "read_photo", killed)
    with pytest.raises(SystemExit):
        import_of(own_data)
    first = set(done)
    gone = {str(path.relative_to(own_data / "photos")) for path in first}
    header, *rows = (own_data / "labels.csv").read_text().splitlines()
    others = [row for row in rows if row.split(",")[0] not in gone]
    (own_data / "others.csv").write_text("\n".join([header, *others]) + "\n")
    with pytest.raises(InputError, match="unfinished import of other pictures"):
        import_images.import_images(own_data / "photos", own_data / "others.csv", own_data / "data", 0.3)
    monkeypatch.setattr(import_images, "read_photo", lambda path: (done.append(path), read(path))[1])
    import_of(own_data)
    assert contents(own_data / "data") == whole
    assert not first & set(done[2:])


def test_large_pictures_are_shrunk_to_what_training_reads(own_data, monkeypatch, capsys):
    monkeypatch.setattr(import_images, "MOST_PIXELS", 1000)
    import_of(own_data)
    for image_id in read_ids(own_data / "data", "train"):
        height, width = read_image(own_data / "data", image_id).shape[:2]
        assert 900 < height * width <= 1000
    assert "were shrunk" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [("cat\ndog\ncat\n", "'cat' twice"), ("\n", "names 0 classes"), ("\n".join(map(str, range(255))), "255 classes")],
)
def test_bad_class_lists_are_refused(tmp_path, content, said):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(InputError, match=said):
        class_names(tmp_path)


def test_class_list_may_name_the_background_first(tmp_path):
    assert class_names(tmp_path) == CLASSES
    (tmp_path / "classes.txt").write_text("background\n  sea cow \n\ndog")
    assert class_names(tmp_path) == ("background", "sea cow", "dog")
