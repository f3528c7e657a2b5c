"""RecurSeed's network, CertainFilter, CertainMix, losses, the step, the moving average and the maps for the CRF."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet50

from datasets.transforms import MEAN, STD, normalise
from models.recurseed.cam import Chosen, chosen_classes
from models.recurseed.certain import (
    certain_labels,
    certain_mix,
    draw_partners,
    enlarged,
    label_shares,
    without_evidence,
)
from models.recurseed.inference import (
    Prediction,
    class_maps,
    crf_images,
    image_probabilities,
    multiscale_prediction,
)
from models.recurseed.losses import cam_loss, classification_loss, segmentation_loss
from models.recurseed.network import RecurSeedNetwork, start_from_imagenet
from models.recurseed.optimisation import average_decay, parameter_groups, update_average
from models.recurseed.steps import RecurSeedStep, SeedSettings

WIDTH = 1 / 16


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


# The network


def test_the_state_dict_is_the_released_one():
    keys = RecurSeedNetwork().state_dict()
    assert len(keys) == 374
    assert {key.removeprefix("model.") for key in keys if key.startswith("model.")} == {
        key for key in resnet50().state_dict() if not key.startswith("fc.")
    }
    named = (
        "classifier.weight aspp.aspp1.atrous_conv.weight aspp.aspp4.bn.running_var aspp.global_avg_pool.1.weight "
        "aspp.global_avg_pool.2.bias aspp.conv1.weight aspp.bn1.weight decoder.conv1.weight decoder.bn1.bias "
        "decoder.classifier.0.weight decoder.classifier.1.bias decoder.classifier.5.weight decoder.classifier.8.weight"
    )
    assert set(named.split()) <= set(keys)


def test_imagenet_weights_are_torchvisions():
    # Only the last stage differs: stride 1 instead of 2.
    theirs, ours = resnet50().eval(), RecurSeedNetwork().eval()
    start_from_imagenet(ours, theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = ours.model(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for level, stage in zip(features[1:4], (theirs.layer1, theirs.layer2, theirs.layer3), strict=True):
            y = stage(y)
            torch.testing.assert_close(level, y)
    assert features.c5.shape == (1, 2048, 4, 4)
    with pytest.raises(ValueError, match="ResNet-50"):
        start_from_imagenet(ours, {"conv1.weight": torch.zeros(3)})


def test_every_parameter_is_in_the_group_of_its_name():
    network = RecurSeedNetwork(width=WIDTH)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network)
    assert sum(map(len, groups)) == len(names)
    assert all("model" in names[id(p)] and "weight" in names[id(p)] for p in groups.backbone_weights)
    assert {names[id(p)] for p in groups.new_biases} >= {"aspp.bn1.bias", "decoder.classifier.5.bias"}
    assert all(names[id(p)].endswith("bias") for p in groups.backbone_biases + groups.new_biases)
    assert "classifier.weight" in {names[id(p)] for p in groups.new_weights}


def test_moving_average_is_the_formula():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = copy.deepcopy(network)
    expected = {key: value.double().clone() for key, value in network.state_dict().items()}
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        network(torch.randn(4, 2))
        update_average(average, network, step, decay=0.9)
        decay = 0.9 * (1 - math.exp(-step / 2000))
        assert average_decay(step, 0.9) == pytest.approx(decay)
        for key, value in network.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value.double()
    for key, value in average.state_dict().items():
        if key == "1.num_batches_tracked":
            assert value == 5 and value.dtype == torch.int64
        else:
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-6, atol=1e-7)
    assert not any(torch.equal(a, b) for a, b in zip(average.parameters(), network.parameters(), strict=True))


# CertainFilter


def test_certain_filter_by_hand():
    # Two classes, 3 and 5; six pixels, the thresholds themselves among them.
    maps = torch.tensor([[[[0.55, 0.54, 0.10, 0.11, 0.60, 0.00]], [[0.20, 0.00, 0.05, 0.00, 0.70, 0.00]]]])
    chosen = Chosen(torch.tensor([[3, 5]]), torch.tensor([[True, True]]))
    assert certain_labels(maps, chosen).flatten().tolist() == [3, 255, 0, 255, 5, 0]
    inside = torch.tensor([[[True, True, True, True, False, False]]])
    assert certain_labels(maps, chosen, inside).flatten().tolist() == [3, 255, 0, 255, 255, 255]
    lost = torch.tensor([True])
    assert certain_labels(maps, chosen, lost=lost).flatten().tolist() == [3, 255, 255, 255, 5, 255]
    only_first = chosen._replace(here=torch.tensor([[True, False]]))
    assert certain_labels(maps, only_first).flatten().tolist() == [3, 255, 0, 255, 3, 0]
    none = chosen._replace(here=torch.tensor([[False, False]]))
    assert (certain_labels(maps, none) == 0).all()


def test_a_class_without_evidence():
    scm = torch.zeros(3, 2, 2, 2)
    scm[0, :, 0, 0] = scm[1, 0, 0, 0] = scm[2, 0, 0, 0] = 1
    chosen = Chosen(torch.tensor([[1, 2]] * 3), torch.tensor([[True, True], [True, True], [True, False]]))
    assert without_evidence(scm, chosen).tolist() == [False, True, False]


def test_label_shares():
    assert label_shares(torch.tensor([[0, 0, 255, 7]])).tolist() == [0.25, 0.25, 0.5]


# CertainMix


@pytest.mark.parametrize("images", [2, 3, 4, 7])
def test_partners_are_a_permutation_without_fixed_points(images):
    drawn = {tuple(draw_partners(images).tolist()) for _ in range(200)}
    assert all(sorted(p) == list(range(images)) and all(a != b for a, b in enumerate(p)) for p in drawn)
    if 2 < images < 5:
        assert len(drawn) == math.factorial(images - 1)


def test_certain_mix_by_hand():
    labels = torch.tensor([[[1, 1, 2, 0, 255, 255]], [[3, 3, 0, 255, 2, 0]], [[0, 255, 255, 0, 0, 255]]])
    present = torch.tensor([[1.0, 1, 1, 0, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 1]])
    x = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 1, 6).contiguous()
    mixed = certain_mix(x, labels, present, torch.tensor([1, 0, 2]))
    # Image 0 loses class 1, whose certain pixels are all covered, keeps 2 and the never seen 4, and gains 3.
    assert mixed.labels.tolist() == [[[3, 3, 2, 0, 2, 255]], [[1, 1, 2, 255, 2, 0]], labels[2].tolist()]
    assert mixed.present.tolist() == [[1, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert mixed.x[:, 0, 0].tolist() == [[1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 1], [2] * 6]
    assert mixed.mixed.tolist() == [True, True, False]
    # From image 2 there is nothing to paste.
    assert certain_mix(x, labels, present, torch.tensor([2, 0, 1])).mixed.tolist() == [False, True, True]


def test_certain_mix_properties():
    labels = torch.randint(0, 5, (6, 8, 9))
    labels[torch.rand(labels.shape) < 0.5] = 255
    present = F.one_hot(labels.flatten(1).clamp(max=5), 6).amax(dim=1)[:, :5].float()
    present[:, 0] = 1
    x, partners = torch.randn(6, 3, 16, 18), draw_partners(6)
    mixed = certain_mix(x, labels, present, partners)
    pasted = enlarged(mixed.pasted, (16, 18))
    for n in range(6):
        other = labels[partners[n]]
        assert torch.equal(mixed.pasted[n], (other > 0) & (other < 255))
        assert torch.equal(mixed.labels[n][~mixed.pasted[n]], labels[n][~mixed.pasted[n]])
        assert torch.equal(mixed.x[n][:, pasted[n]], x[partners[n]][:, pasted[n]])
        assert torch.equal(mixed.x[n][:, ~pasted[n]], x[n][:, ~pasted[n]])
        # All labels here come from `present`, so what is there is what the mixed labels show.
        shown = set(mixed.labels[n].unique().tolist()) - {0, 255}
        assert set(mixed.present[n, 1:].nonzero().flatten().add(1).tolist()) == shown
    assert enlarged(torch.tensor([[[0, 255], [7, 20]]]), (4, 4))[0].tolist() == [
        [0, 0, 255, 255],
        [0, 0, 255, 255],
        [7, 7, 20, 20],
        [7, 7, 20, 20],
    ]


# Losses


def test_losses_with_nothing_to_learn_from_are_zero_without_gradient():
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    cam, scores = torch.randn(2, 4, 2, 2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    present = torch.tensor([[1.0, 0, 0, 0, 0]] * 2)
    losses = (
        segmentation_loss(logits, torch.full((2, 8, 8), 255)),
        cam_loss(cam, torch.zeros_like(cam), present, torch.ones(2, 2, 2).bool()),
        cam_loss(cam, torch.zeros_like(cam), torch.ones(2, 5), torch.zeros(2, 2, 2).bool()),
        classification_loss(scores, present, torch.zeros(2).bool()),
    )
    assert [loss.item() for loss in losses] == [0, 0, 0, 0]
    sum(losses).backward()
    assert all((tensor.grad == 0).all() for tensor in (logits, cam, scores))


def test_segmentation_loss_is_the_mean_over_certain_pixels():
    logits, labels = torch.randn(2, 5, 3, 3), torch.randint(0, 5, (2, 6, 6))
    labels[0, :4] = 255
    large = F.interpolate(logits, (6, 6), mode="bilinear").log_softmax(dim=1)
    values = [
        -large[n, labels[n, y, x], y, x] for n in range(2) for y in range(6) for x in range(6) if labels[n, y, x] < 255
    ]
    assert segmentation_loss(logits, labels).item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)


def test_cam_loss_by_hand():
    # Classes 1 and 2; the image has 2. The last cell is padding, with the largest logit.
    logits = torch.tensor([[[[5.0, 5.0, 5.0, 5.0]], [[4.0, 2.0, -1.0, 8.0]]]], requires_grad=True)
    target = torch.tensor([[[[0.0, 0.0, 0.0, 0.0]], [[0.5, 0.25, 0.25, 0.0]]]])
    cells = torch.tensor([[[True, True, True, False]]])
    loss = cam_loss(logits, target, torch.tensor([[1.0, 0, 1]]), cells)
    assert loss.item() == pytest.approx((0.5 + 0.25 + 0.25) / 3, rel=1e-5)
    loss.backward()
    # CAM = (1, 2/4, 0): the second cell has to shrink in relation to the first, and the class as a whole does not.
    assert logits.grad[0, 1, 0].tolist() == pytest.approx([-2 / 16 / 3, 1 / 4 / 3, 0, 0], rel=1e-4, abs=1e-5)
    assert (logits.grad[0, 0] == 0).all()
    assert (logits.grad * logits).sum().item() == pytest.approx(0, abs=1e-5)


def test_classification_loss_leaves_images_out():
    scores, present = torch.randn(3, 4), torch.tensor([[1.0, 0, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 1]])
    expected = F.binary_cross_entropy_with_logits(scores[[0, 2]], present[[0, 2], 1:])
    loss = classification_loss(scores, present, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# A step


def a_step(images=3, **settings):
    step = RecurSeedStep(RecurSeedNetwork(classes=6, width=WIDTH), SeedSettings(**settings)).train()
    x = F.avg_pool2d(torch.randn(images, 3, 64, 80), 9, 1, 4) * 3
    inside = torch.ones(images, 64, 80, dtype=torch.bool)
    inside[0, :, 60:] = False
    x = x * inside[:, None]
    present = torch.tensor([[1.0, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0]])[:images]
    return step, x, present, inside


def gradients(step, losses):
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in step.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in step.parameters())


@pytest.mark.parametrize("eval_mode", [False, True])
def test_a_whole_step(eval_mode):
    # A softmax over two or three labels is soon this sure.
    step, x, present, inside = a_step(certain=0.4, eval_mode=eval_mode)
    result = step(x, present, inside, True, True)
    gradients(step, result.losses)
    assert result.mixed.mixed.any() and step.network.training
    assert all(loss > 0 for loss in result.losses)
    for labels in (result.seeds.labels, result.seeds.mix_labels):
        assert labels.shape == (3, 32, 40) and (labels[0, :, 30:] == 255).all()
        for n in range(3):
            assert set(labels[n].unique().tolist()) <= {255, *present[n].nonzero().flatten().tolist()}
    assert not any(tensor.requires_grad for tensor in result.seeds[1:])


def test_before_the_seeds_start_only_the_classifier_learns():
    step, x, present, inside = a_step()
    result = step(x, present, inside, False, False)
    gradients(step, result.losses)
    assert result.seeds is None and result.mixed is None
    assert result.losses.cls > 0 and not any(result.losses[1:])
    assert (step.network.decoder.classifier[8].weight.grad == 0).all()
    assert (step.network.classifier.weight.grad != 0).any()
    result = step(x, present, inside, True, False)
    assert result.seeds is not None and result.mixed is None and not any(result.losses[3:])


def test_a_batch_of_one_is_not_mixed():
    step, x, present, inside = a_step(images=1, certain=0.4)
    result = step(x, present, inside, True, True)
    gradients(step, result.losses)
    assert not result.mixed.mixed.any() and torch.equal(result.mixed.x, x)
    assert not any(result.losses[3:]) and result.losses.seg > 0


def test_no_cam_anywhere():
    step, x, present, inside = a_step()
    with torch.no_grad():
        step.network.classifier.weight.zero_()
    result = step(x, present, inside, True, True)
    gradients(step, result.losses)
    assert (result.seeds.maps == 0).all() and (result.seeds.labels == 255).all()
    assert result.losses.seg == 0 and result.losses.cam == 0


def test_images_without_any_class():
    step, x, present, inside = a_step()
    present = present * torch.tensor([[1.0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    result = step(x, present, inside, True, True)
    gradients(step, result.losses)
    assert (result.seeds.labels[2] == 0).all() and (result.seeds.mix_labels[2] == 0).all()
    assert set(result.seeds.labels[0].unique().tolist()) == {0, 255}
    nobody = step(x, torch.eye(1, 6).expand(3, 6), inside, True, True)
    gradients(step, nobody.losses)
    assert not nobody.mixed.mixed.any() and chosen_classes(torch.eye(1, 6)).classes.shape == (1, 1)


def test_the_target_of_mixed_images_is_the_mixture_of_the_maps():
    step, x, present, inside = a_step(certain=0.4)
    step.network.eval()
    with torch.no_grad():
        seeds = step.seeds(step.network(x), x, present, inside)
        torch.manual_seed(3)
        partners = draw_partners(3)
        torch.manual_seed(3)
        mixed, losses = step.mix(x, seeds, present, inside)
        output = step.network(mixed.x)
    full = torch.zeros(3, 5, 32, 40)
    for n in range(3):
        for source, where in ((n, ~mixed.pasted[n]), (int(partners[n]), mixed.pasted[n])):
            for k in range(seeds.chosen.classes.shape[1]):
                if seeds.chosen.here[source, k]:
                    full[n, seeds.chosen.classes[source, k] - 1] += seeds.maps[source, k] * where
    cells = F.avg_pool2d((inside | enlarged(mixed.pasted, (64, 80))).float(), 16) >= 0.5
    taking_part = mixed.present * mixed.mixed[:, None]
    assert mixed.mixed.any() and not mixed.pasted.all()
    expected = cam_loss(output.cam, F.avg_pool2d(full, 8), taking_part, cells)
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-5)


# Inference


def test_maps_for_the_crf_by_hand():
    probabilities = torch.tensor([[[[0.2, 0.7]], [[0.8, 0.2]], [[0.0, 0.1]]]])
    prediction = Prediction(probabilities, torch.tensor([[0.34, 0.33]]))
    maps, chosen = class_maps(prediction)
    assert chosen.tolist() == [[1, 1, 0]]
    first = [0.8 / 0.80001, 0.2 / 0.80001]
    assert maps[0, :, 0].flatten().tolist() == pytest.approx([(1 - p) ** 2 for p in first] + first + [0, 0], abs=1e-7)
    maps, chosen = class_maps(prediction, torch.tensor([[1.0, 0, 1]]))
    assert chosen.tolist() == [[1, 0, 1]] and maps[0, 2, 0].tolist() == pytest.approx([0, 0.1 / 0.10001])
    maps, chosen = class_maps(prediction, score=0.5)
    assert chosen.tolist() == [[1, 0, 0]] and maps[0].argmax(dim=0).tolist() == [[0, 0]] and (maps[0, 0] == 1).all()


def test_mirrors_are_turned_back():
    seg = torch.zeros(2, 2, 1, 2)
    seg[0, 1] = torch.tensor([[9.0, -9]])
    seg[1, 1] = torch.tensor([[-9.0, 9]])
    assert image_probabilities(seg, (4, 8), (4, 8))[0, 1].round().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 4


def test_prediction_of_an_odd_size():
    network = RecurSeedNetwork(classes=4, width=WIDTH).eval()
    prediction = multiscale_prediction(network, torch.randn(2, 3, 33, 49), (1.0, 0.5))
    assert prediction.probabilities.shape == (2, 4, 33, 49) and prediction.scores.shape == (2, 3)
    torch.testing.assert_close(prediction.probabilities.sum(dim=1), torch.ones(2, 33, 49))


def test_the_crfs_image_is_within_one_of_the_photograph():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    back = crf_images(normalise(pixels), MEAN, STD)
    difference = pixels.movedim(1, -1).int() - back.int()
    assert back.dtype == torch.uint8 and difference.min() >= 0 and difference.max() <= 1
