"""Several advisers, integrated in turn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import main_ssdd
from datasets.samples.seeds import SeedSamples
from datasets.seed_store import load_differences, load_maps, read_seed, save_differences, store_path
from datasets.transforms import normalise
from datasets.voc import image_size, mask_path, read_ids, read_mask, read_present, write_mask
from engine import checkpoint, stages
from evaluation.metrics import confusion, iou
from models.ssdd.ddnet import DDNet
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import Integration, StaticStep, integrated_in_turn
from modes.ssdd.networks import build
from script import make_pages
from settings.config import Config, check
from tests import reference
from tests.conftest import as_flags
from tests.test_bad_input import refused
from tests.test_pages import data_of
from tests.test_ssdd import tiny_batch

ROOT = Path(__file__).parent.parent
TWO = "psa_crf,truth"


def run(mode, config, *more):
    main_ssdd.main([f"--mode={mode}", *as_flags(config), *more])


def weights(config, network):
    return checkpoint.load_state(stages.checkpoint_path(stages.folder(config, "mode 0"), network, 1))


def test_integration_in_turn_pixel_by_pixel():
    torch.manual_seed(3)
    masks = torch.randint(4, (3, 2, 9, 8))
    d_k, d_a = 4 * torch.randn(2, 2, 2, 9, 8)
    present = torch.tensor([[1.0, 1, 0, 1], [1, 0, 1, 1]])
    results = integrated_in_turn(masks[0], masks[1:], d_k, d_a, present, Integration(0.1, 0.05))
    first = reference.integrate(masks[0], masks[1], d_k[:, :1], d_a[:, :1], present, 0.1, 0.05)
    second = reference.integrate(first, masks[2], d_k[:, 1:], d_a[:, 1:], present, 0.1, 0.05)
    assert torch.equal(results[0].refined, first) and torch.equal(results[1].refined, second)
    assert torch.equal(results[1].knowledge, first) and not torch.equal(second, first)


@pytest.fixture
def two(own_run):
    """A Config with two advisers, of whose mode 0 the weights move."""
    return replace(own_run, advice=TWO, modelid="two", lr=1e-3)


def gradients(modules, batch):
    """Of one step of mode 0 with these DD modules (head, module), as if they were one DD-Net."""
    torch.manual_seed(0)
    ddnet = DDNet(len(modules), 21, 1 / 16)
    for n, (head, module) in enumerate(modules):
        ddnet.get_submodule(f"dd_head{n}").load_state_dict(head.state_dict())
        ddnet.get_submodule(f"dd{n}").load_state_dict(module.state_dict())
    torch.manual_seed(1)
    step = StaticStep(SegmentationNetwork(21, 1 / 16, 2), ddnet, Integration(0.0)).eval()
    result = step(*batch)
    (result.loss_seg + result.loss_dd).backward()
    parameters = dict(ddnet.named_parameters())
    return result, {name: parameter.grad for name, parameter in parameters.items()}


def test_each_module_learns_as_if_it_were_alone_with_what_those_before_gave():
    (x, present, knowledge, advice), own = tiny_batch(False), DDNet(2, 21, 1 / 16)
    # Little differs, so that no class is lost, which would keep the image out of the loss.
    second = torch.where(torch.rand(advice.shape) < 0.3, advice.roll(2, 1), knowledge)
    advice = torch.where(torch.rand(advice.shape) < 0.3, advice, knowledge)
    present[:] = 0
    present[:, [0, 3, 7]] = 1
    modules = [(own.dd_head0, own.dd0), (own.dd_head1, own.dd1)]
    result, both = gradients(modules, (x, present, knowledge, advice, second))
    one, first = gradients(modules[:1], (x, present, knowledge, advice))
    other, last = gradients(modules[1:], (x, present, one.modules[0].refined, second))
    assert torch.equal(result.loss_seg, one.loss_seg)
    torch.testing.assert_close(result.loss_dd, one.loss_dd + other.loss_dd)
    assert not torch.equal(one.modules[0].refined, knowledge) and torch.equal(result.logits[0], one.logits[0])
    for name, gradient in both.items():
        alone = first[name] if name in first else last[name.replace("dd_head1", "dd_head0").replace("dd1", "dd0")]
        assert torch.equal(gradient, alone), name
    assert both["dd0.pred_abc.weight"].abs().max() > 0 and both["dd1.pred_abc.weight"].abs().max() > 0


def test_mode_0_trains_a_module_for_each_adviser(two):
    run(0, two)
    first = weights(two, "ssdd")
    assert {key.split(".")[0] for key in first} == {"dd_head0", "dd0", "dd_head1", "dd1"}
    run(0, replace(two, advice="truth,psa_crf", modelid="reversed"))
    other = weights(replace(two, modelid="reversed"), "ssdd")
    assert not torch.equal(first["dd0.pred_abc.weight"], other["dd0.pred_abc.weight"])
    assert not torch.equal(first["dd1.pred_abc.weight"], other["dd1.pred_abc.weight"])


def test_maps_of_each_adviser_are_stored_and_make_the_seed(two):
    two = replace(two, seed_bias=-0.05, bias=0.05)
    run(0, two)
    told = json.loads((stages.folder(two, "mode 0") / "pictures.json").read_text())
    assert told["masks"] == ["k1", "a1", "d1", "k2", "a2", "d2"]
    assert told["rows"][""]["k1"] == "seed" and told["rows"][""]["d2"] == "integrated"
    assert told["rows"]["SSDD module 2: true masks"]["k2"] == "K: after PSA+CRF"
    run(1, two)
    made, root = stages.folder(two, "mode 1"), two.voc_root
    segmentation, ddnet = build(two, dynamic=False)
    segmentation.load_state_dict(weights(two, "seg"))
    ddnet.load_state_dict(weights(two, "ssdd"))
    segmentation.eval(), ddnet.eval()
    folders = [stages.folder(two, "make_aff_labels"), stages.folder(two, "make_aff_labels", 1)]
    folders = dict(zip(("knowledge", "advice", "advice2"), [*folders, mask_path(root, "").parent], strict=True))
    samples = SeedSamples(root, read_ids(root, "train_aug"), folders, two.crop)
    changed = 0
    for place, image_id in enumerate(read_ids(root, "train_aug")):
        batch = default_collate([samples[place]])
        with torch.no_grad():
            output = segmentation(normalise(batch["image"]))
            knowledge, expected = batch["knowledge"], []
            for n, advice in enumerate((batch["advice"], batch["advice2"])):
                features = ddnet.features(n, output.main.features, output.conv2)
                pair = ddnet.differences(n, features, knowledge, advice)
                knowledge = reference.integrate(knowledge, advice, *pair, batch["present"], 0.05, 0)
                expected.append([d[0, 0].numpy() for d in pair])
        stored = load_differences(store_path(made, image_id))
        np.testing.assert_allclose(np.stack(stored), np.array(expected).swapaxes(0, 1), rtol=1e-4, atol=1e-5)
        d_k, d_a = (torch.from_numpy(d) for d in load_differences(store_path(made, image_id)))
        assert d_k.shape == d_a.shape == (2, 16, 16) and not torch.equal(d_k[0], d_k[1])
        size = image_size(root, image_id)
        masks = [read_seed(folder, image_id, size).mask() for folder in folders.values()]
        masks = [torch.from_numpy(mask)[None] for mask in masks]
        present = torch.from_numpy(read_present(root, image_id))[None]
        large = [torch.nn.functional.interpolate(d[None], size, mode="bilinear") for d in (d_k, d_a)]
        expected = integrated_in_turn(masks[0], masks[1:], *large, present, Integration(-0.05))
        assert np.array_equal(read_mask(made / f"{image_id}.png"), expected[1].refined[0])
        changed += int((expected[1].refined != expected[0].refined).sum())
        assert (made / f"{image_id}_dk.png").exists() and (made / f"{image_id}_da2.png").exists()
    assert changed


def test_mode_2_starts_from_what_all_advisers_gave(two, monkeypatch):
    run(0, two)
    run(1, two)
    seen = []
    original = main_ssdd.dynamic.DynamicStep.forward
    monkeypatch.setattr(
        main_ssdd.dynamic.DynamicStep,
        "forward",
        lambda self, x, present, images, seed, *more: (
            seen.append(seed) or original(self, x, present, images, seed, *more)
        ),
    )
    made = stages.folder(two, "mode 1")
    for path in made.glob("*.npz"):  # the first adviser never, the second always
        d_k, _ = load_differences(path)
        certain = np.stack([np.full_like(d_k[0], -20), np.full_like(d_k[0], 20)])
        save_differences(path, certain, -certain, "test")
    run(2, replace(two, seed_bias=0.0, pictures=6))
    assert (stages.folder(two, "mode 2") / "models" / "seg_0001.pth").exists()
    truths = set().union(*(set(np.unique(read_mask(p))) for p in mask_path(two.voc_root, "").parent.glob("*.png")))
    assert set(torch.cat([seed.flatten() for seed in seen]).tolist()) <= truths - {255} | {0}


def test_an_adviser_named_twice_is_refused(two, capsys):
    for advice in ("psa_crf,psa_crf", "truth,psa,truth"):
        with pytest.raises(ValueError, match="--advice"):
            check(Config(advice=advice))
    twice = replace(two, advice=f"psa_crf,masks:{stages.folder(two, 'make_aff_labels', 1)}")
    said = refused(lambda flags: main_ssdd.main(["--mode=0", *flags]), as_flags(twice), two.out, capsys)
    assert "--advice=psa_crf" in said and "are the same" in said


@pytest.mark.parametrize("mode", [1, 2])
def test_maps_of_another_pair_are_refused(mode, own_run, capsys):
    shutil.rmtree(stages.folder(own_run, "mode 2"))
    if mode == 1:
        shutil.rmtree(stages.folder(own_run, "mode 1"))
    for config in (replace(own_run, advice="truth"), replace(own_run, advice=TWO), replace(own_run, knowledge="truth")):
        said = refused(lambda flags: main_ssdd.main([f"--mode={mode}", *flags]), as_flags(config), own_run.out, capsys)
        assert "was made with --advice=psa_crf" in said or "was made with --knowledge=psa" in said


@pytest.mark.parametrize("mode", [1, 2])
def test_seeds_that_changed_after_the_mode_before_are_refused(mode, own_run, tmp_path, capsys):
    ids = read_ids(own_run.voc_root, "train_aug")
    masks = {image_id: read_mask(mask_path(own_run.voc_root, image_id)) for image_id in ids}
    for image_id, mask in masks.items():
        write_mask(tmp_path / "own" / f"{image_id}.png", mask)
    config = replace(own_run, advice=f"masks:{tmp_path / 'own'}", modelid="changed", static_epochs=1)
    for before in range(mode):
        run(before, config)
    write_mask(tmp_path / "own" / f"{ids[0]}.png", np.zeros_like(masks[ids[0]]))
    said = refused(lambda flags: main_ssdd.main([f"--mode={mode}", *flags]), as_flags(config), own_run.out, capsys)
    assert f"made from {tmp_path / 'own'} before it was changed" in said


def test_what_several_advisers_and_chance_add_to_a_stage_counts(two, capsys):
    """Later advisers are asked about what the integration left of the earlier ones; flips are drawn from the seed."""
    run(0, two)
    mirrored = replace(two, precompute_augmented=True)
    run(1, mirrored)
    for mode, other in (
        (0, replace(two, bias=-0.4)),
        (0, replace(two, reading="logits")),
        (1, replace(mirrored, seed=5)),
    ):
        said = refused(lambda flags, m=mode: main_ssdd.main([f"--mode={m}", *flags]), as_flags(other), two.out, capsys)
        assert "bias 0.4" in said or "reading published" in said or "seed 0" in said


def test_maps_of_fewer_advisers_than_named_are_refused(two, capsys):
    run(0, two)
    run(1, two)
    path = store_path(stages.folder(two, "mode 1"), read_ids(two.voc_root, "train_aug")[0])
    save_differences(path, *(d[0] for d in load_differences(path)), "test")
    said = refused(lambda flags: main_ssdd.main(["--mode=2", *flags]), as_flags(two), two.out, capsys)
    assert str(path) in said and "2 advisers" in said


def test_the_page_shows_every_source_that_is_there_sorted_by_any(own_run, tmp_path):
    root, ids = own_run.voc_root, read_ids(own_run.voc_root, "train_aug")
    for image_id in ids:
        write_mask(tmp_path / "grab cut" / f"{image_id}.png", read_mask(mask_path(root, image_id)))
    config = replace(own_run, advice=f"psa_crf,masks:{tmp_path / 'grab cut'}")
    data = data_of(make_pages.make_pages(config, ["labels"]).with_name("labels.html"))
    titles = {column["key"]: column["title"] for column in data["columns"]}
    keys = list(titles)[1:-1]
    assert [titles[key] for key in keys] == ["CAM", "PSA", "PSA+CRF", "static SSDD", "grab cut"]
    assert list(data["scores"]) == keys and all(" " not in key for key in keys)
    for row in data["rows"]:
        truth = read_mask(mask_path(root, row["id"]))
        seed = load_maps(store_path(stages.folder(own_run, "make_cam_labels"), row["id"]))
        cam = np.where(seed.maps.max(axis=0).clip(0, 1) >= 0.2, seed.mask(), 0)
        expected = 100 * np.nanmean(iou(confusion(truth, cam)))
        assert row["scores"]["cam"]["all"] == pytest.approx(expected, abs=0.06)
        known = 100 * np.nanmean(iou(confusion(truth, truth)))
        assert row["scores"][keys[-1]]["all"] == pytest.approx(known, abs=0.06)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"knowledge": "segments:X", "advice": "psa"}, "--knowledge=segments:"),
        ({"advice": "segments:X,segments:X/."}, "one folder"),
        ({"advice": "segments:absent"}, "there is no folder"),
        ({"advice": "psa_crf,nothing"}, "no seed source 'nothing'"),
    ],
)
def test_what_no_adviser_can_be(fields, said, own_run, tmp_path, capsys):
    fields = {name: value.replace("X", str(tmp_path)) for name, value in fields.items()}
    config = replace(own_run, modelid="bad", **fields)
    assert said in refused(lambda flags: main_ssdd.main(["--mode=0", *flags]), as_flags(config), config.out, capsys)


@pytest.mark.parametrize("kind", ["missing", "wrong size"])
def test_bad_masks_of_an_adviser_end_in_one_line(kind, own_run, tmp_path, capsys):
    ids = read_ids(own_run.voc_root, "train_aug")
    for image_id in ids:
        mask = read_mask(mask_path(own_run.voc_root, image_id))
        write_mask(tmp_path / "masks" / f"{image_id}.png", mask)
    path = tmp_path / "masks" / f"{ids[2]}.png"
    if kind == "missing":
        path.unlink()
    else:
        write_mask(path, mask[:-1])
    config = replace(own_run, modelid="bad", advice=f"psa_crf,masks:{tmp_path / 'masks'}")
    said = refused(lambda flags: main_ssdd.main(["--mode=0", *flags]), as_flags(config), config.out, capsys)
    assert str(path) in said


def test_the_documented_grabcut_makes_an_adviser(own_run, tmp_path, monkeypatch):
    script = (ROOT / "docs" / "seeds.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    masks = tmp_path / "grabcut"
    monkeypatch.setattr("sys.argv", ["grabcut.py", own_run.out, own_run.voc_root, str(masks)])
    exec(script, {})
    present = {}
    for image_id in read_ids(own_run.voc_root, "train_aug"):
        mask = read_mask(masks / f"{image_id}.png")
        assert mask.shape == image_size(own_run.voc_root, image_id)
        present[image_id] = set(np.unique(mask)) - set(np.flatnonzero(read_present(own_run.voc_root, image_id)))
    assert not any(present.values())  # no class that the image has not
    run(0, replace(own_run, advice=f"masks:{masks}", modelid="grabcut"))
