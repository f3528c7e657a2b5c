"""CAM, self-correlation, PAMR and the choice of classes against direct loops and hand-worked cases."""

import math

import numpy as np
import pytest
import torch

from models.recurseed import scg
from models.recurseed.cam import choose, chosen_classes, normalised_cam, spread
from models.recurseed.pamr import affinities, pamr
from models.recurseed.scg import correlations, self_correlation, self_correlation_maps

RNG = np.random.default_rng(0)


def random(*shape, low=-1.0, high=1.0):
    return torch.from_numpy(RNG.uniform(low, high, shape)).float()


def clustered_features(images=2, depth=6, size=(4, 5)):
    """Cells of three kinds, so that similarities lie on both sides of 0.5."""
    kinds = random(3, depth)
    kind = torch.from_numpy(RNG.integers(0, 3, (images, *size)))
    return kinds[kind].movedim(-1, 1) + 0.4 * random(images, depth, *size)


def min_max(values):
    return [(v - min(values)) / (max(values) - min(values) + 1e-10) for v in values]


def over_column_sums(matrix):
    n = len(matrix)
    sums = [sum(matrix[i][j] for i in range(n)) + 1e-10 for j in range(n)]
    return [[matrix[i][j] / sums[j] for j in range(n)] for i in range(n)]


def looped_correlation(feature):
    """H of one feature map D×h×w, in loops over cells."""
    rows = feature.flatten(1).T.double().numpy()
    rows = [row / (math.sqrt(sum(row**2)) + 1e-10) for row in rows]
    n = len(rows)
    similar = [[max(0.0, float(a @ b)) for b in rows] for a in rows]
    similar = [[v if v >= 0.5 else 0.0 for v in row] for row in similar]
    first = over_column_sums(similar)
    step = over_column_sums([[0.0 if i == j else similar[i][j] for j in range(n)] for i in range(n)])
    product = [[sum(step[i][k] * step[k][j] for k in range(n)) for j in range(n)] for i in range(n)]
    second = [[v if v >= 0.1 / n else 0.0 for v in row] for row in over_column_sums(product)]
    return over_column_sums([[max(first[i][j], second[i][j]) for j in range(n)] for i in range(n)])


def looped_scm(cam, features):
    """SCM of one class h×w from feature maps D×h×w, in loops over cells."""
    n = cam.numel()
    all_h = [looped_correlation(feature) for feature in features]
    h = [[sum(one[i][j] for one in all_h) for j in range(n)] for i in range(n)]

    def evidence(sources):
        total = [0.0] * n
        for j in sources:
            column = min_max([h[i][j] for i in range(n)])
            total = [a + b for a, b in zip(total, column, strict=True)]
        return min_max(total)

    values = cam.flatten().tolist()
    foreground = evidence([i for i in range(n) if values[i] >= 0.30])
    background = evidence([i for i in range(n) if values[i] <= 0.05])
    return min_max([max(0.0, f - b) for f, b in zip(foreground, background, strict=True)])


def some_cams(images, size):
    cams = random(images, 3, *size, low=0, high=1)
    cams[:, 1] = 0
    cams[:, 0].masked_fill_(cams[:, 0] < 0.4, 0.02)
    return cams


@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_self_correlation_cell_by_cell(at_once, monkeypatch):
    monkeypatch.setattr(scg, "AT_ONCE", at_once)
    features = [clustered_features(), clustered_features(depth=9)]
    cams = some_cams(2, (4, 5))
    before = [f.clone() for f in (*features, cams)]
    result = self_correlation_maps(cams.double(), [f.double() for f in features])
    torch.testing.assert_close(self_correlation_maps(cams, features), result.float(), atol=1e-4, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, (*features, cams), strict=True))
    for n in range(2):
        for c in range(3):
            expected = looped_scm(cams[n, c], [f[n] for f in features])
            assert result[n, c].flatten().tolist() == pytest.approx(expected, abs=1e-7)
    assert result[:, [0, 2]].amax(dim=(2, 3)).min() > 0.9 and (result[:, 1] == 0).all()


