"""Pixels that a mask does not know (255): no class, no difference, no loss, never taken where the other mask knows."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.ssdd import difference as ssdd
from models.ssdd.difference import UNKNOWN
from tests.test_ssdd import random_batch, tiny_batch, tiny_step

U = UNKNOWN


def holey_batch():
    """`random_batch` of three images with holes in each mask; the third image's advice knows nothing."""
    knowledge, advice, d_k, d_a, present = random_batch()
    generator = torch.Generator().manual_seed(0)
    knowledge[torch.rand(knowledge.shape, generator=generator) < 0.2] = U
    advice[torch.rand(advice.shape, generator=generator) < 0.3] = U
    advice[2] = U
    return knowledge, advice, d_k, d_a, present


def test_one_hot_has_no_class_there():
    hot = ssdd.one_hot(torch.tensor([[[0, 2], [U, 1]]]), 3)
    assert hot[0].tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [0, 0]]]
    mask = random_batch()[0]
    expected = F.one_hot(mask, 6).movedim(-1, 1).float()
    assert torch.equal(ssdd.one_hot(mask, 6), expected)
    assert ssdd.one_hot(mask, 6).stride() == expected.stride()  # a convolution's rounding depends on the layout


def test_counts_and_flags_pass_over_them():
    knowledge, advice, _, _, present = holey_batch()
    counts, flags = ssdd.class_pixels(knowledge, 6), ssdd.missing_class_flags(knowledge, advice, present)
    for n, c in np.ndindex(3, 6):
        k, a = int((knowledge[n] == c).sum()), int((advice[n] == c).sum())
        assert counts[n, c] == k
        assert flags[n, c] == (c > 0 and present[n, c] == 1 and a / max(k, 1) < 0.5)
    # Three pixels against one: lost. That two of them are unknown in the advice makes no class of them.
    flags = ssdd.missing_class_flags(torch.tensor([[[1, 1, 1, U]]]), torch.tensor([[[1, U, U, 0]]]), torch.ones(1, 2))
    assert flags.tolist() == [[0, 1]]


def test_integration_by_hand():
    knowledge = torch.tensor([[[U, 1, U, 1, 0]]])
    advice = torch.tensor([[[2, U, U, 2, U]]])
    zero, flags = torch.zeros(1, 1, 1, 5), torch.zeros(1, 3)
    assert ssdd.integrate(knowledge, advice, zero, zero, flags, 0.4).tolist() == [[[2, 1, U, 2, 0]]]
    assert ssdd.integrate(knowledge, advice, zero, zero, flags, -0.4).tolist() == [[[2, 1, U, 1, 0]]]
    flags[0, 1:] = 1
    assert ssdd.integrate(knowledge, advice, zero, zero, flags, -0.4, 9).tolist() == [[[2, 1, U, 1, 0]]]


def test_integration_pixel_by_pixel():
    knowledge, advice, d_k, d_a, present = holey_batch()
    flags = ssdd.missing_class_flags(knowledge, advice, present)
    refined = ssdd.integrate(knowledge, advice, d_k, d_a, flags, 0.1, 0.2)
    for n, y, x in np.ndindex(knowledge.shape):
        k, a = int(knowledge[n, y, x]), int(advice[n, y, x])
        if U in (k, a):
            expected = a if k == U else k
        else:
            w = torch.sigmoid(d_k[n, 0, y, x]) - torch.sigmoid(d_a[n, 0, y, x]) + 0.1
            w = w + 0.2 * ((a == 0) - (k == 0)) - flags[n, k] + flags[n, a]
            expected = a if w >= 0 else k
        assert refined[n, y, x] == expected


def test_the_difference_map_is_zero_there():
    knowledge, advice = torch.tensor([[[1, 1, U, 0, U]]]), torch.tensor([[[1, 0, 1, U, U]]])
    assert ssdd.difference_map(knowledge, advice).flatten().tolist() == [0, 1, 0, 0, 0]
    assert ssdd.known_in_both(knowledge, advice).flatten().tolist() == [1, 1, 0, 0, 0]


def brute_balanced(d, knowledge, advice, images):
    """The mean over changed and over unchanged known pixels of `images`, averaged."""
    sides = ([], [])
    for n in images:
        for y, x in np.ndindex(knowledge.shape[1:]):
            k, a = int(knowledge[n, y, x]), int(advice[n, y, x])
            if U not in (k, a):
                value = d[n, 0, y, x].item()
                sides[k != a].append(math.log1p(math.exp(-value if k != a else value)))
    return sum(sum(side) / max(len(side), 1) for side in sides) / 2


