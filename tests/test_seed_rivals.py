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
from evaluation.rivals import area_under_roc, choices, overrules, share_of_gap
from models.ssdd.steps import Integration
from tests.conftest import as_flags, labels_folder
from tests.test_bad_input import refused
from tools import paper_tables, seed_rivals


def test_every_rule_by_hand():
    # Five pixels; classes 0 and 7. PSA's maps do not sum to 1: at pixel 2 it says 7 with 0.3 of 0.4 = 0.75.
    knowledge = np.array([[0.9, 0.1, 0.1, 0.2, 0.1], [0.1, 0.3, 0.3, 0.3, 0.9]], np.float32)[:, None]
    advice = np.array([[0.9, 0.6, 0.7, 0.1, 0.8], [0.1, 0.4, 0.3, 0.9, 0.2]], np.float32)[:, None]
    truth = np.array([[0, 7, 0, 7, 255]], np.uint8)
    maps = [SeedMaps(np.array([0, 7]), m, "x") for m in (knowledge, advice)]
    present = torch.zeros(1, 21)
    differences = torch.zeros(2, 1, 1, 5)
    differences[1] = torch.tensor([0.0, 9, 9, 9, 0])
    masks = choices(maps, differences, present, Integration(0.4), 0.1, truth)
    assert [m.mask().tolist() for m in maps] == [[[0, 7, 7, 7, 7]], [[0, 0, 0, 7, 0]]]
    assert masks["larger probability"].tolist() == [[0, 7, 7, 7, 7]]
    assert masks["flags alone"].tolist() == maps[1].mask().tolist()
    # Half against nearly one, w = 0.5 - 1 + 0.4: the knowledge at pixels 1 to 3.
    assert masks["maps alone"].tolist() == [[0, 7, 7, 7, 0]]
    assert masks["oracle"][0, :4].tolist() == [0, 7, 0, 7]
    present[0, 7] = 1  # of four pixels the advice keeps one
    masks = choices(maps, differences, present, Integration(0.4), 0.1, truth)
    assert masks["flags alone"].tolist() == [[0, 7, 7, 7, 7]]
    assert masks["maps alone"].tolist() == [[0, 7, 7, 7, 0]]
    differences[1] = torch.tensor([0.0, 0.1, 0.5, 0.1, 0.1])
    masks = choices(maps, differences, 0 * present, Integration(0.4), 0.1, truth)
    # 0.5 - σ(0.1) = -0.025 is a quarter of the spread, 0.5 - σ(0.5) = -0.12 more than it.
    assert masks["maps alone"].tolist() == [[0, 0, 0, 7, 0]]
    assert masks["SSDD, maps by their spread"].tolist() == [[0, 0, 7, 7, 0]]


def mask_of(values):
    mask = np.array([values])
    there = np.unique(mask)
    return SeedMaps(there, (mask == there[:, None, None]).astype(np.float32), "mask")


def test_unknown_pixels_and_several_advisers_by_hand():
    members = [mask_of([1, 255, 255, 2, 0, 1]), mask_of([255, 1, 255, 0, 2, 0]), mask_of([2, 255, 255, 2, 0, 2])]
    truth = np.array([[1, 1, 1, 0, 0, 2]], np.uint8)
    masks = choices(members, torch.zeros(2, 2, 1, 6), torch.zeros(1, 3), Integration(0.4), 0.1, truth)
    assert masks["larger probability"].tolist() == masks["flags alone"].tolist() == [[2, 1, 255, 2, 0, 2]]
    assert masks["oracle"].tolist() == [[1, 1, 255, 0, 0, 2]]
    pair = choices(members[:2], torch.zeros(2, 1, 1, 6), torch.zeros(1, 3), Integration(0.4), 0.1, truth)
    assert pair["flags alone"].tolist() == [[1, 1, 255, 0, 2, 0]]


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
    assert result["spread"] == pytest.approx(np.std(scores_where_they_differ(own_run, ids)), rel=1e-4)
    assert result["map_weight"] == pytest.approx(own_run.seed_bias / result["spread"])
    # The oracle loses nowhere: every pixel that any rule has right, it has right.
    assert set(result["images"]) == set(ids)
    (step,) = result["steps"]
    assert step["pixels"]["static SSDD"] <= step["pixels"]["PSA right"] + step["pixels"]["PSA+CRF right"]
    assert step["change"] == [pytest.approx(area, abs=0.003) for area in areas(own_run, ids)]
    for half in ("first", "second"):
        sweep = result["bias"][f"sweep_of_{half}_half"]
        part = ids[0::2] if half == "first" else ids[1::2]
        assert sweep["0.4"] == pytest.approx(evaluate(folders["static SSDD"], own_run.voc_root, part)["miou"])
    said = capsys.readouterr().out
    stored = json.loads((stages.folder(own_run, "mode 3") / "result_val.json").read_text())
    assert result["network"] == {kind: stored[kind]["miou"] for kind in ("mask", "mask after CRF")}
    assert f"| PSA ← PSA+CRF (ssdd) | PSA {mean_and_spread([result['rules']['PSA']['miou']])}, PSA+CRF" in said
    first, _, row = (line.strip("| ").split(" | ") for line in said.splitlines()[:3])
    under = dict(zip(first, row, strict=True))
    for title in ("flags alone", "SSDD, maps by their spread", "static SSDD", "oracle"):
        assert under[title] == mean_and_spread([result["rules"][title]["miou"]])
    assert under["network"] == mean_and_spread([stored["mask"]["miou"]])
    assert f"{own_run.out} (seed 0)" in said and "demo preset, train, 6 images, 1 runs" in said


