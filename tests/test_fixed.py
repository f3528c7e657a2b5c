"""Mode 4: the segmentation network alone on fixed seeds, and mode 3 on what it trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_ssdd
from datasets.samples.seeds import SeedSamples
from datasets.seed_store import store_path
from datasets.voc import read_ids, read_mask, write_mask
from engine import checkpoint, stages
from evaluation.masks import evaluate
from tests.conftest import as_flags, labels_folder
from tests.test_bad_input import refused

SOURCES = ("psa", "psa_crf", "ssdd", "truth")


def run(mode, config, *more):
    main_ssdd.main([f"--mode={mode}", *as_flags(config), *more])


def weights(config, mode, epoch):
    return checkpoint.load_state(stages.checkpoint_path(stages.folder(config, f"mode {mode}"), "seg", epoch))


def test_on_psa_it_trains_the_network_of_mode_0_bit_by_bit(own_run):
    config = replace(own_run, lr=1e-4, dropout=1.0, epochs=2, seed_source="psa", checkpoint_epochs=1)
    run(0, replace(config, seed_source=""), "--fresh")
    run(4, config)
    one, other = weights(config, 0, 2), weights(config, 4, 2)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    start = weights(config, 4, 1)
    assert not torch.equal(start["seg_main.seg2.weight"], one["seg_main.seg2.weight"])


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_has_its_own_run_and_masks(source, own_run):
    config = replace(own_run, seed_source=source)
    before = {p: p.read_bytes() for p in Path(config.out).rglob("*") if p.is_file()}
    run(4, config)
    run(3, config)
    out = Path(config.out)
    assert (out / "logs" / f"fixed_{source}_ssdd" / "models" / "seg_0001.pth").exists()
    masks = out / "validation" / f"fixed_{source}_ssdd" / "crf"
    result = json.loads((masks.parent / "result_val.json").read_text())
    ids = read_ids(config.voc_root, "val")
    assert result["mask after CRF"] == evaluate(masks, config.voc_root, ids)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_sources_train_different_networks(own_run):
    trained = []
    for source in SOURCES:
        config = replace(own_run, seed_source=source, lr=1e-3)
        run(4, config)
        trained.append(weights(config, 4, 1)["seg_main.seg2.bias"])
    assert all(not torch.equal(a, b) for n, a in enumerate(trained) for b in trained[:n])


def test_a_stopped_run_ends_bit_by_bit_where_a_whole_one_does(own_run, monkeypatch):
    config = replace(own_run, seed_source="crf", epochs=3, lr=1e-4, dropout=1.0)
    run(4, config)
    whole = weights(config, 4, 3)
    save = checkpoint.save

    def stopping(path, content):
        if Path(path).name == "state.pth" and content["epoch"] == 2:
            raise KeyboardInterrupt
        save(path, content)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(checkpoint, "save", stopping)
        run(4, config, "--fresh")
    assert checkpoint.load(stages.folder(config, "mode 4") / "state.pth")["epoch"] == 1
    run(4, config)
    assert all(torch.equal(whole[key], value) for key, value in weights(config, 4, 3).items())


def test_sample_of_psa_is_the_knowledge_of_mode_0(own_run):
    ids = read_ids(own_run.voc_root, "train_aug")
    psa, crf = (labels_folder(own_run, kind) for kind in ("out_aff", "out_aff_crf"))
    pair = SeedSamples(own_run.voc_root, ids, {"knowledge": psa, "advice": crf}, 64, (64, 72))
    alone = SeedSamples(own_run.voc_root, ids, {"seed": psa}, 64, (64, 72))
    for seed in range(4):
        torch.manual_seed(seed)
        expected = pair[1]
        torch.manual_seed(seed)
        sample = alone[1]
        assert torch.equal(sample["seed"], expected["knowledge"]) and torch.equal(sample["image"], expected["image"])


def test_mask_moves_with_the_image_and_unknown_stays_unknown(own_run, tmp_path):
    """A mask whose left half is class 1 and whose right third is unknown, of an image with the same halves."""
    ids = read_ids(own_run.voc_root, "train_aug")
    photo = Path(own_run.voc_root) / "JPEGImages" / f"{ids[0]}.jpg"
    image = np.zeros((96, 120, 3), np.uint8)
    image[:, :60] = 255
    Image.fromarray(image).save(photo, format="PNG")
    mask = np.zeros((96, 120), np.uint8)
    mask[:, :60], mask[:, 80:] = 1, 255
    write_mask(tmp_path / f"{ids[0]}.png", mask)
    samples = SeedSamples(own_run.voc_root, ids, {"seed": tmp_path}, 64, (64, 72))
    for seed in range(6):
        torch.manual_seed(seed)
        sample = samples[0]
        bright = sample["image"].float().mean(0)[2::4, 2::4]
        known = bright[sample["seed"] == 1]
        assert known.min() > bright[sample["seed"] == 0].max()
        assert set(sample["seed"].unique().tolist()) == {0, 1, 255}


def test_masks_of_another_size_are_refused_by_name(own_run, capsys):
    ids = read_ids(own_run.voc_root, "train_aug")
    path = stages.folder(own_run, "mode 1") / f"{ids[2]}.png"
    write_mask(path, read_mask(path)[:-1])
    flags = as_flags(replace(own_run, seed_source="ssdd"))
    said = refused(lambda f: main_ssdd.main(["--mode=4", *f]), flags, own_run.out, capsys)
    assert str(path) in said


@pytest.mark.parametrize("source", SOURCES)
def test_missing_seeds_are_named_before_training(source, own_run, capsys):
    image_id = read_ids(own_run.voc_root, "train_aug")[3]
    config = replace(own_run, seed_source=source)
    path = {
        "psa": store_path(stages.folder(config, "make_aff_labels"), image_id),
        "psa_crf": store_path(stages.folder(config, "make_aff_labels", 1), image_id),
        "ssdd": stages.folder(config, "mode 1") / f"{image_id}.png",
        "truth": Path(config.voc_root) / "SegmentationClass" / f"{image_id}.png",
    }[source]
    path.unlink()
    said = refused(lambda f: main_ssdd.main(["--mode=4", *f]), as_flags(config), config.out, capsys)
    assert str(path) in said and "missing" in said
    assert not stages.folder(config, "mode 4").exists()


def test_mode_3_before_mode_4_names_the_command(own_run, capsys):
    flags = as_flags(replace(own_run, seed_source="psa"))
    said = refused(lambda f: main_ssdd.main(["--mode=3", *f]), flags, own_run.out, capsys)
    assert "`python main_ssdd.py --mode=4 --seed_source=psa" in said


@pytest.mark.parametrize(("mode", "source"), [("4", ""), ("0", "psa"), ("all", "ssdd")])
def test_source_where_it_is_needed_and_only_there(mode, source, tiny_config, capsys):
    flags = as_flags(replace(tiny_config, seed_source=source))
    said = refused(lambda f: main_ssdd.main([f"--mode={mode}", *f]), flags, tiny_config.out, capsys)
    assert "--seed_source" in said


def test_other_seeds_under_the_same_name_are_refused(own_run, finished_run, capsys):
    config = replace(own_run, seed_source="psa")
    run(4, config)
    shutil.rmtree(stages.folder(config, "make_aff_labels"))
    shutil.copytree(finished_run / "prepare_labels" / "results" / "out_aff", stages.folder(config, "make_aff_labels"))
    run(4, config)
    stored = stages.folder(config, "make_aff_labels") / "config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"identity": "other"}))
    said = refused(lambda f: main_ssdd.main(["--mode=4", *f]), as_flags(config), config.out, capsys)
    assert "made_from" in said
