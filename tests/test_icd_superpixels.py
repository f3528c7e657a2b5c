"""Superpixels: Felzenszwalb's against a direct one, merging against brute force, their files and training crops."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.errors import InputError
from datasets.superpixels import random_scaled_crop, read_superpixels, superpixel_path, write_superpixels
from models.icd import superpixels
from models.vgg16 import Vgg16


def smoothed(image):
    """The Gaussian as a sum over a pixel's neighbourhood, edges clamped."""
    offsets = np.arange(-4, 5)
    kernel = np.exp(-((offsets / 0.8) ** 2) / 2)
    kernel /= kernel.sum()
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height)[:, None] + offsets, 0, height - 1)
    columns = np.clip(np.arange(width)[:, None] + offsets, 0, width - 1)
    result = (image.astype(np.float64)[rows] * kernel[:, None, None]).sum(axis=1)
    return (result[:, columns] * kernel[:, None]).sum(axis=2)


def felzenszwalb_by_definition(image, threshold=75, least=75):
    """Components as lists of pixels, edge by edge."""
    smooth = smoothed(image)
    height, width = image.shape[:2]
    pixels = [(y, x) for y in range(height) for x in range(width)]
    edges = []
    for y, x in pixels:
        for dy, dx in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            if 0 <= y + dy < height and x + dx < width:
                edges.append((float(np.linalg.norm(smooth[y, x] - smooth[y + dy, x + dx])), (y, x), (y + dy, x + dx)))
    edges.sort(key=lambda edge: edge[0])
    of = {pixel: number for number, pixel in enumerate(pixels)}
    members = {number: [pixel] for pixel, number in of.items()}
    limit = dict.fromkeys(members, float(threshold))

    def join(a, b):
        for pixel in members[b]:
            of[pixel] = a
        members[a] += members.pop(b)

    for weight, start, end in edges:
        a, b = of[start], of[end]
        if a != b and weight <= limit[a] and weight <= limit[b]:
            join(a, b)
            limit[a] = weight + threshold / len(members[a])
    for _, start, end in edges:
        a, b = of[start], of[end]
        if a != b and min(len(members[a]), len(members[b])) < least:
            join(a, b)
    return np.array([[of[y, x] for x in range(width)] for y in range(height)])


def same_partition(one, other):
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1).shape[1]
    return len(np.unique(one)) == len(np.unique(other)) == pairs


