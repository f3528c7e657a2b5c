"""Weights files: what loads, and what is refused without running anything in it."""

import errno
import io
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from datasets.errors import InputError
from engine import checkpoint
from engine.checkpoint import load, load_into, load_state, save, save_weights
from models.psa.classifier import Classifier
from models.ssdd.segmentation import SegmentationNetwork


def network(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1, bias=False))


def same(one, other):
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def refused(read, path):
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_load_with_and_without_module_in_front(prefix, legacy, tmp_path):
    source, target = network(0), network(1)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert not same(source, target)
    load_into(target, tmp_path / "w.pth")
    assert same(source, target)


def test_only_a_leading_module_is_stripped(tmp_path):
    torch.save({"module.a.module.b": torch.ones(1)}, tmp_path / "w.pth")
    assert list(load_state(tmp_path / "w.pth")) == ["a.module.b"]


def test_saved_weights_are_apart_from_the_network_and_without_gradient(tmp_path):
    source = network()
    save_weights(tmp_path / "deep" / "w.pth", source)
    state = torch.load(tmp_path / "deep" / "w.pth", weights_only=True)
    assert list(state) == list(source.state_dict())
    assert not any(tensor.requires_grad for tensor in state.values())
    other = network(1)
    load_into(other, tmp_path / "deep" / "w.pth")
    assert same(source, other)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["w.pth"]


def test_a_view_is_saved_alone(tmp_path):
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.zeros(1000, 1000)[:2, :2])
    save_weights(tmp_path / "w.pth", layer)
    assert (tmp_path / "w.pth").stat().st_size < 10_000


def test_weights_of_another_width_are_refused_saying_so(tmp_path):
    save_weights(tmp_path / "w.pth", network(width=8))
    target = network(1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    said = refused(lambda path: load_into(target, path), tmp_path / "w.pth")
    assert "of another width" in said and "(8, 3, 3, 3)" in said and "(4, 3, 3, 3)" in said and "--width" in said
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_real_networks_of_another_width_are_refused(tmp_path):
    save_weights(tmp_path / "w.pth", Classifier(width=0.0625))
    said = refused(lambda path: load_into(Classifier(width=0.125), path), tmp_path / "w.pth")
    assert "of another width" in said
    said = refused(lambda path: load_into(SegmentationNetwork(width=0.0625, dilation=1), path), tmp_path / "w.pth")
    assert "does not fit this network" in said


def test_missing_and_unknown_keys_are_counted_and_named(tmp_path):
    state = network().state_dict()
    del state["2.weight"], state["0.bias"]
    save(tmp_path / "w.pth", state | {"fc8.weight": torch.ones(1)})
    said = refused(lambda path: load_into(network(), path), tmp_path / "w.pth")
    assert "2 keys missing, 1 unknown, first: 0.bias" in said
    save(tmp_path / "w.pth", network().state_dict() | {"fc8.weight": torch.ones(1)})
    said = refused(lambda path: load_into(network(), path), tmp_path / "w.pth")
    assert "0 keys missing, 1 unknown, first: fc8.weight" in said


def test_new_layers_start_fresh_and_unused_ones_are_dropped(tmp_path):
    source, target = network(0), network(1)
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("2.")}
    save(tmp_path / "w.pth", state | {"fc8.weight": torch.ones(1)})
    fresh = target[2].weight.clone()
    load_into(target, tmp_path / "w.pth", new=("2.",), unused=("fc8.",))
    assert torch.equal(target[2].weight, fresh)
    assert torch.equal(target[0].weight, source[0].weight)


def test_step_counter_of_batchnorm_may_be_missing(tmp_path):
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    save(tmp_path / "w.pth", state)
    target = network(1)
    load_into(target, tmp_path / "w.pth")
    assert same(target, network())


def test_half_precision_is_widened(tmp_path):
    save(tmp_path / "w.pth", network().half().state_dict())
    target = network(1)
    load_into(target, tmp_path / "w.pth")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, network()[0].weight.half().float())


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", ["torch", "legacy torch", "pickle", "inside a state dict"])
def test_code_in_a_file_is_refused_and_not_run(way, tmp_path):
    path, marker = tmp_path / "w.pth", tmp_path / "was run"
    if way == "pickle":
        path.write_bytes(pickle.dumps(Evil(marker)))
    elif way == "inside a state dict":
        torch.save(network().state_dict() | {"x": Evil(marker)}, path)
    else:
        torch.save(Evil(marker), path, _use_new_zipfile_serialization=way == "torch")
    assert "refused" in refused(load_state, path)
    assert not marker.exists()
    # The file is as dangerous as it is meant to be.
    torch.load(path, weights_only=False) if way != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_truncation_anywhere_is_refused(legacy, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), max(1, len(whole) // 150)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(load_state, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_files_load_or_are_refused_but_never_crash(legacy, tmp_path):
    path, generator = tmp_path / "w.pth", torch.Generator().manual_seed(0)
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    whole, outcomes = path.read_bytes(), set()
    for _ in range(300):
        place, value = (int(torch.randint(high, (), generator=generator)) for high in (len(whole), 256))
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        try:
            load_into(network(), path)
            outcomes.add("loaded")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text\n", b"\0" * 1000])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    refused(load, tmp_path / "w.pth")


NO_STATES = {
    "a number": 3,
    "none": None,
    "a list": [torch.ones(1)],
    "a tensor": torch.ones(1),
    "nested": {"state_dict": {"0.weight": torch.ones(1)}},
    "other values": {"0.weight": torch.ones(1), "epoch": 3},
    "other keys": {1: torch.ones(1)},
}


@pytest.mark.parametrize("kind", NO_STATES)
def test_file_of_anything_but_named_tensors_is_refused(kind, tmp_path):
    save(tmp_path / "w.pth", NO_STATES[kind])
    assert "not a weights file" in refused(load_state, tmp_path / "w.pth")


def test_missing_file_and_folder_are_refused(tmp_path):
    assert refused(load_state, tmp_path / "absent.pth").endswith("is missing")
    refused(load_state, tmp_path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    save(path, {"a": torch.ones(1)})

    def full(content, temporary):
        temporary.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left"):
        save(path, {"a": torch.zeros(1)})
    assert torch.equal(load_state(path)["a"], torch.ones(1))
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


@pytest.mark.parametrize(
    ("bytes_left", "floats"), [(0, 1), (1000, 1), (0, 100_000), (1000, 100_000), (450_000, 100_000)]
)
def test_a_disk_that_is_full_is_named_as_the_reason(bytes_left, floats, tmp_path, monkeypatch):
    """Of a write that fails torch says "unexpected pos"."""
    size = {"left": bytes_left}

    class Full(io.FileIO):
        def write(self, data):
            size["left"] -= len(data)
            if size["left"] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(checkpoint, "open", lambda path, mode: io.BufferedWriter(Full(path, mode)), raising=False)
    with pytest.raises(InputError) as error:
        save(tmp_path / "w.pth", {"a": torch.zeros(floats), "b": torch.zeros(floats)})
    assert str(error.value) == f"cannot write {tmp_path / 'w.pth'}: No space left on device"
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
