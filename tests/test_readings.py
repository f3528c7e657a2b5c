"""Other readings of the difference maps, by hand, and as rules beside static SSDD."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import main_ssdd
from datasets.voc import read_ids
from engine import stages
from evaluation.masks import evaluate
from evaluation.readings import Detection, Spreads, by_mean_and_spread, kinds, masks_by_readings
from models.ssdd.difference import map_score
from models.ssdd.steps import Integration, integrated
from settings.ssdd import READINGS
from tests.conftest import as_flags
from tools import seed_rivals


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# Six pixels: unchanged, unchanged, unchanged, erased, grown, exchanged; half are changed.
KNOWLEDGE, ADVICE = np.array([[0, 0, 3, 3, 0, 3]], np.uint8), np.array([[0, 0, 3, 0, 3, 5]], np.uint8)
D_K, D_A = [0.0, 2.0, 1.0, -1.0, 2.0, 0.5], [0.0, 1.0, 1.0, 2.0, -1.0, 3.0]


def as_tensors(knowledge, advice):
    masks = [torch.from_numpy(mask.astype(np.int64))[None] for mask in (knowledge, advice)]
    return [torch.tensor(d)[None, None, None] for d in (D_K, D_A)], masks


def test_readings_by_hand():
    d, masks = as_tensors(KNOWLEDGE, ADVICE)
    found = {reading: map_score(*d, *masks, reading).flatten().tolist() for reading in READINGS}
    published = [sigmoid(k) - sigmoid(a) for k, a in zip(D_K, D_A, strict=True)]
    assert found["published"] == pytest.approx(published, abs=1e-6)
    assert found["logits"] == pytest.approx([(k - a) / 4 for k, a in zip(D_K, D_A, strict=True)])
    # Where half of the pixels change, the balanced probability is the true one.
    assert found["calibrated"] == pytest.approx(published, abs=1e-6)
    alone = [sigmoid(k) - 0.5 for k in D_K]
    assert found["apart"] == pytest.approx([*published[:2], alone[2], published[3], *alone[4:]], abs=1e-6)


def test_calibrated_takes_the_share_of_the_known_pixels_that_change():
    d, masks = as_tensors(np.array([[0, 0, 3, 3, 255, 3]], np.uint8), np.array([[0, 0, 3, 0, 3, 3]], np.uint8))
    shift = math.log(0.2 / 0.8)  # one of five known ones
    expected = [(sigmoid(k + shift) - sigmoid(a + shift)) / (4 * 0.2 * 0.8) for k, a in zip(D_K, D_A, strict=True)]
    assert map_score(*d, *masks, "calibrated").flatten().tolist() == pytest.approx(expected, abs=1e-5)
    # Images do not mix.
    both = [torch.cat([d[0], d[1]]), torch.cat([d[1], d[0]])]
    twice = map_score(*both, *(torch.cat([m, m]) for m in masks), "calibrated")
    assert twice[0].flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(twice[0], -twice[1])


@pytest.mark.parametrize("reading", READINGS)
def test_maps_that_say_nothing_leave_the_choice_to_the_flags(reading):
    _, masks = as_tensors(KNOWLEDGE, ADVICE)
    zero = torch.zeros(1, 1, 1, 6)
    assert not map_score(zero, zero, *masks, reading).any()
    how, present = Integration(0.4, weight=9.0, reading=reading), torch.ones(1, 6)
    expected = integrated(*masks, zero, zero, present, Integration(0.4)).refined
    assert torch.equal(integrated(*masks, zero, zero, present, how).refined, expected)
    assert torch.equal(integrated(*masks, zero + 1, zero - 9, present, how._replace(parts="flags")).refined, expected)


def test_a_pixel_one_standard_deviation_below_the_mean_is_left_to_the_knowledge():
    # Scores of logits at the changed pixels: -0.75, 0.75, -0.625.
    spreads = Spreads()
    spreads.add(KNOWLEDGE, ADVICE, torch.tensor([D_K, D_A])[:, None], torch.zeros(1, 6))
    there = np.array([-0.75, 0.75, -0.625])
    assert spreads.of("logits") == pytest.approx((there.mean(), there.std()))
    assert spreads.of("logits", "erased") == pytest.approx((-0.75, 0))
    assert spreads.of("logits", "shown") == pytest.approx((there[1:].mean(), there[1:].std()))
    how = by_mean_and_spread(Integration(0.4), "logits", *spreads.of("logits"))
    weighed = how.weight * there + how.bias
    assert weighed == pytest.approx(0.4 * (1 + (there - there.mean()) / there.std()))
    assert Spreads().of("logits") == (0.0, 0.0)


def test_rules_of_readings_by_hand():
    spreads, d = Spreads(), torch.tensor([D_K, D_A])[:, None, None]
    spreads.add(KNOWLEDGE, ADVICE, d[:, 0], torch.zeros(1, 6))
    masks = masks_by_readings([KNOWLEDGE, ADVICE], d, torch.zeros(1, 6), Integration(0.4), spreads)
    # (d_K - d_A)/4 + 0.4 < 0 at two pixels, σ(d_K) - ½ + 0.4 at none.
    assert masks["logits"].tolist() == [[0, 0, 3, 3, 3, 3]]
    assert masks["apart"].tolist() == [[0, 0, 3, 3, 3, 5]]
    # -0.75, 0.75, -0.625 have mean -0.21 and deviation 0.68: none lies so far below.
    assert masks["logits, by mean and spread"].tolist() == ADVICE.tolist()
    # Two pixels each lie one deviation from their mean, and a single one on it; exactly one is no matter of rounding.
    kind = "published, by mean and spread of each kind"
    assert masks[kind][0, :5].tolist() == ADVICE[0, :5].tolist()
    three, twice = [KNOWLEDGE, ADVICE, ADVICE], d.repeat(1, 2, 1, 1)
    several = masks_by_readings(three, twice, torch.zeros(1, 6), Integration(0.4), spreads)
    assert kind not in several and several["logits"].tolist() == masks["logits"].tolist()


def test_the_bias_follows_the_share_of_labelled_classes_that_the_advice_keeps():
    spreads, d, present = Spreads(), torch.tensor([D_K, D_A])[:, None, None], torch.zeros(1, 6)
    assert spreads.bias_by_kept_classes() == pytest.approx(math.log(99) / 4)
    present[0, [0, 1, 2, 3, 5]] = 1
    # Of four objects class 3 keeps two of three pixels, 5 is new, 1 and 2 are in neither mask: lost.
    spreads.add(KNOWLEDGE, ADVICE, d[:, 0], present)
    assert spreads.bias_by_kept_classes() == 0
    masks = masks_by_readings([KNOWLEDGE, ADVICE], d, 0 * present, Integration(0.4), spreads)
    # Without a bias the sign of d_K − d_A decides.
    for reading in ("published", "logits", "calibrated"):
        assert masks[f"{reading}, bias by kept classes"].tolist() == [[0, 0, 3, 3, 3, 3]]
    present[0, [2, 5]] = 0
    spreads.add(KNOWLEDGE, ADVICE, d[:, 0], present)
    spreads.add(KNOWLEDGE, KNOWLEDGE, d[:, 0], present)
    # Lost in all: 1 and 2, then 1, then 1; of 8.
    assert (spreads.lost, spreads.labelled) == (4, 8)
    present[0, 1] = 0
    spreads.add(KNOWLEDGE, KNOWLEDGE, d[:, 0], present)
    assert spreads.bias_by_kept_classes() == pytest.approx(math.log(5 / 4) / 4)


def test_kinds_of_change():
    knowledge, advice = np.array([[0, 3, 0, 3, 255, 3]], np.uint8), np.array([[0, 0, 3, 5, 3, 255]], np.uint8)
    found = {name: np.flatnonzero(where).tolist() for name, where in kinds(knowledge, advice).items()}
    assert found == {"erased": [1], "grown": [2], "exchanged": [3]}


def test_areas_are_those_of_the_kind():
    knowledge, advice = np.array([[3, 3, 3, 0, 0, 0]], np.uint8), np.array([[0, 0, 0, 3, 3, 3]], np.uint8)
    maps = torch.tensor([[2.0, 1.0, -1.0, 3.0, 1.0, -2.0], [0.0] * 6])[:, None]
    detection = Detection()
    # Erased: right where the score is highest and lowest, wrong between. Grown: right, right, then wrong.
    detection.add(knowledge, advice, maps, np.array([[0, 3, 0, 3, 3, 0]], np.uint8))
    areas = detection.areas()["published"]
    assert areas == {"all": 6.5 / 8, "erased": 0.5, "grown": 1.0, "exchanged": None}


def test_mode_1_makes_what_the_rows_say(own_run, tmp_path):
    ids = read_ids(own_run.voc_root, "train")
    seed_rivals.main([own_run.out, "--voc-root", own_run.voc_root, "--json", str(tmp_path / "rivals.json")])
    result = json.loads((tmp_path / "rivals.json").read_text())[own_run.out]
    (step,) = result["steps"]
    assert step["readings"]["published"]["all"] == pytest.approx(step["detection"], abs=0.01)
    rows = {
        "calibrated": {},
        "logits, by mean and spread": result["flags"]["logits"],
        "published, bias by kept classes": {"seed_bias": result["bias_by_kept_classes"]},
    }
    for row, flags in rows.items():
        config = replace(own_run, reading=row.split(",")[0], **flags)
        main_ssdd.main(["--mode=1", *as_flags(config), "--fresh"])
        expected = evaluate(stages.folder(config, "mode 1"), config.voc_root, ids)
        assert result["rules"][row]["miou"] == pytest.approx(expected["miou"], abs=1e-6)
