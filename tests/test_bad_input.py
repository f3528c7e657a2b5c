"""What a user can get wrong ends in exit status 2, one line that names it, and nothing half-written."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import main_ssdd
from datasets.seed_store import load_maps, save_maps, store_path
from engine import stages
from engine.checkpoint import save_weights
from models.psa.affinity import AffinityNet
from models.psa.classifier import Classifier
from prepare_labels import make_aff_labels, make_cam_labels, train_aff, train_cls
from settings.flags import flags_of
from tests.conftest import as_flags, labels_folder
from tools import eval_masks


def mode(number):
    return lambda flags: main_ssdd.main([f"--mode={number}", *flags])


TRAINING = {"train_cls": train_cls.main, "train_aff": train_aff.main, "mode 0": mode(0), "mode 2": mode(2)}
LABELS = {"make_cam_labels": make_cam_labels.main, "make_aff_labels": make_aff_labels.main}
PROGRAMS = TRAINING | LABELS | {"mode 1": mode(1), "mode 3": mode(3)}
OWN_OUTPUT = {
    "train_cls": ["prepare_labels/results/cls"],
    "make_cam_labels": [f"prepare_labels/results/{kind}" for kind in ("out_cam", "out_la_crf", "out_ha_crf")],
    "train_aff": ["prepare_labels/results/aff"],
    "make_aff_labels": [f"prepare_labels/results/{kind}" for kind in ("out_aff", "out_aff_crf")],
    "mode 0": ["logs/sssdd_ssdd"],
    "mode 1": ["precompute"],
    "mode 2": ["logs/dssdd_ssdd"],
    "mode 3": ["validation"],
}
TRAIN_IDS = [f"demo_{n:06d}" for n in range(1, 7)]
WORKING = ("config.json", "events.out", "made_from.txt", ".")


def before(config, name):
    """Remove what a program and those after it make, so that it has its work to do."""
    order = list(OWN_OUTPUT)
    for other in order[order.index(name) :]:
        for folder in OWN_OUTPUT[other]:
            shutil.rmtree(Path(config.out) / folder)
    return config


def files(folder):
    return {path for path in Path(folder).rglob("*") if path.is_file()} if Path(folder).exists() else set()


def refused(program, flags, out, capsys, results=()):
    """The error line; checks status, number of lines and what is left, where whole results of other images may be."""
    there = files(out)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        program(flags)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.startswith("error: ") and said.count("\n") == 1, said
    new = [path for path in files(out) - there if not path.name.startswith(WORKING)]
    assert [path for path in new if not any(name in path.name for name in results)] == []
    return said


def photograph_of(name):
    """The image that a program meets: mode 3 works on val."""
    return "demo_500002" if name == "mode 3" else TRAIN_IDS[4]


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_voc_at_voc_root(name, own_run, capsys):
    config = replace(before(own_run, name), voc_root=str(Path(own_run.out) / "nowhere"))
    assert "nowhere" in refused(PROGRAMS[name], as_flags(config), config.out, capsys)


@pytest.mark.parametrize("name", PROGRAMS)
def test_unreadable_image(name, own_run, capsys):
    config = before(own_run, name)
    path = Path(config.voc_root) / "JPEGImages" / f"{photograph_of(name)}.jpg"
    path.write_bytes(path.read_bytes()[:400])
    others = [f"demo_50000{n}" for n in (1, 3)] + TRAIN_IDS[:4] + TRAIN_IDS[5:]
    results = others if name in LABELS or name in ("mode 1", "mode 3") else ()
    assert str(path) in refused(PROGRAMS[name], as_flags(config), config.out, capsys, results)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "missing") for name in PROGRAMS if name not in ("make_aff_labels", "mode 3")]
    + [("train_cls", "unknown class"), ("mode 0", "unknown class"), ("make_cam_labels", "no object")],
)
def test_bad_annotation(name, kind, own_run, capsys):
    config = before(own_run, name)
    path = Path(config.voc_root) / "Annotations" / f"{TRAIN_IDS[0]}.xml"
    if kind == "missing":
        path.unlink()
    else:
        objects = "<object><name>unicorn</name></object>" if kind == "unknown class" else ""
        path.write_text(f"<annotation>{objects}</annotation>")
    said = refused(PROGRAMS[name], as_flags(config), config.out, capsys, TRAIN_IDS[1:])
    assert str(path) in said
    assert ("unicorn" in said) == (kind == "unknown class")


@pytest.mark.parametrize("name", PROGRAMS)
def test_list_with_an_unknown_id(name, own_run, capsys):
    config = before(own_run, name)
    split = Path(config.voc_root) / "ImageSets" / "Segmentation" / ("val.txt" if name == "mode 3" else "train_aug.txt")
    split.write_text("demo_999999\n" + split.read_text())
    said = refused(PROGRAMS[name], as_flags(config), config.out, capsys, [*TRAIN_IDS, "demo_50000"])
    assert "demo_999999" in said


STORES = {
    "train_aff": ["out_la_crf", "out_ha_crf"],
    "make_aff_labels": ["out_cam"],
    "mode 0": ["out_aff", "out_aff_crf"],
    "mode 1": ["out_aff", "out_aff_crf"],
    "mode 2": ["out_aff", "out_aff_crf", "differences"],
}


@pytest.mark.parametrize(
    ("name", "store", "kind"),
    [(name, store, kind) for name, stores in STORES.items() for store in stores for kind in ("missing", "wrong size")]
    + [("train_aff", "out_la_crf", "damaged"), ("mode 0", "out_aff", "damaged"), ("mode 2", "differences", "damaged")],
)
def test_stored_map(name, store, kind, own_run, capsys):
    config = before(own_run, name)
    folder = stages.folder(config, "mode 1") if store == "differences" else labels_folder(config, store)
    path = store_path(folder, TRAIN_IDS[0])
    if kind == "missing":
        path.unlink()
    elif kind == "damaged":
        path.write_bytes(path.read_bytes()[:-30])
    elif store == "differences":
        shutil.copy(store_path(stages.folder(config, "make_aff_labels"), TRAIN_IDS[0]), path)
    else:
        classes = load_maps(path).classes
        save_maps(path, classes, np.ones((len(classes), 40, 50), np.float32), (40, 50), "x")
    said = refused(PROGRAMS[name], as_flags(config), config.out, capsys, TRAIN_IDS[1:])
    assert str(path) in said


@pytest.mark.parametrize("name", PROGRAMS)
def test_weights_of_another_width(name, own_run, tmp_path, capsys):
    config = before(own_run, name)
    network = AffinityNet(0.125) if name == "make_aff_labels" else Classifier(width=0.125)
    weights = tmp_path / "wide.pth"
    save_weights(weights, network)
    if name == "mode 1":
        weights = tmp_path / "seg_wide.pth"
        save_weights(weights, network)
        save_weights(tmp_path / "ssdd_wide.pth", network)
    if name in ("mode 1", "mode 3"):
        trained = stages.folder(config, f"mode {int(name[-1]) - 1}")
        said = refused(PROGRAMS[name], as_flags(replace(config, width=0.125)), config.out, capsys)
        assert f"{trained} was made with --width=0.0625, this run has --width=0.125" in said
    said = refused(PROGRAMS[name], as_flags(replace(config, weights=str(weights))), config.out, capsys)
    assert str(weights) in said and ("is of another width" in said or "does not fit this network" in said)


@pytest.mark.filterwarnings("error:Detected pickle protocol")
@pytest.mark.parametrize(
    ("name", "content"), [*zip(PROGRAMS, [b"", b"text", b"\x80\x04.", b"PK\3\4"] * 2, strict=True)]
)
def test_weights_that_are_none(name, content, own_run, tmp_path, capsys):
    config = replace(before(own_run, name), weights=str(tmp_path / "bad.pth"))
    (tmp_path / "bad.pth").write_bytes(content)
    assert "bad.pth" in refused(PROGRAMS[name], as_flags(config), config.out, capsys)


@pytest.mark.parametrize("name", PROGRAMS)
def test_weights_that_are_missing(name, own_run, tmp_path, capsys):
    config = replace(before(own_run, name), weights=str(tmp_path / "absent.pth"))
    assert "absent.pth" in refused(PROGRAMS[name], as_flags(config), config.out, capsys)


FIRST = {
    "make_cam_labels": "prepare_labels.train_cls",
    "train_aff": "prepare_labels.train_cls",
    "make_aff_labels": "prepare_labels.train_aff",
    "mode 0": "prepare_labels.make_aff_labels",
    "mode 1": "main_ssdd.py --mode=0",
    "mode 2": "main_ssdd.py --mode=1",
    "mode 3": "main_ssdd.py --mode=2",
}


@pytest.mark.parametrize("name", FIRST)
def test_stage_before_the_one_it_needs_names_the_command(name, tiny_config, capsys):
    said = refused(PROGRAMS[name], as_flags(tiny_config), tiny_config.out, capsys)
    assert "is missing: make it with `python " in said or "maps are missing" in said
    assert FIRST[name] + "".join(f" {flag}" for flag in flags_of(tiny_config)) + "`" in said


@pytest.mark.parametrize(("name", "needed"), [("mode 1", "mode 0"), ("mode 3", "mode 2")])
def test_stage_after_an_unfinished_one_names_the_command(name, needed, own_run, capsys):
    config = before(own_run, name)
    for path in stages.folder(config, needed).glob("models/*"):
        path.unlink()
    said = refused(PROGRAMS[name], as_flags(config), config.out, capsys)
    assert "models/seg_0001.pth is missing" in said
    assert FIRST[name] in said


@pytest.mark.parametrize(("name", "device"), [*zip(PROGRAMS, ["nonsense", "cuda:99", "", "cpu:x"] * 2, strict=True)])
def test_device_that_is_not_there(name, device, tiny_config, capsys):
    flags = as_flags(replace(tiny_config, device=device))
    assert "--device=" in refused(PROGRAMS[name], flags, tiny_config.out, capsys)


@pytest.mark.parametrize(
    ("name", "flag"), [*zip(PROGRAMS, ["--bn=0", "--crop=100", "--modelid=../x", "--lr=0"] * 2, strict=True)]
)
def test_value_that_cannot_work(name, flag, tiny_config, capsys):
    said = refused(PROGRAMS[name], [*as_flags(tiny_config), flag], tiny_config.out, capsys)
    assert flag.split("=")[0] in said


@pytest.mark.parametrize("name", PROGRAMS)
def test_folder_that_cannot_be_written_to(name, own_run, capsys):
    config = before(own_run, name)
    for folder in OWN_OUTPUT[name]:
        place = Path(config.out) / folder
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a file is in the way")
    assert OWN_OUTPUT[name][0] in refused(PROGRAMS[name], as_flags(config), config.out, capsys)


def test_evaluation_of_masks(tiny_voc, tmp_path, capsys):
    flags = ["--voc-root", str(tiny_voc), "--split", "val"]
    assert "absent" in refused(eval_masks.main, [str(tmp_path / "absent"), *flags], tmp_path, capsys)
    said = refused(eval_masks.main, [str(tmp_path), *flags], tmp_path, capsys)
    assert str(tmp_path / "demo_500001") in said
    masks = str(tiny_voc / "SegmentationClass")
    said = refused(eval_masks.main, [masks, "--voc-root", str(tiny_voc), "--split", "nine"], tmp_path, capsys)
    assert "nine.txt" in said
    said = refused(eval_masks.main, [masks, *flags, "--json", f"{tiny_voc}/demo.json/x.json"], tmp_path, capsys)
    assert "x.json" in said


def test_mended_input_goes_on_after_the_error(own_run, capsys):
    config = before(own_run, "make_cam_labels")
    path = Path(config.voc_root) / "JPEGImages" / f"{TRAIN_IDS[3]}.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(make_cam_labels.main, as_flags(config), config.out, capsys, TRAIN_IDS[:3])
    done = {p: p.stat().st_mtime_ns for p in stages.folder(config, "make_cam_labels").glob("*.npz")}
    assert {p.stem for p in done} == set(TRAIN_IDS[:3])
    path.write_bytes(whole)
    make_cam_labels.main(as_flags(config))
    assert {p.stem for p in stages.folder(config, "make_cam_labels").glob("*.npz")} == set(TRAIN_IDS)
    assert all(p.stat().st_mtime_ns == time for p, time in done.items())


@pytest.mark.parametrize("name", ["make_cam_labels", "make_aff_labels", "train_aff"])
def test_right_width_after_a_wrong_one_needs_no_fresh(name, own_run, capsys):
    config = before(own_run, name)
    refused(PROGRAMS[name], as_flags(replace(config, width=0.125)), config.out, capsys)
    PROGRAMS[name](as_flags(config))
    assert "complete" in capsys.readouterr().out or (stages.label_network(config, "train_aff")).exists()
