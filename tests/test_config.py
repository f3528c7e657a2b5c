"""Flags, presets and recipes, refused values, and the Config that claims a folder."""

import argparse
import dataclasses
import json
import re
import shutil
from dataclasses import replace

import pytest

import main_ssdd
from datasets.errors import InputError
from engine import stages
from engine.runs import claim_folder, last_checkpoint
from modes.ssdd.networks import integration, seed_integration
from prepare_labels import train_cls
from settings.config import GROUPS, Config, check, demo, preset, settings_of, voc, with_recipe
from settings.flags import add_flags, config_from, flags_of, parse
from tests.conftest import as_flags

# A value of each field that differs from voc()'s and can work alone.
OTHER = {
    "crop": 440,
    "width": 0.5,
    "eval_size": 456,
    "static_side": (450, 500),
    "dynamic_side": (448, 449),
    "cls_side": (300, 300),
    "eval_scales": (0.75, 1.25),
    "cam_scales": (0.5,),
    "icd_scales": (0.5,),
    "icd_momentum": 0.5,
    "epochs": 3,
    "momentum": 0.9,
    "alpha": 0.25,
    "dropout": 0.25,
}
OTHER |= {
    "recurseed_side": (300, 300),
    "recurseed_momentum": 0.5,
    "average_decay": 0.5,
    "certain": 0.75,
    "unsure": 0.25,
    "scg_foreground": 0.5,
    "scg_background": 0.125,
    "score": 0.5,
    "recurseed_scales": (1.0, 0.5),
}
FIELDS = {entry.name: entry for entry in dataclasses.fields(Config)}
EVERY = tuple(name for name in GROUPS if name != "common")


def other(name):
    default, choices = FIELDS[name].default, FIELDS[name].metadata["bounds"]
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, str) and choices and isinstance(choices, tuple):
        return next(choice for choice in choices if choice != default)
    if isinstance(default, bool):
        return not default
    return default + "x" if isinstance(default, str) else default + 1


def flag(name, value):
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_set_by_its_flag_in_both_spellings(name):
    value = other(name)
    assert value != FIELDS[name].default
    for spelling in {name, name.replace("_", "-")}:
        config = parse(flag(spelling, value), "")
        assert getattr(config, name) == value
        assert type(getattr(config, name)) is type(value)
        if name not in ("preset", "recipe", "crf_setting", "network"):
            assert config == replace(voc(), **{name: value})


def test_help_shows_every_field_with_both_spellings():
    parser = argparse.ArgumentParser()
    add_flags(parser, *EVERY)
    words = set(re.findall(r"--[\w-]+", parser.format_help()))
    assert {f"--{n}" for n in FIELDS} | {f"--{n.replace('_', '-')}" for n in FIELDS} <= words


def test_no_flags_are_the_published_setting():
    config = parse([], "")
    assert config == Config() == voc()
    published = {"crop": 448, "static_epochs": 16, "dynamic_epochs": 41, "lr": 1e-3, "bn": 2, "weight_decay": 2e-4}
    published |= {"static_side": (448, 512), "dynamic_side": (512, 768), "eval_scales": (0.5, 0.75, 1, 1.25, 1.5)}
    published |= {"crf_train": 3, "crf_eval": 10, "crf_labels": 10, "bias": 0.4, "bg": 0, "alpha": 0.5, "momentum": 0}
    published |= {"cls_epochs": 15, "cls_batch": 16, "cls_lr": 0.1, "aff_epochs": 8, "aff_batch": 8, "aff_lr": 0.1}
    published |= {"alpha_low": 4, "alpha_high": 32, "alpha_walk": 16, "walk_power": 8, "walk_log_steps": 8}
    assert {name: getattr(config, name) for name in published} == published


