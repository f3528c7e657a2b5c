"""Training samples: image, seeds and difference maps move together, and stored files that do not fit are refused."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from datasets.errors import InputError
from datasets.samples.affinity_labels import AffinityLabelSamples, affinity_labels
from datasets.samples.image_labels import ImageLabelSamples
from datasets.samples.seeds import SeedSamples, StoredDifferences
from datasets.seed_store import grid_size, load_maps, save_differences, save_maps, store_path
from datasets.transforms import (
    Square,
    as_tensor,
    cut,
    cut_maps,
    draw_jitter,
    jittered,
    normalise,
    planes,
    random_crop_or_pad,
    random_flip,
    random_long_side,
    random_square,
    resize_square,
)
from datasets.voc import IGNORE, read_ids, read_image, read_present, read_reduced


def coordinates(height, width):
    """2×H×W float32: x and y of the pixel's centre as shares of width and height."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return torch.from_numpy(np.stack([x, y]).astype(np.float32))


def squares(tensors, sides, crop):
    square = random_square(sides, crop)
    return [cut_maps(tensor.numpy(), square, crop, crop) for tensor in tensors]


def inside(tensor):
    """Away from the border of the scene, where bilinear resizing clamps."""
    return (tensor > 0.1) & (tensor < 0.9)


def test_random_square_moves_tensors_of_different_sizes_together():
    scenes = [coordinates(90, 60), coordinates(30, 45), coordinates(16, 16)]
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        moved = squares(scenes, (64, 80), 64)
        assert all(t.shape == (2, 64, 64) for t in moved)
        safe = inside(moved[0]) & inside(moved[1]) & inside(moved[2])
        assert safe.float().mean() > 0.5
        for other in moved[1:]:
            assert (moved[0] - other)[safe].abs().max() < 1e-3
        x, y = moved[0][0, 32], moved[0][1, :, 32]
        slope = x[40] - x[20]
        seen.add(bool(slope < 0))
        assert y[40] > y[20]
        # The scale is that of one square side, the same in both directions.
        assert 20 / 80 - 1e-3 <= abs(slope) <= 20 / 64 + 1e-3
        assert abs(slope) == pytest.approx(float(y[40] - y[20]), abs=1e-3)
    assert seen == {True, False}


def test_random_square_covers_both_extremes_of_side_and_place():
    scene = coordinates(40, 40)
    sides, starts = set(), set()
    for seed in range(200):
        torch.manual_seed(seed)
        (moved,) = squares([scene], (64, 66), 64)
        x, y = moved[0, 32], moved[1, :, 32]
        side = round(float(20 / (x[40] - x[20]).abs()))
        sides.add(side)
        centre = float(y[32] * side - 32.5)
        starts.add((side, round(centre)))
    assert sides == {64, 65, 66}
    assert starts == {(64, 0), (65, 0), (65, 1), (66, 0), (66, 1), (66, 2)}


def test_random_square_keeps_pictures_and_a_side_without_choice():
    picture = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(8, 8, 3)
    torch.manual_seed(0)
    results = [cut(picture, random_square((8, 8), 8), 8) for _ in range(20)]
    ways = [[np.array_equal(r, way) for r in results] for way in (picture, picture[:, ::-1])]
    assert all(any(pair) for pair in zip(*ways, strict=True)) and all(any(way) for way in ways)
    assert torch.equal(planes(results[0]), as_tensor(results[0])) and planes(results[0]).is_contiguous()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["8 bits", "one pixel", "float", "grid"])
def test_maps_are_cut_as_if_all_of_them_were_resized_cropped_and_resized(kind, flip):
    size, rng = {"one pixel": (1, 1)}.get(kind, (75, 101)), np.random.default_rng(0)
    shape = (3, *grid_size(size)) if kind == "grid" else (3, *size)
    maps = rng.integers(0, 256, shape).astype(np.uint8 if kind == "8 bits" else np.float32)
    whole = torch.from_numpy(maps).float()
    if kind == "grid":
        whole = resized(whole, [8 * side for side in shape[1:]])[:, : size[0], : size[1]]
    for side, top, left, small in ((160, 0, 31, 32), (128, 0, 0, 32), (140, 12, 5, 128), (131, 3, 1, 50)):
        expected = resized(whole, (side, side))[:, top : top + 128, left : left + 128]
        expected = resized(expected, (small, small))
        # As the logged pictures are read: within a network's autocast, which has nothing to do with maps.
        with torch.autocast("cpu", torch.bfloat16):
            found = cut_maps(maps, Square(side, top, left, flip), 128, small, size if kind == "grid" else None)
        # torch places the pixels in float32: of values up to 255 it is off by 1e-3.
        torch.testing.assert_close(found, expected.flip(-1) if flip else expected, rtol=0, atol=1e-2)


