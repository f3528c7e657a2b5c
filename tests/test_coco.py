"""COCO as data: masks painted from instances, labels, lists, and what is wrong with files, on pictures made here."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets.coco import CLASSES, paint, picture_classes, read_instances
from datasets.files import PARTIAL
from datasets.voc import (
    annotation_path,
    class_names,
    list_path,
    mask_path,
    read_ids,
    read_image,
    read_mask,
    read_present,
)
from tests.test_locks import end, holder
from tools import coco
from tools.coco import read_record

SIZE = (24, 32)


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(mask):
    """COCO's uncompressed runs: column by column, beginning with zeros."""
    flat, counts, value = mask.T.flatten().tolist(), [], 0
    for pixel in flat:
        if pixel != value or not counts:
            counts += [0] if pixel != value and not counts else []
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def annotation(image, category, segmentation, crowd=0, bbox=(0, 0, 5, 5)):
    return {
        "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd, "bbox": list(bbox),
    }  # fmt: skip


def crowd_region():
    region = np.zeros(SIZE, np.uint8)
    region[0:6, 0:30] = 1
    return region


# Category ids with gaps and out of order, as COCO's; one image has a word for an id, one has no annotation.
CATEGORIES = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog & cat"}]
TRAIN = {
    9: [
        annotation(9, 44, box(8, 8, 12, 12)),
        annotation(9, 1, box(4, 4, 20, 20)),
        annotation(9, 18, runs(crowd_region()), crowd=1),
        annotation(9, 18, box(1, 1, 2, 2), bbox=(1, 1, 0, 1)),
    ],
    "word": [annotation("word", 18, box(0, 0, 8, 24) + box(24, 0, 32, 24))],
    25: [],
}
VAL = {30: [annotation(30, 1, box(0, 0, 32, 12))]}


def name_of(image, split):
    return f"COCO_{split}2014_{image:012d}" if isinstance(image, int) else f"COCO_{split}2014_{image}"