@pytest.mark.parametrize("name", ["voc", "demo"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_presets_with_recipes_can_work(name, recipe):
    config = parse([f"--preset={name}", f"--recipe={recipe}"], "")
    assert (config.preset, config.recipe) == (name, recipe)
    assert config == with_recipe(preset(name), recipe)
    check(config)


def test_released_recipe_changes_differences_3_to_9_only():
    own, released = dataclasses.asdict(voc()), dataclasses.asdict(parse(["--recipe=released"], ""))
    assert {name: released[name] for name in own if released[name] != own[name]} == {
        "recipe": "released",
        "swap_maps": True,
        "precompute_augmented": True,
        "move_maps": False,
        "seed_target": "ssdd2",
        "static_checkpoint": 11,
        "seed_bias": 0.1,
        "seed_bg": 0.1,
    }


def test_flags_win_over_recipe_and_preset():
    config = parse(["--no-swap-maps", "--recipe=released", "--seed_bias=0.3", "--preset=demo", "--width=0.25"], "")
    assert (config.swap_maps, config.seed_bias, config.seed_bg, config.width) == (False, 0.3, 0.1, 0.25)
    assert config.static_checkpoint == 0


BAD = {
    "--bn=0": "--bn",
    "--epochs=0": "--epochs",
    "--static_epochs=-1": "--static_epochs",
    "--eval_batch=0": "--eval_batch",
    "--crop=100": "--crop",
    "--crop=96": "--crop",
    "--eval_size=450": "--eval_size",
    "--head_dilation=60": "--crop",
    "--head_dilation=28": "--eval_scales",
    "--eval_scales 0.1": "--eval_scales",
    "--eval_scales 1 nan": "--eval_scales",
    "--cam_scales 1 -1": "--cam_scales",
    "--static_side 400 500": "--static_side",
    "--dynamic_side 600 500": "--dynamic_side",
    "--cls_side 4 500": "--cls_side",
    "--workers=-1": "--workers",
    "--preset=demo --compile": "--compile",
    "--pictures=-1": "--pictures",
    "--seed=-1": "--seed",
    "--seed=99999999999999999999": "--seed",
    "--lr=0": "--lr",
    "--lr=nan": "--lr",
    "--width=inf": "--width",
    "--width=0": "--width",
    "--weight_decay=-1e-4": "--weight_decay",
    "--label-weight-decay=-1": "--label_weight_decay",
    "--momentum=1": "--momentum",
    "--momentum=-0.1": "--momentum",
    "--bias=nan": "--bias",
    "--dropout=2": "--dropout",
    "--dropout=-0.5": "--dropout",
    "--crf_sxy=0": "--crf_sxy",
    "--walk_log_steps=-1": "--walk_log_steps",
    "--static_checkpoint=-2": "--static_checkpoint",
    "--modelid=../x": "--modelid",
    "--modelid=": "--modelid",
    "--modelid=..": "--modelid",
}
# These end in argparse's own way, its usage before the error.
BAD_FOR_ARGPARSE = {
    "--bn=two": "--bn",
    "--bn=2.5": "--bn",
    "--width=wide": "--width",
    "--preset=tiny": "--preset",
    "--recipe=mine": "--recipe",
    "--split=trainval": "--split",
    "--seed_source=guess": "--seed_source",
    "--precision=float16": "--precision",
    "--static_side 448": "--static_side",
    "--unknown=1": "--unknown",
    "stray": "stray",
}


def refused(program, flags, capsys):
    with pytest.raises(SystemExit) as end:
        program(flags)
    assert end.value.code == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if "error:" in line]
    assert len(errors) == 1
    return errors[0], said


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("program", [lambda flags: main_ssdd.main(["--mode=all", *flags]), train_cls.main])
def test_value_that_cannot_work_is_one_line_with_its_flag(program, text, capsys):
    line, said = refused(program, text.split(), capsys)
    assert BAD[text] in line
    assert said.err == line + "\n" and said.out == ""
    assert line.startswith("error: ")


@pytest.mark.parametrize("text", [*BAD_FOR_ARGPARSE, "--mode=5"])
def test_flag_that_cannot_be_parsed_is_named(text, capsys):
    flags = [text] if text.startswith("--mode") else ["--mode=0", *text.split()]
    line, _ = refused(main_ssdd.main, flags, capsys)
    assert BAD_FOR_ARGPARSE.get(text, "--mode") in line


def test_mode_must_be_given(capsys):
    assert "--mode" in refused(main_ssdd.main, [], capsys)[0]


def test_stage_takes_its_own_epochs_unless_told():
    assert voc().stage(16).epochs == 16
    assert replace(voc(), epochs=3).stage(16).epochs == 3


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--preset=demo"],
        ["--preset=demo", "--recipe=released", "--width=0.25", "--out=x y/z", "--modelid=m", "--voc-root=z"],
        ["--crop=224", "--head-dilation=6", "--seed=3", "--no-move-maps", "--eval-scales", "1.0"],
        ["--recipe=released", "--move-maps"],
    ],
)
def test_proposed_commands_carry_every_setting(flags):
    config = parse(flags, "")
    assert parse(flags_of(config), "") == config


