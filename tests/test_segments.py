"""Regions without classes as an adviser: which class each takes, how they are read, and the modes that follow them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

import main_ssdd
from datasets.seed_store import read_seed
from datasets.segments import read_segments
from datasets.voc import image_size, read_ids, read_mask
from engine import stages
from models.ssdd.regions import region_advice, region_classes
from tests.conftest import as_flags
from tests.test_bad_input import refused


def rows(*lines):
    return torch.tensor([[int(digit) if digit != "?" else 255 for digit in line] for line in lines])


def region(*lines):
    return torch.tensor([[mark == "#" for mark in line] for line in lines])


KNOWLEDGE = rows("000000", "011000", "0110?0", "000022")


def test_each_region_takes_its_class_by_hand():
    regions = torch.stack(
        [
            region("......", ".##...", ".###..", "......"),  # 4 of 5 pixels are of class 1
            region("......", ".####.", ".####.", "......"),  # half of it is; all of class 1 lies in it
            region("......", ".#....", ".##...", ".#...."),  # 3 of 4
            region("......", "..###.", "...##.", "......"),  # mostly background
            region("......", "..#...", "....#.", "......"),  # half 1, half unknown
            region("......", "......", "....#.", "....##"),  # class 2, all of it
            region("......", "......", "....#.", "......"),  # unknown
            region("......", "..#...", "......", ".....#"),  # half 1, half 2; holds half of class 2
        ]
    )
    assert region_classes(KNOWLEDGE, regions, 3).tolist() == [1, 1, 1, 0, -1, 2, -1, -1]


def test_the_smallest_region_wins_and_the_knowledge_stays_elsewhere():
    small = region("......", "..##..", "...#..", "......")  # 2 of 3 background: it takes that
    large = region("......", ".####.", ".####.", "......")  # class 1
    nothing = region("......", "......", "....#.", "......")  # unknown: as if it were not there
    for order in ((small, large, nothing), (nothing, large, small)):
        advice = region_advice(KNOWLEDGE, torch.stack(order), 3)
        assert advice.tolist() == rows("000000", "010010", "011010", "000022").tolist()
    none = region_advice(KNOWLEDGE, torch.zeros(0, 4, 6, dtype=torch.bool), 3)
    assert torch.equal(none, KNOWLEDGE)


def test_of_equal_regions_the_first_is_on_top():
    one, other = region("......", ".##...", "......", "......"), region("##....", "......", "......", "......")
    both = rows("000000", "011000", "000000", "000000")
    shared = torch.stack([one | other, region("##....", ".##...", "......", "......")])
    assert torch.equal(region_classes(both, shared, 2), torch.tensor([1, 1]))
    a, b = region(".#....", ".#....", "......", "......"), region(".#....", "#.....", "......", "......")
    knowledge = rows("000000", "010000", "010000", "000000")
    first = region_advice(knowledge, torch.stack([a, b]), 2)
    second = region_advice(knowledge, torch.stack([b, a]), 2)
    assert region_classes(knowledge, torch.stack([a, b]), 2).tolist() == [-1, 0]
    assert torch.equal(first, second)
    a, b = region(".##...", ".#....", ".#....", "......"), region("###...", "#.....", "......", "......")
    assert region_classes(knowledge, torch.stack([a, b]), 2).tolist() == [1, 0]
    assert region_advice(knowledge, torch.stack([a, b]), 2)[0].tolist() == [0, 1, 1, 0, 0, 0]
    assert region_advice(knowledge, torch.stack([b, a]), 2)[0].tolist() == [0, 0, 0, 0, 0, 0]


def made_regions(size):
    rng = np.random.default_rng(4)
    found = np.zeros((5, *size), bool)
    for one in found:
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        one[top : top + 30, left : left + 40] = True
    return found


def packed(regions):
    return [rle.encode(np.asfortranarray(one, np.uint8)) for one in regions]


def as_text(codes):
    return [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in codes]


def write_segments(folder, image_id, size, kind):
    regions = made_regions(size)
    if kind == "png":
        (folder / image_id).mkdir(parents=True)
        for n, one in enumerate(regions):
            Image.fromarray((255 * one).astype(np.uint8)).save(folder / image_id / f"{n}.png")
        return regions
    folder.mkdir(parents=True, exist_ok=True)
    codes = as_text(packed(regions))
    if kind != "plain":
        codes = [{"segmentation": code, "area": 1} for code in codes]
    content = {"annotations": codes} if kind == "SA-1B" else codes
    (folder / f"{image_id}.json").write_text(json.dumps(content))
    return regions


@pytest.mark.parametrize("kind", ["png", "plain", "SAM", "SA-1B"])
def test_regions_are_read_as_they_were_written(kind, tmp_path):
    regions = write_segments(tmp_path / "sam", "a", (50, 70), kind)
    assert np.array_equal(read_segments(tmp_path / "sam", "a", (50, 70)), regions)


@pytest.fixture
def with_segments(own_run, tmp_path):
    """A Config whose adviser is regions, half of them of either kind."""
    folder = tmp_path / "sam"
    for n, image_id in enumerate(read_ids(own_run.voc_root, "train_aug")):
        write_segments(folder, image_id, image_size(own_run.voc_root, image_id), "png" if n % 2 else "SAM")
    return replace(own_run, advice=f"segments:{folder}", modelid="sam")


def test_segments_advise_in_modes_0_to_2(with_segments, capsys):
    config = with_segments
    for mode in (0, 1, 2):
        main_ssdd.main([f"--mode={mode}", *as_flags(config)])
    made = stages.folder(config, "segments")
    root, knowledge = config.voc_root, stages.folder(config, "make_aff_labels")
    changed = 0
    for image_id in read_ids(root, "train_aug"):
        mask = read_seed(knowledge, image_id, image_size(root, image_id)).mask()
        regions = torch.from_numpy(made_regions(mask.shape))
        advice = region_advice(torch.from_numpy(mask), regions, 21)
        assert np.array_equal(read_mask(made / f"{image_id}.png"), advice)
        changed += int((advice.numpy() != mask).sum())
    assert changed
    made_from = json.loads((stages.folder(config, "mode 0") / "config.json").read_text())["made_from"]
    assert "segments" in made_from
    # Other regions under the same name are another input.
    path = next(Path(config.advice.removeprefix("segments:")).glob("*/0.png"))
    Image.fromarray(np.zeros(read_mask(path, 255).shape, np.uint8)).save(path)
    said = refused(lambda flags: main_ssdd.main(["--mode=0", *flags]), as_flags(config), config.out, capsys)
    assert "made_from" in said


def missing(folder, image_id):
    shutil.rmtree(folder / image_id)
    return image_id


def wrong_size(folder, image_id):
    path = folder / image_id / "0.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    return str(path)


def grey(folder, image_id):
    path = folder / image_id / "0.png"
    Image.fromarray(np.full(read_mask(path).shape, 7, np.uint8)).save(path)
    return "other values than 0 and 255"


def both(folder, image_id):
    (folder / f"{image_id}.json").write_text("[]")
    return "both hold"


def replaced(change):
    def spoil(folder, image_id):
        shutil.rmtree(folder / image_id)
        size = Spoiled.size
        codes = as_text(packed(made_regions(size)))
        (folder / f"{image_id}.json").write_text(change(codes))
        return f"{image_id}.json"

    return spoil


class Spoiled:
    size = (0, 0)


def shorter(codes):
    """A run is missing: pycocotools would leave those pixels as they were in memory."""
    codes[0]["counts"] = codes[0]["counts"][:4]
    return json.dumps(codes)


def other_size(codes):
    codes[0]["size"] = [3, 3]
    return json.dumps(codes)


SPOILT = {
    "missing": missing,
    "wrong size": wrong_size,
    "grey": grey,
    "both": both,
    "cut": replaced(lambda codes: json.dumps(codes)[:-9]),
    "shorter": replaced(shorter),
    "other size": replaced(other_size),
    "letters": replaced(lambda codes: json.dumps([codes[0] | {"counts": "é~~~"}])),
    "no regions": replaced(lambda codes: '{"annotations": 3}'),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_bad_segments_end_in_one_line(kind, with_segments, capsys):
    config, ids = with_segments, read_ids(with_segments.voc_root, "train_aug")
    Spoiled.size = image_size(config.voc_root, ids[3])
    said_by = SPOILT[kind](Path(config.advice.removeprefix("segments:")), ids[3])
    others = [image_id for image_id in ids if image_id != ids[3]]
    said = refused(lambda flags: main_ssdd.main(["--mode=0", *flags]), as_flags(config), config.out, capsys, others)
    assert said_by in said