@pytest.fixture
def download(tmp_path):
    """A folder as COCO's zips make it; its first photograph is grey."""
    folder = tmp_path / "COCO"
    (folder / "annotations").mkdir(parents=True)
    for split, content in (("train", TRAIN), ("val", VAL)):
        (folder / f"{split}2014").mkdir()
        images = []
        for n, image in enumerate(content):
            name = f"{name_of(image, split)}.jpg"
            shade = np.full(SIZE if n == 0 else (*SIZE, 3), 40 * (n + 1), np.uint8)
            Image.fromarray(shade).save(folder / f"{split}2014" / name)
            images.append({"id": image, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        annotations = [one for some in content.values() for one in some]
        write(folder, split, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return folder


def instances_path(folder, split="train"):
    return folder / "annotations" / f"instances_{split}2014.json"


def write(folder, split, content):
    instances_path(folder, split).write_text(json.dumps(content))


def expected_mask(smaller=True, crowd="ignore"):
    """Image 9, painted by hand; classes by category id: person 1, dog & cat 2, bottle 3."""
    mask = np.zeros(SIZE, np.uint8)
    if crowd == "ignore":
        mask[0:6, 0:30] = 255
    # person 256 pixels, crowd 180, bottle 16, the dog of one pixel
    person, bottle, dogs = (slice(4, 20),) * 2, (slice(8, 12),) * 2, (slice(0, 6), slice(0, 30))
    mask[person] = 1
    if crowd == "class":
        mask[dogs] = 2
    if smaller:
        mask[bottle] = 3
    mask[1:2, 1:2] = 2
    return mask


@pytest.mark.parametrize("overlap", ["smaller", "later"])
@pytest.mark.parametrize("crowd", ["ignore", "class", "out"])
def test_masks_by_hand(download, overlap, crowd):
    instances = read_instances(instances_path(download))
    assert instances.classes == ("background", "person", "dog & cat", "bottle")
    assert [picture.image_id for picture in instances.pictures] == [
        "COCO_train2014_000000000009", "COCO_train2014_000000000025", "COCO_train2014_word",
    ]  # fmt: skip
    masks = [paint(instances, picture, overlap, crowd) for picture in instances.pictures]
    assert np.array_equal(masks[0], expected_mask(overlap == "smaller", crowd))
    assert (masks[1] == 0).all()
    assert (masks[2][:, 8:24] == 0).all() and (masks[2][:, :8] == 2).all() and (masks[2][:, 24:] == 2).all()
    names = [picture_classes(instances, picture) for picture in instances.pictures]
    assert names == [["person", "dog & cat", "bottle"], [], ["dog & cat"]]


def test_a_box_without_area_makes_no_label(download):
    content = json.loads(instances_path(download).read_text())
    content["annotations"] = [annotation(9, 44, box(8, 8, 12, 12), bbox=(8, 8, 0, 4))]
    write(download, "train", content)
    instances = read_instances(instances_path(download))
    assert picture_classes(instances, instances.pictures[0]) == []


def test_compressed_runs_are_read(download):
    from pycocotools import mask as rle

    region = crowd_region()
    packed = rle.encode(np.asfortranarray(region))
    packed["counts"] = packed["counts"].decode()
    content = json.loads(instances_path(download).read_text())
    content["annotations"] = [annotation(9, 44, packed)]
    write(download, "train", content)
    instances = read_instances(instances_path(download))
    assert np.array_equal(paint(instances, instances.pictures[0]), 3 * region)


def test_prepared_set_reads_like_voc(download, tmp_path, capsys):
    root = tmp_path / "root"
    coco.main(["prepare", str(download), "--to", str(root)])
    assert class_names(root) == ("background", "person", "dog & cat", "bottle")
    lists = {name: read_ids(root, name) for name in ("train", "val", "train_annotated", "val_annotated", "train_aug")}
    assert lists["train"] == [name_of(n, "train") for n in (9, 25, "word")] and lists["val"] == [name_of(30, "val")]
    assert lists["train_annotated"] == lists["train_aug"] == [name_of(n, "train") for n in (9, "word")]
    assert lists["val_annotated"] == lists["val"]
    assert read_present(root, name_of(9, "train")).tolist() == [1, 1, 1, 1]
    assert read_present(root, name_of("word", "train")).tolist() == [1, 0, 1, 0]
    assert read_image(root, name_of(9, "train")).shape == (*SIZE, 3)  # grey
    assert np.array_equal(read_mask(mask_path(root, name_of(9, "train")), 4), expected_mask())
    record = read_record(root)
    assert record["overlap"] == "smaller on top" and record["crowd"] == "ignore" and len(record["sha256"]) == 2
    with pytest.raises(SystemExit) as end:
        coco.main(["check", "--root", str(root)])
    assert end.value.code == 0
    mask_path(root, name_of(25, "train")).unlink()
    with pytest.raises(SystemExit) as end:
        coco.main(["check", "--root", str(root)])
    assert end.value.code == 1 and "1 masks are missing" in capsys.readouterr().out


def test_an_interrupted_preparation_goes_on(download, tmp_path, monkeypatch):
    root, painted = tmp_path / "root", []

    def stopping(instances, picture, *settings):
        painted.append(picture.image_id)
        if len(painted) == 3:
            raise KeyboardInterrupt
        return paint(instances, picture, *settings)

    monkeypatch.setattr(coco, "paint", stopping)
    with pytest.raises(SystemExit) as end:
        coco.main(["prepare", str(download), "--to", str(root)])
    assert end.value.code == 130 and not list_path(root, "train").exists()
    half = root / "JPEGImages" / f"{PARTIAL}7-left.jpg"  # by a kill
    half.touch()
    coco.main(["prepare", str(download), "--to", str(root)])
    assert len(painted) == 5 and len(set(painted)) == 4 and coco.check(root) and not half.exists()


def test_two_preparations_do_not_fill_one_data_set(download, tmp_path, capsys):
    other = holder("locks.lock_for_writing(folder)", tmp_path / "root")
    assert "in use by another run" in refused(capsys, "prepare", download, "--to", tmp_path / "root")
    end(other)
    coco.main(["prepare", str(download), "--to", str(tmp_path / "root")])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        coco.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert end.value.code == 2 and len(lines) == 1 and "Traceback" not in error
    return lines[0]


def test_other_settings_need_another_folder(download, tmp_path, capsys):
    root = tmp_path / "root"
    coco.main(["prepare", str(download), "--to", str(root)])
    assert "made otherwise" in refused(capsys, "prepare", download, "--to", root, "--overlap", "later")
    (tmp_path / "voc" / "JPEGImages").mkdir(parents=True)
    assert "JPEGImages is there already" in refused(capsys, "prepare", download, "--to", tmp_path / "voc")


def test_what_was_lost_is_made_again_of_the_photographs_that_are_named(download, tmp_path):
    root, moved = tmp_path / "root", tmp_path / "moved"
    coco.main(["prepare", str(download), "--to", str(root)])
    mask = mask_path(root, name_of(9, "train"))
    whole = mask.read_bytes()
    mask.unlink()
    coco.main(["prepare", str(download), "--to", str(root)])
    assert mask.read_bytes() == whole
    shutil.copytree(download, moved)
    coco.main(["prepare", str(moved), "--to", str(root)])
    assert all(moved in path.resolve().parents for path in (root / "JPEGImages").iterdir())


@pytest.mark.parametrize("part", ["Annotations", "SegmentationClass", "ImageSets", "classes.txt"])
def test_no_file_of_a_user_is_taken_for_the_data_set(part, download, tmp_path, capsys):
    (tmp_path / part).mkdir()
    assert f"{part} is there already" in refused(capsys, "prepare", download, "--to", tmp_path)
    assert not (tmp_path / "masks.json").exists()


def test_missing_files_are_named(download, tmp_path, capsys):
    root = tmp_path / "root"
    photograph = download / "train2014" / f"{name_of(25, 'train')}.jpg"
    photograph.rename(tmp_path / "away.jpg")
    assert photograph.name in refused(capsys, "prepare", download, "--to", root)
    assert not list_path(root, "train").exists()
    Image.new("RGB", (5, 5)).save(photograph)
    assert "(5, 5)" in refused(capsys, "prepare", download, "--to", root)
    instances_path(download, "val").unlink()
    assert "instances_val" in refused(capsys, "prepare", download, "--to", root)
    assert "no COCO" in refused(capsys, "prepare", tmp_path, "--to", root)
    assert "prepare" in refused(capsys, "check", "--root", tmp_path / "nothing")


UNFIT = ("", " cat", "two\nlines", "bell\a", "background", "long" * 100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("images"), "not an instances file"),
        (lambda c: c["images"].append(c["images"][0]), "twice"),
        (lambda c: c["images"].append({**c["images"][0], "id": 77}), "twice"),
        (lambda c: c["images"].append({**c["images"][0], "id": 78, "file_name": "a b.jpg"}), "image id"),
        (lambda c: c["images"].append({**c["images"][0], "id": 79, "file_name": "c.jpg", "height": 0}), "size"),
        (lambda c: c["annotations"].append(annotation(5, 1, box(0, 0, 1, 1))), "unknown image"),
        (lambda c: c["annotations"].append(annotation(9, 2, box(0, 0, 1, 1))), "unknown image or category"),
        (lambda c: c["annotations"].append(annotation(9, 1, [[1, 2, 3]])), "no usable outline"),
        (lambda c: c["annotations"].append(annotation(9, 1, [])), "no usable outline"),
        (lambda c: c["annotations"].append(annotation(9, 1, box(0, 0, 1e9, 1))), "no usable outline"),
        (lambda c: c["annotations"].append(annotation(9, 1, box(0, 0, float("nan"), 1))), "no usable outline"),
        (lambda c: c["annotations"].append(annotation(9, 1, {"size": list(SIZE), "counts": [5]})), "add up"),
        (lambda c: c["annotations"].append(annotation(9, 1, {"size": [1, 1], "counts": [1]})), "the size"),
        (
            lambda c: c["annotations"].append(annotation(9, 1, {"size": list(SIZE), "counts": "#$"})),
            "no usable outline",
        ),
        (lambda c: c["annotations"].append(annotation(9, 1, None)), "no usable outline"),
        (lambda c: c["annotations"].append({**annotation(9, 1, box(0, 0, 1, 1)), "bbox": "none"}), "box"),
        (lambda c: c["categories"].append({"id": 44, "name": "again"}), "categories"),
        (lambda c: c["categories"].append({"id": 90, "name": "hover board"}), "other categories"),
        *((lambda c, name=name: c["categories"].append({"id": 91, "name": name}), "plain name") for name in UNFIT),
    ],
)
def test_broken_instances(download, tmp_path, capsys, change, said):
    content = json.loads(instances_path(download).read_text())
    change(content)
    write(download, "train", content)
    assert said in refused(capsys, "prepare", download, "--to", tmp_path / "root")


def test_no_json(download, tmp_path, capsys):
    instances_path(download).write_text("[" * 100_000)
    assert "JSON" in refused(capsys, "prepare", download, "--to", tmp_path / "root")


def archive_file(folder, split, image_id, mask, *objects):
    for part in ("image", "mask", "xml"):
        (folder / split / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / split / "image" / f"{image_id}.jpg")
    Image.fromarray(mask).save(folder / split / "mask" / f"{image_id}.png")
    body = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>{right}</xmax>"
        "<ymax>9</ymax></bndbox></object>"
        for name, right in objects
    )
    (folder / split / "xml" / f"{image_id}.xml").write_text(f"<annotation>{body}</annotation>")


