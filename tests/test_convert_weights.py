"""Published weights: MXNet's containers against arrays that MXNet wrote, and against files made here byte by byte."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from engine.checkpoint import load_into, load_state
from models.psa.classifier import Classifier
from models.ssdd.segmentation import SegmentationNetwork
from tools.convert_weights import main, read_mxnet

GOLDEN = Path(__file__).parent / "golden"
# The golden arrays that are kept, under our names, as section "ImageNet start" of the method has them.
KEYS = {
    "arg:conv1a_weight": "conv1a.weight",
    "arg:res2a_branch2a_weight": "b2.conv_branch2a.weight",
    "arg:res2b1_branch2b1_weight": "b2_1.conv_branch2b1.weight",
    "arg:res4b5_branch2a_weight": "b4_5.conv_branch2a.weight",
    "arg:bn2a_branch2a_gamma": "b2.bn_branch2a.weight",
    "arg:bn2a_branch2a_beta": "b2.bn_branch2a.bias",
    "aux:bn2a_branch2a_moving_mean": "b2.bn_branch2a.running_mean",
    "aux:bn2a_branch2a_moving_var": "b2.bn_branch2a.running_var",
    "arg:bn7_gamma": "bn7.weight",
    "aux:bn7_moving_var": "bn7.running_var",
}
V1, V2 = 0xF993FAC8, 0xF993FAC9


def array(values, flag=0, head=b"", side="I", shape=None, dtype="<f4"):
    """One array; `head` stands before ndim."""
    values = np.asarray(values, dtype)
    shape = shape or values.shape
    header = struct.pack(f"<I{len(shape)}{side}3i", len(shape), *shape, 1, 0, flag)
    return head + header + values.tobytes()


def params(arrays, names, count=None, name_count=None):
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays) if count is None else count), *arrays]
    parts.append(struct.pack("<Q", len(names) if name_count is None else name_count))
    parts += [struct.pack("<Q", len(name)) + name for name in names]
    return b"".join(parts)


@pytest.mark.parametrize("container", ["legacy", "v2"])
def test_golden_files(container, tmp_path, capsys):
    out = tmp_path / "new" / "out.pth"
    main([str(GOLDEN / f"mxnet_{container}.params"), str(out)])
    state = torch.load(out, weights_only=True)
    golden = np.load(GOLDEN / "mxnet_expected.npz")
    assert set(state) == set(KEYS.values())
    for name, key in KEYS.items():
        assert state[key].dtype == torch.float32
        assert np.array_equal(state[key].numpy(), golden[name]), name
    said = capsys.readouterr().out
    assert "found    10 tensors: b2 (5), bn7 (2)" in said
    assert "dropped  2 tensors: linear1000_weight, linear1000_bias" in said
    # Every layer that is missing is named: all 19 of the network but conv1a, the only one that is whole.
    missed = next(line for line in said.splitlines() if line.startswith("missed"))
    blocks = [
        f"b{n}{k}" for n, last in ((2, 2), (3, 2), (4, 5), (5, 2)) for k in ("", *(f"_{i + 1}" for i in range(last)))
    ]
    assert missed.count("(") == 18 and all(f" {block} (" in missed for block in [*blocks, "b6", "b7", "bn7"])
    assert "not a whole ResNet-38" in said


@pytest.mark.parametrize(("dtype", "flag"), [("<f4", 0), ("<f8", 1), ("<f2", 2)])
@pytest.mark.parametrize(
    ("head", "side"),
    [(b"", "I"), (struct.pack("<I", V1), "q"), (struct.pack("<Ii", V2, 0), "q")],
    ids=["old", "v1", "v2"],
)
def test_containers_and_number_types(head, side, dtype, flag, tmp_path):
    values = [[1.5, -2.0, 0.25], [4.0, 0.0, -8.0]]
    path = tmp_path / "a.params"
    path.write_bytes(params([array(values, flag, head, side, dtype=dtype)] * 2, [b"arg:a", b"aux:b"]))
    arrays = read_mxnet(path)
    assert list(arrays) == ["a", "b"]
    assert arrays["b"].dtype == np.float32
    assert arrays["b"].tolist() == values


def mxnet_file_of(network):
    """A whole ResNet-38 as MXNet's old container, named as the published file names its layers."""
    fields = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    arrays, names = [array([1.0])], [b"arg:linear1000_bias"]
    for key, tensor in network.state_dict().items():
        block = re.fullmatch(r"b(\d)(?:_(\d))?\.(bn|conv)_(branch\w+)\.(\w+)", key)
        if block:
            stage, repeat, kind, branch, field = block.groups()
            kind, field = ("bn", fields.get(field)) if kind == "bn" else ("res", field)
            name = f"{kind}{stage}{f'b{repeat}' if repeat else 'a'}_{branch}_{field}"
        elif key.startswith("bn7."):
            name = f"bn7_{fields.get(key.removeprefix('bn7.'))}"
        else:
            name = key.replace(".", "_")
        if not key.endswith("num_batches_tracked") and key != "fc8.weight":
            arrays.append(array(tensor.numpy()))
            names.append(f"{'aux' if 'running' in key else 'arg'}:{name}".encode())
    return params(arrays, names)


