"""IoU against brute force, and the evaluation of mask folders and stores."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from datasets.errors import InputError
from datasets.seed_store import load_maps, save_maps, store_path
from datasets.voc import CLASSES, mask_path, read_ids, read_mask, write_mask
from evaluation.masks import THRESHOLDS, as_markdown, evaluate
from evaluation.metrics import confusion, iou, mean_iou, without_unknown
from tools.eval_masks import main


def random_pair(rng, size=(9, 11), classes=(0, 1, 7, 20, 255)):
    return (rng.choice(classes, size).astype(np.uint8) for _ in range(2))


def brute_force(pairs):
    """IoU of each class by counting pixel by pixel; None for a class that no true mask has."""
    result = []
    for c in range(21):
        hit = either = true = 0
        for truth, mask in pairs:
            for t, m in zip(truth.flat, mask.flat, strict=True):
                if t != 255:
                    hit += t == c and m == c
                    either += t == c or m == c
                    true += t == c
        result.append(hit / either if true else None)
    return result


def same(values, expected):
    assert [v is None or not np.isfinite(v) for v in values] == [e is None for e in expected]
    known = [(v, e) for v, e in zip(values, expected, strict=True) if e is not None]
    assert [v for v, _ in known] == pytest.approx([e for _, e in known], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_counting_pixels(seed):
    rng = np.random.default_rng(seed)
    pairs = [tuple(random_pair(rng)) for _ in range(3)]
    counts = sum(confusion(truth, mask) for truth, mask in pairs)
    expected = brute_force(pairs)
    same(iou(counts), expected)
    assert mean_iou(counts) == pytest.approx(np.mean([e for e in expected if e is not None]))
    assert counts.sum() == sum((truth != 255).sum() for truth, _ in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_miou_is_that_of_scikit_learn(seed, tiny_voc, tmp_path):
    """True masks with their ignored borders, against masks that are wrong at a third of the pixels, 255 among them."""
    rng = np.random.default_rng(seed)
    ids = read_ids(tiny_voc, "train")
    truths, masks = [], []
    for image_id in ids:
        truth = read_mask(mask_path(tiny_voc, image_id))
        noise = rng.choice([*range(21), 255], truth.shape)
        mask = np.where(rng.random(truth.shape) < 1 / 3, noise, truth).astype(np.uint8)
        write_mask(tmp_path / f"{image_id}.png", mask)
        truths.append(truth[truth != 255])
        masks.append(mask[truth != 255])
    truths, masks = np.concatenate(truths), np.concatenate(masks)
    known = np.unique(truths)
    matrix = confusion_matrix(truths, masks, labels=[*range(21), 255])
    expected = np.diag(matrix) / (matrix.sum(axis=0) + matrix.sum(axis=1) - np.diag(matrix))
    figures = evaluate(tmp_path, tiny_voc, ids)
    assert figures["miou"] == pytest.approx(expected[known].mean(), abs=1e-9)
    assert figures["miou"] == pytest.approx(jaccard_score(truths, masks, labels=known, average="macro"), abs=1e-9)
    same([figures["iou"][name] for name in CLASSES], [expected[c] if c in known else None for c in range(21)])


def test_iou_by_hand():
    truth = np.array([[0, 0, 5, 5], [5, 255, 255, 0]], np.uint8)
    mask = np.array([[0, 5, 5, 255], [9, 5, 0, 0]], np.uint8)
    values = iou(confusion(truth, mask))
    # Background: 2 of {3 true, 0 falsely}; class 5: 1 of {3 true, 1 falsely}; 9 is in no true mask.
    assert values[0] == pytest.approx(2 / 3) and values[5] == pytest.approx(1 / 4)
    assert np.isnan(np.delete(values, [0, 5])).all()
    assert mean_iou(confusion(truth, mask)) == pytest.approx((2 / 3 + 1 / 4) / 2)


def test_wide_integers_do_not_overflow():
    truth = np.full((300, 300), 20, np.uint8)
    assert confusion(truth, truth)[20, 20] == 90_000
    assert confusion(truth.astype(np.int64), truth)[20].sum() == 90_000


def test_only_ignored_pixels_give_no_figure():
    truth = np.full((3, 3), 255, np.uint8)
    assert np.isnan(mean_iou(confusion(truth, truth * 0)))


@pytest.fixture
def masks(tiny_voc, tmp_path):
    """The true masks of val with a tenth of their pixels changed."""
    rng, pairs = np.random.default_rng(0), []
    for image_id in read_ids(tiny_voc, "val"):
        truth = read_mask(mask_path(tiny_voc, image_id))
        mask = np.where(rng.random(truth.shape) < 0.1, rng.integers(0, 3, truth.shape), truth)
        write_mask(tmp_path / "masks" / f"{image_id}.png", mask)
        pairs.append((truth, mask))
    return tmp_path / "masks", pairs


def test_folder_of_masks(masks, tiny_voc):
    folder, pairs = masks
    figures = evaluate(folder, tiny_voc, read_ids(tiny_voc, "val"))
    expected = brute_force(pairs)
    same([figures["iou"][name] for name in CLASSES], expected)
    assert figures["miou"] == pytest.approx(np.mean([e for e in expected if e is not None]))
    assert figures["images"] == 3 and "threshold" not in figures


def test_true_masks_score_one(tiny_voc, tmp_path):
    ids = read_ids(tiny_voc, "val")
    assert evaluate(tiny_voc / "SegmentationClass", tiny_voc, ids)["miou"] == pytest.approx(1)


def store(root, folder, classes_of, rng):
    for image_id in read_ids(root, "val"):
        truth = read_mask(mask_path(root, image_id))
        classes = classes_of(truth)
        maps = rng.random((len(classes), *truth.shape)) * 0.5 + 0.4 * (truth == np.array(classes)[:, None, None])
        save_maps(store_path(folder, image_id), np.array(classes), maps.astype(np.float32), truth.shape, "x")


def test_store_with_background_is_its_argmax(tiny_voc, tmp_path):
    ids = read_ids(tiny_voc, "val")
    store(tiny_voc, tmp_path, lambda t: [0, *(c for c in np.unique(t) if 0 < c < 255)], np.random.default_rng(1))
    pairs = []
    for image_id in ids:
        seed = load_maps(store_path(tmp_path, image_id))
        pairs.append((read_mask(mask_path(tiny_voc, image_id)), seed.classes[seed.maps.argmax(axis=0)]))
    figures = evaluate(tmp_path, tiny_voc, ids)
    same([figures["iou"][name] for name in CLASSES], brute_force(pairs))
    assert "threshold" not in figures


def test_threshold_of_cams_is_the_best_by_brute_force(tiny_voc, tmp_path):
    ids = read_ids(tiny_voc, "val")
    store(tiny_voc, tmp_path, lambda t: [c for c in np.unique(t) if 0 < c < 255], np.random.default_rng(2))
    by_threshold = {}
    for threshold in THRESHOLDS:
        pairs = []
        for image_id in ids:
            seed = load_maps(store_path(tmp_path, image_id))
            mask = seed.classes[seed.maps.argmax(axis=0)] * (seed.maps.max(axis=0) > threshold)
            pairs.append((read_mask(mask_path(tiny_voc, image_id)), mask))
        expected = iou(sum(confusion(*pair) for pair in pairs))
        by_threshold[threshold] = np.nanmean(expected)
    figures = evaluate(tmp_path, tiny_voc, ids)
    best = max(by_threshold, key=by_threshold.get)
    assert best not in (THRESHOLDS[0], THRESHOLDS[-1])
    assert figures["threshold"] == best
    assert figures["miou"] == pytest.approx(by_threshold[best])
    assert figures["sweep"] == pytest.approx({f"{t:g}": value for t, value in by_threshold.items()})


def wrong_size(folder, image_id):
    write_mask(folder / f"{image_id}.png", np.zeros((5, 6)))
    return "the mask is (5, 6), its true mask"


def missing(folder, image_id):
    (folder / f"{image_id}.png").unlink()
    return "is missing"


def colours(folder, image_id):
    write_mask(folder / f"{image_id}.png", np.full((5, 6), 77))
    return "the index 77"


def not_imported(folder, image_id):
    (folder / f"{image_id}.png").rename(folder / f"{image_id}.npy")
    return "python -m tools.import_labels"


@pytest.mark.parametrize("spoil", [wrong_size, missing, colours, not_imported])
def test_bad_mask_is_refused_by_name(spoil, masks, tiny_voc):
    folder, _ = masks
    ids = read_ids(tiny_voc, "val")
    reason = spoil(folder, ids[1])
    with pytest.raises(InputError, match=re.escape(str(folder))) as error:
        evaluate(folder, tiny_voc, ids)
    assert reason in str(error.value)
    assert spoil is not_imported or ids[1] in str(error.value)


def test_missing_true_mask_and_missing_folder_are_refused(masks, own_voc, tmp_path):
    ids = read_ids(own_voc, "val")
    mask_path(own_voc, ids[2]).unlink()
    with pytest.raises(InputError, match=rf"SegmentationClass/{ids[2]}\.png is missing"):
        evaluate(masks[0], own_voc, ids)
    with pytest.raises(InputError, match="absent is no folder"):
        evaluate(tmp_path / "absent", own_voc, ids)


def test_program_prints_a_table_and_writes_the_figures(masks, tiny_voc, tmp_path, capsys):
    folder, pairs = masks
    report = tmp_path / "new" / "figures.json"
    flags = ["--voc-root", str(tiny_voc), "--split", "val", "--json", str(report)]
    main([f"mine={folder}", str(tiny_voc / "SegmentationClass"), *flags])
    results = json.loads(report.read_text())
    expected = [e for e in brute_force(pairs) if e is not None]
    assert results["mine"]["miou"] == pytest.approx(np.mean(expected))
    said = capsys.readouterr().out.strip().splitlines()
    assert said == as_markdown(results, "val, 3 images").splitlines()
    assert said[0].startswith("| val, 3 images | mIoU | background |")
    assert said[2] == (
        f"| mine | **{100 * np.mean(expected):.2f}** | " + " | ".join(f"{100 * e:.1f}" for e in expected) + " |"
    )
    assert "**100.00**" in said[3]


def test_unknown_pixels_are_wrong_or_left_out(tmp_path):
    """Half of a mask of two classes is unknown, the rest is right but for one pixel."""
    truth = np.array([[0, 0, 0, 0], [1, 1, 1, 1]], np.uint8)
    mask = np.array([[0, 0, 255, 255], [1, 0, 255, 255]], np.uint8)
    counts = confusion(truth, mask, 2)
    assert iou(counts).tolist() == [2 / 5, 1 / 4]
    assert iou(without_unknown(counts)).tolist() == [2 / 3, 1 / 2]
    for folder, pixels in (("SegmentationClass", truth), ("seeds", mask), ("known", truth)):
        write_mask(tmp_path / folder / "a.png", pixels)
    results = {name: evaluate(tmp_path / name, tmp_path, ["a"]) for name in ("seeds", "known")}
    assert results["seeds"]["miou"] == pytest.approx(0.325) and results["seeds"]["unknown"] == 0.5
    assert results["seeds"]["miou_known"] == pytest.approx(7 / 12) and "miou_known" not in results["known"]
    lines = as_markdown(results, "x").splitlines()
    assert lines[0].startswith("| x | mIoU | leaving 255 out | 255 | background |")
    assert lines[2].startswith("| seeds | **32.50** | 58.33 | 50.0 | 40.0 |")
    assert lines[3].startswith("| known | **100.00** | 100.00 | 0.0 |")
    assert as_markdown({"known": results["known"]}, "x").startswith("| x | mIoU | background |")
