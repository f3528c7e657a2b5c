"""ICD's bottom-up, sign, refinement and top-down parts against loops over pixels and hand-worked cases."""

import math

import numpy as np
import pytest
import torch

from models.icd import bottom_up, refinement, top_down

LABELS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])


def made_up(seed=0, channels=6, size=(5, 4)):
    generator = torch.Generator().manual_seed(seed)
    images, classes = LABELS.shape
    features = torch.randn(images, channels, *size, generator=generator)
    weight = torch.randn(classes, channels, generator=generator)
    cam = torch.randn(images, classes, *size, generator=generator)
    return features, weight, cam


@pytest.mark.parametrize("length", [1.0, 0.02])
def test_the_gradient_of_w_is_the_published_one(length):
    features, weight, _ = made_up()
    weight = (weight * length).requires_grad_()
    features.requires_grad_()
    loss = bottom_up.bottom_up_loss(bottom_up.class_scores(features, weight), LABELS)
    loss.backward()
    assert features.grad is None
    x, w = features.detach().double().numpy(), weight.detach().double().numpy()
    images, _, height, width = x.shape
    raw = np.zeros_like(w)
    for c in range(len(w)):
        for n in range(images):
            if LABELS[n].sum() == 1 and LABELS[n, c] == 1:
                for i in range(height):
                    for j in range(width):
                        s = w[c] @ x[n, :, i, j] / np.linalg.norm(w[c])
                        raw[c] -= 10 / (height * width) * s * x[n, :, i, j]
    norm = np.linalg.norm(w, axis=1, keepdims=True)
    expected = raw / (norm + 1e-5) - w * (w * raw).sum(1, keepdims=True) / (norm**3 + 1e-5)
    assert expected[:3].any(axis=1).all() and not expected[3].any()
    assert np.abs(weight.grad.numpy() * images - expected).max() < 1e-5 * np.abs(expected).max()


def test_without_the_small_addends_it_is_the_gradient_of_the_loss_itself():
    features, weight, _ = made_up()
    weight = (weight + 2).double().requires_grad_()
    features = features.double()
    published = bottom_up.bottom_up_loss(bottom_up.class_scores(features, weight), LABELS)
    scores = torch.einsum("ndhw,cd->nchw", features, weight / weight.norm(dim=1, keepdim=True))
    plain = bottom_up.bottom_up_loss(scores, LABELS)
    assert torch.allclose(published, plain, rtol=1e-9)
    ours, direct = (torch.autograd.grad(loss, weight)[0] for loss in (published, plain))
    assert (ours - direct).abs().max() < 1e-4 * direct.abs().max()


def test_w_follows_the_first_principal_direction():
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([3.0, 1.0, 0.6, 0.3])
    axes = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    cloud = (torch.randn(2, 10, 20, 4, generator=generator) * spread) @ axes.T
    features = cloud.movedim(-1, 1)
    weight = torch.randn(1, 4, generator=generator, requires_grad=True)
    for _ in range(200):
        loss = bottom_up.bottom_up_loss(bottom_up.class_scores(features, weight), torch.ones(2, 1))
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            weight -= 0.01 * gradient
    moments = torch.einsum("ndhw,nehw->de", features, features)
    principal = torch.linalg.eigh(moments).eigenvectors[:, -1]
    cosine = torch.nn.functional.cosine_similarity(weight.detach()[0], principal, dim=0).abs()
    assert cosine > 0.9999


def sign_statistics_by_loops(statistics, scores, cam, labels):
    result = statistics.clone()
    for c in range(labels.shape[1]):
        sides = []
        for n in range(len(labels)):
            if labels[n, c] == 1:
                above = [
                    max(float(a), 0) for a, s in zip(cam[n, c].ravel(), scores[n, c].ravel(), strict=True) if s > 0
                ]
                below = [
                    max(float(a), 0) for a, s in zip(cam[n, c].ravel(), scores[n, c].ravel(), strict=True) if s < 0
                ]
                sides.append([np.mean(above) if above else 0, np.mean(below) if below else 0])
        mean = torch.tensor(np.mean(sides, axis=0)) if sides else statistics[c]
        result[c] = 0.9 * statistics[c] + 0.1 * mean
    return result


