"""The dense CRF against a brute-force mean field, and its worker processes."""

import numpy as np
import pytest
import torch

from engine.workers import Workers
from models.crf import CrfKernel, dense_crf, masks_after_crf

RNG = np.random.default_rng(0)


def brute_force_crf(image, probabilities, iterations, kernel):
    """Mean field with the full n×n kernels, symmetrically normalised, Potts."""
    labels, height, width = probabilities.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    position = np.stack([x, y], 1)
    colour = image.reshape(-1, 3).astype(np.float64)
    smooth = position / kernel.gaussian_sxy
    bilateral = np.concatenate([position / kernel.bilateral_sxy, colour / kernel.bilateral_srgb], 1)
    message = np.zeros((height * width,) * 2)
    for features, weight in ((smooth, kernel.gaussian_weight), (bilateral, kernel.bilateral_weight)):
        k = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
        d = 1 / np.sqrt(k.sum(1))
        message += weight * d[:, None] * k * d[None]
    unary = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(labels, -1).astype(np.float64)
    softmax = lambda e: np.exp(e - e.max(0)) / np.exp(e - e.max(0)).sum(0)  # noqa: E731
    q = softmax(-unary)
    for _ in range(iterations):
        q = softmax(-unary + q @ message)
    return q.reshape(labels, height, width)


def scene(height=18, width=24):
    """A bright disc on a dark ground with noise, and a blurred guess of where it is."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2
    image = np.where(disc[..., None], (200, 160, 90), (60, 70, 90)) + RNG.normal(0, 4, (height, width, 3))
    guess = np.clip(0.5 + 0.3 * (disc - 0.5) + RNG.normal(0, 0.15, (height, width)), 0.02, 0.98)
    return image.clip(0, 255).astype(np.uint8), np.stack([1 - guess, guess]).astype(np.float32), disc


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_labels_agree_with_brute_force(iterations):
    # pydensecrf filters on a permutohedral lattice, which approximates the kernels.
    image, probabilities, _ = scene()
    q = dense_crf(image, probabilities, iterations)
    expected = brute_force_crf(image, probabilities, iterations, CrfKernel())
    assert (q.argmax(0) == expected.argmax(0)).mean() > 0.98
    assert np.allclose(q.sum(0), 1, atol=1e-5)


def test_it_finds_the_disc():
    image, probabilities, disc = scene(48, 64)
    before = (probabilities.argmax(0) == disc).mean()
    after = (dense_crf(image, probabilities, 10).argmax(0) == disc).mean()
    assert before < 0.9 and after > 0.99


def test_unnormalised_probabilities_are_taken_as_they_are():
    image, probabilities, _ = scene()
    assert np.allclose(dense_crf(image, probabilities, 3), dense_crf(image, probabilities * 0.5, 3), atol=1e-4)


def test_one_label_is_certain():
    image, _, _ = scene()
    assert (dense_crf(image, np.full((1, 18, 24), 0.3, np.float32), 3) == 1).all()


def test_a_picture_of_another_size_is_refused():
    image, probabilities, _ = scene()
    with pytest.raises(ValueError, match="CRF image"):
        dense_crf(image[:-1], probabilities, 3)


def test_batch_uses_only_present_classes_and_workers_change_nothing():
    images = torch.from_numpy(np.stack([scene()[0] for _ in range(3)]))
    logits = torch.from_numpy(RNG.normal(size=(3, 21, 18, 24)).astype(np.float32))
    present = torch.zeros(3, 21)
    present[:, 0] = present[0, 4] = present[2, 7] = 1
    present[1, [2, 20]] = 1
    results = []
    for count in (0, 2):
        with Workers(count) as workers:
            results.append(masks_after_crf(images, logits, present, 3, CrfKernel(), workers.submit)())
    assert torch.equal(*results)
    for n, row in enumerate(present):
        assert set(results[0][n].unique().tolist()) <= set(row.nonzero().flatten().tolist())
        p = torch.softmax(logits[n, row > 0], 0).numpy()
        expected = row.nonzero().flatten().numpy()[dense_crf(images[n].numpy(), p, 3).argmax(0)]
        assert np.array_equal(results[0][n].numpy(), expected)


def fail_on(number):
    if number == 3:
        raise ValueError("number three")


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_in_queued_work_arrives(count):
    with pytest.raises(ValueError, match="number three"), Workers(count) as workers:
        for number in range(20):
            workers.queue(fail_on, number)
