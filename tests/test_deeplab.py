"""The final networks: against the library's own and torchvision's, and as whole modes 4 and 3."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch
import torch
from torch.nn import functional as F
from torchvision.models import resnet101

import main_ssdd
from datasets.voc import read_ids, read_image, read_mask
from engine import checkpoint, runs, stages
from models.deeplab import RATES_V2, DeepLabV2, DeepLabV3Plus, ResNet101
from models.inference import multiscale_probabilities, resize
from settings.config import Config, with_network
from settings.flags import flags_of, parse
from tests.conftest import as_flags
from tests.test_bad_input import refused
from tools.predict import Predictor

DEEPLABS = ("deeplabv2", "deeplabv3plus")


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """With weights and statistics that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.05 * torch.randn(value.shape, generator=generator) + (1.0 if "var" in name else 0.0))
    return network.eval()


def test_deeplabv3plus_computes_what_the_library_computes():
    theirs = segmentation_models_pytorch.DeepLabV3Plus(
        "resnet101", encoder_weights=None, decoder_atrous_rates=(6, 12, 18), classes=21, upsampling=1
    )
    randomised(theirs)
    ours = DeepLabV3Plus().eval()
    state = {key.replace("segmentation_head.0", "head"): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.main_logits(x), theirs(x))