def test_random_flip_flips_all_or_none():
    tensors = [coordinates(4, 6), coordinates(3, 5)]
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(random_flip(tensors), tensors, strict=True)]
        assert flipped[0] == flipped[1]
        seen.add(flipped[0])
    assert seen == {True, False}


@pytest.mark.parametrize("size", [(60, 30), (30, 60), (7, 500), (1, 1)])
def test_random_long_side_keeps_the_aspect_and_covers_the_range(size):
    image, sides = np.zeros((*size, 3), np.uint8), set()
    for seed in range(60):
        torch.manual_seed(seed)
        height, width = random_long_side(image, (40, 43)).shape[1:]
        sides.add(max(height, width))
        scale = max(height, width) / max(size)
        assert height == max(1, round(size[0] * scale)) and width == max(1, round(size[1] * scale))
    assert sides == {40, 41, 42, 43}


@pytest.mark.parametrize("size", [(3, 5), (12, 5), (3, 12), (12, 9), (8, 8)])
def test_crop_or_pad_takes_one_place_for_all_and_reaches_every_place(size):
    image = torch.arange(1, 1 + size[0] * size[1]).view(1, *size).float()
    places = set()
    for seed in range(300):
        torch.manual_seed(seed)
        first, second = random_crop_or_pad([image, 10 * image], 8)
        assert first.shape == (1, 8, 8)
        assert torch.equal(second, 10 * first)
        known = first[0].nonzero()
        top, left = known.amin(dim=0).tolist()
        corner = int(first[0, top, left]) - 1
        y, x = divmod(corner, size[1])
        height, width = min(8, size[0]), min(8, size[1])
        # What is not zero is one rectangle of the image, in its order.
        assert torch.equal(first[0, top : top + height, left : left + width], image[0, y : y + height, x : x + width])
        assert len(known) == height * width
        places.add((top - y, left - x))
    assert places == {
        (dy, dx)
        for dy in range(min(0, 8 - size[0]), max(0, 8 - size[0]) + 1)
        for dx in range(min(0, 8 - size[1]), max(0, 8 - size[1]) + 1)
    }


def test_normalise_by_hand():
    image = torch.tensor([0, 255, 128], dtype=torch.uint8).view(3, 1, 1)
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    assert normalise(image).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(normalise(image.expand(2, 3, 1, 1))[1], normalise(image))


def test_jittered_is_torchvisions_jitter_with_own_order_and_factors_for_every_image():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 16, 12), dtype=torch.uint8)
    images[3], images[4, 1:], images[5, :, :8] = 77, 0, 255  # grey, pure red, partly white
    drawn = [draw_jitter() for _ in images]
    orders, factors = [order for order, _ in drawn], torch.stack([factors for _, factors in drawn])
    result = jittered(images, orders, factors)
    functions = {"b": F.adjust_brightness, "c": F.adjust_contrast, "s": F.adjust_saturation, "h": F.adjust_hue}
    for n, order in enumerate(orders):
        expected = images[n].float() / 255
        for letter in order:
            expected = functions[letter](expected, float(factors[n]["bcsh".index(letter)]))
        torch.testing.assert_close(result[n] / 255, expected, atol=2e-4, rtol=0)
    assert len(set(orders)) > 10


def test_jitter_is_drawn_from_torchvisions_ranges():
    torch.manual_seed(0)
    drawn = [draw_jitter() for _ in range(2000)]
    factors = torch.stack([factors for _, factors in drawn])
    for column, (low, high) in enumerate([(0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.1, 0.1)]):
        assert low <= factors[:, column].min() < low + 0.01 and high - 0.01 < factors[:, column].max() <= high
    counts = Counter(order for order, _ in drawn)
    assert len(counts) == 24 and min(counts.values()) > 2000 / 24 / 2


