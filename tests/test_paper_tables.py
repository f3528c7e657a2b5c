"""The paper's tables from runs: every figure against the masks, published figures apart, runs never mixed."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_ssdd
from datasets.seed_store import store_path
from datasets.voc import CLASSES, read_ids, read_mask, write_mask
from engine import stages
from evaluation import expected as expected_figures
from evaluation.masks import evaluate
from settings.config import demo
from tests.conftest import as_flags
from tests.test_bad_input import refused
from tools import paper_tables
from tools.paper_tables import bars


@pytest.fixture
def two_runs(own_run, tmp_path):
    """Two runs of which the second's PSA network has other masks; `out` has networks on PSA seeds and true masks."""
    for source in ("psa", "truth"):
        for mode in "43":
            main_ssdd.main([f"--mode={mode}", *as_flags(replace(own_run, seed_source=source))])
    second = tmp_path / "second"
    shutil.copytree(own_run.out, second)
    for path in second.rglob("config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 1, "out": str(second)}))
    for image_id in read_ids(own_run.voc_root, "val"):
        truth = read_mask(Path(own_run.voc_root) / "SegmentationClass" / f"{image_id}.png").copy()
        truth[: len(truth) // 2][truth[: len(truth) // 2] != 255] = 0
        truth[truth == 255] = 0
        write_mask(second / "validation" / "fixed_psa_ssdd" / "crf" / f"{image_id}.png", truth)
    shutil.rmtree(second / "validation" / "fixed_truth_ssdd")
    return own_run, [own_run.out, str(second)]


def rows(text):
    """{first cell: other cells} of all tables."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_tables_hold_the_figures_of_the_masks(two_runs, tmp_path, capsys):
    config, outs = two_runs
    into = tmp_path / "tables"
    paper_tables.main([*outs, "--voc-root", config.voc_root, "--into", str(into)])
    said, text = capsys.readouterr().out, (into / "tables.md").read_text()
    assert text in said and f"Runs: {outs[0]} (seed 0), {outs[1]} (seed 1)." in text
    assert "no VOC figure" in text and "measured on VOC" not in text
    table = rows(text)
    ids = {split: read_ids(config.voc_root, split) for split in ("train", "val")}

    def percent(folder, split, name=None):
        figures = [
            evaluate(Path(out) / folder, config.voc_root, ids[split]) for out in outs if (Path(out) / folder).is_dir()
        ]
        return [100 * (f["miou"] if name is None else f["iou"][name]) for f in figures]

    def shown(values):
        return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")

    psa = [shown(percent("prepare_labels/results/out_aff", "train"))]
    psa += [shown(percent(f"validation/fixed_psa_ssdd/{kind}", "val")) for kind in ("mask", "crf")]
    assert table["PSA"] == [*psa, "2", "52.5", "58.4"]
    assert psa[2].split(" ± ")[1] != "0.0"
    assert table["static SSDD"][1:] == ["–", "–", "2", "53.4", "61.4"]
    assert table["dynamic SSDD"][2:] == [shown(percent("validation/ssdd/crf", "val")), "2", "–", "64.9"]
    assert table["ground truth"][1:] == [
        *(shown(percent(f"validation/fixed_truth_ssdd/{kind}", "val")) for kind in ("mask", "crf")),
        *("1", "–", "–"),
    ]
    before, after = (percent(f"validation/{run}/crf", "val", "background") for run in ("fixed_psa_ssdd", "ssdd"))
    difference = f"{np.mean(np.array(after) - before):+.1f}"
    assert table["background"] == [shown(before), shown(after), difference, "88.2", "89.0", "+0.8"]
    assert table["sofa"][:3] == ["–", "–", "–"]
    assert table["**mIoU**"][3:] == ["61.7", "64.9", "+3.2"]

    content = json.loads((into / "tables.json").read_text())
    assert content["about"]["runs"] == dict(zip(outs, (0, 1), strict=True)) and content["about"]["preset"] == "demo"
    expected = evaluate(Path(outs[1]) / "validation" / "fixed_psa_ssdd" / "crf", config.voc_root, ids["val"])
    assert content["measured"]["network + CRF"]["PSA"][outs[1]] == expected
    for name in ("seeds.png", "classes.png"):
        with Image.open(into / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


def test_recurseeds_own_networks_stand_in_a_table_apart(own_run, tmp_path, capsys):
    """Its masks and seeds are other folders of the run under RecurSeed's names, so that their figures are known."""
    out = Path(own_run.out)
    copies = {
        "precompute/ssdd": "seeds/mixed/recurseed",
        "validation/ssdd/mask": "validation/recurseed_mixed/mask",
        "validation/ssdd/crf": "validation/recurseed_mixed/crf",
    }
    for ours, theirs in copies.items():
        shutil.copytree(out / ours, out / theirs, ignore=shutil.ignore_patterns("config.json"))
    for folder, stage in (("logs/recurseed_mixed", "recurseed train"), ("seeds/mixed/recurseed", "recurseed labels")):
        config = replace(own_run, modelid="mixed", epochs=3, recurseed_from=2, mix_from=4, recurseed_lr=0.01)
        (out / folder).mkdir(exist_ok=True)
        (out / folder / "config.json").write_text(json.dumps(asdict(config) | {"stage": stage}))
    flags = [own_run.out, "--voc-root", own_run.voc_root, "--into", str(tmp_path / "tables"), "--recurseed"]
    paper_tables.main([*flags, "mixed"])
    table = rows((tmp_path / "tables" / "tables.md").read_text())
    ids = {split: read_ids(own_run.voc_root, split) for split in ("train", "val")}
    figures = [
        f"{100 * evaluate(out / folder, own_run.voc_root, ids[split])['miou']:.1f}"
        for folder, split in zip(copies, ("train", "val", "val"), strict=True)
    ]
    taught = "classification + RecurSeed; 3 epochs, adamw 0.01, average 0.999"
    assert table["mixed"] == [taught, "decoder", figures[0], "–", *figures[1:], "–"]
    assert "make it with `python main_recurseed.py" in refused(paper_tables.main, [*flags, "other"], tmp_path, capsys)


@pytest.mark.parametrize(("starts", "learned"), [((4, 2), 1), ((2, 4), 2), ((2, 3), 3), ((3, 2), 3)])
def test_certain_mix_does_not_start_before_recurseed(starts, learned):
    config = replace(demo(), epochs=3, recurseed_from=starts[0], mix_from=starts[1])
    assert paper_tables.parts_of(config) == ["classification", "RecurSeed", "CertainMix"][:learned]


def test_published_rows_have_their_published_means():
    # 64.9 is the mean of SSDD's 21 classes; PSA's row gives 61.7.
    for row, values in expected_figures.CLASSES.items():
        assert len(values) == len(CLASSES)
        assert np.mean(values) == pytest.approx(expected_figures.CLASS_MEAN[row], abs=0.06)


def test_bars_are_as_high_as_their_values():
    figure = bars("x", ["a", "b"], {"one": [(0.5, 0), (1.0, 0.1)], "two": [None, (0.25, 0)]})
    heights = [[bar.get_height() for bar in drawn] for drawn in figure.axes[0].containers if hasattr(drawn, "patches")]
    assert heights == [[50, 100], [25]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["one", "two"]


def test_runs_of_another_preset_or_recipe_are_not_mixed(two_runs, tmp_path, capsys):
    config, outs = two_runs
    for name, value in {"preset": "voc", "recipe": "released"}.items():
        for path in Path(outs[1]).rglob("config.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        flags = [*outs, "--voc-root", config.voc_root, "--into", str(tmp_path / "tables")]
        said = refused(paper_tables.main, flags, tmp_path, capsys)
        assert f"--{name}={value}" in said and outs[0] in said and outs[1] in said
        for path in Path(outs[1]).rglob("config.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {name: getattr(config, name)}))


def test_bad_masks_are_named_and_nothing_written(own_run, tmp_path, capsys):
    flags = [own_run.out, "--voc-root", own_run.voc_root, "--into", str(tmp_path / "tables")]
    ids = read_ids(own_run.voc_root, "val")
    path = stages.folder(own_run, "mode 3") / "crf" / f"{ids[1]}.png"
    whole = read_mask(path)
    write_mask(path, whole[1:])
    assert str(path.with_suffix("")) in refused(paper_tables.main, flags, tmp_path, capsys)
    write_mask(path, np.full_like(whole, 40))
    said = refused(paper_tables.main, flags, tmp_path, capsys)
    assert str(path) in said and "index 40" in said
    path.unlink()
    assert ids[1] in refused(paper_tables.main, flags, tmp_path, capsys)
    write_mask(path, whole)
    store_path(stages.folder(own_run, "make_aff_labels"), read_ids(own_run.voc_root, "train")[0]).unlink()
    assert "missing" in refused(paper_tables.main, flags, tmp_path, capsys)
    said = refused(paper_tables.main, [str(tmp_path / "nowhere"), *flags[1:]], tmp_path, capsys)
    assert "nowhere" in said
    assert not (tmp_path / "tables").exists()