@pytest.mark.parametrize(("stride", "dilated"), [(8, {2: 2, 3: 4}), (16, {3: 2})])
def test_the_backbone_is_torchvisions_with_dilated_last_stages(stride, dilated):
    theirs = resnet101(weights=None)
    for number, dilation in dilated.items():
        for layer in getattr(theirs, f"layer{number + 1}").modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.stride = (1, 1)
                if layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (dilation, dilation)
    randomised(theirs)
    ours = ResNet101(stride).eval()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    x = torch.randn(1, 3, 49, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        early = theirs.layer1(expected)
        last = theirs.layer4(theirs.layer3(theirs.layer2(early)))
        for one, other in zip(ours(x), (early, last), strict=True):
            torch.testing.assert_close(one, other)
    assert last.shape[-2:] == (-(-49 // stride), -(-64 // stride))


def test_deeplabv2_sums_four_dilated_convolutions():
    network = randomised(DeepLabV2(5, 0.0625))
    x = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.encoder(x)[1]
        expected = 0
        for rate, layer in zip((6, 12, 18, 24), network.aspp, strict=True):
            expected = expected + F.conv2d(features, layer.weight, layer.bias, padding=rate, dilation=rate)
        torch.testing.assert_close(network.main_logits(x), expected)
        assert network(x).shape == (2, 5, 10, 14) and RATES_V2 == (6, 12, 18, 24)


@pytest.mark.parametrize("network", [DeepLabV2, DeepLabV3Plus])
def test_multiscale_maps_lie_on_the_image(network):
    """Logits that follow the brightness: the bright half of an image must be where it is, also at odd sizes."""

    class Bright(network):
        def main_logits(self, x):
            full = super().main_logits(x)
            bright = F.adaptive_avg_pool2d(x[:, :1], full.shape[-2:])
            return torch.cat([-9 * bright, 9 * bright], dim=1)

    x = torch.zeros(1, 3, 128, 136)
    x[..., 64:] = 1
    x[..., :64] = -1
    found = multiscale_probabilities(Bright(2, 0.0625).eval(), x, (0.5, 1.0, 1.3)).argmax(1)[0]
    wrong = (found[:, :60] != 0).float().mean() + (found[:, 76:] != 1).float().mean()
    assert found.shape == (128, 136) and wrong == 0 and resize(x, (4, 4)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("network", DEEPLABS)
def test_a_network_sets_the_published_values_and_flags_win(network):
    config = parse([f"--network={network}", "--lr=0.5"], "", "ssdd")
    assert config == replace(with_network(Config(), network), lr=0.5)
    assert (config.crop, config.momentum, config.crf_sxy) == (320 if network == "deeplabv2" else 512, 0.9, 67)
    assert parse(flags_of(config), "", "ssdd") == config
    assert f"--network={network}" in flags_of(config) and not any("crop" in flag for flag in flags_of(config))
    demo = parse([f"--network={network}", "--preset=demo"], "", "ssdd")
    assert demo.crop == 128 and demo.width == 0.125


def final(own_run, network, **changes) -> Config:
    return replace(own_run, network=network, seed_source="psa", static_epochs=1, lr=1e-3, **changes)


@pytest.fixture
def imagenet(tmp_path):
    """A state dict of torchvision's names, of the tests' width."""
    torch.manual_seed(0)
    state = ResNet101(8, 0.0625).state_dict()
    for name, value in state.items():
        if name.endswith("bn3.weight"):  # frozen statistics that fit nothing would let 33 blocks explode
            value.fill_(0.1)
    state |= {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    path = tmp_path / "resnet101.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("network", DEEPLABS)
def test_modes_4_and_3_and_predict(network, own_run, imagenet):
    config = final(own_run, network, weights=str(imagenet))
    main_ssdd.main(["--mode=4", *as_flags(config)])
    run = Path(config.out) / "logs" / f"fixed_psa_{network}_ssdd"
    weights = run / "models" / "seg_0001.pth"
    stored, _ = checkpoint.load_description(weights)
    assert stored.network == network and stored.seed_source == "psa"
    state, start = checkpoint.load_state(weights), checkpoint.load_state(imagenet)
    moved = [key for key in start if key in state and not torch.equal(start[key], state[f"encoder.{key}"])]
    assert moved or all(f"encoder.{key}" in state for key in start if not key.startswith("fc."))
    frozen = torch.equal(state["encoder.bn1.running_mean"], start["bn1.running_mean"])
    assert frozen == (network == "deeplabv2")
    config = replace(config, weights="")
    main_ssdd.main(["--mode=3", *as_flags(config)])
    masks = Path(config.out) / "validation" / f"fixed_psa_{network}_ssdd"
    assert json.loads((masks / "result_val.json").read_text())["mask"]["images"] == 3
    image_id = read_ids(config.voc_root, "val")[0]
    plain = Predictor(weights, "cpu", config.eval_scales, crf=False)
    plain.config = replace(plain.config, precision="float32")
    own = plain.mask(read_image(config.voc_root, image_id))
    assert np.mean(own == read_mask(masks / "mask" / f"{image_id}.png")) > 0.999
    refined = Predictor(weights, "cpu", config.eval_scales).mask(read_image(config.voc_root, image_id))
    assert np.mean(refined == read_mask(masks / "crf" / f"{image_id}.png")) > 0.999


def test_from_scratch_it_learns_batchnorm_and_goes_its_own_way(own_run, capsys):
    config = final(own_run, "deeplabv2")
    main_ssdd.main(["--mode=4", *as_flags(config)])
    assert "learning from scratch" in capsys.readouterr().out
    state = checkpoint.load_state(stages.checkpoint_path(stages.folder(config, "mode 4"), "seg", 1))
    assert state["encoder.bn1.running_mean"].abs().sum() > 0
    resnet = replace(config, network="resnet38")
    assert stages.folder(resnet, "mode 4") != stages.folder(config, "mode 4")
    assert runs.last_checkpoint(config, "mode 4", "seg").exists()


def test_files_and_flags_that_do_not_fit_are_one_line(own_run, imagenet, tmp_path, capsys):
    def said(config, *more, mode="4"):
        return refused(lambda f: main_ssdd.main([f"--mode={mode}", *f, *more]), as_flags(config), own_run.out, capsys)

    config = final(own_run, "deeplabv3plus", weights=str(imagenet))
    wide = tmp_path / "wide.pth"
    torch.save(ResNet101(16, 0.125).state_dict(), wide)
    assert "not the weights of this ResNet-101" in said(replace(config, weights=str(wide)))
    state = checkpoint.load(imagenet)
    state["conv1.weight"][0] = torch.nan
    torch.save(state, wide)
    assert "not finite" in said(replace(config, weights=str(wide)))
    assert "no such file" in said(replace(config, weights=str(tmp_path / "none.pth")))
    assert "--bn=1" in said(replace(config, bn=1))
    assert "--network" in said(replace(config, seed_source=""), mode="0")
    assert "--network=deeplabv9" in said(config, "--network=deeplabv9")
    assert "--mode=4 --seed_source=psa --preset=demo" in said(replace(config, weights=""), mode="3")
    assert not (Path(own_run.out) / "logs" / "fixed_psa_deeplabv3plus_ssdd").exists()
