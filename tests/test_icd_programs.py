"""ICD's programs on the tiny set: superpixels, training, seeds, SSDD between them; resume and bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_ssdd
from datasets.seed_store import save_maps, store_path
from datasets.superpixels import read_superpixels, write_superpixels
from datasets.voc import image_size, read_ids, read_mask, read_present
from engine import seeds, stages
from engine.loading import EpochOrder
from models.icd.network import IcdNetwork
from models.icd.superpixels import colour_histograms
from prepare_labels import make_icd_labels, make_superpixels, train_icd
from settings.config import voc
from tests import reference
from tests.conftest import as_flags, tiny
from tests.test_training import Stop

ICD = {"icd_width": 0.0625, "icd_crop": 49, "icd_side": 145, "icd_epochs": 2, "icd_batch": 3, "icd_lr": 1e-3}


def icd_config(root, out):
    return replace(tiny(root, out), pictures=0, dropout=1.0, **ICD)


def folder_of(config, kind: str) -> Path:
    return Path(config.out) / "prepare_labels" / "results" / kind


def run_all(config) -> None:
    for program in (make_superpixels, train_icd, make_icd_labels):
        program.main(as_flags(config))


@pytest.fixture(scope="module")
def finished(tiny_voc, tmp_path_factory):
    """A Config and what the whole chain made with it; not to be changed."""
    config = icd_config(tiny_voc, tmp_path_factory.mktemp("icd") / "out")
    run_all(config)
    return config


@pytest.fixture
def own(finished, own_voc, tmp_path):
    """A copy of the set and of what ICD's chain made from it."""
    shutil.copytree(finished.out, tmp_path / "out", ignore=shutil.ignore_patterns("tensorboard", "script"))
    return replace(finished, voc_root=str(own_voc), out=str(tmp_path / "out"))


