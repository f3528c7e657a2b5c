"""The CRF's settings by name: what a name stands for, how a flag takes it, what results say, and where a CRF helps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from datasets.errors import InputError
from datasets.seed_store import load_maps
from datasets.voc import read_ids, read_mask, write_mask
from engine import stages
from engine.workers import crf_kernel
from evaluation.comparison import as_markdown, compare
from settings import crf
from settings.config import Config
from settings.flags import flags_of, parse
from tests.conftest import labels_folder
from tests.test_files import refused
from tools import eval_masks

# SSDD's and RecurSeed's values as facts of their own: Gaussian pixels, weight; bilateral pixels, colours, weight.
VALUES = {
    "psa": (3, 3, 80, 13, 10),
    "ssdd": (3, 3, 80, 13, 10),
    "recurseed": (1, 3, 67, 3, 4),
    "deeplab": (1, 3, 67, 3, 4),
}


def test_without_a_name_each_system_has_its_own():
    config = parse([], "", "ssdd")
    assert crf_kernel(config) == crf.CrfKernel(*VALUES["ssdd"])
    assert [getattr(config, name) for name in crf.RECURSEED] == list(VALUES["recurseed"])


@pytest.mark.parametrize("name", VALUES)
def test_a_name_sets_all_kernels_and_a_number_wins_over_it(name):
    config = parse([f"--crf_setting={name}", "--crf_sxy=50"], "", "ssdd")
    own = dict(zip(crf.SHARED, VALUES[name], strict=True))
    assert {field: getattr(config, field) for field in crf.SHARED} == own | {"crf_sxy": 50}
    assert [getattr(config, field) for field in crf.RECURSEED] == list(VALUES[name])
    assert parse(flags_of(config), "", "ssdd") == config


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(["--crf_setting=mine"], "", "ssdd")
    assert "--crf_setting=mine" in capsys.readouterr().err


def test_what_a_stage_used_is_named_by_its_values():
    stored = vars(Config()) | {"crf_eval": 7}
    note = crf.used_by("mode 3", stored)
    assert note["setting"] == "psa, ssdd" and note["iterations"] == 7 and note["bilateral_sxy"] == 80
    assert crf.used_by("recurseed evaluate", stored)["setting"] == "recurseed, deeplab"
    assert crf.used_by("mode 3", stored | {"crf_sxy": 81.0})["setting"] == "own"
    assert crf.used_by("mode 0", stored) is None and crf.used_by("mode 3", {}) is None


def test_every_result_says_its_crf(finished_run, own_run, tiny_voc, tmp_path):
    note = crf.used_by("mode 3", vars(own_run))
    assert json.loads((finished_run / "validation/ssdd/result_val.json").read_text())["crf"] == note
    for kind in ("out_cam", "out_aff_crf"):
        assert json.loads((labels_folder(own_run, kind) / "config.json").read_text())["crf_used"] == note
    stored = load_maps(next(labels_folder(own_run, "out_aff_crf").glob("*.npz")))
    assert stored.made_by == f"PSA+CRF, {crf.as_text(note)}" and "80 pixels" in stored.made_by
    report = tmp_path / "figures.json"
    flags = ["--out", own_run.out, "--voc-root", str(tiny_voc), "--json", str(report)]
    eval_masks.main(["PSA=psa", "CRF=psa_crf", *flags, "--compare", "PSA", "CRF"])
    figures = json.loads(report.read_text())
    assert figures["PSA"]["crf"] is None and figures["CRF"]["crf"] == note
    assert figures["comparison"]["images"].keys() == set(read_ids(tiny_voc, "train"))


@pytest.fixture
def pair(tiny_voc, tmp_path):
    """Masks with every third row background: in the first folder in all images but one, in the second in that one."""
    ids = read_ids(tiny_voc, "val")
    folders = [tmp_path / "before", tmp_path / "after"]
    for n, image_id in enumerate(ids):
        truth = read_mask(tiny_voc / "SegmentationClass" / f"{image_id}.png")
        spoilt = truth.copy()
        spoilt[::3] = 0
        write_mask(folders[0] / f"{image_id}.png", spoilt if n else truth)
        write_mask(folders[1] / f"{image_id}.png", truth if n else spoilt)
    return folders


def test_comparison_by_class_and_image_as_another_library_counts(pair, tiny_voc):
    ids = read_ids(tiny_voc, "val")
    found = compare(*pair, tiny_voc, ids)
    truths = [read_mask(tiny_voc / "SegmentationClass" / f"{i}.png") for i in ids]
    for which, folder in zip(("before", "after"), pair, strict=True):
        masks = [read_mask(folder / f"{i}.png") for i in ids]
        known = [t != 255 for t in truths]
        true, seen = (np.concatenate([m[k] for m, k in zip(ms, known, strict=True)]) for ms in (truths, masks))
        there = np.unique(true)
        expected = jaccard_score(true, seen, labels=there, average=None)
        rows = list(found["classes"].values())
        assert [rows[c][which] for c in there] == pytest.approx(expected.tolist())
        for image_id, t, m, k in zip(ids, truths, masks, known, strict=True):
            by_class = jaccard_score(t[k], m[k], labels=np.unique(t[k]), average="macro")
            assert found["images"][image_id][which] == pytest.approx(by_class)
    background = found["classes"]["background"]
    assert (background["better"], background["worse"]) == (len(ids) - 1, 1)
    text = as_markdown(found, "A", "B")
    assert f"B is better than A by more than a point in {len(ids) - 1} of {len(ids)} images" in text
    assert f"Images that lose most: {ids[0]} -" in text


def test_comparison_needs_two_known_sources_with_background(finished_run, own_run, tiny_voc, capsys):
    flags = ["--out", own_run.out, "--voc-root", str(tiny_voc)]
    for names, said in (
        (["A", "C"], "needs two of the sources"),
        (["A", "A"], "needs two"),
        (["A", "B"], "no background"),
    ):
        assert said in refused(eval_masks.main, ["A=psa", "B=cam", *flags, "--compare", *names], capsys)


def test_a_named_setting_makes_other_labels(own_run):
    stage = stages.folder(own_run, "make_aff_labels", 1)
    other = replace(own_run, crf_setting="deeplab", **crf.values_of("deeplab"))
    assert crf_kernel(other) != crf_kernel(own_run) and Path(stage).exists()
    with pytest.raises(InputError, match="crf_sxy"):
        from engine import runs

        runs.claim(other, "make_aff_labels", [])
