"""The study of the differences: what each run changes, shares and learns on, and how it goes on."""

import dataclasses
import json
import shutil

import pytest

from datasets.demo import make_demo
from datasets.errors import InputError
from datasets.voc import image_path, mask_path, read_ids
from engine import commands
from evaluation.masks import evaluate
from settings.config import demo, voc, with_recipe
from tests.conftest import as_flags, commands_here, labels_folder, tiny
from tests.test_bad_input import refused
from tools import growth, study
from tools.study import BASE, hold_out, jobs, variants


@pytest.mark.parametrize("config", [demo(), voc(), with_recipe(demo(), "released"), with_recipe(voc(), "released")])
def test_each_difference_is_switched_alone(config):
    found = variants(config)
    assert [variant.number for variant in found.values()] == list("123456789")
    for name, variant in found.items():
        assert name in variant.fields
        assert all(getattr(config, field) != value for field, value in variant.fields.items())
        assert len(variant.fields) == (2 if name == "seed_bias" else 1)


def test_released_differs_from_paper_by_the_variants_of_its_recipe():
    paper, released = dataclasses.asdict(voc()), dataclasses.asdict(with_recipe(voc(), "released"))
    switched = {k: v for variant in variants(voc()).values() for k, v in variant.fields.items()}
    for field in ("swap_maps", "precompute_augmented", "move_maps", "seed_target", "static_checkpoint", "seed_bias"):
        assert paper[field] != released[field] == switched[field]


def test_jobs_stand_after_what_they_need_and_start_where_they_must():
    config = dataclasses.replace(demo(), out="study")
    todo = jobs(config, 5, 3)
    names = [job.name for job in todo]
    assert len(set(names)) == len(names) == 5 + 3 * (1 + 4 + 9 + 4)
    for place, job in enumerate(todo):
        assert not job.after or job.after in names[:place]
    modes = {job.name: [word for command in job.commands for word in command if word[:7] == "--mode="] for job in todo}
    assert modes["seed2 swap_maps"] == ["--mode=2", "--mode=3"]
    assert modes["seed2 flag_rule"] == ["--mode=1", "--mode=2", "--mode=3"]
    assert modes["seed2 momentum"] == ["--mode=0", "--mode=1", "--mode=2", "--mode=3"]
    swapped = next(job for job in todo if job.name == "seed1 swap_maps")
    assert all("--swap-maps" in command and "--seed=1" in command for command in swapped.commands)
    assert all("--modelid=swap_maps" in command for command in swapped.commands)


def test_held_out_images_are_neither_learnt_nor_those_of_val(own_voc, tmp_path):
    config = tiny(own_voc, tmp_path / "study")
    root = hold_out(config)
    train, val = read_ids(root, "train"), read_ids(root, "val")
    assert sorted(train + val) == sorted(read_ids(own_voc, "train")) and not set(train) & set(val)
    assert read_ids(root, "train_aug") == train and len(val) == 1
    assert not set(read_ids(own_voc, "val")) & set(train + val)
    assert hold_out(config) == root
    (own_voc / "ImageSets" / "Segmentation" / "train.txt").write_text("".join(f"{i}\n" for i in train + val))
    with pytest.raises(InputError, match="of other images"):
        hold_out(config)


@pytest.fixture
def here(monkeypatch):
    """Commands run in this process; the list of them. Three differences, one for each mode that one can begin with."""
    ran = commands_here(monkeypatch, study)
    all_variants = study.variants
    chosen = ("momentum", "seed_bias", "swap_maps")
    monkeypatch.setattr(
        study, "variants", lambda config: {k: v for k, v in all_variants(config).items() if k in chosen}
    )
    all_parts = study.parts
    monkeypatch.setattr(study, "parts", lambda config: {"only_flags": all_parts(config)["only_flags"]})
    return ran