def test_whole_imagenet_file_starts_the_classifier(tmp_path, capsys):
    classifier = Classifier(width=0.0625)
    source, out = tmp_path / "in.params", tmp_path / "out.pth"
    source.write_bytes(mxnet_file_of(classifier))
    main([str(source), str(out)])
    said = capsys.readouterr().out
    assert "missed   0 tensors" in said
    assert "a whole ResNet-38 of width 0.0625" in said
    other = Classifier(width=0.0625)
    load_into(other, out, new=("fc8",))
    for key, tensor in classifier.state_dict().items():
        assert key.startswith("fc8") or torch.equal(other.state_dict()[key], tensor), key


def test_layer_that_so_narrow_a_network_lacks_is_a_misfit(tmp_path, capsys):
    source = tmp_path / "in.pth"
    torch.save({"bn7.weight": torch.ones(4), "b5.conv_branch1.weight": torch.ones(4, 4, 1, 1)}, source)
    main([str(source), str(tmp_path / "out.pth")])
    assert "misfits  1 tensors: b5" in capsys.readouterr().out


def test_psa_classifier(tmp_path, capsys):
    classifier = Classifier(width=0.0625)
    state = {f"module.{key}": tensor.double() for key, tensor in classifier.state_dict().items()}
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({**state, "module.strange.weight": torch.zeros(2)}, source, _use_new_zipfile_serialization=False)
    main([str(source), str(out)])
    said = capsys.readouterr().out
    assert "besides  1 tensors: fc8" in said
    assert "dropped  1 tensors: strange" in said
    assert torch.load(out, weights_only=True)["fc8.weight"].dtype == torch.float32
    other = Classifier(width=0.0625)
    load_into(other, out)
    assert torch.equal(other.fc8.weight, classifier.fc8.weight)
    assert torch.equal(other.b7.conv_branch1.weight, classifier.b7.conv_branch1.weight)


def test_segmentation_checkpoint_is_kept_as_it_is(tmp_path, capsys):
    state = SegmentationNetwork(width=0.0625, dilation=1).state_dict()
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, source)
    main([str(source), str(out)])
    kept = torch.load(out, weights_only=True)
    assert list(kept) == list(state)
    assert all(torch.equal(kept[key], state[key]) for key in state)
    assert "a whole ResNet-38 of width 0.0625" in capsys.readouterr().out


