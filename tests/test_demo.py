"""The drawn data set: VOC's layout, the same bytes every time, and no half-made set taken for a whole one."""

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import demo
from datasets.demo_objects import OBJECTS
from datasets.errors import InputError
from datasets.voc import CLASSES, PALETTE

TRAIN, VAL = 4, 2


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def ids(root: Path, split: str) -> list[str]:
    return (root / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    demo.make_demo(root, TRAIN, VAL)
    return root


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices that are drawn while the test runs."""
    seen: list[int] = []
    draw = demo.draw
    monkeypatch.setattr(demo, "draw", lambda seed, index: seen.append(index) or draw(seed, index))
    return seen


def test_lists_name_exactly_the_files(made: Path) -> None:
    assert len(ids(made, "train")) == TRAIN and len(ids(made, "val")) == VAL
    assert ids(made, "train_aug") == ids(made, "train")
    listed = {*ids(made, "train"), *ids(made, "val")}
    assert len(listed) == TRAIN + VAL
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        found = {path.name for path in (made / folder).iterdir()}
        assert found == {f"{name}.{ending}" for name in listed}


def test_annotation_agrees_with_mask_and_photograph(made: Path) -> None:
    for name in [*ids(made, "train"), *ids(made, "val")]:
        with Image.open(made / "SegmentationClass" / f"{name}.png") as png:
            assert png.mode == "P"
            assert png.getpalette() == PALETTE.ravel().tolist()
            mask = np.array(png)
        with Image.open(made / "JPEGImages" / f"{name}.jpg") as jpg:
            assert jpg.mode == "RGB" and jpg.size == mask.shape[::-1]
        assert min(mask.shape) >= 128 and max(mask.shape) <= 192
        tree = ElementTree.parse(made / "Annotations" / f"{name}.xml")
        assert tree.findtext("filename") == f"{name}.jpg"
        assert (int(tree.findtext("size/height")), int(tree.findtext("size/width"))) == mask.shape
        objects = tree.findall("object")
        named = {CLASSES.index(thing.findtext("name")) for thing in objects}
        assert named and named == set(np.unique(mask).tolist()) - {0, 255}
        assert 0 < (mask == 255).mean() < 0.3
        boxed = np.zeros(mask.shape, bool)
        for thing in objects:
            assert thing.findtext("difficult") == "0"
            x0, y0, x1, y1 = (int(thing.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            assert 1 <= x0 < x1 <= mask.shape[1] and 1 <= y0 < y1 <= mask.shape[0]
            boxed[y0 - 1 : y1, x0 - 1 : x1] = True
        assert not ((mask > 0) & (mask < 255) & ~boxed).any()


def test_objects_are_bordered_by_void(made: Path) -> None:
    for name in ids(made, "train"):
        with Image.open(made / "SegmentationClass" / f"{name}.png") as png:
            mask = np.array(png).astype(int)
        for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert not ((one != other) & (one != 255) & (other != 255)).any()


def test_same_bytes_again_and_other_bytes_from_another_seed(made: Path, tmp_path: Path) -> None:
    demo.make_demo(tmp_path / "again", TRAIN, VAL)
    assert contents(tmp_path / "again") == contents(made)
    demo.make_demo(tmp_path / "other", 1, 0, seed=1)
    first = f"JPEGImages/{ids(made, 'train')[0]}.jpg"
    assert contents(tmp_path / "other")[first] != contents(made)[first]


def test_small_set_is_a_prefix_of_a_large_one(made: Path, tmp_path: Path) -> None:
    demo.make_demo(tmp_path, 2, 1)
    assert ids(tmp_path, "train") == ids(made, "train")[:2]
    assert ids(tmp_path, "val") == ids(made, "val")[:1]
    large = contents(made)
    pictures = {path: data for path, data in contents(tmp_path).items() if "demo_" in path}
    assert len(pictures) == 9
    assert all(large[path] == data for path, data in pictures.items())


def test_whole_set_is_left_alone(made: Path, drawn: list[int]) -> None:
    before = contents(made)
    demo.make_demo(made, TRAIN, VAL)
    assert drawn == []
    assert contents(made) == before


def test_interrupted_set_is_finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = demo.draw

    def interrupted(seed: int, index: int) -> tuple:
        if index == 3:
            raise KeyboardInterrupt
        return draw(seed, index)

    with monkeypatch.context() as patch:
        patch.setattr(demo, "draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.make_demo(tmp_path, TRAIN, VAL)
    assert len(list(tmp_path.glob("JPEGImages/*.jpg"))) == 2
    demo.make_demo(tmp_path, TRAIN, VAL)
    assert contents(tmp_path) == contents(made)


@pytest.mark.parametrize("lost", ["JPEGImages/*", "Annotations/*", "SegmentationClass/*", "ImageSets/*/val.txt"])
def test_lost_file_is_made_again(made: Path, lost: str) -> None:
    before = contents(made)
    sorted(made.glob(lost))[0].unlink()
    demo.make_demo(made, TRAIN, VAL)
    assert contents(made) == before


def test_other_arguments_or_version_make_it_anew(made: Path, tmp_path: Path, drawn: list[int],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    demo.make_demo(tmp_path, 3, 1, seed=1)
    (tmp_path / "JPEGImages" / ".partial-1-demo_000001.jpg").write_bytes(b"left by a killed run")
    demo.make_demo(tmp_path, TRAIN, VAL)
    assert contents(tmp_path) == contents(made)
    demo.make_demo(tmp_path, 1, 0)
    assert ids(tmp_path, "train") == ["demo_000001"] and not ids(tmp_path, "val")
    drawn.clear()
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    demo.make_demo(tmp_path, 1, 0)
    assert drawn == [1]


def test_real_photographs_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "2007_000032.jpg").write_bytes(b"a photograph")
    with pytest.raises(InputError, match="not the demo's"):
        demo.make_demo(tmp_path, 1, 0)
    assert list(contents(tmp_path)) == ["JPEGImages/2007_000032.jpg"]


def test_a_smaller_set_removes_no_image_of_the_larger_one(made: Path, tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        shutil.copytree(made / folder, tmp_path / folder)
    (tmp_path / "Annotations" / "my_demo_1.xml").write_text("mine")
    before = contents(tmp_path)
    demo.make_demo(tmp_path, 1, 0)
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize("arguments", [(0, 1), (1, -1), (1, 1, -1)])
def test_sets_that_cannot_be_are_refused(arguments: tuple, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the demo needs"):
        demo.make_demo(tmp_path / "set", *arguments)
    assert not (tmp_path / "set").exists()


def test_first_class_of_each_image_goes_round() -> None:
    count = len(OBJECTS)
    names = [{name for name, _ in demo.draw(0, index)[2]} for index in range(1, count + 1)]
    assert set().union(*names) == set(OBJECTS)
