"""All programs in turn: the precision they compute in, what their folders say they were made from, what comes next."""

import contextlib
import io
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import main_ssdd
from datasets.errors import InputError
from datasets.voc import read_ids
from engine import passes
from engine.passes import image_pass
from prepare_labels import make_aff_labels, make_cam_labels, train_aff, train_cls
from tests.conftest import as_flags, tiny

LABELS = {
    "train_cls": train_cls,
    "make_cam_labels": make_cam_labels,
    "train_aff": train_aff,
    "make_aff_labels": make_aff_labels,
}
LIST = {"train_aug.txt", "demo.json"}
TRAINED = LIST | {"pictures"}
CLS, AFF, SEEDS = {"weights.pth"}, {"weights.pth"}, {"out_aff", "out_aff_crf"}
STATIC = {"seg_0001.pth", "ssdd_0001.pth"}
MADE_FROM = {
    "prepare_labels/results/cls": TRAINED,
    "prepare_labels/results/out_cam": LIST | CLS,
    "prepare_labels/results/out_la_crf": LIST | CLS,
    "prepare_labels/results/out_ha_crf": LIST | CLS,
    "prepare_labels/results/aff": TRAINED | CLS | {"out_la_crf", "out_ha_crf"},
    "prepare_labels/results/out_aff": LIST | AFF | {"out_cam"},
    "prepare_labels/results/out_aff_crf": LIST | AFF | {"out_cam"},
    "logs/sssdd_ssdd": TRAINED | CLS | SEEDS,
    "precompute/ssdd": LIST | STATIC | SEEDS,
    "logs/dssdd_ssdd": TRAINED | CLS | SEEDS | {"ssdd"},
    "validation/ssdd": {"seg_0001.pth"},
    "logs/fixed_crf_ssdd": TRAINED | CLS | {"out_aff_crf"},
    "validation/fixed_crf_ssdd": {"seg_0001.pth"},
}
NEXT = {
    "train_cls": "python -m prepare_labels.make_cam_labels --preset=demo",
    "make_cam_labels": "python -m prepare_labels.train_aff --preset=demo",
    "train_aff": "python -m prepare_labels.make_aff_labels --preset=demo",
    "make_aff_labels": "python main_ssdd.py --mode=0 --preset=demo",
    "0": "python main_ssdd.py --mode=1 --preset=demo",
    "1": "python main_ssdd.py --mode=2 --preset=demo",
    "2": "python main_ssdd.py --mode=3 --preset=demo",
    "3": "python -m tools.predict PICTURES --weights ",
    "4": "python main_ssdd.py --mode=3 --seed_source=crf --preset=demo",
    "3 of 4": "python -m tools.predict PICTURES --weights ",
}


@pytest.fixture(scope="module")
def whole(tiny_voc, tmp_path_factory):
    """Every program in turn in bfloat16: the out folder, the types that each one's convolutions gave, and its words."""
    config = replace(tiny(tiny_voc, tmp_path_factory.mktemp("whole") / "out"), precision="bfloat16", pictures=0)
    types: dict[str, set] = {name: set() for name in NEXT}
    said = {name: io.StringIO() for name in NEXT}
    for name in NEXT:

        def note(module, _inputs, output, name=name):
            if isinstance(module, torch.nn.Conv2d):
                types[name].add(output.dtype)

        source = ["--seed_source=crf"] if "4" in name else []
        mode = [] if name in LABELS else [f"--mode={name[0]}", *source]
        program = LABELS.get(name, main_ssdd)
        hook = torch.nn.modules.module.register_module_forward_hook(note)
        try:
            with contextlib.redirect_stdout(said[name]):
                program.main([*mode, *as_flags(config)])
        finally:
            hook.remove()
    return Path(config.out), types, {name: words.getvalue() for name, words in said.items()}


@pytest.mark.parametrize("name", NEXT)
def test_every_program_computes_in_the_precision_it_is_told(name, whole):
    assert torch.bfloat16 in whole[1][name]


@pytest.mark.parametrize("folder", MADE_FROM)
def test_every_folder_says_what_it_was_made_from(folder, whole):
    stored = json.loads((whole[0] / folder / "config.json").read_text())
    assert set(stored["made_from"]) == MADE_FROM[folder]
    # Weights and lists by their content, folders by what they were made from; nothing is left empty.
    assert all(stored["made_from"].values()) and stored["identity"]


def test_every_step_and_mode_has_an_identity_of_its_own(whole):
    stored = [json.loads((whole[0] / folder / "config.json").read_text()) for folder in MADE_FROM]
    # make_cam_labels fills three folders, make_aff_labels two.
    assert len({config["identity"] for config in stored}) == len(MADE_FROM) - 3


def test_a_batch_of_a_pass_is_a_function_of_the_list_alone(tiny_voc, tmp_path, monkeypatch):
    """What is done leaves out whole batches only, and of the others nothing is written again."""
    config, ids, written = tiny(tiny_voc, tmp_path), list("abcdefgh"), []
    monkeypatch.setattr(passes, "picture_digest", lambda root, image_id: f"{ord(image_id):016x}")
    made = partial(image_pass, config, "pass", tmp_path, ids, refresh=lambda: None, batch=("--eval_batch", 3))
    with made(is_done=set("abcdg").__contains__) as left:
        for batch in left.keys(lambda place: 10 * place):
            for place, _ in batch:
                left.write(ids[place], written.append, ids[place])
        assert left.keys(lambda place: 10 * place) == [[(3, 30), (4, 40), (5, 50)], [(6, 60), (7, 70)]]
        assert list(left.to_do) == written == list("efh")
    assert json.loads((tmp_path / "history.jsonl").read_text())["images"] == 3
    # What was there without notes has been believed and noted; now f's picture has changed.
    monkeypatch.setattr(passes, "picture_digest", lambda root, name: f"{ord(name) + (name == 'f'):016x}")
    with made(is_done=set("abcdefgh").__contains__) as left:
        assert list(left.to_do) == ["f"]


def test_the_next_image_is_read_beside_the_work_on_one_and_an_error_comes_at_its_own_place(tiny_voc, tmp_path):
    ids, read = read_ids(tiny_voc, "train")[:4], {}
    started = {image_id: threading.Event() for image_id in ids}

    def reading(image_id):
        started[image_id].set()
        if image_id == ids[3]:
            raise InputError(f"{image_id} is bad")
        return f"content of {image_id}"

    made = image_pass(tiny(tiny_voc, tmp_path), "pass", tmp_path, ids, lambda _: False, lambda: None)
    with pytest.raises(InputError, match=f"{ids[3]} is bad"), made as left:
        for image_id, content in left.read_ahead(reading):
            read[image_id] = content
            place = ids.index(image_id)
            assert started[ids[place + 1]].wait(60)  # while this one is worked on
            assert not any(started[later].is_set() for later in ids[place + 2 :])  # and no more are kept
    assert read == {image_id: f"content of {image_id}" for image_id in ids[:3]}


@pytest.mark.parametrize("name", NEXT)
def test_every_program_names_the_one_that_comes_next(name, whole):
    assert f"next: {NEXT[name]}" in whole[2][name]