BN = array([1.0, 2.0])
NAME = b"arg:bn7_gamma"
BAD_PARAMS = {
    "empty": (b"\x12\x01\x00\x00\x00\x00\x00\x00", "header needs 16 bytes"),
    "cut in the data": (params([BN], [NAME])[:50], "needs 8 bytes, 6 are left"),
    "cut in the names": (params([BN], [NAME])[:-1], "a name needs 13 bytes, 12 are left"),
    "more after the end": (params([BN], [NAME]) + b"x", "1 bytes follow"),
    "wrong array mark": (params([struct.pack("<I", 0xF993FACA) + BN], [NAME]), "0xf993faca"),
    "huge count": (params([BN], [NAME], count=1 << 60), "damaged"),
    "huge ndim": (params([struct.pack("<II", V1, 1 << 31)], [NAME]), "2147483648 dimensions"),
    "no dimensions": (params([struct.pack("<I", 0)], [NAME]), "0 dimensions"),
    "huge shape": (params([array([1.0], shape=(1 << 31, 1 << 31))], [NAME]), "needs 18446744073709551616 bytes"),
    "negative shape": (params([array([1.0], 0, struct.pack("<I", V1), "q", (-1, 4))], [NAME]), "shape (-1, 4)"),
    "huge name": (params([BN], [])[:-8] + struct.pack("<QQ", 1, 1 << 62), "a name needs 4611686018427387904 bytes"),
    "fewer names": (params([BN, BN], [NAME]), "2 arrays, but 1 names"),
    "name of no letters": (params([BN], [b"\xff\xfe"]), "is not a name"),
    "same name twice": (params([BN, BN], [NAME, NAME]), "bn7_gamma more than once"),
    "arg and aux of one name": (params([BN, BN], [NAME, b"aux:bn7_gamma"]), "bn7_gamma more than once"),
    "unknown names": (params([BN, BN, BN], [NAME, b"arg:res9a_w", b"fc1_bias"]), "no res9a_w, fc1_bias"),
    "not a number": (params([array([1.0, np.nan])], [NAME]), "bn7.weight holds values that are not finite"),
    "too large for float32": (params([array([1.0, 1e300], 1, dtype="<f8")], [NAME]), "not finite"),
    "integers": (params([array([1, 2], 4, dtype="<i4")], [NAME]), "type 4"),
    "sparse": (params([array([1.0], 0, struct.pack("<Ii", V2, 1), "q")], [NAME]), "sparse"),
    "neither kind": (b"\x89PNG\r\n\x1a\n and so on", "neither an MXNet .params file nor a .pth file"),
    "cut .pth": (b"PK\x03\x04 and then nothing", "damaged or no .pth file"),
}


def refused(source, out, capsys):
    """The one line on stderr with which the program ends."""
    with pytest.raises(SystemExit) as end:
        main([str(source), str(out)])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert str(source) in said.err
    assert not out.exists()
    return said.err


@pytest.mark.parametrize("kind", BAD_PARAMS)
def test_bad_bytes_are_refused(kind, tmp_path, capsys):
    content, reason = BAD_PARAMS[kind]
    source = tmp_path / "in.params"
    source.write_bytes(content)
    assert reason in refused(source, tmp_path / "out.pth", capsys)


@pytest.mark.parametrize("container", ["legacy", "v2"])
def test_truncation_anywhere_is_refused(container, tmp_path):
    whole = (GOLDEN / f"mxnet_{container}.params").read_bytes()
    path = tmp_path / "in.params"
    for length in range(8, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="truncated or damaged"):
            read_mxnet(path)


BAD_STATES = {
    "not finite": ({"bn7.weight": torch.tensor([1.0, float("inf")])}, "bn7.weight holds values that are not finite"),
    "more than tensors": ({"bn7.weight": torch.ones(2), "epoch": 3}, "named tensors and nothing else"),
    "code": ({"bn7.weight": Path("x")}, "asks for pathlib"),
    "another network": ({"layer1.weight": torch.ones(2)}, "no layer of PSA's or SSDD's networks"),
    "claims more than it holds": ({"bn7.weight": torch.ones(1).expand(10**12)}, "claim more bytes"),
    "sparse": ({"bn7.weight": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", BAD_STATES)
def test_bad_state_dicts_are_refused(kind, tmp_path, capsys):
    content, reason = BAD_STATES[kind]
    source = tmp_path / "in.pth"
    torch.save(content, source)
    assert reason in refused(source, tmp_path / "out.pth", capsys)


def test_missing_file_and_folder_are_refused(tmp_path, capsys):
    assert "cannot be read" in refused(tmp_path / "absent.params", tmp_path / "out.pth", capsys)
    assert "cannot be read" in refused(tmp_path, tmp_path / "out.pth", capsys)


def test_params_file_given_as_weights_is_sent_here():
    with pytest.raises(InputError, match=r"mxnet_v2\.params .*python -m tools\.convert_weights"):
        load_state(GOLDEN / "mxnet_v2.params")