def patches(seed, size=(26, 33)):
    """Patches of a few colours with noise, some of it strong."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (4, 5, 3)).repeat(7, 0).repeat(7, 1)[: size[0], : size[1]]
    noise = generator.normal(0, generator.choice([2, 12, 40]), (*size, 3))
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "least"), [(75, 75), (75, 10), (300, 4)])
def test_felzenszwalb_is_the_published_one(seed, threshold, least):
    image = patches(seed)
    ids = superpixels.felzenszwalb(image, threshold, least)
    assert same_partition(ids, felzenszwalb_by_definition(image, threshold, least))
    assert ids.dtype == np.int32 and np.array_equal(np.unique(ids), np.arange(ids.max() + 1))


def test_the_cases_above_are_no_single_regions():
    counts = [int(superpixels.felzenszwalb(patches(seed), 75, 10).max()) + 1 for seed in range(6)]
    assert min(counts) > 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (20, 20)])
def test_one_colour_is_one_superpixel(size):
    assert not superpixels.felzenszwalb(np.full((*size, 3), 90, np.uint8)).any()


def merged_by_brute_force(ids, means, most):
    means = {k: mean.astype(float) for k, mean in enumerate(means)}
    sizes = {k: int((ids == k).sum()) for k in means}
    ids = ids.copy()
    while len(means) > most:
        pairs = [(a, b) for a in means for b in means if a < b]

        def similarity(pair):
            a, b = (means[k] for k in pair)
            return a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1 - (sizes[pair[0]] + sizes[pair[1]]) / ids.size

        low, high = max(pairs, key=similarity)
        means[low] = (sizes[low] * means[low] + sizes[high] * means.pop(high)) / (sizes[low] + sizes[high])
        sizes[low] += sizes.pop(high)
        ids[ids == high] = low
    order = sorted(means)
    return np.vectorize(order.index)(ids)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 4, 9])
@pytest.mark.parametrize("channels", [2, 6])
def test_merging_is_brute_force(seed, most, channels):
    generator = np.random.default_rng(seed)
    ids = np.concatenate([np.arange(20), generator.integers(0, 20, 180) ** 2 // 20]).reshape(10, 20).astype(np.int32)
    means = np.maximum(generator.normal(size=(20, channels)), 0) + 0.01
    before = means.copy()
    result = superpixels.merged(ids, means, most)
    assert np.array_equal(result, merged_by_brute_force(ids, means, most))
    assert result.dtype == np.int32 and np.array_equal(means, before)


def test_joining_two_can_make_a_third_ones_most_similar():
    # 2 and 3 go first. Together they are nearer to 0 than 4 is, which was the nearest; 1 is like none of them.
    e = np.eye(5)
    two = 0.055 * e[0] + np.sqrt(1 - 0.055**2) * e[1]
    three = 0.055 * e[0] + 0.0571 * e[1] + np.sqrt(1 - 0.055**2 - 0.0571**2) * e[2]
    means = np.stack([e[0], e[4], two, three, 0.99 * e[0] + np.sqrt(1 - 0.99**2) * e[3]])
    ids = np.repeat(np.arange(5), (10, 58, 1, 1, 930))[None].astype(np.int32)
    expected = np.array([0, 1, 0, 0, 2])[ids]
    assert np.array_equal(merged_by_brute_force(ids, means, 3), expected)
    assert np.array_equal(superpixels.merged(ids, means, 3), expected)


def test_few_superpixels_stay_as_they_are_and_one_without_features_is_no_error():
    ids = np.array([[0, 0, 1, 2]], np.int32)
    means = np.array([[1.0, 0], [0, 0], [1, 0]])
    assert np.array_equal(superpixels.merged(ids, means, 3), ids)
    assert np.array_equal(superpixels.merged(ids, means, 2), [[0, 0, 1, 0]])


@pytest.mark.parametrize(("size", "side", "cells"), [((20, 31), 33, 5), ((33, 33), 33, 5), ((9, 9), 40, 7)])
def test_means_are_those_of_the_upsampled_map(size, side, cells):
    features = torch.randn(3, cells, cells, generator=torch.Generator().manual_seed(0))
    ids = np.random.default_rng(0).integers(0, 6, size).astype(np.int32)
    whole = torch.nn.functional.interpolate(features[None].double(), (side, side), mode="bilinear", align_corners=True)
    cut = whole[0, :, : size[0], : size[1]].numpy()
    expected = np.stack([cut[:, ids == k].mean(axis=1) for k in range(6)])
    assert np.abs(superpixels.region_means(features.numpy(), ids, side) - expected).max() < 1e-6


def test_features_are_of_the_raw_image_on_a_square():
    torch.manual_seed(0)
    network = Vgg16(width=0.0625).eval()
    image = torch.randint(0, 256, (3, 30, 25), dtype=torch.uint8)
    square = torch.full((1, 3, 65, 65), 127.0)
    square[0, :, :30, :25] = image.float()
    features = superpixels.superpixel_features(network, image, 65)
    assert torch.equal(features, network.features(square).conv5_3[0].detach()) and features.shape[1:] == (9, 9)


def test_a_file_holds_what_was_written_in_blue_green_red(tmp_path):
    ids = np.array([[0, 255, 256], [65535, 65536, (1 << 24) - 1]])
    path = superpixel_path(tmp_path, "2007_000001")
    write_superpixels(path, ids)
    red, green, blue = np.array(Image.open(path)).astype(int).transpose(2, 0, 1)
    assert np.array_equal(blue + 256 * green + 65536 * red, ids)
    # Renumbered in the order of the ids.
    read = read_superpixels(path, (2, 3))
    assert read.tolist() == [[0, 1, 2], [3, 4, 5]] and read.dtype == np.int32
    with pytest.raises(ValueError, match="16777216"):
        write_superpixels(path, ids + 1)


def test_files_that_cannot_be_used_are_named(tmp_path):
    path = tmp_path / "one.png"
    with pytest.raises(InputError, match=r"one\.png is missing"):
        read_superpixels(path, (2, 2))
    write_superpixels(path, np.arange(65)[None])
    with pytest.raises(InputError, match="1×65, their photograph 65×1"):
        read_superpixels(path, (65, 1))
    with pytest.raises(InputError, match="65 superpixels, at most 64"):
        read_superpixels(path, (1, 65))
    assert read_superpixels(path, (1, 65), most=65).max() == 64
    Image.new("L", (3, 3)).save(path)
    with pytest.raises(InputError, match="three channels"):
        read_superpixels(path, (3, 3))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"one\.png cannot be read"):
        read_superpixels(path, (3, 3))


def test_a_crop_is_renumbered_and_scaled_sizes_are_rounded():
    ids = torch.arange(77 * 77).view(77, 77)
    image = torch.zeros(3, 77, 77, dtype=torch.uint8)
    padded_sides = set()
    for seed in range(20):
        torch.manual_seed(seed)
        _, crop_ids = random_scaled_crop(image, ids, 20)
        assert torch.equal(crop_ids.unique(), torch.arange(int(crop_ids.max()) + 1))
        torch.manual_seed(seed)
        x, _ = random_scaled_crop(image, ids, 120)
        padded_sides.add(int((x[0, :, 0] == 0).sum()))
    assert padded_sides == {39, 58, 77, 96, 116}


def test_a_crop_shows_the_same_place_of_image_and_superpixels():
    # Colour and id are the same function of the place; 5×4 blocks of 16 pixels.
    ids = torch.arange(20).view(4, 5).repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = (10 * ids).to(torch.uint8).expand(3, -1, -1)
    sides, mirrored = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        x, crop_ids = random_scaled_crop(image, ids, 96)
        assert x.shape == (3, 96, 96) and crop_ids.shape == (96, 96) and crop_ids.dtype == torch.int64
        assert torch.equal(crop_ids.unique(), torch.arange(int(crop_ids.max()) + 1))
        colours = {}
        for number in crop_ids.unique().tolist():
            values, counts = x[0][crop_ids == number].unique(return_counts=True)
            colours[number] = int(values[counts.argmax()])
        padding = [number for number, colour in colours.items() if colour == 127]
        assert padding in ([], [max(colours)])
        order = [colour for colour in colours.values() if colour != 127]
        assert order == sorted(order) and all(colour % 10 == 0 for colour in order)
        if padding:
            inside = crop_ids != padding[0]
            height, width = int(inside[:, 0].sum()), int(inside[0].sum())
            assert inside[:height, :width].all() and int(inside.sum()) == height * width
            sides.add((height, width))
        mirrored.add(bool(x[0, 0, 0] > x[0, 0, 30]))
    assert {(32, 40), (48, 60), (64, 80)} <= sides and sides <= {(32, 40), (48, 60), (64, 80), (80, 96)}
    assert mirrored == {True, False}


def test_a_thin_image_keeps_a_pixel_at_every_scale():
    image, ids = torch.zeros(3, 1, 300, dtype=torch.uint8), torch.zeros(1, 300, dtype=torch.long)
    x, crop_ids = random_scaled_crop(image, ids, 20, (0.01,))
    assert x.shape == (3, 20, 20) and (x == 0).any() and set(crop_ids.unique().tolist()) == {0, 1}


def test_channels_of_16_bits_are_refused(tmp_path):
    ids = np.arange(12).reshape(3, 4)
    cv2.imwrite(str(tmp_path / "deep.png"), np.stack([ids, 0 * ids, 0 * ids], axis=-1).astype(np.uint16))
    with pytest.raises(InputError, match="16 bits"):
        read_superpixels(tmp_path / "deep.png", (3, 4))