def refused(program, config, capsys) -> str:
    """The one line with which a program ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        program.main(as_flags(config))
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2 and len(errors) == 1 and said.endswith(errors[0] + "\n"), said
    return errors[0]


def test_the_chain_leaves_superpixels_checkpoints_and_seeds(finished):
    ids = read_ids(finished.voc_root, "train_aug")
    for image_id in ids:
        size = image_size(finished.voc_root, image_id)
        found = read_superpixels(folder_of(finished, "superpixels") / f"{image_id}.png", size)
        assert 1 < found.max() < 64
        present = set(np.flatnonzero(read_present(finished.voc_root, image_id)))
        for kind in ("out_icd", "out_icd_crf"):
            mask = read_mask(folder_of(finished, kind) / f"{image_id}.png")
            assert mask.shape == size
        assert set(np.unique(read_mask(folder_of(finished, "out_icd") / f"{image_id}.png"))) <= present | {255}
    models = folder_of(finished, "icd") / "models"
    assert sorted(path.name for path in models.iterdir()) == ["icd_0001.pth", "icd_0002.pth"]
    assert (folder_of(finished, "icd") / "weights.pth").read_bytes()
    rates = [json.loads(line) for line in (folder_of(finished, "icd") / "history.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in rates if "learning_rate" in line]
    # Constant within an epoch: 1e-3 and 1e-3·(1 − 1/2)^0.9.
    assert {round(rate, 9) for rate in rates} <= {1e-3, round(1e-3 * 0.5**0.9, 9)}


def test_ssdd_takes_icd_s_seeds_by_name_and_the_page_shows_them(own):
    reference.adopt_weights(own, folder_of(own, "cls") / "weights.pth")
    for image_id in read_ids(own.voc_root, "train_aug"):  # what PSA might have left
        classes, size = np.flatnonzero(read_present(own.voc_root, image_id)), image_size(own.voc_root, image_id)
        maps = reference.blobs(np.random.default_rng(3), len(classes), size)
        save_maps(store_path(folder_of(own, "out_aff"), image_id), classes, maps.astype(np.float32), size, "")
    config = replace(own, knowledge="psa", advice="icd_crf")
    main_ssdd.main(["--mode=0", *as_flags(config)])
    assert stages.checkpoint_path(stages.folder(config, "mode 0"), "seg", 1).exists()
    stored = json.loads((stages.folder(config, "mode 0") / "config.json").read_text())
    assert "out_icd_crf" in stored["made_from"] and stored["made_from"]["out_icd_crf"]
    make_icd_labels.main(as_flags(own))  # nothing is left to do but the pages
    page = (Path(own.out) / "script" / "labels.html").read_text()
    assert "ICD+CRF" in page and "_icd_crf.png" in page and "_icd.png" in page


def test_a_stopped_training_ends_where_the_whole_one_does(finished, own, monkeypatch):
    shutil.rmtree(folder_of(own, "icd"))
    top_down, calls = train_icd.warm_up, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 4:  # of 2 steps an epoch
            raise Stop
        return top_down(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_icd, "warm_up", stopping)
        with pytest.raises(Stop):
            train_icd.run(replace(own, checkpoint_every=1e-9))
    assert not (folder_of(own, "icd") / "weights.pth").exists()
    train_icd.run(own)
    whole, again = (reference.weights_in(folder_of(c, "icd") / "weights.pth") for c in (finished, own))
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_superpixels_that_do_not_fit_are_refused_before_anything_is_written(own, capsys):
    shutil.rmtree(folder_of(own, "icd"))
    path = sorted(folder_of(own, "superpixels").glob("*.png"))[2]
    kept = path.read_bytes()
    path.unlink()
    line = refused(train_icd, own, capsys)
    assert path.name in line and "prepare_labels.make_superpixels" in line
    write_superpixels(path, np.zeros((5, 7), np.int32))
    assert path.name in (line := refused(train_icd, own, capsys)) and "7×5" in line
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(path)
    assert path.name in (line := refused(train_icd, own, capsys)) and "three channels" in line
    path.write_bytes(b"no picture")
    assert path.name in refused(train_icd, own, capsys)
    assert not folder_of(own, "icd").exists()
    # Too many of them show when the file is read.
    size = image_size(own.voc_root, path.stem)
    write_superpixels(path, np.arange(size[0] * size[1], dtype=np.int32).reshape(size))
    assert path.name in refused(train_icd, own, capsys)
    assert not list(folder_of(own, "icd").rglob("*.pth"))
    path.write_bytes(kept)


def test_the_authors_superpixels_are_taken_from_their_folder(own, tmp_path, capsys):
    shutil.rmtree(folder_of(own, "icd"))
    theirs = shutil.copytree(folder_of(own, "superpixels"), tmp_path / "theirs")
    shutil.rmtree(folder_of(own, "superpixels"))
    train_icd.main(as_flags(replace(own, superpixels=str(theirs), epochs=1)))
    assert (folder_of(own, "icd") / "weights.pth").exists()
    next(theirs.glob("*.png")).unlink()
    assert "superpixel files are missing" in refused(train_icd, replace(own, superpixels=str(theirs)), capsys)


def test_with_saliency_the_background_is_where_it_is_dark(own, tmp_path, capsys):
    folder, ids = tmp_path / "saliency", read_ids(own.voc_root, "train_aug")
    folder.mkdir()
    config = replace(own, saliency=str(folder))
    assert "saliency maps are missing" in refused(make_icd_labels, config, capsys)
    for image_id in ids:
        grey = np.zeros(image_size(own.voc_root, image_id), np.uint8)
        grey[: grey.shape[0] // 2] = 200
        Image.fromarray(grey).save(folder / f"{image_id}.png")
    make_icd_labels.main(as_flags(config))
    for image_id in ids:
        seed = read_mask(folder_of(own, "out_icd_saliency") / f"{image_id}.png")
        plain = read_mask(folder_of(own, "out_icd") / f"{image_id}.png")
        half = len(seed) // 2
        claimed, background = ~np.isin(plain, [0, 255]), plain == 0
        # Salient: what is claimed stays, background is unknown; dark: the reverse.
        assert (seed[:half][claimed[:half]] == plain[:half][claimed[:half]]).all()
        assert (seed[:half][background[:half]] == 255).all() and not (seed[:half] == 0).any()
        assert (seed[half:][claimed[half:]] == 255).all() and (seed[half:][background[half:]] == 0).all()
    # The seeds without saliency stay, and both have names.
    assert seeds.source(own, "icd_saliency").folder == folder_of(own, "out_icd_saliency")
    Image.fromarray(255 - grey).save(folder / f"{ids[-1]}.png")
    assert "other settings or inputs (made_from" in refused(make_icd_labels, config, capsys)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / f"{ids[0]}.png")
    assert "4×4" in refused(make_icd_labels, replace(config, fresh=True), capsys)


def test_objects_marked_difficult_are_skipped_unless_nothing_else_is_there(tiny_voc, tmp_path):
    (tmp_path / "Annotations").mkdir()

    def present(*objects):
        marks = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in objects)
        (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{marks}</annotation>")
        return [np.flatnonzero(read_present(tmp_path, "a", difficult=d)).tolist() for d in (True, False)]

    assert present(("cat", 0), ("dog", 1)) == [[0, 8, 12], [0, 8]]
    assert present(("dog", 1), ("cat", 1)) == [[0, 8, 12], [0, 8, 12]]
    assert present(("dog", 1), ("dog", 0)) == [[0, 12], [0, 12]]


def test_seeds_without_a_difficult_class_are_taken(own):
    ids = read_ids(own.voc_root, "train_aug")
    for image_id in ids:
        path = Path(own.voc_root) / "Annotations" / f"{image_id}.xml"
        assert "tvmonitor" not in path.read_text()  # the drawn set has none
        extra = "<object><name>tvmonitor</name><difficult>1</difficult></object></annotation>"
        path.write_text(path.read_text().replace("</annotation>", extra))
    make_icd_labels.main(as_flags(replace(own, fresh=True)))
    for image_id in ids:
        assert 20 in np.flatnonzero(read_present(own.voc_root, image_id))
        assert 20 not in read_mask(folder_of(own, "out_icd") / f"{image_id}.png")
    for name in ("icd", "icd_crf"):
        seeds.need(own, seeds.source(own, name), ids)
    seeds.need(own, seeds.source(own, f"masks:{folder_of(own, 'out_icd')}"), ids)


def test_what_icd_cannot_learn_from_is_said(own, capsys):
    ids = read_ids(own.voc_root, "train_aug")
    names = ["cat", "dog", "cat", "sheep", "cat", "sheep"]
    for image_id, name in zip(ids, names, strict=True):
        second = "<object><name>sofa</name></object>" if name != "sheep" else ""
        text = f"<annotation><object><name>{name}</name></object>{second}</annotation>"
        (Path(own.voc_root) / "Annotations" / f"{image_id}.xml").write_text(text)
    train_icd.check_labels_and_batch(own, ids)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("warning: ") for line in said)
    assert said[0].startswith("warning: cat, dog, sofa: never alone") and "3 images" in said[1]
    train_icd.check_labels_and_batch(replace(own, icd_batch=16), ids * 3)
    assert capsys.readouterr().err.count("warning") == 1
    line = refused(train_icd, replace(own, icd_batch=7, fresh=True), capsys)
    assert "--icd_batch=7" in line and "lists 6" in line


@pytest.mark.parametrize(("length", "batch", "steps"), [(10, 3, 3), (9, 3, 3), (10582, 32, 330), (2, 3, 0)])
def test_the_rest_of_an_epoch_is_dropped(length, batch, steps):
    order = EpochOrder(length, batch, 0, drop_rest=True)
    batches = list(order)
    assert order.steps == len(batches) == steps and all(len(keys) == batch for keys in batches)
    places = [place for keys in batches for place, _ in keys]
    assert len(set(places)) == len(places) == steps * batch


def test_rate_and_warm_up_count_whole_epochs_and_steps():
    rate = train_icd.rate_of(replace(voc(), epochs=20))
    assert rate(0.99) == 1e-3 and rate(7 + 0.5) == pytest.approx(1e-3 * (1 - 7 / 20) ** 0.9)
    for step in range(3 * 330):
        assert round((step // 330 + step % 330 / 330) * 330) == step


def vgg_state(generator) -> dict:
    shapes = {k: v.shape for k, v in IcdNetwork(3, 0.0625).state_dict().items() if re.match(r"conv\d|fc[67]\.", k)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def test_start_weights_of_every_kind(tmp_path):
    """MXNet's names, ours, and a trained network; what is missing is drawn, and said."""
    state = vgg_state(torch.Generator().manual_seed(1))
    theirs = {f"arg:{key.replace('.', '_')}": value for key, value in state.items()}
    for number, content in enumerate((state, theirs)):
        torch.save(content, tmp_path / f"{number}.pth")
        network = IcdNetwork(3, 0.0625)
        said = train_icd.start_from(network, tmp_path / f"{number}.pth")
        assert "drawn are icd_bu_weight, fc8, feat_bn, conv_ft;" in said
        own = network.state_dict()
        assert all(torch.equal(own[key], value) for key, value in state.items())
        assert torch.equal(own["fc6_ft.weight"], state["fc6.weight"]) and torch.equal(
            own["fc7_ft.bias"], own["fc7.bias"]
        )
    torch.save(own, tmp_path / "trained.pth")
    again = IcdNetwork(3, 0.0625)
    assert "trained" in train_icd.start_from(again, tmp_path / "trained.pth")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in own.items())


def test_superpixels_without_weights_are_refused_or_by_colour(own, capsys):
    assert "--superpixel_features=colour" in refused(
        make_superpixels, replace(own, superpixel_features="imagenet", fresh=True), capsys
    )
    assert folder_of(own, "superpixels").exists()  # not moved aside


def test_colour_histograms_by_hand():
    image = np.array([[[0, 31, 255], [32, 0, 254]], [[255, 255, 255], [255, 128, 0]]], np.uint8)
    found = colour_histograms(image, np.array([[0, 0], [1, 2]]))
    expected = np.zeros((3, 24))
    expected[0, [0, 1]] = 0.5
    expected[0, [8, 16 + 7]] = 1
    expected[1, [7, 15, 23]] = 1
    expected[2, [7, 8 + 4, 16]] = 1
    np.testing.assert_array_equal(found, expected)
