"""The benchmark of labels: its figures that are no times, and that the program prints all of them."""

import numpy as np
import torch

from evaluation.baselines import dense_walk, scene
from models.crf import dense_crf
from models.psa.affinity import pair_affinities, pool_to_cells, random_walk, seed_maps
from tools import bench_labels


def test_dense_walk_is_the_sparse_one():
    pairs, maps = pair_affinities(torch.randn(1, 5, 8, 12)), torch.rand(1, 3, 8, 12)
    assert torch.allclose(dense_walk(pairs, maps), random_walk(pairs, maps), rtol=0, atol=1e-4)


def test_store_is_small_and_exact():
    image, cams = scene()
    maps = seed_maps(torch.from_numpy(cams))
    crf = dense_crf(image, maps.numpy(), 10)
    rows = bench_labels.store_figures(image, pool_to_cells(maps), crf)
    assert np.bincount(crf.argmax(axis=0).ravel(), minlength=3).min() > 10_000
    # The last row is a time, which a busy machine spoils.
    assert [what for what, _, reached in rows[:-1] if not reached] == []
    assert len(rows) == 4


def test_every_stage_is_timed():
    image, cams = scene()
    low = pool_to_cells(seed_maps(torch.from_numpy(cams)))
    stages = bench_labels.stage_times(image[:64, :80], low[:, :8, :10], cams[:, :64, :80], 0.0625)
    assert len(stages) == 5 and all(wall > 0 for wall, _ in stages.values())