def test_as_flags_is_the_inverse_of_parsing(tiny_config):
    for config in (tiny_config, replace(voc(), move_maps=False, eval_scales=(1.0,)), with_recipe(demo(), "released")):
        assert parse(as_flags(config), "") == config


def test_favouring_knowledge_turns_the_bias_around():
    config = replace(voc(), bias=0.3, bg=0.2, seed_bias=0.1, seed_bg=0.05)
    assert integration(config) == (0.3, 0.2, False, 1.0, "both", "published")
    assert seed_integration(config) == (0.1, 0.05, False, 1.0, "both", "published")
    config = replace(config, bias_favours="knowledge", flag_rule="poster", integration="maps", map_weight=7.0)
    config = replace(config, reading="logits")
    assert integration(config) == (-0.3, 0.2, True, 7.0, "maps", "logits")
    assert seed_integration(config) == (-0.1, 0.05, True, 7.0, "maps", "logits")


def test_claimed_folder_holds_every_field_and_takes_the_same_config_again(tmp_path):
    config = parse(["--preset=demo", "--lr=0.25"], "")
    claim_folder(tmp_path / "run", config, "mode 0", [])
    before = (tmp_path / "run" / "config.json").read_bytes()
    stored = json.loads(before)
    assert set(FIELDS) < set(stored)
    assert stored["lr"] == 0.25 and stored["static_side"] == [128, 144]
    same = replace(config, workers=0, device="cpu", precision="float32", pictures=1, eval_batch=1, crf_workers=True)
    claim_folder(tmp_path / "run", replace(same, weights="x.pth", voc_root="moved", split="test"), "mode 0", [])
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_other_width_is_refused_with_both_named(tmp_path):
    claim_folder(tmp_path / "run", demo(), "mode 0", [])
    with pytest.raises(InputError, match=r"width 0\.125, now 0\.25.*--fresh"):
        claim_folder(tmp_path / "run", replace(demo(), width=0.25), "mode 0", [])


@pytest.mark.parametrize(
    ("stage", "uses", "does_not_use"),
    [
        ("train_cls", ["seed", "epochs", "cls_lr"], ["recipe", "lr", "eval_size", "static_checkpoint"]),
        ("make_cam_labels", ["cam_scales", "crf_sxy", "width"], ["lr", "seed", "eval_scales"]),
        ("train_aff", ["aff_lr", "seed"], ["cls_lr", "lr"]),
        ("make_aff_labels", ["walk_power", "alpha_walk"], ["alpha_low", "seed"]),
        (
            "mode 0",
            ["lr", "static_side", "bn"],
            ["dynamic_side", "eval_batch", "crf_eval", "seed_target", "static_checkpoint"],
        ),
        ("mode 1", ["crop", "seed_bias", "precompute_augmented", "eval_batch"], ["lr", "eval_size"]),
        ("mode 2", ["move_maps", "seed_target", "bias", "alpha"], ["static_side", "crf_eval", "cls_lr"]),
        ("mode 3", ["eval_scales", "crf_eval", "head_dilation", "eval_batch"], ["lr", "epochs", "static_checkpoint"]),
    ],
)
def test_a_stage_is_claimed_for_what_it_depends_on(stage, uses, does_not_use, tmp_path):
    assert set(uses) <= set(settings_of(stage))
    claim_folder(tmp_path / "run", demo(), stage, [])
    for name in uses:
        with pytest.raises(InputError, match=f"{name} .*, now "):
            claim_folder(tmp_path / "run", replace(demo(), **{name: OTHER.get(name, other(name))}), stage, [])
    for name in does_not_use:
        claim_folder(tmp_path / "run", replace(demo(), **{name: OTHER.get(name, other(name))}), stage, [])