def scores_where_they_differ(config, ids):
    """σ(d_K) − σ(d_A) of every such pixel."""
    scores = []
    for image_id in ids:
        k, a = (
            load_maps(store_path(labels_folder(config, kind), image_id)).maps.argmax(0)
            for kind in ("out_aff", "out_aff_crf")
        )
        d = np.stack(load_differences(store_path(stages.folder(config, "mode 1"), image_id)))
        d = torch.nn.functional.interpolate(torch.from_numpy(d)[None], k.shape, mode="bilinear")[0].sigmoid()
        scores.append((d[0] - d[1]).numpy()[k != a])
    return np.concatenate(scores)


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


def test_pairs_with_unknown_pixels_and_several_advisers_stand_side_by_side(own_run, tmp_path, capsys):
    """Made-up ICD seeds: the true masks with a stripe that nobody knows."""
    for image_id in read_ids(own_run.voc_root, "train"):
        mask = read_mask(mask_path(own_run.voc_root, image_id)).copy()
        mask[:, 10:30] = IGNORE
        for folder in (stages.folder(own_run, "make_icd_labels", which) for which in range(2)):
            write_mask(folder / f"{image_id}.png", mask)
    for modelid, knowledge, advice in (("unknown", "icd", "psa"), ("three", "psa", "icd_crf,psa_crf")):
        config = replace(own_run, modelid=modelid, knowledge=knowledge, advice=advice)
        for mode in (0, 1):
            main_ssdd.main([f"--mode={mode}", *as_flags(config)])
    capsys.readouterr()
    run(own_run, "--modelid", "ssdd", "unknown", "three", "--json", str(tmp_path / "pairs.json"))
    said, found = capsys.readouterr().out, json.loads((tmp_path / "pairs.json").read_text())
    lines = said.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == [
        "PSA ← PSA+CRF (ssdd)", "ICD ← PSA (unknown)", "PSA ← ICD+CRF ← PSA+CRF (three)",
    ]  # fmt: skip
    assert "60.2, leaving 255 out" in lines[3] and "leaving 255 out 100.0" in lines[3]
    one, three = found["unknown"][own_run.out], found["three"][own_run.out]
    assert one["rules"]["ICD"]["miou"] < one["rules"]["ICD"]["miou_known"] == 1.0
    assert "miou_known" not in one["rules"]["flags alone"]  # PSA knows all
    assert one["network"] == {} and one["bias"]["best_on_first_half"] is not None
    assert [step["pair"] for step in three["steps"]] == [["PSA", "ICD+CRF"], ["after ICD+CRF", "PSA+CRF"]]
    assert three["bias"] is None
    # An unknown pixel is wrong, but takes nothing from another class: the oracle leads where it chooses from the first.
    oracle = one["rules"]["oracle"]["miou"]
    assert all(one["rules"][rule]["miou"] <= oracle for rule in ("ICD", "PSA", "flags alone", "static SSDD"))
    assert three["rules"]["PSA"]["miou"] < three["rules"]["oracle"]["miou"]
    folder = stages.folder(replace(own_run, modelid="three"), "mode 1")
    expected = evaluate(folder, own_run.voc_root, read_ids(own_run.voc_root, "train"))
    assert three["rules"]["static SSDD"]["miou"] == expected["miou"]
    tables = tmp_path / "tables"
    paper_tables.main([own_run.out, "--modelid", "unknown", "--voc-root", own_run.voc_root, "--into", str(tables)])
    table = (tables / "tables.md").read_text()
    assert "| ICD |" in table and "(leaving 255 out 100.0)" in table and "68.0 on VOC test" in table


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