def test_study_measures_shares_and_goes_on(own_voc, tmp_path, here, capsys, monkeypatch):
    out = tmp_path / "study"
    config = dataclasses.replace(tiny(own_voc, out), static_epochs=2)
    flags = [*as_flags(config), "--seeds=2", "--variant-seeds=1", "--jobs=1"]

    # Stopped in the middle …
    run = commands.run_command

    def breaking(command, log):
        if "--modelid=seed_bias" in command:
            raise InputError("stopped by the test")
        run(command, log)

    with monkeypatch.context() as patch:
        patch.setattr(commands, "run_command", breaking)
        with pytest.raises(SystemExit) as end:
            study.main(flags)
    assert end.value.code == 2 and "stopped by the test" in capsys.readouterr().err
    before = len(here)
    assert not (out / "study.md").exists()

    # … it goes on with what is left, and a third start has nothing to do.
    study.main(flags)
    said = capsys.readouterr().out
    rest = {word for command in here[before:] for word in command if word.startswith("--modelid")}
    assert before and "--modelid=seed_bias" in rest
    assert not any("prepare_labels.train_cls" in command for command in here[before:])
    done = len(here)
    study.main(flags)
    assert len(here) == done

    content = json.loads((out / "study.json").read_text())
    root, held = out / "VOC2012", read_ids(out / "VOC2012", "val")
    assert content["miou"].keys() == {BASE, "momentum", "seed_bias", "swap_maps", "only_flags"}
    for name, columns in content["miou"].items():
        masks = out / "seed0" / "validation" / name / "crf"
        assert columns["network + CRF"] == [evaluate(masks, root, held)["miou"]]
        assert ("seeds" in columns) == (name != "swap_maps")
    assert (out / "seed0" / "precompute" / "swap_maps").resolve() == out / "seed0" / "precompute" / BASE
    assert (out / "seed0" / "logs" / "sssdd_seed_bias").resolve() == out / "seed0" / "logs" / f"sssdd_{BASE}"
    assert not (out / "seed0" / "logs" / "sssdd_momentum").is_symlink()
    text = (out / "study.md").read_text()
    assert f"| flags | {100 * content['miou']['only_flags']['seeds'][0]:.1f} |" in text
    assert text in said and "| 3 | swap_maps = True | not touched |" in text and "no VOC figure" in text
    assert "flags alone" in (out / "rivals.md").read_text() and "2 runs" in (out / "rivals.md").read_text()
    table = (out / "tables" / "tables.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| ground truth"))
    assert row.split("|")[3].strip() != "–"


def test_failed_command_is_named_with_its_log(tmp_path):
    with pytest.raises(
        InputError, match=r"`python main_ssdd.py --mode=0 --voc-root=nowhere` failed \(no VOC at nowhere"
    ):
        commands.run_command(["main_ssdd.py", "--mode=0", "--voc-root=nowhere"], tmp_path / "log" / "x.txt")
    assert "error: no VOC" in (tmp_path / "log" / "x.txt").read_text()


@pytest.mark.parametrize("flag", ["--seeds=0", "--variant-seeds=6", "--jobs=0", "--variant-seeds=-1"])
def test_numbers_that_cannot_work(flag, own_voc, tmp_path, capsys):
    flags = [*as_flags(tiny(own_voc, tmp_path / "study")), flag]
    assert "--seeds" in refused(study.main, flags, tmp_path / "study", capsys)
    assert "--epochs" in refused(study.main, [*flags, "--epochs=1"], tmp_path / "study", capsys)


def test_too_few_images(tmp_path, capsys):
    make_demo(tmp_path / "VOC2012", 3, 1)
    flags = as_flags(tiny(tmp_path / "VOC2012", tmp_path / "study"))
    assert "at least 5" in refused(study.main, flags, tmp_path / "study", capsys)


@pytest.mark.parametrize("tool", [study, growth])
@pytest.mark.parametrize("changed", ["photographs or annotations", "true masks", "seeds or labels", ""])
def test_what_is_done_is_not_believed_once_what_it_was_made_from_has_changed(
    tool, changed, own_voc, tmp_path, capsys, monkeypatch
):
    """Neither done again nor shown: of one folder some stages could be of the old inputs, others of the new."""
    ran, ids, config = [], read_ids(own_voc, "train_aug"), tiny(own_voc, tmp_path / "all")
    monkeypatch.setattr(commands, "run_command", lambda command, log: ran.append(command))
    monkeypatch.setattr(tool, "run_command", lambda command, log: exit("all is done"))
    flags = [*as_flags(config), "--jobs=1"]
    if tool is study:
        seeds = tmp_path / "masks"
        flags += ["--seeds=1", "--variant-seeds=0", f"--advice=masks:{seeds}"]
    else:
        chain = dataclasses.replace(config, out=str(tmp_path / "labels"))
        seeds = labels_folder(chain, "out_aff")
        flags += ["--sizes", "2", "4", f"--labels={chain.out}"]
    shutil.copytree(own_voc / "SegmentationClass", seeds)
    counts = []
    for _ in range(2):
        with pytest.raises(SystemExit, match="all is done"):
            tool.main(flags)
        counts.append(len(ran))
    assert counts[0] == counts[1] > 0
    if not changed:  # an older version noted nothing, and is believed
        for path in (tmp_path / "all" / "done").iterdir():
            marker = json.loads(path.read_text())
            assert marker.pop("made_from")
            path.write_text(json.dumps(marker))
        with pytest.raises(SystemExit, match="all is done"):
            tool.main(flags)
        return
    victim = {
        "photographs or annotations": image_path(own_voc, ids[0]),
        "true masks": mask_path(own_voc, ids[0]),
        "seeds or labels": seeds / f"{ids[0]}.png",
    }[changed]
    victim.write_bytes(victim.with_stem(ids[1]).read_bytes())
    said = refused(tool.main, flags, tmp_path, capsys)
    assert f"was made from other {changed} than are there now: give another --out" in said
    assert len(ran) == counts[0]
