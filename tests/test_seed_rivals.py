"""Rivals of static SSDD: each rule by hand, and the figures of a whole run against those of other programs here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import main_ssdd
from datasets.seed_store import SeedMaps, load_differences, load_maps, store_path
from datasets.voc import IGNORE, mask_path, read_ids, read_mask, write_mask
from engine import stages
from evaluation.masks import evaluate
from evaluation.metrics import mean_and_spread
from models.ssdd.steps import Integration
from tests.conftest import as_flags, labels_folder
from tests.test_bad_input import refused
from tools import seed_rivals
from tools.seed_rivals import area_under_roc, choices, overrules, share_of_gap


def test_every_rule_by_hand():
    # Five pixels; classes 0 and 7. PSA's maps do not sum to 1: at pixel 2 it says 7 with 0.3 of 0.4 = 0.75.
    knowledge = np.array([[0.9, 0.1, 0.1, 0.2, 0.1], [0.1, 0.3, 0.3, 0.3, 0.9]], np.float32)[:, None]
    advice = np.array([[0.9, 0.6, 0.7, 0.1, 0.8], [0.1, 0.4, 0.3, 0.9, 0.2]], np.float32)[:, None]
    truth = np.array([[0, 7, 0, 7, 255]], np.uint8)
    maps = [SeedMaps(np.array([0, 7]), m, "x") for m in (knowledge, advice)]
    flags = torch.zeros(1, 21)
    differences = torch.zeros(1, 1, 1, 5), torch.tensor([[[[0.0, 9, 9, 9, 0]]]])
    masks = choices(*maps, differences, flags, Integration(0.4), truth)
    assert [m.mask().tolist() for m in maps] == [[[0, 7, 7, 7, 7]], [[0, 0, 0, 7, 0]]]
    assert masks["larger probability"].tolist() == [[0, 7, 7, 7, 7]]
    assert masks["flags alone"].tolist() == maps[1].mask().tolist()
    # Half against nearly one, w = 0.5 - 1 + 0.4: the knowledge at pixels 1 to 3.
    assert masks["maps alone"].tolist() == [[0, 7, 7, 7, 0]]
    assert masks["oracle"][0, :4].tolist() == [0, 7, 0, 7]
    flags[0, 7] = 1
    masks = choices(*maps, differences, flags, Integration(0.4), truth)
    assert masks["flags alone"].tolist() == [[0, 7, 7, 7, 7]]
    assert masks["maps alone"].tolist() == [[0, 7, 7, 7, 0]]


PAIR = ("PSA", "PSA+CRF")


def test_share_of_the_gap():
    figures = {"PSA": 0.5, "PSA+CRF": 0.4, "static SSDD": 0.55, "oracle": 0.7}
    assert share_of_gap(figures, PAIR) == pytest.approx(0.25)
    assert share_of_gap(figures | {"static SSDD": 0.45}, PAIR) == pytest.approx(-0.25)
    assert share_of_gap(figures | {"oracle": 0.5}, PAIR) is None


def test_area_under_roc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    negative, positive = rng.integers(0, 6, 40), rng.integers(1, 8, 30)
    pairs = [(n < p) + (n == p) / 2 for n in negative for p in positive]
    histograms = [np.bincount(values, minlength=8) for values in (negative, positive)]
    assert area_under_roc(*histograms) == pytest.approx(np.mean(pairs))
    assert area_under_roc(histograms[0], np.zeros(8)) is None


def test_the_maps_overrule_the_bias_where_they_turn_its_choice():
    score = np.array([-0.5, -0.4, -0.3, 0.3, 0.5])
    assert overrules(score, 0.4).tolist() == [True, False, False, False, False]
    assert overrules(score, -0.4).tolist() == [False, False, False, False, True]


def test_mean_and_spread():
    assert mean_and_spread([0.5]) == "50.0"
    assert mean_and_spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert mean_and_spread([0.5, None]) == "–"


def run(config, *more):
    seed_rivals.main([config.out, "--voc-root", config.voc_root, *more])


def test_figures_of_a_run_are_those_of_its_masks(own_run, tmp_path, capsys):
    run(own_run, "--json", str(tmp_path / "rivals.json"))
    result = json.loads((tmp_path / "rivals.json").read_text())[own_run.out]
    ids = read_ids(own_run.voc_root, "train")
    folders = {
        "PSA": stages.folder(own_run, "make_aff_labels"),
        "PSA+CRF": stages.folder(own_run, "make_aff_labels", 1),
        "static SSDD": stages.folder(own_run, "mode 1"),
    }
    for rule, folder in folders.items():
        expected = evaluate(folder, own_run.voc_root, ids)
        assert result["rules"][rule]["miou"] == expected["miou"] and result["rules"][rule]["iou"] == expected["iou"]
    # The oracle loses nowhere: every pixel that any rule has right, it has right.
    assert set(result["images"]) == set(ids)
    assert result["pixels"]["static SSDD"] <= result["pixels"]["PSA right"] + result["pixels"]["PSA+CRF right"]
    assert result["change"] == [pytest.approx(area, abs=0.003) for area in areas(own_run, ids)]
    for half in ("first", "second"):
        sweep = result["bias"][f"sweep_of_{half}_half"]
        part = ids[0::2] if half == "first" else ids[1::2]
        assert sweep["0.4"] == pytest.approx(evaluate(folders["static SSDD"], own_run.voc_root, part)["miou"])
    said = capsys.readouterr().out
    assert f"{own_run.out} (seed 0)" in said and "demo preset, train, 6 images, 1 runs" in said


def areas(config, ids):
    """How often a pixel where the masks differ has the larger d than one where they agree, of both maps."""
    values, differs = [], []
    for image_id in ids:
        k, a = (
            load_maps(store_path(labels_folder(config, kind), image_id)).maps.argmax(0)
            for kind in ("out_aff", "out_aff_crf")
        )
        d = np.stack(load_differences(store_path(stages.folder(config, "mode 1"), image_id)))
        d = torch.nn.functional.interpolate(torch.from_numpy(d)[None], k.shape, mode="bilinear")[0]
        seen = read_mask(mask_path(config.voc_root, image_id)) != IGNORE
        values.append(d[:, torch.from_numpy(seen)].numpy())
        differs.append((k != a)[seen])
    values, differs = np.concatenate(values, axis=1), np.concatenate(differs)
    return [(rankdata(v)[differs].mean() - (differs.sum() + 1) / 2) / (~differs).sum() for v in values]


def test_the_sweep_is_what_mode_1_makes_with_that_bias(own_run, tmp_path):
    run(own_run, "--json", str(tmp_path / "one.json"))
    main_ssdd.main(["--mode=1", *as_flags(replace(own_run, seed_bias=-0.1)), "--fresh"])
    run(own_run, "--json", str(tmp_path / "two.json"))
    one, two = (json.loads((tmp_path / name).read_text())[own_run.out] for name in ("one.json", "two.json"))
    masks = evaluate(stages.folder(own_run, "mode 1"), own_run.voc_root, read_ids(own_run.voc_root, "train")[0::2])
    assert one["bias"]["sweep_of_first_half"]["-0.1"] == pytest.approx(masks["miou"])
    assert one["bias"] == two["bias"]


def test_runs_that_are_no_repetitions_are_refused(own_run, finished_run, tmp_path, capsys):
    flags = [own_run.out, str(finished_run), "--voc-root", own_run.voc_root]
    said = refused(seed_rivals.main, flags, tmp_path, capsys)
    assert "seeds [0, 0]" in said
    path = stages.folder(own_run, "mode 1") / "config.json"
    whole = path.read_text()
    for name, value in {"recipe": "released", "preset": "voc", "seed_bias": 0.1}.items():
        path.write_text(json.dumps(json.loads(whole) | {name: value}))
        said = refused(seed_rivals.main, flags, tmp_path, capsys)
        assert f"--{name}=" in said and "no repetitions of one run" in said
    stored = json.loads(whole)
    made_from = {name: "0" if name.endswith("demo.json") else v for name, v in stored["made_from"].items()}
    path.write_text(json.dumps(stored | {"made_from": made_from}))
    assert "demo.json" in refused(seed_rivals.main, flags, tmp_path, capsys)


def test_bad_input_is_named(own_run, tmp_path, capsys):
    said = refused(seed_rivals.main, [str(tmp_path / "absent")], tmp_path, capsys)
    assert "absent" in said
    flags = [own_run.out, "--voc-root", own_run.voc_root]
    assert "precompute/other" in refused(seed_rivals.main, [*flags, "--modelid=other"], tmp_path, capsys)
    image_id = read_ids(own_run.voc_root, "train")[2]
    truth = mask_path(own_run.voc_root, image_id)
    write_mask(truth, read_mask(truth)[1:])
    assert image_id in refused(seed_rivals.main, flags, tmp_path, capsys)
    (Path(own_run.out) / "precompute" / "ssdd" / f"{image_id}.png").unlink()
    assert f"{image_id}.png is missing" in refused(seed_rivals.main, flags, tmp_path, capsys)