def test_sign_statistics_count_every_image_of_a_class():
    scores, _, cam = made_up(channels=4)
    scores[0, 0] = scores[0, 0].abs()  # no pixel with s < 0: counts as 0
    scores[1, 1, 0] = 0  # on neither side
    labels = LABELS.clone()
    labels[4, 3] = 0
    statistics = torch.rand(4, 2, generator=torch.Generator().manual_seed(2))
    before = statistics.clone()
    bottom_up.update_sign_statistics(statistics, scores, cam, labels)
    assert torch.allclose(statistics, sign_statistics_by_loops(before, scores, cam, labels), atol=1e-6)
    assert torch.allclose(statistics[3], before[3]) and (statistics[:3] - before[:3]).abs().min() > 1e-3


def test_a_class_is_negated_where_the_cam_lies_on_its_negative_side():
    scores = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    statistics = torch.tensor([[0.2, 0.1], [0.1, 0.2], [0.1, 0.1]])
    signed = bottom_up.signed(scores, statistics)
    assert torch.equal(signed, scores * torch.tensor([1.0, -1, 1])[:, None, None])


@pytest.mark.parametrize(("inputs", "outputs"), [((32, 40), (8, 10)), ((321, 33), (41, 5)), ((7, 5), (1, 5))])
def test_resized_one_hot_is_the_resized_one_hot(inputs, outputs):
    ids = torch.randint(0, 6, (2, *inputs), generator=torch.Generator().manual_seed(0))
    maps = torch.nn.functional.one_hot(ids, 7).movedim(-1, 1).double()
    expected = torch.nn.functional.interpolate(maps, outputs, mode="bilinear", align_corners=True)
    result = refinement.resized_one_hot(ids.int(), outputs, 7)
    assert (result - expected).abs().max() < 1e-6 and result.dtype == torch.float32


@pytest.mark.parametrize(("inputs", "outputs"), [(321, 41), (513, 65)])
def test_at_the_published_sizes_it_is_every_eighth_pixel(inputs, outputs):
    ids = torch.randint(0, 65, (1, inputs, inputs), generator=torch.Generator().manual_seed(0))
    result = refinement.resized_one_hot(ids, (outputs, outputs), 65)
    assert torch.equal(result, torch.nn.functional.one_hot(ids[:, ::8, ::8], 65).movedim(-1, 1).float())


def refined_by_loops(scores, labels, one_hot):
    """icd.md, part 3, word by word."""
    images, classes, height, width = scores.shape
    result = np.zeros_like(scores)
    for n in range(images):
        present = [c for c in range(classes) if labels[n, c]]
        pixels = [(i, j) for i in range(height) for j in range(width)]
        for k in range(one_hot.shape[1]):
            m = one_hot[n, k]
            area = sum(m[p] for p in pixels)
            if area == 0:
                continue
            q, votes = {}, {}
            for c in present:
                total = 0.0
                for p in pixels:
                    largest = max(scores[n, d][p] for d in present)
                    total += m[p] * max(scores[n, c][p], 0) / max(largest, 1e-5)
                q[c] = total / area
                votes[c] = sum(m[p] * np.sign(scores[n, c][p]) for p in pixels)
            foreground = max(votes.values()) > 1e-5
            winner = next(c for c in present if q[c] == max(q.values()))
            for c in present:
                keep = max if foreground and c == winner else min
                mean = sum(m[p] * keep(scores[n, c][p], 0) for p in pixels) / area
                for p in pixels:
                    result[n, c][p] += m[p] * mean
    return result


@pytest.mark.parametrize("seed", range(4))
def test_refinement_is_the_one_written_as_loops(seed):
    _, _, scores = made_up(seed, size=(6, 5))
    scores[0] -= 1.5  # mostly background
    ids = torch.randint(0, 5, (5, 2, 2), generator=torch.Generator().manual_seed(seed))
    ids = ids.repeat_interleave(9, 1).repeat_interleave(8, 2)
    one_hot = refinement.resized_one_hot(ids, (6, 5), 7)  # ids 5 and 6 have no area
    result = refinement.refine(scores, LABELS, one_hot)
    expected = refined_by_loops(scores.double().numpy(), LABELS.numpy(), one_hot.double().numpy())
    assert np.abs(result.numpy() - expected).max() < 1e-5
    assert not result[LABELS == 0].any() and result[LABELS == 1].flatten(1).any(dim=1).all()