def test_a_large_jpeg_is_decoded_smaller_but_not_below_the_side_asked_for(own_voc):
    scene = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8, 1) * [5, 3, 1], np.ones((100, 100, 1)))
    Image.fromarray(scene.astype(np.uint8)).save(own_voc / "JPEGImages" / "large.jpg", quality=95)
    whole = read_image(own_voc, "large")
    for side, factor in ((601, 1), (301, 1), (300, 2), (150, 4), (75, 8), (1, 8)):
        pixels, size = read_reduced(own_voc, "large", side)
        assert size == (600, 800) and pixels.shape == (600 // factor, 800 // factor, 3)
        middles = pixels[50 // factor :: 100 // factor, 50 // factor :: 100 // factor].astype(int)
        assert np.abs(middles[:6, :8] - whole[50::100, 50::100]).max() <= 4


def test_affinity_labels_by_hand():
    # One row of six cells, classes background and 7; pooled scores of (background, 7) at low and at high power.
    low = [(0.2, 0.8), (0.6, 0.4), (0.9, 0.1), (0.0, 0.0), (0.3, 0.7), (4e-6, 9e-6)]
    high = [(0.1, 0.9), (0.4, 0.6), (0.7, 0.3), (0.0, 0.0), (0.8, 0.2), (0.5, 0.5)]
    expected = [7, IGNORE, 0, IGNORE, 0, IGNORE]

    def maps(cells):
        return torch.tensor(cells).t().reshape(2, 1, 6).repeat_interleave(8, 1).repeat_interleave(8, 2)

    labels = affinity_labels(maps(low), maps(high), torch.tensor([0, 7]))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [expected]


def test_affinity_labels_pool_probabilities_before_the_argmax():
    # 40 of 64 pixels are weakly class 3, 24 strongly background: the mean says background.
    low = torch.zeros(2, 8, 8)
    low[:, :5] = torch.tensor([0.45, 0.55]).view(2, 1, 1)
    low[:, 5:] = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    assert affinity_labels(low, low, torch.tensor([0, 3])).tolist() == [[0]]


CROP = 64


@pytest.fixture
def seeds(own_voc, tmp_path):
    """Stores in which knowledge and advice of each image are random maps that hold every present class."""
    ids = read_ids(own_voc, "train")
    rng = np.random.default_rng(0)
    for image_id in ids:
        image = read_image(own_voc, image_id)
        # As a PNG, which is always decoded whole.
        Image.fromarray(image).save(own_voc / "JPEGImages" / f"{image_id}.jpg", format="PNG")
        size = image.shape[:2]
        classes = np.flatnonzero(read_present(own_voc, image_id))
        for kind in ("psa", "crf"):
            maps = rng.random((len(classes), *size)).astype(np.float32) ** 4
            save_maps(store_path(tmp_path / kind, image_id), classes, maps, size, kind)
        d_k, d_a = rng.normal(0, 2, (2, CROP // 4, CROP // 4)).astype(np.float32)
        save_differences(store_path(tmp_path / "differences", image_id), d_k, d_a, "x")
    return own_voc, ids, tmp_path / "psa", tmp_path / "crf", tmp_path / "differences"


def samples(seeds, sides=None, differences=True, jitter_and_flip=False, **options):
    root, ids, psa, crf, folder = seeds
    stored = StoredDifferences(folder, **options) if differences else None
    return SeedSamples(root, ids, {"knowledge": psa, "advice": crf}, CROP, sides, jitter_and_flip, stored)


def resized(maps, size):
    tensor = torch.as_tensor(maps)[None].float()
    return torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0]


def test_whole_images_give_the_argmax_of_resized_probabilities(seeds):
    root, ids, psa, crf, folder = seeds
    for index, image_id in enumerate(ids):
        sample = samples(seeds)[index]
        assert sample["id"] == image_id
        assert sample["present"].tolist() == read_present(root, image_id).tolist()
        for name, store in (("knowledge", psa), ("advice", crf)):
            seed = load_maps(store_path(store, image_id))
            small = resized(resized(seed.maps, (CROP, CROP)), (CROP // 4, CROP // 4))
            expected = torch.from_numpy(seed.classes)[small.argmax(dim=0)]
            assert sample[name].dtype == torch.int64
            assert torch.equal(sample[name], expected), (image_id, name)
        image = read_image(root, image_id)
        expected = resized(torch.from_numpy(image).movedim(-1, 0), (CROP, CROP))
        assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, CROP, CROP)
        assert (sample["image"].float() - expected).abs().max() <= 1
        small = resized(sample["image"], (CROP // 4, CROP // 4)).movedim(0, -1)
        assert sample["small"].dtype == torch.uint8 and sample["small"].shape == (CROP // 4, CROP // 4, 3)
        assert (sample["small"].float() - small).abs().max() <= 1
        with np.load(store_path(folder, image_id)) as stored:
            for name in ("d_k", "d_a"):
                expected = resized(resized(stored[name][None], (CROP, CROP)), (CROP // 4, CROP // 4))
                torch.testing.assert_close(sample[name], expected)


def smooth(seeds):
    """Every store holds the scene's coordinates: maps of two classes cross at a line, d_k is x and d_a is y."""
    root, ids, psa, crf, folder = seeds
    image_id = ids[0]
    classes = np.flatnonzero(read_present(root, image_id))
    x, y = coordinates(96, 64).numpy()
    Image.fromarray((255 * np.stack([x, y, 0 * x], axis=-1)).round().astype(np.uint8)).save(
        root / "JPEGImages" / f"{image_id}.jpg", format="PNG"
    )
    rest = [np.zeros_like(x)] * (len(classes) - 2)
    save_maps(store_path(psa, image_id), classes, np.stack([x, 1 - x, *rest]), (96, 64), "x")
    save_maps(store_path(crf, image_id), classes, np.stack([y, 1 - y, *rest]), (96, 64), "x")
    save_differences(store_path(folder, image_id), *coordinates(CROP // 4, CROP // 4).numpy(), "x")
    return classes


def test_geometry_moves_image_masks_and_difference_maps_together(seeds):
    first, second = smooth(seeds)[:2]
    dataset, flips, shifts = samples(seeds, (64, 96)), set(), set()
    for seed in range(30):
        torch.manual_seed(seed)
        sample = dataset[0]
        x, y = sample["small"][..., 0] / 255, sample["small"][..., 1] / 255
        sure = (x - 0.5).abs() > 0.02
        assert torch.equal(sample["knowledge"][sure], torch.where(x > 0.5, first, second)[sure])
        sure = (y - 0.5).abs() > 0.02
        assert torch.equal(sample["advice"][sure], torch.where(y > 0.5, first, second)[sure])
        safe = inside(x) & inside(y)
        assert (sample["d_k"][0] - x)[safe].abs().max() < 0.02
        assert (sample["d_a"][0] - y)[safe].abs().max() < 0.02
        flips.add(bool(x[8, 12] < x[8, 4]))
        shifts.add(round(float(y[0, 8]), 2))
    assert flips == {True, False}
    assert len(shifts) > 5


def test_without_move_maps_the_stored_maps_stay_where_they_are(seeds):
    smooth(seeds)
    dataset, stored = samples(seeds, (64, 96), move=False), coordinates(CROP // 4, CROP // 4)
    moved = set()
    for seed in range(6):
        torch.manual_seed(seed)
        sample = dataset[0]
        assert torch.equal(torch.cat([sample["d_k"], sample["d_a"]]), stored)
        moved.add(round(float(sample["small"][4, 4, 0])))
    assert len(moved) > 1


@pytest.mark.parametrize("sides", [None, (64, 80)])
def test_swap_maps_reads_each_as_the_other(sides, seeds):
    torch.manual_seed(3)
    straight = samples(seeds, sides)[1]
    torch.manual_seed(3)
    swapped = samples(seeds, sides, swap=True)[1]
    assert torch.equal(straight["d_k"], swapped["d_a"]) and torch.equal(straight["d_a"], swapped["d_k"])
    assert torch.equal(straight["knowledge"], swapped["knowledge"])
    assert not torch.equal(straight["d_k"], straight["d_a"])


def test_jitter_acts_on_the_networks_image_but_not_on_the_crfs(seeds):
    smooth(seeds)
    torch.manual_seed(0)
    sample = samples(seeds, (64, 64))[0]
    image = jittered(sample["image"][None], [sample["order"]], sample["factors"][None])[0]
    small = resized(image, (16, 16)).movedim(0, -1)
    assert (small - sample["small"].float()).abs().max() > 5
    assert sample["small"][..., 2].float().max() <= 1


def test_without_sides_nothing_is_random_unless_the_released_way_is_asked_for(seeds):
    plain = [samples(seeds)[0]["image"] for _ in range(3)]
    assert all(torch.equal(image, plain[0]) for image in plain)
    torch.manual_seed(0)
    dataset = samples(seeds, differences=False, jitter_and_flip=True)
    first = [dataset[0] for _ in range(12)]
    assert "d_k" not in first[0]
    unique = {sample["small"].numpy().tobytes() for sample in first}
    assert unique == {plain_small(seeds, flip).tobytes() for flip in (False, True)}
    assert "order" not in samples(seeds)[0]
    assert len({tuple(sample["factors"].tolist()) for sample in first}) == len(first)


def plain_small(seeds, flip):
    image = read_image(seeds[0], seeds[1][0])
    image = torch.from_numpy(np.ascontiguousarray(image[:, ::-1] if flip else image)).movedim(-1, 0)
    return resize_square(resize_square(image, CROP), CROP // 4).movedim(0, -1).numpy()


def remake(store, classes, size, value=1.0):
    maps = np.full((len(classes), *size), value, np.float32)
    return lambda seeds, image_id, _: save_maps(store_path(seeds[store], image_id), np.array(classes), maps, size, "x")


def of_other_classes(seeds, image_id, size):
    classes = np.flatnonzero(read_present(seeds[0], image_id))
    other = [c for c in range(1, 21) if c not in classes][: len(classes) - 1]
    save_maps(store_path(seeds[3], image_id), np.array([0, *other]), np.ones((len(classes), *size), "f4"), size, "x")


def of_wrong_crop(seeds, image_id, _):
    save_differences(store_path(seeds[4], image_id), *np.zeros((2, 28, 28), np.float32), "x")


BAD_STORES = {
    "missing knowledge": (2, lambda seeds, image_id, _: store_path(seeds[2], image_id).unlink(), "is missing"),
    "missing advice": (3, lambda seeds, image_id, _: store_path(seeds[3], image_id).unlink(), "is missing"),
    "missing differences": (4, lambda seeds, image_id, _: store_path(seeds[4], image_id).unlink(), "is missing"),
    "knowledge of another size": (2, remake(2, [0, 1], (40, 50)), "(40, 50)"),
    "advice of other classes": (3, of_other_classes, "annotation says"),
    "differences of another crop": (4, of_wrong_crop, "--crop=64"),
    "damaged": (3, lambda seeds, image_id, _: store_path(seeds[3], image_id).write_bytes(b"PK"), "damaged"),
}


@pytest.mark.parametrize("kind", BAD_STORES)
def test_store_that_does_not_fit_is_refused_by_name(kind, seeds):
    store, change, reason = BAD_STORES[kind]
    image_id = seeds[1][2]
    change(seeds, image_id, read_image(seeds[0], image_id).shape[:2])
    with pytest.raises(InputError, match=re.escape(str(store_path(seeds[store], image_id)))) as error:
        samples(seeds)[2]
    assert reason in str(error.value)
    assert samples(seeds)[1]["id"] == seeds[1][1]


def test_classifier_samples_are_normalised_crops_with_labels(tiny_voc):
    ids = read_ids(tiny_voc, "train")
    sample = ImageLabelSamples(tiny_voc, ids, (40, 48), CROP)[0]
    assert sample["x"].shape == (3, CROP, CROP) and sample["x"].dtype == torch.float32
    assert np.array_equal(sample["present"], read_present(tiny_voc, ids[0]))
    # At most 48 of 64 rows are image; around it lie zeros, which no normalised pixel of all channels is.
    rows = (sample["x"] != 0).any(dim=0).any(dim=1)
    assert 30 <= rows.sum() <= 48
    assert sample["x"].min() >= -2.2 and sample["x"].max() <= 2.7


def test_affinity_samples_move_labels_with_the_image(seeds):
    classes = smooth(seeds)
    x, _ = coordinates(96, 64).numpy()
    rest = [np.zeros_like(x)] * (len(classes) - 2)
    root, ids, psa, crf, _ = seeds
    # The low power says background left of 0.75, the high one left of 0.25; between them nobody knows.
    for folder, border in ((psa, 0.75), (crf, 0.25)):
        left = (x < border).astype(np.float32)
        save_maps(store_path(folder, ids[0]), classes, np.stack([left, 1 - left, *rest]), (96, 64), "x")
    dataset, flips = AffinityLabelSamples(root, ids, psa, crf, CROP), set()
    for seed in range(8):
        torch.manual_seed(seed)
        labels = dataset[0]["labels"]
        assert labels.shape == (8, 8)
        left = [0, 0, IGNORE, IGNORE, IGNORE, IGNORE, int(classes[1]), int(classes[1])]
        row = labels[0].tolist()
        flips.add(row != left)
        assert labels.tolist() == [left if row == left else left[::-1]] * 8
    assert flips == {True, False}


def test_affinity_samples_refuse_maps_of_other_classes(seeds):
    image_id = seeds[1][0]
    of_other_classes(seeds, image_id, read_image(seeds[0], image_id).shape[:2])
    with pytest.raises(InputError, match=re.escape(str(store_path(seeds[3], image_id)))):
        AffinityLabelSamples(seeds[0], seeds[1], seeds[2], seeds[3], CROP)[0]