def test_difference_losses_are_means_over_known_pixels():
    knowledge, advice, d_k, d_a, _ = holey_batch()
    d_k.requires_grad_()
    loss = ssdd.pair_difference_loss(d_k, d_a, knowledge, advice, torch.zeros(3, 6))
    # The third image has no pixel that both know.
    expected = [(brute_balanced(d_k, knowledge, advice, [n]) + brute_balanced(d_a, knowledge, advice, [n])) / 2
                for n in (0, 1)]  # fmt: skip
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    loss.backward()
    known = ssdd.known_in_both(knowledge, advice)
    assert ((d_k.grad != 0) == (known > 0)).all()
    loss = ssdd.seed_difference_loss(d_a, knowledge, advice)
    assert loss.item() == pytest.approx(brute_balanced(d_a, knowledge, advice, range(3)), rel=1e-5)


def test_nothing_known_gives_zero_without_gradient():
    _, _, d_k, d_a, _ = random_batch()
    logits, d_k = torch.randn(3, 6, 7, 9, requires_grad=True), d_k.requires_grad_()
    nothing = torch.full((3, 7, 9), U)
    losses = [
        ssdd.pair_difference_loss(d_k, d_a, nothing, nothing, torch.zeros(3, 6)),
        ssdd.seed_difference_loss(d_k, nothing, nothing),
        ssdd.cross_entropy(logits, nothing),
    ]
    sum(losses).backward()
    assert [loss.item() for loss in losses] == [0, 0, 0]
    assert d_k.grad.abs().max() == logits.grad.abs().max() == 0


def test_cross_entropy_is_the_mean_over_known_pixels():
    mask = holey_batch()[0]
    logits = torch.randn(3, 6, 7, 9, requires_grad=True)
    loss = ssdd.cross_entropy(logits, mask)
    shares = torch.log_softmax(logits.detach(), 1)
    terms = [-shares[n, mask[n, y, x], y, x] for n, y, x in np.ndindex(mask.shape) if mask[n, y, x] != U]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    loss.backward()
    assert ((logits.grad.abs().sum(1) > 0) == (mask != U)).all()


def test_cross_entropy_of_known_masks_is_torch_s_mean_bit_for_bit():
    for seed in range(20):
        torch.manual_seed(seed)
        size = (1 + seed % 4, 3 + seed, 40 - seed)
        mask, logits = torch.randint(21, size), torch.randn(size[0], 21, *size[1:])
        ours, torchs = (logits.clone().requires_grad_() for _ in range(2))
        losses = ssdd.cross_entropy(ours, mask), F.cross_entropy(torchs, mask)
        for loss in losses:
            (0.3 * loss).backward()
        assert torch.equal(*losses) and torch.equal(ours.grad, torchs.grad)


def test_two_processes_average_to_the_global_mean(monkeypatch):
    mask, logits = holey_batch()[1], torch.randn(3, 6, 7, 9)
    whole = ssdd.cross_entropy(logits, mask)
    # The first process has the first image, the second the others, of which the last knows nothing.
    monkeypatch.setattr(ssdd, "per_process_share", lambda count: (mask != U).sum() / 2)
    parts = ssdd.cross_entropy(logits[:1], mask[:1]), ssdd.cross_entropy(logits[1:], mask[1:])
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def hole_gradients(step, batch, logits, module):
    """The largest gradient inside and outside `HOLE` of `logits`, and of d_K of a module, after one step."""
    result = step(*batch)
    watched = result.logits[logits], result.modules[module].d_k
    for tensor in watched:
        tensor.retain_grad()
    (result.loss_seg + result.loss_dd).backward()
    gradients = [tensor.grad.abs().amax(1) for tensor in watched]
    return result, [(float(g[HOLE].max()), float(g[~HOLE].max())) for g in gradients]


HOLE = torch.zeros(2, 12, 12, dtype=torch.bool)
HOLE[:, :, :5] = True


def test_the_static_step_learns_nothing_at_unknown_pixels():
    step, (x, present, knowledge, advice) = tiny_step(False).eval(), tiny_batch(False)
    advice = torch.where(torch.rand(advice.shape) < 0.2, advice, knowledge)  # no class is lost
    present[:] = 0
    present[:, [0, *(c for c in (3, 7) if (knowledge == c).any())]] = 1
    batch = x, present, knowledge.masked_fill(HOLE, U), advice.masked_fill(HOLE, U)
    result, gradients = hole_gradients(step, batch, 0, 0)
    assert not result.modules[0].flags.any()
    assert torch.equal(result.modules[0].refined == U, HOLE)
    for inside, outside in gradients:
        assert inside == 0 < outside


def test_the_dynamic_step_fills_the_seed_s_holes_and_learns_nothing_from_them():
    step, (x, present, images, seed) = tiny_step(True).eval(), tiny_batch(True)
    step.alpha = 1  # seg_sub learns the seed only
    result, gradients = hole_gradients(step, (x, present, images, seed.masked_fill(HOLE, U)), 1, 1)
    first, second = result.modules
    assert not (second.refined == U).any() and torch.equal(second.refined[HOLE], first.refined[HOLE])
    for inside, outside in gradients:
        assert inside == 0 < outside