def test_fresh_moves_the_old_folder_aside_each_time(tmp_path):
    folder = tmp_path / "run"
    for width in (0.5, 0.25, 0.125):
        claim_folder(folder, replace(demo(), width=width, fresh=True), "mode 0", [])
        assert json.loads((folder / "config.json").read_text())["width"] == width
        (folder / "result").write_text(str(width))
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run", "run.old1", "run.old2"]
    assert (tmp_path / "run.old1" / "result").read_text() == "0.5"
    assert (tmp_path / "run.old2" / "result").read_text() == "0.25"


def test_folder_made_from_other_weights_is_refused(tmp_path):
    weights = tmp_path / "one.pth"
    weights.write_bytes(b"1")
    claim_folder(tmp_path / "run", demo(), "mode 3", [weights])
    claim_folder(tmp_path / "run", demo(), "mode 3", [weights])
    weights.write_bytes(b"2")
    with pytest.raises(InputError, match=r"made_from.*one\.pth"):
        claim_folder(tmp_path / "run", demo(), "mode 3", [weights])


def test_a_change_of_an_early_stage_reaches_the_last(tmp_path):
    early, late = tmp_path / "early", tmp_path / "late"
    claim_folder(early, demo(), "make_aff_labels", [])
    claim_folder(late, demo(), "mode 0", [early])
    claim_folder(early, replace(demo(), workers=7, fresh=True), "make_aff_labels", [])
    claim_folder(late, demo(), "mode 0", [early])
    claim_folder(early, replace(demo(), walk_power=4.0, fresh=True), "make_aff_labels", [])
    with pytest.raises(InputError, match="made_from"):
        claim_folder(late, demo(), "mode 0", [early])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\udcff"])
def test_damaged_config_is_named(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json"):
        claim_folder(tmp_path, demo(), "mode 0", [])
    config = replace(demo(), out=str(tmp_path))
    stages.folder(config, "mode 0").mkdir(parents=True)
    shutil.copy(path, stages.folder(config, "mode 0"))
    with pytest.raises(InputError, match=r"config\.json"):
        last_checkpoint(config, "mode 0", "seg")


def test_last_checkpoint_is_found_or_the_command_named(tmp_path):
    config = replace(demo(), out=str(tmp_path))
    folder = stages.folder(config, "mode 0")
    with pytest.raises(InputError, match=r"config\.json is missing: make it with `python main_ssdd\.py --mode=0 "):
        last_checkpoint(config, "mode 0", "seg")
    claim_folder(folder, replace(config, epochs=12), "mode 0", [])
    for epoch in (3, 10):
        path = stages.checkpoint_path(folder, "seg", epoch)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert last_checkpoint(config, "mode 0", "seg", 3).name == "seg_0003.pth"
    with pytest.raises(
        InputError, match=r"models/seg_0012\.pth is missing: make it with `python main_ssdd\.py --mode=0 "
    ):
        last_checkpoint(config, "mode 0", "seg")
    stages.checkpoint_path(folder, "seg", 12).touch()
    assert last_checkpoint(config, "mode 0", "seg").name == "seg_0012.pth"
    with pytest.raises(InputError, match="head_dilation=3"):
        last_checkpoint(replace(config, head_dilation=1), "mode 0", "seg")


def test_other_arguments_of_a_program_are_left_alone():
    assert config_from(argparse.Namespace(mode="0", bn=3)) == replace(voc(), bn=3)
