"""ICD's seeds against loops over pixels, and their corner cases."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.errors import InputError
from datasets.saliency import read_saliency
from models.icd.network import IcdNetwork
from models.icd.seeds import class_maps, icd_seed, seed_after_crf, upsampled
from models.vgg16 import padded


def seed_by_loops(t, cam, classes, saliency=None):
    """icd.md, Seeds, word by word."""
    count, height, width = t.shape
    top = [max(t[c].max(), 1e-5) for c in range(count)]
    bottom = [max(-t[c].min(), 1e-5) for c in range(count)]
    evidence = np.maximum(cam, 0)
    evidence = (evidence - evidence.min()) / max(evidence.max() - evidence.min(), 1e-5)
    few = saliency is not None and sum(v >= 0.01 for v in saliency.ravel()) / saliency.size < 0.01
    seed = np.zeros((height, width), np.int64)
    for i in range(height):
        for j in range(width):
            foreground = [max(t[c, i, j], 0) / top[c] for c in range(count)]
            background = all(-min(t[c, i, j], 0) / bottom[c] > 1e-5 for c in range(count))
            if saliency is not None:
                dark = saliency[i, j] < 0.01
                background = dark and background if few else dark
            claims = [c for c in range(count) if foreground[c] > 1e-5]
            scores = [evidence[c, i, j] * foreground[c] for c in range(count)]
            if bool(claims) == bool(background) or (claims and count > 1 and max(scores) - min(scores) <= 1e-5):
                seed[i, j] = 255
            elif claims:
                seed[i, j] = classes[max(claims, key=lambda c: (scores[c], -c))]
    return seed


def maps(seed, count, size=(9, 11)):
    generator = np.random.default_rng(seed)
    t, cam = generator.normal(size=(2, count, *size)).astype(np.float32)
    t[:, :3, :4] = -np.abs(t[:, :3, :4])
    cam[:, 5:] = -np.abs(cam[:, 5:])
    return t, cam, generator


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("salient", [None, 0.5, 0.005])
def test_a_seed_is_the_one_written_as_loops(count, salient):
    t, cam, generator = maps(count, count)
    classes = np.array([3, 7, 20])[:count]
    saliency = None
    if salient is not None:
        saliency = np.where(generator.random((9, 11)) < salient, generator.integers(2, 255, (9, 11)), 1) / 255
    seed = icd_seed(
        *(torch.from_numpy(a) for a in (t, cam, classes)),
        None if saliency is None else torch.from_numpy(saliency.astype(np.float32)),
    )
    expected = seed_by_loops(t.astype(np.float64), cam.astype(np.float64), classes, saliency)
    assert np.array_equal(seed.numpy(), expected)
    assert seed.dtype == torch.int64 and len(np.unique(expected)) >= min(count, 2)


def one_row(t, cam, saliency=None):
    t, cam = (torch.tensor(rows)[:, None] for rows in (t, cam))
    classes = torch.arange(1, len(t) + 1)
    return icd_seed(t, cam, classes, None if saliency is None else torch.tensor([saliency]) / 255)[0].tolist()


def test_cam_evidence_counts_from_the_least_of_all_classes():
    t, cam, _ = maps(5, 2)
    cam = np.abs(cam) + 1  # a pixel of the least one has no evidence, though its CAM is positive
    classes = np.array([3, 7])
    seed = icd_seed(*(torch.from_numpy(a) for a in (t, cam, classes)))
    expected = seed_by_loops(t.astype(np.float64), cam.astype(np.float64), classes)
    lowered = seed_by_loops(t.astype(np.float64), cam.astype(np.float64) - cam.min(), classes)
    assert np.array_equal(seed.numpy(), expected) and np.array_equal(expected, lowered)
    assert one_row([[1.0, -1.0], [-1.0, 1.0]], [[2.0, 3.0], [2.0, 2.0]]) == [255, 255]


def test_one_class_needs_no_cam_evidence_and_several_do():
    assert one_row([[2.0, -1.0, 0.0]], [[-1.0, -1.0, -1.0]]) == [1, 0, 255]
    assert one_row([[2.0, -1.0, 0.0], [-1.0, -1.0, -1.0]], [[-1.0] * 3] * 2) == [255, 0, 255]


def test_a_class_without_positive_t_claims_nothing_and_one_without_negative_t_forbids_background():
    assert one_row([[-1.0, -2.0], [1.0, -1.0]], [[1.0, 0.0]] * 2) == [2, 0]
    assert one_row([[1.0, 0.5], [1.0, -1.0]], [[0.5, 1.0], [2.0, 2.0]]) == [2, 1]


def test_equal_claims_go_to_the_lower_class_unless_a_third_one_is_equal_too():
    equal = [3.0, -1.0]
    assert one_row([equal, equal, [-1.0, -1.0]], [[1.0, 0.0]] * 3)[0] == 1
    assert one_row([equal, equal], [[1.0, 0.0]] * 2)[0] == 255


def test_saliency_of_grey_2_is_background_and_of_grey_3_is_not():
    # Unclaimed and dark, unclaimed and salient, claimed and salient, claimed and dark.
    assert one_row([[-1.0, -1.0, 1.0, 1.0]], [[1.0] * 4], [2.0, 3.0, 3.0, 2.0]) == [0, 255, 1, 255]


def test_with_too_little_saliency_background_needs_both():
    assert one_row([[-1.0, 0.0, 1.0]], [[1.0] * 3], [0.0, 0.0, 0.0]) == [0, 255, 1]
    t = torch.full((1, 10, 10), -1.0)
    t[0, 5] = 0
    for salient, expected in ((1, 0), (0, 255)):  # one pixel in a hundred is enough
        saliency = torch.zeros(10, 10)
        saliency[0, :salient] = 1
        assert icd_seed(t, torch.ones(1, 10, 10), torch.tensor([4]), saliency)[5, 5] == expected


def test_maps_are_upsampled_to_the_square_and_cut():
    ramp = torch.arange(9.0).expand(1, 9, 9)
    result = upsampled(ramp, 72, (20, 30))
    assert result.shape == (1, 20, 30)
    # Centre of pixel 12 in cells: (12 + ½)/8 − ½.
    assert result[0, 3, 12] == pytest.approx(12.5 / 8 - 0.5) and result[0, 19, 0] == 0


@pytest.mark.parametrize(("size", "side"), [((375, 500), 513), ((513, 20), 513), ((514, 20), 521), ((100, 1041), 1041)])
def test_an_image_is_padded_below_and_on_the_right(size, side):
    image = torch.full((3, *size), 9, dtype=torch.uint8)
    square = padded(image)
    assert square.shape == (3, side, side) and square.dtype == torch.uint8
    assert (square[:, : size[0], : size[1]] == 9).all() and int((square != 127).sum()) == image.numel()


def test_class_maps_are_those_of_the_padded_image():
    torch.manual_seed(0)
    network = IcdNetwork(4, width=0.0625, batchnorm=True).eval()
    image = torch.randint(0, 256, (3, 30, 41), dtype=torch.uint8)
    t, cam = class_maps(network, image, torch.tensor([1, 4]), 65)
    x = torch.zeros(1, 3, 65, 65)
    x[0, :, :30, :41] = image.float() - 127
    with torch.no_grad():
        output = network(x)
    for maps, low in ((t, output.t), (cam, output.cam)):
        whole = torch.nn.functional.interpolate(low, (65, 65), mode="bilinear", align_corners=False)
        assert torch.allclose(maps, whole[0, [0, 3], :30, :41], atol=1e-7) and maps.any()


def test_saliency_files(tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(path)
    assert read_saliency(path, (1, 3)).tolist() == [pytest.approx([0, 0.2, 1])]
    with pytest.raises(InputError, match="1×3, its photograph 3×1"):
        read_saliency(path, (3, 1))
    with pytest.raises(InputError, match=r"none\.png is missing"):
        read_saliency(tmp_path / "none.png", (1, 3))
    Image.new("RGB", (3, 1)).save(path)
    with pytest.raises(InputError, match="grey"):
        read_saliency(path, (1, 3))


def test_crf_gets_half_of_a_label_and_undefined_pixels_get_nothing(monkeypatch):
    seen = {}

    def marginals(image, probabilities, iterations, kernel):
        seen.update(p=probabilities, iterations=iterations)
        result = np.zeros_like(probabilities)
        result[4] = 0.0999
        result[20, 0, 0] = 0.1001
        return result

    monkeypatch.setattr("models.icd.seeds.dense_crf", marginals)
    result = seed_after_crf(np.zeros((1, 2, 3), np.uint8), np.array([[3, 255]]))
    total = 0.5 + 20 * 0.5 / 21
    assert seen["p"][3, 0, 0] == pytest.approx(0.5 / total) and seen["p"][4, 0, 0] == pytest.approx(0.5 / 21 / total)
    assert seen["p"][:, 0, 1] == pytest.approx(np.full(21, 1 / 21)) and seen["iterations"] == 10
    assert result.tolist() == [[20, 255]] and result.dtype == np.uint8
