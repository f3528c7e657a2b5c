"""The ledger: green on a whole run; on a tampered one it stops where the harm was done and names the cause first."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.voc import CLASSES_FILE, image_path, list_path, mask_path, read_ids, read_mask, write_mask
from engine import checkpoint, ledger, ledger_causes, stages
from evaluation import expected
from evaluation.masks import evaluate
from prepare_labels import make_aff_labels, make_cam_labels
from script.make_pages import make_pages
from settings import crf
from settings.config import Config
from tests.conftest import as_flags
from tests.test_files import refused
from tests.test_pages import data_of
from tools import ledger as program


def told(config: Config, against: Path, capsys) -> tuple[int, list[str], str]:
    """Exit status, the verdicts by stage, and the first cause of the ledger of a run against another."""
    flags = [config.out, "--voc-root", config.voc_root, "--against", str(against)]
    status = 0
    try:
        program.main(flags)
    except SystemExit as end:
        status = end.code
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")][1:]
    causes = [line for line in out.splitlines() if line.startswith(" 1. ")]
    return status, [f"{row[0]}: {row[-1]}" for row in rows], causes[0][4:] if causes else ""


def test_a_whole_run_is_green_and_every_figure_is_that_of_its_masks(own_run, finished_run, capsys):
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert (status, cause) == (0, "")
    titles = [stages.STAGES[name].title for name in stages.PSA + stages.SSDD]
    assert list(dict.fromkeys(v.split(": ")[0] for v in verdicts)) == titles
    assert {v.split(": ")[1] for v in verdicts} == {"done", "as expected"}
    kept = json.loads((Path(own_run.out) / "ledger.json").read_text())["ledger"]
    here = {(row["stage"], row["what"]): row["here"] for row in kept if row["what"]}
    assert set(here) == {
        *(("make_cam_labels", "cam"), ("make_aff_labels", "psa"), ("make_aff_labels", "psa_crf"), ("mode 1", "ssdd")),
        *(("mode 3", "mask"), ("mode 3", "mask after CRF")),
    }
    masks = evaluate(Path(own_run.out) / "validation/ssdd/crf", own_run.voc_root, read_ids(own_run.voc_root, "val"))
    assert here["mode 3", "mask after CRF"] == pytest.approx(100 * masks["miou"])


def test_another_list_between_two_stages_is_named_at_the_later(own_run, finished_run, capsys):
    path = list_path(own_run.voc_root, "train_aug")
    path.write_text("".join(f"{i}\n" for i in read_ids(own_run.voc_root, "train_aug")[:-1]))
    make_aff_labels.main([*as_flags(own_run), "--fresh"])
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert (
        status == 1
        and verdicts[-1] == "PSA: not comparable"
        and cause.startswith("list: it worked on another train_aug")
    )


def test_a_list_changed_after_the_run_is_named_at_the_first_stage(own_run, finished_run, capsys):
    with open(list_path(own_run.voc_root, "train_aug"), "a") as file:
        file.write(read_ids(own_run.voc_root, "val")[0] + "\n")
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert status == 1 and len(verdicts) == 1 and verdicts[0].startswith("classifier") and "was changed after" in cause


def test_imported_labels_need_no_stages_before_them(own_run, finished_run, capsys):
    results = Path(own_run.out) / "prepare_labels" / "results"
    for name in ("aff", "out_cam", "out_la_crf", "out_ha_crf"):
        shutil.rmtree(results / name)
    for name in ("out_aff", "out_aff_crf"):
        (results / name / "config.json").unlink()
    status, verdicts, _ = told(own_run, finished_run, capsys)
    assert status == 0 and "PSA, imported: as expected" in verdicts and not any("Affinity" in v for v in verdicts)
    shutil.rmtree(results / "out_aff")
    flags = [own_run.out, "--voc-root", own_run.voc_root, "--against", str(finished_run)]
    assert "out_cam is missing: make it with" in refused(program.main, flags, capsys)


def test_another_crf_is_named_where_it_was_used(own_run, finished_run, capsys):
    make_aff_labels.main([*as_flags(replace(own_run, crf_sxy=5.0)), "--fresh"])
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert (
        status == 1
        and verdicts[-1].startswith("PSA: ")
        and cause == ("crf: another CRF than that of the figures: crf_sxy 5 instead of 80")
    )


def test_a_crf_that_was_left_out_is_named(own_run, finished_run, capsys):
    folder = Path(own_run.out) / "validation" / "ssdd"
    for path in (folder / "mask").glob("*.png"):
        shutil.copy(path, folder / "crf" / path.name)
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert status == 1 and verdicts[-1].startswith("mode 3") and "CRF was left out" in cause


@pytest.mark.parametrize("stage", ["train_cls", "mode 2"])
def test_changed_weights_are_named_at_the_stage_that_left_them(stage, own_run, finished_run, capsys):
    folder = stages.folder(own_run, stage)
    path = folder / "weights.pth" if stage == "train_cls" else stages.checkpoint_path(folder, "seg", 1)
    content = checkpoint.load(path)
    content["state_dict"]["conv1a.weight" if stage == "train_cls" else "seg_main.seg2.bias"] += 1
    torch.save(content, path)
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert status == 1 and verdicts[-1] == f"{stages.STAGES[stage].title}: not comparable"
    assert cause.startswith(f"weights: {path} was changed after")


def test_a_stage_that_started_from_other_weights_is_named(own_run, finished_run, tmp_path, capsys):
    other = tmp_path / "other.pth"
    state = checkpoint.load(stages.label_network(own_run, "train_cls"))["state_dict"]
    torch.save({key: value + 0.01 for key, value in state.items()}, other)
    make_cam_labels.main([*as_flags(replace(own_run, weights=str(other))), "--fresh"])
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert status == 1 and verdicts[-1].startswith("CAM: ")
    assert cause == "weights: it started from another other.pth than classifier left"


def test_a_figure_that_is_off_stops_with_the_likely_causes(own_run, finished_run, capsys):
    """Nothing is proven here: the masks of mode 3 alone were moved."""
    for path in (Path(own_run.out) / "validation/ssdd/mask").glob("*.png"):
        write_mask(path, read_mask(mask_path(own_run.voc_root, path.stem)))
    status, verdicts, cause = told(own_run, finished_run, capsys)
    assert status == 1 and verdicts[-1].startswith("mode 3, validation: off by +") and cause.startswith("boundary: ")


def test_a_missing_stage_is_one_line_with_its_command(own_run, finished_run, capsys):
    shutil.rmtree(stages.folder(own_run, "mode 1"))
    flags = [own_run.out, "--voc-root", own_run.voc_root, "--against", str(finished_run)]
    said = refused(program.main, flags, capsys)
    assert "precompute/ssdd is missing" in said and "`python main_ssdd.py --mode=1" in said
    assert "python main_ssdd.py --mode=1" in data_of(Path(own_run.out) / "script" / "ledger.html")["missing"]


@pytest.mark.parametrize("change", [{"made_from": []}, {"made_from": {"a": 1}}, {"crf_sxy": "wide"}, {"lr": None}])
def test_a_damaged_config_is_one_line(change, own_run, finished_run, capsys):
    path = stages.folder(own_run, "make_aff_labels") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    flags = [own_run.out, "--voc-root", own_run.voc_root, "--against", str(finished_run)]
    assert f"{path} cannot be used" in refused(program.main, flags, capsys)


def test_runs_without_figures_are_refused_in_one_line(own_run, tmp_path, capsys):
    root = ["--voc-root", own_run.voc_root]
    assert "--width=0.0625" in refused(program.main, [own_run.out, *root], capsys)
    assert "holds no run" in refused(program.main, [str(tmp_path), *root], capsys)
    marker = Path(own_run.voc_root) / "demo.json"
    marker.unlink()
    assert "belong to --preset=voc" in refused(program.main, [own_run.out, *root], capsys)
    (Path(own_run.voc_root) / CLASSES_FILE).write_text("thing\n")
    assert "its own classes" in refused(program.main, [own_run.out, *root], capsys)
    assert "--voc-root" in refused(program.main, [own_run.out, "--voc-root", str(tmp_path)], capsys)
    assert not (Path(own_run.out) / "ledger.json").exists()
    assert image_path(own_run.voc_root, read_ids(own_run.voc_root, "val")[0]).exists()


def test_the_page_shows_the_causes(own_run, finished_run, capsys):
    make_pages(own_run, ["ledger"])
    page = Path(own_run.out) / "script" / "ledger.html"
    assert "python -m tools.ledger" in data_of(page)["reason"]
    make_aff_labels.main([*as_flags(replace(own_run, crf_srgb=5.0)), "--fresh"])
    told(own_run, finished_run, capsys)
    data = data_of(page)
    assert data["rows"][-1]["title"] == "PSA" and data["findings"][0]["cause"] == "crf"
    assert data["rows"][1]["known"][0].endswith(f"measured in {finished_run}")


def test_figures_name_stages_sources_and_crfs_that_exist():
    written = stages.sources()
    for each in expected.FIGURES:
        assert each.stage in stages.STAGES and each.source and each.figures
        assert each.what in (expected.MASK, expected.AFTER) or written[each.what][0] == each.stage
        assert each.crf in ("", *crf.KERNELS) and (not each.on or each.on in written)
    assert ledger_causes.LIKELY.keys() <= stages.STAGES.keys()
    psa = [e for e in expected.FIGURES if e.what == "psa" and e.data == expected.VOC]
    assert expected.interval(psa) == (50.5, 63.0)
    drawn = replace(psa[0], data=expected.DEMO, figures=(50.0, 51.0))
    assert expected.interval([drawn]) == (46.0, 55.0)
    assert {e.data for e in expected.FIGURES if e.judged} == {expected.VOC, expected.COCO, expected.DEMO}


@pytest.mark.parametrize("data", [expected.VOC, expected.COCO])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_published_figures_of_a_run(data, recipe, tmp_path):
    config = replace(Config(), recipe=recipe)
    entries = [ledger.Entry(stage, tmp_path, {}) for stage in ("mode 0", "mode 2")]
    entries += [ledger.Entry("mode 4", tmp_path, {"network": "deeplabv3plus"}, "truth")]
    run = ledger.Run(tmp_path, "ssdd", tmp_path, data, config, tuple(entries), ())
    known = ledger.published(run)
    assert {e.data for e in known.figures} == {data} and known.lists["train"]
    here = [known.settings[entry.key] for entry in entries]
    assert [s["epochs"] for s in here] == [16, 41, 45] and [s["lr"] for s in here] == [1e-3, 1e-3, 7e-3]
    own = [e.figures for e in known.figures if e.stage == "mode 3" and not e.on and e.judged]
    causes = [cause.cause for cause in ledger_causes.likely(run, ledger.Entry("recurseed evaluate", tmp_path, {}))]
    assert (causes[0] == "masks") == (data == expected.COCO) and "unpublished" in causes
    assert own == {expected.VOC: [(64.9,) if recipe == "paper" else (65.4,)], expected.COCO: []}[data]


def test_the_batch_of_a_pass_and_the_precision_are_no_other_settings():
    there = {"eval_batch": 4, "precision": "float32", "seed_bias": 0.4, "seed": 0}
    entry = ledger.Entry(
        "mode 1", Path("precompute/ssdd"), there | {"eval_batch": 1, "precision": "bfloat16", "seed_bias": 0.5}
    )
    known = ledger.Known({entry.key: there}, (), {})
    assert ledger.differing(entry, known) == {"seed_bias": (0.5, 0.4)}
