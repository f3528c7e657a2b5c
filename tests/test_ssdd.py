"""Flags, integration and losses against brute force and hand-worked cases."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.resnet38 import ResNet38, train_with_frozen_batchnorm
from models.ssdd import difference as ssdd
from models.ssdd.ddnet import DDNet
from models.ssdd.segmentation import SegmentationNetwork, masked_prediction, masked_probabilities
from models.ssdd.steps import DynamicStep, Integration, StaticStep, integrated

RNG = np.random.default_rng(0)


def random_batch(images=3, classes=6, size=(7, 9)):
    knowledge, advice = (torch.from_numpy(RNG.integers(0, classes, (images, *size))) for _ in range(2))
    d_k, d_a = (torch.from_numpy(RNG.normal(size=(images, 1, *size))).float() for _ in range(2))
    present = torch.from_numpy(RNG.integers(0, 2, (images, classes))).float()
    present[:, 0] = 1
    return knowledge, advice, d_k, d_a, present


@pytest.mark.parametrize("poster", [False, True])
def test_flags_are_the_counted_ratio(poster):
    knowledge, advice, _, _, present = random_batch()
    flags = ssdd.missing_class_flags(knowledge, advice, present, poster)
    for n in range(3):
        for c in range(6):
            ratio = int((advice[n] == c).sum()) / max(int((knowledge[n] == c).sum()), 1)
            expected = present[n, c] == 1 and (ratio <= 0.5 if poster else c > 0 and ratio < 0.5)
            assert flags[n, c] == expected


def test_a_labelled_class_in_neither_mask_is_flagged_and_exactly_half_is_not():
    knowledge = torch.tensor([[[1, 1, 1, 1]]])
    advice = torch.tensor([[[1, 1, 0, 0]]])
    flags = ssdd.missing_class_flags(knowledge, advice, torch.ones(1, 3))
    assert flags.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(("bias", "bg"), [(0.4, 0.0), (0.1, 0.1), (-0.4, 0.0)])
def test_integration_pixel_by_pixel(bias, bg):
    knowledge, advice, d_k, d_a, present = random_batch()
    flags = ssdd.missing_class_flags(knowledge, advice, present)
    refined = ssdd.integrate(knowledge, advice, d_k, d_a, flags, bias, bg)
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    for n, y, x in np.ndindex(knowledge.shape):
        k, a = int(knowledge[n, y, x]), int(advice[n, y, x])
        w = sigmoid(float(d_k[n, 0, y, x])) - sigmoid(float(d_a[n, 0, y, x])) + bias
        w += -bg * (k == 0) + bg * (a == 0) - float(flags[n, k]) + float(flags[n, a])
        assert refined[n, y, x] == (a if w >= 0 else k)


def test_a_class_that_the_advice_lost_is_kept():
    knowledge, advice = torch.ones(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4, dtype=torch.int64)
    d = torch.zeros(1, 1, 4, 4)
    flags = ssdd.missing_class_flags(knowledge, advice, torch.ones(1, 2))
    assert (ssdd.integrate(knowledge, advice, d, d, flags) == knowledge).all()
    assert (ssdd.integrate(knowledge, advice, d, d, 0 * flags) == advice).all()


@pytest.mark.parametrize("parts", ["both", "maps", "flags", "knowledge", "advice"])
def test_each_part_of_the_rule_alone_pixel_by_pixel(parts):
    knowledge, advice, d_k, d_a, present = random_batch()
    knowledge[0, 0, 0] = advice[0, 0, 1] = 255
    how = Integration(0.3, 0.1, parts=parts)
    flags = ssdd.missing_class_flags(knowledge, advice, present)
    refined = integrated(knowledge, advice, d_k, d_a, present, how).refined
    for n, y, x in np.ndindex(knowledge.shape):
        k, a = int(knowledge[n, y, x]), int(advice[n, y, x])
        w = 0.3 - 0.1 * (k == 0) + 0.1 * (a == 0)
        if parts in ("both", "maps"):
            w += float(torch.sigmoid(d_k[n, 0, y, x]) - torch.sigmoid(d_a[n, 0, y, x]))
        if parts in ("both", "flags"):
            w += (0 if a == 255 else float(flags[n, a])) - (0 if k == 255 else float(flags[n, k]))
        takes = {"knowledge": False, "advice": True}.get(parts, w >= 0)
        assert refined[n, y, x] == (a if k == 255 or (takes and a != 255) else k)


def test_the_posters_rule_protects_a_lost_class_as_the_programs_does():
    knowledge = torch.tensor([[[1, 1, 1, 2]]])
    advice = torch.tensor([[[0, 0, 1, 2]]])
    d = torch.zeros(1, 1, 1, 4)
    poster = Integration(0.4, poster_flags=True)
    for how in (Integration(0.4), poster):
        assert integrated(knowledge, advice, d, d, torch.ones(1, 3), how).refined.tolist() == [[[1, 1, 1, 2]]]
    # The program never protects background.
    assert integrated(advice, knowledge, d, d, torch.ones(1, 3), poster).refined.tolist() == [[[0, 0, 1, 2]]]
    assert integrated(advice, knowledge, d, d, torch.ones(1, 3), Integration(0.4)).refined.tolist() == [[[1, 1, 1, 2]]]


def test_balanced_bce_by_hand():
    d = torch.tensor([[[[0.0, 0.0, 2.0]]]])
    difference = torch.tensor([[[[0.0, 0.0, 1.0]]]])
    loss = ssdd.balanced_bce(d, difference, (1, 2, 3))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_balanced_bce_with_an_empty_side_is_half_the_other(value):
    d = torch.zeros(2, 1, 3, 3, requires_grad=True)
    loss = ssdd.balanced_bce(d, torch.full((2, 1, 3, 3), value), (1, 2, 3))
    assert loss.tolist() == pytest.approx([math.log(2) / 2] * 2)
    loss.sum().backward()
    assert torch.isfinite(d.grad).all()


def test_flagged_images_are_skipped_and_the_rest_averaged():
    knowledge, advice, d_k, d_a, _ = random_batch()
    d_k.requires_grad_()
    flags = torch.zeros(3, 6)
    flags[1, 2] = 1
    difference = ssdd.difference_map(knowledge, advice)
    images = [
        (ssdd.balanced_bce(d_k[n : n + 1], difference[n : n + 1], (0, 1, 2, 3))
         + ssdd.balanced_bce(d_a[n : n + 1], difference[n : n + 1], (0, 1, 2, 3))) / 2
        for n in (0, 2)
    ]  # fmt: skip
    loss = ssdd.pair_difference_loss(d_k, d_a, knowledge, advice, flags)
    assert loss.item() == pytest.approx(torch.stack(images).mean().item(), rel=1e-6)
    loss.backward()
    assert d_k.grad[1].abs().max() == 0 and d_k.grad[0].abs().max() > 0


def test_all_images_flagged_gives_zero_without_gradient():
    knowledge, advice, d_k, d_a, _ = random_batch()
    d_k.requires_grad_()
    loss = ssdd.pair_difference_loss(d_k, d_a, knowledge, advice, torch.ones(3, 6))
    loss.backward()
    assert loss.item() == 0 and d_k.grad.abs().max() == 0


def test_masked_prediction_takes_the_best_present_class():
    logits = torch.randn(2, 5, 4, 4)
    present = torch.tensor([[1.0, 0, 1, 0, 1], [1, 1, 0, 0, 0]])
    mask = masked_prediction(logits, present)
    for n, y, x in np.ndindex(mask.shape):
        allowed = [c for c in range(5) if present[n, c]]
        assert mask[n, y, x] == max(allowed, key=lambda c: float(logits[n, c, y, x]))
    probabilities = masked_probabilities(logits, present)
    assert torch.allclose(probabilities[0, 2], torch.softmax(logits, 1)[0, 2] + 1e-4)
    assert (probabilities[0, 1] == 0).all()


def test_dynamic_segmentation_loss_by_its_formula():
    main, sub = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    seed, refined = torch.randint(4, (2, 3, 3)), torch.randint(4, (2, 3, 3))
    mean = lambda logits, mask: -torch.log_softmax(logits, 1).gather(1, mask[:, None]).mean()  # noqa: E731
    expected = mean(main, refined) + 0.25 * mean(sub, seed) + 0.75 * mean(sub, refined)
    loss = ssdd.dynamic_segmentation_loss(main, sub, seed, refined, 0.25)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def tiny_step(dynamic: bool, seed_target: str = "ssdd1"):
    torch.manual_seed(0)
    segmentation = SegmentationNetwork(21, 1 / 16, 2, dynamic)
    ddnet = DDNet(2 if dynamic else 1, 21, 1 / 16)
    if dynamic:

        def crf(images, logits, present):
            return lambda: masked_prediction(logits.roll(1, -1), present)

        return DynamicStep(segmentation, ddnet, Integration(), 0.5, seed_target, crf)
    return StaticStep(segmentation, ddnet, Integration())


def tiny_batch(dynamic: bool):
    torch.manual_seed(1)
    present = torch.zeros(2, 21)
    present[:, [0, 3, 7]] = 1
    masks = torch.tensor([0, 3, 7])[torch.randint(3, (2, 2, 12, 12))]
    second = (torch.zeros(2, 12, 12, 3, dtype=torch.uint8), masks[0]) if dynamic else (masks[0], masks[1])
    return torch.randn(2, 3, 48, 48), present, *second


def test_where_the_seed_teaches_both_heads_learn_it_alone():
    batch = tiny_batch(True)
    taught = tiny_step(True)(*batch, seed_teaches=True)
    (main, sub), seed, refined = taught.logits, batch[-1], taught.modules[1].refined
    assert taught.loss_seg.item() == pytest.approx((F.cross_entropy(main, seed) + F.cross_entropy(sub, seed)).item())
    assert taught.loss_seg.item() != pytest.approx(ssdd.dynamic_segmentation_loss(main, sub, seed, refined).item())


@pytest.mark.parametrize("dynamic", [False, True])
def test_each_loss_trains_its_own_network_only(dynamic):
    step = tiny_step(dynamic)
    batch = tiny_batch(dynamic)
    step(*batch).loss_dd.backward()
    assert all(p.grad is None for p in step.segmentation.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in step.ddnet.parameters())
    step.ddnet.zero_grad(set_to_none=True)
    step(*batch).loss_seg.backward()
    assert all(p.grad is None for p in step.ddnet.parameters())
    assert step.segmentation.encoder.b7.conv_branch2b2.weight.grad.abs().max() > 0


def test_difference_6_changes_the_second_target():
    batch = tiny_batch(True)
    losses = {}
    for target in ("ssdd1", "ssdd2"):
        step = tiny_step(True, target).eval()
        with torch.no_grad():
            result = step(*batch)
        first, second = result.modules
        m_sub = masked_prediction(result.logits[1], batch[1])
        mask = first.refined if target == "ssdd1" else second.refined
        maps = [
            ssdd.balanced_bce(first.d_k, ssdd.difference_map(first.knowledge, first.advice), (1, 2, 3)),
            ssdd.balanced_bce(first.d_a, ssdd.difference_map(first.knowledge, first.advice), (1, 2, 3)),
        ]
        used = first.flags.sum(1) == 0
        crf = sum(m[used].mean() if used.any() else torch.zeros(()) for m in maps)
        seeds = sum(
            ssdd.balanced_bce(d, ssdd.difference_map(m, m_sub), (0, 1, 2, 3))
            for d, m in ((second.d_k, batch[3]), (second.d_a, mask))
        )
        assert result.loss_dd.item() == pytest.approx(((crf + seeds) / 4).item(), rel=1e-5)
        losses[target] = result.loss_dd.item()
    assert losses["ssdd1"] != losses["ssdd2"]


def test_the_crf_runs_while_the_sub_head_and_the_feature_heads_do():
    step, order = tiny_step(True), []
    crf = step.crf
    for name in ("segmentation.seg_main", "segmentation.seg_sub", "ddnet.dd_head0", "ddnet.dd_head1", "ddnet.dd0"):
        step.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name.split(".")[1]))

    def recorded(*inputs):
        order.append("start")
        waiting = crf(*inputs)
        return lambda: (order.append("wait"), waiting())[1]

    step.crf = recorded
    step(*tiny_batch(True))
    assert order == ["seg_main", "start", "seg_sub", "dd_head0", "dd_head1", "wait", "dd0"]


def test_knowledge_and_advice_run_as_one_batch_equal_two_passes():
    torch.manual_seed(0)
    ddnet = DDNet(1, 21, 1 / 16).eval()
    features = ddnet.features(0, torch.randn(2, 32, 12, 12), torch.randn(2, 8, 24, 24))
    masks = torch.randint(21, (2, 2, 12, 12))
    d_k, d_a = ddnet.differences(0, features, masks[0], masks[1])
    for d, mask in ((d_k, masks[0]), (d_a, masks[1])):
        assert torch.allclose(d, ddnet.dd0(features, F.one_hot(mask, 21).movedim(-1, 1).float()), atol=1e-5)


def test_frozen_batchnorm_stays_while_dropout_acts():
    network = ResNet38(1 / 16)
    train_with_frozen_batchnorm(network)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(network(x).conv6, network(x).conv6)
    network(x).conv6.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.bn7.weight.grad is None and network.conv1a.weight.grad is not None


def test_too_small_an_input_is_told_what_would_work():
    with pytest.raises(ValueError, match="exceed 96 pixels"):
        SegmentationNetwork(21, 1 / 16, 12)(torch.randn(1, 3, 96, 96))
