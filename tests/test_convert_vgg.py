"""VGG16's published files, made up here in full size: what tools.convert_weights makes of them, and how ICD starts."""

import pytest
import torch

from datasets.transforms import normalise
from models.icd.network import IcdNetwork
from models.vgg16 import subtract_mean, torchvision_numbers
from prepare_labels.train_icd import start_from
from tests.test_convert_weights import array, params
from tools.convert_weights import icd_shapes, main


@pytest.fixture(scope="module")
def layers():
    """The arrays of vgg16_20M under our keys: the convolutions, fc6 and fc7."""
    generator = torch.Generator().manual_seed(5)
    shapes = {key: shape for key, shape in icd_shapes().items() if key.startswith(("conv1", "conv2", "conv3", "conv4"))}
    shapes |= {k: s for k, s in icd_shapes().items() if k.startswith("conv5") or k.split(".")[0] in ("fc6", "fc7")}
    assert len(shapes) == 2 * (13 + 2)
    return {key: 0.01 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def converted(source, tmp_path, capsys):
    main([str(source), str(tmp_path / "out.pth")])
    return torch.load(tmp_path / "out.pth", weights_only=True), capsys.readouterr().out


def as_params(layers):
    names = {key: f"arg:{key.replace('.', '_')}" for key in layers}
    arrays = [array(tensor.numpy()) for tensor in layers.values()]
    classifier = [array(torch.zeros(1000, 1024, 1, 1).numpy()), array(torch.zeros(1000).numpy())]
    return params(arrays + classifier, [n.encode() for n in [*names.values(), "arg:fc8_weight", "arg:fc8_bias"]])


def torchvision_names(layers):
    """The convolutions as torchvision numbers them."""
    keys = sorted({key.split(".")[0] for key in layers if key.startswith("conv")})
    pairs = zip(keys, torchvision_numbers(), strict=True)
    return {f"features.{n}.{field}": layers[f"{key}.{field}"] for key, n in pairs for field in ("weight", "bias")}


def test_params_start_the_network(layers, tmp_path, capsys):
    (tmp_path / "vgg16_20M.params").write_bytes(as_params(layers))
    state, said = converted(tmp_path / "vgg16_20M.params", tmp_path, capsys)
    assert state.keys() == layers.keys() and all(torch.equal(state[key], layers[key]) for key in layers)
    assert "vgg16_20M: VGG16 with fc6 and fc7" in said and "dropped  2 tensors: fc8" in said
    torch.manual_seed(0)
    network = IcdNetwork()
    about = start_from(network, tmp_path / "out.pth")
    own = network.state_dict()
    assert all(torch.equal(own[key], layers[key]) for key in layers)
    for name in ("fc6", "fc7"):
        for field in ("weight", "bias"):
            assert torch.equal(own[f"{name}_ft.{field}"], layers[f"{name}.{field}"])
    assert about.split("drawn are ")[1].split(";")[0] == "icd_bu_weight, fc8, feat_bn, conv_ft"


@pytest.mark.parametrize("names", ["ours", "MXNet's", "torchvision's and fc6"])
def test_pth_copies_give_the_same(names, layers, tmp_path, capsys):
    copy = layers
    if names == "MXNet's":
        copy = {f"arg:{key.replace('.', '_')}": tensor for key, tensor in layers.items()}
    if names == "torchvision's and fc6":
        copy = torchvision_names(layers) | {key: layers[key] for key in layers if key.startswith("fc")}
    torch.save(copy, tmp_path / "copy.pth")
    state, said = converted(tmp_path / "copy.pth", tmp_path, capsys)
    assert state.keys() == layers.keys() and all(torch.equal(state[key], layers[key]) for key in layers)
    assert "vgg16_20M" in said


def test_torchvisions_gives_the_convolutions_for_another_input(layers, tmp_path, capsys):
    theirs = torchvision_names(layers) | {"classifier.0.weight": torch.zeros(4, 7)}
    torch.save(theirs, tmp_path / "vgg16.pth")
    state, said = converted(tmp_path / "vgg16.pth", tmp_path, capsys)
    assert state.keys() == {key for key in layers if key.startswith("conv")}
    assert "VGG16's convolutions alone" in said
    assert all(torch.equal(state[key], layers[key]) for key in state if not key.startswith("conv1_1"))
    image = torch.randint(0, 256, (1, 3, 9, 9), dtype=torch.uint8)
    expected = torch.nn.functional.conv2d(normalise(image), layers["conv1_1.weight"], layers["conv1_1.bias"])
    made = torch.nn.functional.conv2d(subtract_mean(image), state["conv1_1.weight"], state["conv1_1.bias"])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    network = IcdNetwork()
    assert "fc6" in start_from(network, tmp_path / "out.pth").split("drawn are ")[1]
    torch.testing.assert_close(network.conv1_1.weight, state["conv1_1.weight"])


def test_another_network_is_refused(layers, tmp_path, capsys):
    wrong = layers | {"fc6.weight": torch.zeros(4096, 512, 7, 7)[:8]}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "wrong.pth"), str(tmp_path / "out.pth")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "fc6.weight" in error and error.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()