def test_the_authors_archive(tmp_path, capsys):
    folder, root = tmp_path / "archive", tmp_path / "root"
    mask = np.zeros(SIZE, np.uint8)
    mask[:5] = 80
    archive_file(folder, "train", "COCO_train2014_1", mask, ("toothbrush", 9), ("cat", 3), ("toothbrush", 7))
    archive_file(folder, "train", "COCO_train2014_2", 0 * mask)
    archive_file(folder, "validation", "COCO_val2014_1", mask, ("person", 9))
    coco.main(["prepare", str(folder), "--to", str(root)])
    assert class_names(root) == CLASSES
    assert read_ids(root, "train_annotated") == ["COCO_train2014_1"] and len(read_ids(root, "train")) == 2
    assert np.flatnonzero(read_present(root, "COCO_train2014_1")).tolist() == [0, 80]
    assert np.array_equal(read_mask(mask_path(root, "COCO_train2014_1"), 81), mask)
    assert "archive" in read_record(root)["masks"] and coco.check(root)
    archive_file(folder, "train", "COCO_train2014_3", mask, ("unicorn", 9))
    assert "unicorn" in refused(capsys, "prepare", folder, "--to", root)


@pytest.mark.parametrize("change", ["another class", "a class", "no class"])
def test_an_archive_whose_annotation_changed_is_prepared_anew(change, tmp_path):
    folder, root, mask = tmp_path / "archive", tmp_path / "root", np.zeros((10, 14), np.uint8)
    before, after = {"another class": ("cat", "dog"), "a class": ("", "dog"), "no class": ("cat", "")}[change]
    archive_file(folder, "val", "COCO_val2014_1", mask, ("person", 9))
    for name in (before, after):
        archive_file(folder, "train", "COCO_train2014_1", mask, *([(name, 9)] if name else []))
        coco.prepare(folder, root, "smaller", "ignore")
    annotation = annotation_path(root, "COCO_train2014_1").read_text()
    assert annotation.count("<name>") == bool(after) and f"<name>{after}</name>" in f"{annotation}<name></name>"
    assert list_path(root, "train_aug").read_text() == "COCO_train2014_1\n" * bool(after)