def test_a_superpixel_goes_to_the_largest_claim_even_where_its_own_sum_of_signs_is_negative():
    # The strong class claims two pixels of five, the weak one less. Sums of signs: −1 of the strong one, 1 of the weak.
    weak = torch.tensor([1.0, 1, 1, -1, -1])
    strong = torch.tensor([9.0, 9, -1, -1, -1])
    scores = torch.stack([weak, strong])[None, :, None]
    one_hot = torch.ones(1, 1, 1, 5)
    result = refinement.refine(scores, torch.ones(1, 2), one_hot)[0, :, 0]
    assert torch.allclose(result[1], torch.full((5,), 18 / 5))
    assert torch.allclose(result[0], torch.full((5,), -2 / 5))


def test_where_all_scores_are_tiny_a_pixel_claims_little():
    scores = torch.tensor([[9e-7, 0.9], [1e-9, 1.0]])[None, :, None]
    result = refinement.refine(scores, torch.ones(1, 2), torch.ones(1, 1, 1, 2))[0, :, 0, 0]
    assert result[0] == 0 and result[1] == pytest.approx(0.5)


def test_of_equal_claims_the_first_class_wins_and_a_tie_of_signs_is_background():
    scores = torch.tensor([[1.0, 1.0], [1.0, 1.0]])[None, :, None]
    assert torch.equal(
        refinement.refine(scores, torch.ones(1, 2), torch.ones(1, 1, 1, 2))[0, :, 0, 0], torch.tensor([1.0, 0])
    )
    scores = torch.tensor([[3.0, -1.0]])[None, :, None]
    assert torch.equal(
        refinement.refine(scores, torch.ones(1, 1), torch.ones(1, 1, 1, 2))[0, 0, 0], torch.full((2,), -0.5)
    )


def test_the_gradient_of_t_is_the_published_one():
    _, _, refined = made_up(3)
    refined[0, 0] = refined[0, 0].abs()  # no negative side
    refined[1, 1] *= 1e-7  # below the least divisor: nowhere certain
    t = torch.randn(refined.shape, generator=torch.Generator().manual_seed(4)).requires_grad_()
    (gradient,) = torch.autograd.grad(0.3 * top_down.top_down_loss(t, refined, LABELS), t)
    images, classes, height, width = t.shape
    expected = np.zeros(t.shape)
    for n in range(images):
        for c in range(classes):
            top, bottom = max(float(refined[n, c].max()), 1e-5), max(-float(refined[n, c].min()), 1e-5)
            for i in range(height):
                for j in range(width):
                    value = float(refined[n, c, i, j])
                    value = value / top if value > 0 else value / bottom
                    if LABELS[n, c] == 1 and abs(value) > 0.2:
                        sigmoid = float(t[n, c, i, j].detach().sigmoid())
                        expected[n, c, i, j] = (sigmoid - (value > 0)) / (height * width) * 0.3
    assert np.abs(gradient.numpy() * images - expected).max() < 1e-7
    assert expected.any() and not expected[1, 1].any()


def test_the_gradient_of_the_cam_branch_is_the_probability_less_the_label():
    _, _, cam = made_up(5)
    logits = cam.mean(dim=(2, 3)).requires_grad_()
    loss = top_down.cam_loss(logits[:, :, None, None].expand(cam.shape), LABELS)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient * len(LABELS), logits.sigmoid() - LABELS, atol=1e-6)


def test_warm_up():
    assert top_down.warm_up_steps(10_582, 32) == 661
    assert top_down.warm_up(0, 661) == pytest.approx(math.exp(-10))
    assert top_down.warm_up(330, 660) == pytest.approx(math.exp(-5))
    assert top_down.warm_up(661, 661) == top_down.warm_up(5000, 661) == top_down.warm_up(0, 0) == 1
