"""CertainMix as an augmentation of modes 2 and 4."""

from dataclasses import replace

import pytest
import torch

import main_ssdd
from engine import checkpoint, stages
from modes.ssdd import networks
from settings.config import demo
from tests.conftest import as_flags
from tests.test_bad_input import refused


def made_batch():
    """Three images of a single value each, with objects of their own."""
    image = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 16, 16)
    small = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None, None].repeat(1, 4, 4, 3)
    labels = torch.zeros(3, 4, 4, dtype=torch.int64)
    labels[0, :2, :2], labels[1, :, 1], labels[2] = 1, 2, 255
    present = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    return {"id": ["a", "b", "c"], "image": image, "small": small, "present": present}, labels


@pytest.fixture
def in_turn(monkeypatch):
    """Each image gets the objects of the one after it, the last one those of the first."""
    monkeypatch.setattr(networks, "draw_partners", lambda images, device: torch.arange(images).roll(-1))


def test_objects_come_with_their_pixels_and_classes(in_turn):
    batch, labels = made_batch()
    mixed = networks.mixed_batch(replace(demo(), certain_mix=1.0), batch, labels)
    # Image 0: the column of 2 of image 1 over the square of 1; image 1 gets nothing, as 2 knows nothing; 2 the square.
    assert mixed["seed"][0].tolist() == [[1, 2, 0, 0], [1, 2, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0]]
    assert torch.equal(mixed["seed"][1], labels[1])
    assert mixed["seed"][2].tolist() == [[1, 1, 255, 255]] * 2 + [[255] * 4] * 2
    assert mixed["present"].tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert mixed["small"][0, :, :, 0].tolist() == [[1, 2, 1, 1]] * 4
    assert mixed["image"][0, 0, 0].tolist() == [10] * 4 + [20] * 4 + [10] * 8
    assert mixed["image"].dtype == torch.uint8 and torch.equal(mixed["image"][1], batch["image"][1])
    assert mixed["id"] == batch["id"] and batch["image"][0].unique().tolist() == [10]


def test_only_what_is_certain_is_pasted(in_turn):
    batch, labels = made_batch()
    sure = torch.zeros(3, 4, 4, dtype=torch.bool)
    sure[1, 3] = True
    mixed = networks.mixed_batch(replace(demo(), certain_mix=1.0), batch, labels, sure)
    assert mixed["seed"][0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]
    assert torch.equal(mixed["seed"][1:], labels[1:])


def test_a_share_of_the_images_is_mixed(in_turn):
    labels = torch.ones(2000, 1, 1, dtype=torch.int64)
    batch = {"image": torch.arange(2000).view(-1, 1, 1, 1), "small": torch.zeros(2000, 1, 1, 3, dtype=torch.uint8)}
    batch["present"] = torch.ones(2000, 2)
    mixed = networks.mixed_batch(replace(demo(), certain_mix=0.3), batch, labels)
    changed = (mixed["image"] != batch["image"]).float().mean().item()
    assert 0.25 < changed < 0.35


@pytest.mark.parametrize("mode", [2, 4])
def test_modes_2_and_4_train_on_mixed_images_when_asked(mode, own_run, monkeypatch):
    seen = []
    original = networks.certain_mix
    monkeypatch.setattr(networks, "certain_mix", lambda *given: seen.append(given) or original(*given))
    config = replace(own_run, modelid="mixed", lr=1e-3, certain_mix=1.0, seed_source="psa" if mode == 4 else "")
    if mode == 2:
        stages.folder(config, "mode 1").symlink_to(stages.folder(own_run, "mode 1"))
    trained = []
    for share in (1.0, 0.0):
        own = replace(config, certain_mix=share)
        main_ssdd.main([f"--mode={mode}", *as_flags(own), *(["--fresh"] if trained else [])])
        trained.append(checkpoint.load_state(stages.checkpoint_path(stages.folder(own, f"mode {mode}"), "seg", 1)))
    assert len(seen) == 2  # steps of three images
    name = "seg_main.seg2.weight"
    assert not torch.equal(trained[0][name], trained[1][name])
    if mode == 2:  # all that the pair agrees on
        assert all(given[4].dtype == torch.bool and given[4].any() and not given[4].all() for given in seen)


@pytest.mark.parametrize("mode", ["2", "4"])
def test_steps_of_one_image_are_refused(mode, own_run, capsys):
    config = replace(own_run, modelid="mixed", certain_mix=0.5, bn=1, seed_source="psa" if mode == "4" else "")
    if mode == "2":
        stages.folder(config, "mode 1").symlink_to(stages.folder(own_run, "mode 1"))
    said = refused(lambda flags: main_ssdd.main([f"--mode={mode}", *flags]), as_flags(config), own_run.out, capsys)
    assert "--certain_mix=0.5" in said and "--bn=1" in said
