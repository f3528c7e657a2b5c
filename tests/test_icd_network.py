"""VGG16 and ICD's network, its training step alone and on two processes, its optimiser."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.batchnorm import GlobalBatchNorm
from models.icd.network import IcdNetwork
from models.icd.optimiser import Momentum
from models.icd.step import IcdStep
from models.vgg16 import Vgg16, for_plain_input, from_mxnet_names, from_torchvision, subtract_mean, torchvision_numbers

CLASSES = 3


def small(seed=0, **options):
    torch.manual_seed(seed)
    return IcdNetwork(CLASSES, width=0.125, **options)


def batch(images=4, size=33):
    generator = torch.Generator().manual_seed(7)
    x = subtract_mean(torch.randint(0, 256, (images, 3, size, size), generator=generator))
    present = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    superpixels = torch.randint(0, 65, (images, size, size), generator=generator)
    return x, present, superpixels


def without_dropout(monkeypatch):
    monkeypatch.setattr(F, "dropout", lambda x, *_: x)


@pytest.mark.parametrize(("side", "cells"), [(321, 41), (513, 65)])
def test_the_maps_have_the_published_sizes(side, cells):
    with torch.device("meta"):
        features = Vgg16()(torch.empty(1, 3, side, side))
    assert features.conv5_3.shape == features.pooled.shape == (1, 512, cells, cells)


def test_shapes_and_names_are_the_published_ones():
    with torch.device("meta"):
        state = {key: tuple(tensor.shape) for key, tensor in IcdNetwork().state_dict().items()}
    sizes = {"fc6": (1024, 512, 3, 3), "fc7": (1024, 1024, 1, 1), "fc8": (20, 1024, 1, 1), "conv1_1": (64, 3, 3, 3)}
    sizes |= {"fc6_ft": sizes["fc6"], "fc7_ft": sizes["fc7"], "conv_ft": (20, 2560, 1, 1), "conv5_3": (512, 512, 3, 3)}
    for layer, size in sizes.items():
        assert state[f"{layer}.weight"] == size
    assert "conv_ft.bias" not in state and state["fc8.bias"] == (20,)
    names = {
        "arg:conv1_1_weight": "conv1_1.weight",
        "arg:fc7_bias": "fc7.bias",
        "arg:fc6_ft_weight": "fc6_ft.weight",
        "arg:conv_ft_weight": "conv_ft.weight",
        "arg:feat_bn_gamma": "feat_bn.weight",
        "arg:feat_bn_beta": "feat_bn.bias",
        "aux:feat_bn_moving_mean": "feat_bn.running_mean",
        "aux:feat_bn_moving_var": "feat_bn.running_var",
        "arg:icd_bu_weight": "icd_bu_weight",
        "aux:icd_accum_resign_moving_mean": "icd_accum_resign_moving_mean",
    }
    assert from_mxnet_names({name: torch.zeros(1) for name in names}).keys() == set(names.values())
    assert set(names.values()) <= state.keys()
    assert state["icd_bu_weight"] == (20, 512) and state["icd_accum_resign_moving_mean"] == (20, 2)


def test_the_backbone_is_torchvisions_vgg16_with_other_pools_and_another_input():
    import torchvision  # here alone: the processes of another test need not wait for it

    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None).features
    state = {f"features.{key}": value for key, value in theirs.state_dict().items()}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network = Vgg16()
    network.load_state_dict(for_plain_input(from_torchvision(state), mean, std))
    image = torch.randint(0, 256, (1, 3, 41, 49)).float()
    ours = network(subtract_mean(image))
    x = (image / 255 - mean[:, None, None]) / std[:, None, None]
    # What surrounds the image there is the colour 127 here.
    border = ((127 / 255 - mean) / std)[:, None, None]
    outside = F.pad(torch.ones_like(x[:, :1]), (1, 1, 1, 1)) == 0
    first = theirs[0]
    x = F.conv2d(torch.where(outside, border, F.pad(x, (1, 1, 1, 1))), first.weight, first.bias)
    pools = iter([2, 2, 2, 1])
    for number, layer in list(enumerate(theirs))[1:30]:
        if isinstance(layer, nn.MaxPool2d):
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, next(pools))
        elif number >= 24 and isinstance(layer, nn.Conv2d):
            x = F.conv2d(x, layer.weight, layer.bias, padding=2, dilation=2)
        else:
            x = layer(x)
    assert torch.allclose(ours.conv5_3, x, rtol=0, atol=1e-4 * x.abs().max().item())
    padded = F.pad(F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1), (1, 1, 1, 1))
    height, width = x.shape[-2:]
    average = sum(padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
    assert torch.allclose(ours.pooled, average, rtol=0, atol=1e-4 * x.abs().max().item())
    assert torchvision_numbers() == [n for n, layer in enumerate(theirs) if isinstance(layer, nn.Conv2d)]


def test_a_new_network_starts_as_published():
    network = small()
    for name, parameter in network.named_parameters():
        if name == "feat_bn.weight":
            assert (parameter == 1).all() and not parameter.requires_grad
        elif parameter.ndim == 1:
            assert not parameter.any()
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.01, rel=0.15), name
    assert not network.icd_accum_resign_moving_mean.any()
    assert torch.equal(network.fc6.weight, network.fc6_ft.weight) and network.fc6.weight is not network.fc6_ft.weight


def test_the_fine_tuned_layers_are_copies_only_once():
    network = small()
    network.fc7.bias.data += 1
    network.start_fine_tuned_layers()
    assert torch.equal(network.fc7.bias, network.fc7_ft.bias) and network.fc7.bias.all()
    network.fc7.bias.data += 1
    assert not torch.equal(network.fc7.bias, network.fc7_ft.bias)


def test_output_is_the_published_graph(monkeypatch):
    network = small(batchnorm=True).train()
    network.feat_bn.bias.data += 0.3
    x = batch()[0]
    torch.manual_seed(1)
    output = network(x)
    torch.manual_seed(1)
    conv5_3, pooled = network.features(x)
    cam = network.fc8(F.dropout(F.relu(network.fc7(F.dropout(F.relu(network.fc6(pooled)), 0.5))), 0.5))
    assert torch.allclose(output.cam, cam, atol=1e-6)
    normal = (conv5_3 - conv5_3.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
        conv5_3.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ) + 0.3
    assert torch.allclose(output.features, normal, atol=1e-4)
    a = F.relu(F.conv2d(normal, network.fc6_ft.weight, network.fc6_ft.bias, padding=1))
    b = F.relu(network.fc7_ft(a))
    t = F.conv2d(torch.cat([normal, a, b], dim=1), network.conv_ft.weight)
    assert torch.allclose(output.t, t, atol=1e-4)


def test_each_loss_reaches_what_it_should():
    step = IcdStep(small(batchnorm=True))
    result = step(*batch(), warm_up=1.0)
    reached = {}
    for name in ("loss_cam", "loss_bottom_up", "loss_top_down"):
        step.zero_grad()
        getattr(result, name).backward(retain_graph=True)
        reached[name] = {n for n, p in step.network.named_parameters() if p.grad is not None and p.grad.any()}
    backbone = {
        n for n, _ in step.network.named_parameters() if n.startswith(("conv1", "conv2", "conv3", "conv4", "conv5"))
    }
    backbone = {n for n in backbone if n.endswith("weight")}
    assert reached["loss_bottom_up"] == {"icd_bu_weight"}
    assert backbone <= reached["loss_cam"] & reached["loss_top_down"]
    cam_branch, icd_branch = (
        {"fc6.weight", "fc7.weight", "fc8.weight", "fc8.bias"},
        {"fc6_ft.weight", "conv_ft.weight", "feat_bn.bias"},
    )
    assert cam_branch <= reached["loss_cam"] and not cam_branch & reached["loss_top_down"]
    assert icd_branch <= reached["loss_top_down"] and not icd_branch & reached["loss_cam"]
    assert "icd_bu_weight" not in reached["loss_cam"] | reached["loss_top_down"]


def test_warm_up_scales_the_top_down_loss_alone(monkeypatch):
    without_dropout(monkeypatch)
    step = IcdStep(small(batchnorm=True)).eval()
    whole, tenth = (step(*batch(), warm_up=factor) for factor in (1.0, 0.1))
    assert tenth.loss_top_down.item() == pytest.approx(0.1 * whole.loss_top_down.item())
    assert tenth.loss_cam == whole.loss_cam and tenth.loss_bottom_up == whole.loss_bottom_up


def test_sign_statistics_move_in_training_only():
    step = IcdStep(small(batchnorm=True))
    statistics = step.network.icd_accum_resign_moving_mean
    step.network.fc8.bias.data += 1
    step.eval()(*batch(), warm_up=1.0)
    assert not statistics.any()
    step.train()(*batch(), warm_up=1.0)
    assert statistics[:2].all() and not statistics[2].any()


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    F.dropout = lambda x, *_: x
    step = nn.parallel.DistributedDataParallel(IcdStep(small(batchnorm=True)))
    state = train(step, [tensor[2 * rank : 2 * rank + 2] for tensor in batch()])
    torch.save(state, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def train(step, inputs):
    """Gradients and state after a step that moves statistics and one that uses them."""
    optimiser = Momentum(step.parameters(), lr=1e-3)
    for _ in range(2):
        step.zero_grad()
        step(*inputs, warm_up=1.0).loss.backward()
        gradients = {
            f"gradient of {n}".replace("module.", ""): p.grad.clone()
            for n, p in step.named_parameters()
            if p.requires_grad
        }
        optimiser.step()
    return gradients | {n.replace("module.", ""): t.detach().clone() for n, t in step.state_dict().items()}


def test_two_processes_compute_what_one_does_with_the_whole_batch(monkeypatch, tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    without_dropout(monkeypatch)
    alone = train(IcdStep(small(batchnorm=True)), batch())
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert shared.keys() == alone.keys()
        for key, value in alone.items():
            limit = 1e-3 * float(value.abs().max()) + 1e-6
            assert torch.allclose(value.float(), shared[key].float(), rtol=0, atol=limit), key


def test_global_batchnorm_on_one_process_is_pytorchs():
    x = torch.randn(3, 5, 4, 4)
    ours, theirs = GlobalBatchNorm(5), nn.BatchNorm2d(5)
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))
    assert torch.equal(ours.running_var, theirs.running_var)


def test_momentum_has_the_rate_inside():
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    optimiser = Momentum([{"params": [w], "lr": 0.1, "weight_decay": 0.5}], lr=9.0)
    value, velocity = w.detach().clone(), torch.zeros(2)
    for rate, gradient in ((0.1, [1.0, 2.0]), (0.1, [0.5, 0.5]), (0.001, [3.0, 0.0]), (0.001, [0.0, 0.0])):
        optimiser.param_groups[0]["lr"] = rate
        w.grad = torch.tensor(gradient)
        optimiser.step()
        velocity = 0.9 * velocity - rate * (torch.tensor(gradient) + 0.5 * value)
        value = value + velocity
        assert torch.allclose(w.detach(), value, atol=1e-6)


def test_at_a_constant_rate_momentum_is_pytorchs_and_its_state_survives_saving():
    ours, theirs = (torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    optimiser = Momentum([ours], lr=0.1, weight_decay=0.01)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(6):
        for w, one in ((ours, optimiser), (theirs, reference)):
            w.grad = w.detach() * math.sin(step)
            one.step()
        if step == 2:
            saved = optimiser.state_dict()
            optimiser = Momentum([ours], lr=0.1, weight_decay=0.01)
            optimiser.load_state_dict(saved)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_parameter_groups():
    network = small()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (group["rate"], group["lr"], group["weight_decay"])
        for group in network.parameter_groups(1e-3, 5e-4)
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values()) - {"feat_bn.weight"}
    expected = {"fc8.weight": (10, 1e-2, 5e-4), "fc8.bias": (10, 1e-2, 0), "conv_ft.weight": (10, 1e-2, 5e-4)}
    for name, group in found.items():
        usual = (1, 1e-3, 0 if name.endswith("bias") else 5e-4)
        assert group == pytest.approx(expected.get(name, usual)), name