def test_weak_bridges_are_cut():
    # Two groups of 12 cells, alike within, and one cell between them: through it a cell reaches each of the other
    # group with less than 0.1/25.
    angles = torch.tensor([0.0] * 12 + [50.0] + [100.0] * 12).deg2rad()
    feature = torch.stack([angles.cos(), angles.sin()]).view(1, 2, 5, 5)
    first, second = correlations(feature)
    assert (second[0, :12, 13:] == 0).all() and (second[0, :13, :12] > 0).all() and (first[0, :12, 13:] == 0).all()
    expected = torch.tensor(looped_correlation(feature[0]), dtype=torch.float64)
    torch.testing.assert_close(self_correlation([feature])[0].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("offset", [0, 3])  # 3: all cells are alike, so that no column has a 0
def test_self_correlation_leaves_padding_out(offset):
    features, cams = [clustered_features(size=(6, 7)).double() + offset], some_cams(2, (6, 7)).double()
    cells = torch.zeros(2, 6, 7, dtype=torch.bool)
    cells[0, 1:5, 2:] = True
    cells[1] = True
    result = self_correlation_maps(cams, features, cells)
    alone = self_correlation_maps(cams[:1, :, 1:5, 2:], [features[0][:1, :, 1:5, 2:]])
    torch.testing.assert_close(result[:1, :, 1:5, 2:], alone, atol=1e-6, rtol=0)
    assert (result[0, :, ~cells[0]] == 0).all()
    torch.testing.assert_close(result[1:], self_correlation_maps(cams[1:], [features[0][1:]]), atol=1e-6, rtol=0)


def test_self_correlation_of_an_image_without_cells_is_zero():
    result = self_correlation_maps(some_cams(1, (4, 5)), [clustered_features(1)], torch.zeros(1, 4, 5).bool())
    assert (result == 0).all()


def looped_pamr(image, maps, iterations, dilations):
    """PAMR of one image C×H×W and maps K×H×W, in loops over pixels."""
    channels, height, width = image.shape
    image, maps = image.double().numpy(), maps.double().numpy()
    offsets = [(d * dy, d * dx) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1)]

    def at(values, y, x):
        return values[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    for _ in range(iterations):
        refined = np.zeros_like(maps)
        for y in range(height):
            for x in range(width):
                around = np.stack([at(image, y + dy, x + dx) for dy, dx in offsets])
                sigma = around.std(axis=0, ddof=1)
                neighbours = [(dy, dx) for dy, dx in offsets if (dy, dx) != (0, 0)]
                weights = [
                    sum(-abs(image[c, y, x] - at(image, y + dy, x + dx)[c]) / (1e-8 + 0.1 * sigma[c]) for c in range(3))
                    for dy, dx in neighbours
                ]
                weights = np.exp(np.array(weights) / channels)
                weights /= weights.sum()
                refined[:, y, x] = sum(
                    w * at(maps, y + dy, x + dx) for w, (dy, dx) in zip(weights, neighbours, strict=True)
                )
        maps = refined
    return maps


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 8, 12, 24)])
def test_pamr_pixel_by_pixel(dilations):
    image, maps = random(2, 3, 6, 7), random(2, 2, 6, 7, low=0)
    image[1, 2] = 0.7  # a constant channel has no spread
    result = pamr(image.double(), maps.double(), 3, dilations)
    for n in range(2):
        np.testing.assert_allclose(result[n].numpy(), looped_pamr(image[n], maps[n], 3, dilations), atol=1e-6)
    torch.testing.assert_close(pamr(image, maps, 3, dilations), result.float(), atol=1e-5, rtol=0)


def test_pamr_keeps_constants_and_range():
    image, maps = random(1, 3, 20, 30), random(1, 2, 20, 30, low=0)
    torch.testing.assert_close(affinities(image).sum(dim=1), torch.ones(1, 20, 30))
    torch.testing.assert_close(pamr(image, torch.full_like(maps, 0.3)), torch.full_like(maps, 0.3))
    refined = pamr(image, maps)
    assert maps.min() <= refined.min() and refined.max() < maps.max()
    with pytest.raises(ValueError, match="one size"):
        pamr(image[..., 1:], maps)


def test_pamr_does_not_cross_an_edge_of_colour():
    image, maps = torch.zeros(1, 3, 8, 16), torch.zeros(1, 1, 8, 16)
    image[..., 8:] = 1
    maps[..., 8:] = 1
    refined = pamr(image, maps, 10, (1, 2))
    # Near the edge a neighbour of the other colour weighs e^−(1 / 0.1σ) with σ ≈ 0.5.
    torch.testing.assert_close(refined, maps, atol=1e-6, rtol=0)


def test_normalised_cam_by_hand():
    logits = torch.tensor([[[[2.0, -3.0]], [[-1.0, -2.0]]]])
    other = torch.tensor([[[[-5.0, 1.0]], [[-1.0, 0.0]]]])
    assert normalised_cam([logits, other])[0, 0, 0].tolist() == pytest.approx([2 / 2.00001, 1 / 2.00001])
    assert (normalised_cam([logits, other])[0, 1] == 0).all()
    padded = normalised_cam([logits, other], torch.tensor([[[False, True]]]))
    assert padded[0, 0, 0].tolist() == pytest.approx([0, 1 / 1.00001])


def test_the_gradient_asks_no_cam_to_grow_or_shrink_as_a_whole():
    logits = torch.tensor([[[[2.0, 1.0]]]], requires_grad=True)
    normalised_cam([logits]).sum().backward()  # 1 + b/a: -b/a², 1/a
    assert logits.grad.flatten().tolist() == pytest.approx([-1 / 4, 1 / 2], abs=1e-4)
    assert (logits.grad * logits).sum().item() == pytest.approx(0, abs=1e-4)


def test_chosen_classes_and_back():
    present = torch.tensor([[1.0, 0, 1, 0, 1], [1, 0, 0, 0, 0], [1, 0, 0, 1, 0]])
    chosen = chosen_classes(present)
    assert chosen.classes.shape == (3, 2)
    assert [chosen.classes[n][chosen.here[n]].tolist() for n in range(3)] == [[2, 4], [], [3]]
    maps = random(3, 4, 2, 2)
    kept = choose(maps, chosen)
    assert torch.equal(kept[0], maps[0, [1, 3]]) and (kept[1] == 0).all()
    assert torch.equal(spread(kept, chosen, 4), maps * present[:, 1:, None, None])
    assert chosen_classes(present[1:2]).classes.shape == (1, 1)
