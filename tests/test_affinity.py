"""Pair affinities, random walk and affinity loss against brute force."""

import math

import numpy as np
import pytest
import torch

from models.psa import affinity


def brute_force_matrix(features: np.ndarray) -> np.ndarray:
    """Affinities of all pairs closer than 5 whose source cell keeps every offset inside; written cell by cell."""
    _, height, width = features.shape
    matrix = np.eye(height * width)
    offsets = [(0, x) for x in range(1, 5)]
    offsets += [(y, x) for y in range(1, 5) for x in range(-4, 5) if x * x + y * y < 25]
    assert len(offsets) == 34
    for y in range(height - 4):
        for x in range(4, width - 4):
            for dy, dx in offsets:
                value = math.exp(-np.abs(features[:, y, x] - features[:, y + dy, x + dx]).mean())
                i, j = y * width + x, (y + dy) * width + x + dx
                matrix[i, j] = matrix[j, i] = value
    return matrix


@pytest.mark.parametrize("size", [(7, 11), (5, 9), (4, 20), (12, 8), (1, 1)])
def test_affinity_matrix_is_the_brute_force_one(size):
    features = torch.randn(6, *size)
    pairs = affinity.pair_affinities(features[None])
    matrix = affinity.affinity_matrix(pairs, size).to_dense().numpy()
    assert np.abs(matrix - brute_force_matrix(features.numpy().astype(np.float64))).max() < 1e-6


@pytest.mark.parametrize("size", [(8, 12), (2, 3)])
def test_random_walk_is_the_dense_matrix_power(size):
    features, maps = torch.randn(2, 6, *size), torch.rand(2, 3, *size)
    walked = affinity.random_walk(affinity.pair_affinities(features), maps)
    assert walked.shape == maps.shape
    for image in range(2):
        transition = brute_force_matrix(features[image].numpy().astype(np.float64)) ** 8
        transition /= transition.sum(axis=0)
        expected = maps[image].numpy().reshape(3, -1) @ np.linalg.matrix_power(transition, 256)
        assert np.abs(walked[image].numpy().reshape(3, -1) - expected).max() < 1e-4 * np.abs(expected).max()


def test_an_image_walks_in_a_batch_as_alone_and_missing_classes_stay_zero():
    features, maps = torch.randn(3, 6, 8, 12), torch.rand(3, 3, 8, 12)
    maps[1, 2] = 0
    pairs = affinity.pair_affinities(features)
    together = affinity.random_walk(pairs, maps)
    alone = torch.cat([affinity.random_walk(pairs[n : n + 1], maps[n : n + 1]) for n in range(3)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-4)
    assert not together[1, 2].any() and together[0, 2].any()


@pytest.mark.parametrize("power", [1, 2, 16, 32, 256, 2**16])
def test_powers_as_sums_of_chebyshev_polynomials(power):
    weights = affinity.chebyshev_weights(power)
    x = np.linspace(-1, 1, 1001)
    assert np.abs(np.polynomial.chebyshev.chebval(x, weights) - x**power).max() < 1e-6
    assert len(weights) <= 6 * math.sqrt(power) + 2


def test_pad_pool_and_unpool_keep_the_size():
    maps = torch.rand(2, 21, 30)
    cells = affinity.pool_to_cells(maps)
    assert cells.shape == (2, 3, 4)
    padded = np.zeros((24, 32), np.float32)
    padded[:21, :30] = maps[0]
    assert np.allclose(cells[0], padded.reshape(3, 8, 4, 8).mean(axis=(1, 3)), atol=1e-6)
    assert affinity.unpool_from_cells(cells, (21, 30)).shape == (2, 21, 30)


def test_affinity_loss_pair_by_pair():
    torch.manual_seed(0)
    labels = torch.from_numpy(np.random.default_rng(0).choice([0, 3, 5, 255], (1, 6, 10)))
    pairs = torch.rand(1, 34, 2, 2)
    terms = {"background": [], "foreground": [], "different": []}
    for n, (dy, dx) in enumerate(affinity.pair_offsets()):
        for y in range(2):
            for x in range(2):
                i, j = int(labels[0, y, x + 4]), int(labels[0, y + dy, x + 4 + dx])
                a = float(pairs[0, n, y, x])
                if 255 in (i, j):
                    continue
                if i != j:
                    terms["different"].append(-math.log(1 + 1e-5 - a))
                else:
                    terms["foreground" if i else "background"].append(-math.log(a + 1e-5))
    mean = {name: sum(values) / (len(values) + 1e-5) for name, values in terms.items()}
    expected = mean["background"] / 4 + mean["foreground"] / 4 + mean["different"] / 2
    assert affinity.affinity_loss(pairs, labels).item() == pytest.approx(expected, rel=1e-5)


def test_affinity_loss_without_any_known_pair_is_zero():
    pairs = torch.rand(1, 34, 2, 2, requires_grad=True)
    loss = affinity.affinity_loss(pairs, torch.full((1, 6, 10), 255))
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(pairs.grad).all()
