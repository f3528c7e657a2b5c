"""RecurSeed as a program: from images to masks, interrupted, on bad input, and as a source for others."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_recurseed
import main_ssdd
from datasets.errors import InputError
from datasets.samples.recurseed import RecurSeedSamples
from datasets.seed_store import load_maps, store_path
from datasets.transforms import random_long_side
from datasets.voc import CLASSES, image_size, read_ids, read_image, read_mask, read_present
from engine import checkpoint, history, seeds, stages
from engine.training import train
from models.psa.classifier import Classifier
from models.recurseed.inference import multiscale_cam
from models.recurseed.network import RecurSeedNetwork
from models.recurseed.scg import self_correlation_maps
from modes.recurseed import networks
from modes.recurseed import train as training
from settings.config import settings_of
from tests import reference
from tests.conftest import as_flags, tiny
from tests.test_pages import data_of
from tools.predict import Predictor, export

SMALL = {
    "recurseed_epochs": 3,
    "recurseed_batch": 3,
    "recurseed_crop": 64,
    "recurseed_side": (48, 80),
    "recurseed_from": 2,
    "mix_from": 3,
    "recurseed_scales": (1.0, 0.5),
    "certain": 0.3,
    "average_decay": 0.9,
}


def small(root, out, **fields):
    return replace(tiny(root, out), **(SMALL | fields))


def run(mode, config):
    main_recurseed.main([f"--mode={mode}", *as_flags(config)])


@pytest.fixture(scope="module")
def done(tiny_voc, tmp_path_factory):
    """The Config of a whole run; not to be changed."""
    config = small(tiny_voc, tmp_path_factory.mktemp("recurseed") / "out")
    run("all", config)
    return config


def logs(config) -> Path:
    return stages.folder(config, "recurseed train")


def saved(config, epoch=3) -> dict[str, torch.Tensor]:
    return checkpoint.load_state(stages.checkpoint_path(logs(config), "recurseed", epoch))


def refused(mode, config, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        run(mode, config)
    said = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == 2 and said[-1].startswith("error: ") and "Traceback" not in "".join(said)
    return said[-1]


def test_a_whole_run_leaves_seeds_masks_and_figures(done, tiny_voc):
    for image_id in read_ids(tiny_voc, "train"):
        present = np.flatnonzero(read_present(tiny_voc, image_id))
        for which in range(2):
            seed = load_maps(store_path(stages.folder(done, "recurseed labels", which), image_id))
            assert np.array_equal(seed.classes, present) and seed.maps.shape[1:] == image_size(tiny_voc, image_id)
    folder = stages.folder(done, "recurseed evaluate")
    stored = json.loads((folder / "result_val.json").read_text())
    assert set(stored) == {"crf", "mask", "mask after CRF"}
    assert all(0 <= stored[kind]["miou"] <= 1 for kind in ("mask", "mask after CRF"))
    for image_id in read_ids(tiny_voc, "val"):
        for kind in ("mask", "crf"):
            assert read_mask(folder / kind / f"{image_id}.png").shape == image_size(tiny_voc, image_id)


def test_losses_start_with_their_epochs(done):
    lines = [line for line in history.read(logs(done)) if "loss_cls" in line]
    first, second, third = ([line for line in lines if epoch < line["epoch"] <= epoch + 1] for epoch in range(3))
    assert all(line["loss_cls"] > 0 for line in lines)
    assert all(line["loss_cam"] == line["loss_seg"] == 0 and "share_ignored" not in line for line in first)
    assert any(line["loss_cam"] > 0 for line in second)
    assert all(line["loss_seg_mix"] == 0 and "share_mixed" not in line for line in first + second)
    for line in second + third:
        shares = line["share_ignored"] + line["share_foreground"] + line["share_background"]
        assert shares == pytest.approx(1, abs=1e-5)
    assert all("share_mixed" in line for line in third)


@pytest.mark.parametrize(
    ("moment", "expected"),
    [(0.0, (False, False)), (3.99, (False, False)), (4.0, (True, False)), (13.99, (True, False)), (14.0, (True, True))],
)
def test_epochs_of_the_start_are_counted_from_one(moment, expected, tiny_config):
    config = replace(tiny_config, recurseed_from=5, mix_from=15)
    assert training.started(config, moment) == expected
    assert training.started(replace(config, recurseed_from=100), moment) == (False, False)


def test_saved_weights_are_the_average_which_is_not_the_network(done):
    state = checkpoint.load(logs(done) / "state.pth")
    average, network = state["networks"]["average"], state["networks"]["network"]
    weights = saved(done)
    assert all(torch.equal(weights[key], value) for key, value in average.items())
    assert any(not torch.equal(network[key], value) for key, value in average.items())
    assert weights.keys() == RecurSeedNetwork(width=done.recurseed_width).state_dict().keys()


class Killed(Exception):
    """What nobody catches."""


@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_run_ends_bit_by_bit_the_same(step, done, tmp_path, monkeypatch):
    config = replace(done, out=str(tmp_path / "out"), checkpoint_every=1e-9)

    def killed_run(training_run, *arguments):
        def after_step(steps):
            training_run.after_step(steps)
            if steps == step + 1:
                raise Killed

        train(replace(training_run, after_step=after_step), *arguments)

    monkeypatch.setattr(training, "train", killed_run)
    with pytest.raises(Killed):
        run("train", config)
    monkeypatch.setattr(training, "train", train)
    run("train", config)
    one, other = (checkpoint.load(logs(c) / "state.pth") for c in (done, config))
    for name in ("network", "average"):
        for key, value in one["networks"][name].items():
            assert torch.equal(value, other["networks"][name][key]), (name, key)
    for image in (logs(done) / "imgs").iterdir():
        assert image.read_bytes() == (logs(config) / "imgs" / image.name).read_bytes(), image.name


def test_the_run_is_complete_when_started_again(done, capsys):
    run("all", done)
    said = capsys.readouterr().out
    assert "is complete" in said and "epoch 1/3" not in said


def test_pages_show_the_labels_as_they_grow(done, tiny_voc):
    columns = json.loads((logs(done) / history.COLUMNS).read_text())
    whats = {what for row in columns["rows"].values() for what in row} - {"photo", "truth"}
    assert whats == {"cam", "seed", "decoder", "mixed", "mixseed"} and len(columns["ids"]) == 2
    for image_id in columns["ids"]:
        for epoch in (1, 2, 3):
            for what in whats:
                assert (logs(done) / "imgs" / f"{image_id}_{epoch:04d}_{what}.png").is_file()
        seed = np.array(Image.open(logs(done) / "imgs" / f"{image_id}_0003_seed.png"))
        assert set(np.unique(seed)) <= {255, *np.flatnonzero(read_present(tiny_voc, image_id))}
    pages = Path(done.out) / "script"
    page = data_of(pages / "recurseed.html")
    assert page["view"] == "training" and page["epochs"] == [1, 2, 3] and "M_rs" in page["note"]
    assert {what for group in page["groups"] for what, _ in group["columns"]} == whats | {"photo", "truth"}
    assert len(data_of(pages / "recurseed_val.html")["rows"]) == 3
    assert {"recurseed", "recurseed_crf"} <= {column["key"] for column in data_of(pages / "labels.html")["columns"]}


def test_samples_know_where_the_image_ends(tiny_voc):
    ids = read_ids(tiny_voc, "train")
    torch.manual_seed(0)
    sizes = set()
    for sample in RecurSeedSamples(tiny_voc, ids, (40, 60), 64):
        inside = sample["inside"]
        rows, columns = inside.any(dim=1), inside.any(dim=0)
        assert inside.sum() == rows.sum() * columns.sum() and 40 <= max(rows.sum(), columns.sum()) <= 60
        assert (sample["x"][:, ~inside] == 0).all() and sample["x"][:, inside].std() > 0.1
        sizes.add(tuple(inside.sum().reshape(1).tolist()))
    assert len(sizes) > 1
    assert RecurSeedSamples(tiny_voc, ids, (90, 90), 64)[0]["x"].shape == (3, 64, 64)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    expected = np.array(Image.fromarray(pixels).resize((80, 48), Image.Resampling.BICUBIC))
    assert np.array_equal(random_long_side(pixels, (80, 80)).movedim(0, -1).numpy(), expected)


def test_rates_and_decay_of_the_groups(done):
    network = networks.build(done, 21)
    for name, kind, faster in (("sgd", torch.optim.SGD, 10), ("adamw", torch.optim.AdamW, 1)):
        optimiser = training.optimiser_of(replace(done, recurseed_optimiser=name), network)
        groups = optimiser.param_groups
        found = [(group["factor"], group["weight_decay"] > 0) for group in groups]
        assert type(optimiser) is kind and found == [(1, True), (1, False), (faster, True), (faster, False)]
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    halved = networks.build(replace(done, dropout=0.5), 21)
    assert [layer.p for layer in halved.modules() if isinstance(layer, torch.nn.Dropout)] == [0.25, 0.25, 0.05]


def test_a_batch_of_one_and_nothing_certain(tiny_voc, tmp_path):
    config = small(tiny_voc, tmp_path, recurseed_batch=1, certain=1.0, unsure=0.0, recurseed_from=1, mix_from=1)
    run("train", replace(config, recurseed_epochs=1, pictures=0))
    lines = [line for line in history.read(logs(config)) if "loss_seg" in line]
    assert lines and all(line["loss_seg_mix"] == line["share_mixed"] == 0 for line in lines)
    assert all(torch.isfinite(value).all() for value in saved(config, 1).values())


def test_training_starts_from_torchvisions_weights(done, tmp_path, capsys):
    torch.manual_seed(1)
    backbone = RecurSeedNetwork(width=done.recurseed_width).model.state_dict()
    given = tmp_path / "resnet50.pth"
    torch.save(backbone | {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3)}, given)
    config = replace(done, out=str(tmp_path / "out"), weights=str(given), pictures=0)
    network = networks.build(config, 21)
    assert networks.start_from_given(config, network) == [given]
    assert all(torch.equal(value, backbone[key]) for key, value in network.model.state_dict().items())
    torch.save({"encoder.conv1a.weight": torch.zeros(3)}, given)
    assert "training starts from torchvision's ResNet-50" in refused("train", config, capsys)
    torch.save(backbone | {"bn1.bias": torch.full_like(backbone["bn1.bias"], torch.nan)}, given)
    assert "not finite" in refused("train", config, capsys)
    assert "there is no such file" in refused("train", replace(config, weights="nowhere.pth"), capsys)
    assert not logs(config).exists()


def test_training_starts_from_the_backbone_of_a_recurseed_network(done, tmp_path):
    weights = stages.checkpoint_path(logs(done), "recurseed", 3)
    config = replace(done, weights=str(weights))
    torch.manual_seed(1)
    network = networks.build(config, 21)
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    networks.start_from_given(config, network)
    given = checkpoint.load_state(weights)
    for key, value in network.state_dict().items():
        assert torch.equal(value, (given if key.startswith("model.") else fresh)[key]), key


def test_classification_alone_makes_seeds_of_its_cam(tiny_voc, tmp_path, capsys):
    config = small(tiny_voc, tmp_path / "out", recurseed_from=4, pictures=0)
    assert "the decoder, which makes the masks, learns nothing in 3 epochs" in refused("all", config, capsys)
    for kind in ("cam", "scg"):
        own = replace(config, recurseed_maps=kind)
        run("all", own if kind == "cam" else replace(own, fresh=True))
        assert not any(line.get("loss_seg") for line in history.read(logs(own)))
        image_id = read_ids(tiny_voc, "train")[0]
        seed = load_maps(store_path(stages.folder(own, "recurseed labels"), image_id))
        network = networks.trained_network(own, torch.device("cpu"))[0]
        x = networks.network_input(own, torch.device("cpu"), read_image(tiny_voc, image_id))
        cam, features, _ = multiscale_cam(network, x, own.recurseed_scales)
        maps = cam if kind == "cam" else self_correlation_maps(cam, features)
        maps = torch.nn.functional.interpolate(maps, x.shape[-2:], mode="bilinear")[0, seed.classes[1:] - 1].numpy()
        maps /= maps.max(axis=(1, 2), keepdims=True) + 1e-5
        background = (1 - maps.max(axis=0, keepdims=True)) ** 2
        assert np.allclose(seed.maps, np.concatenate([background, maps]), atol=1 / 255)  # the store keeps 8 bits
        with pytest.raises(InputError, match="no probability"):
            Predictor(stages.checkpoint_path(logs(own), "recurseed", 3), "cpu").maps(read_image(tiny_voc, image_id))


def test_pictures_too_large_for_scg_are_refused_before_it_asks_for_memory(done, monkeypatch, capsys):
    monkeypatch.setattr(networks, "SCG_CELLS", 4)
    config = replace(done, recurseed_maps="scg", out=f"{done.out}_scg", weights=str(logs(done)))
    for mode in ("labels", "evaluate"):
        assert "--recurseed_maps=cam" in refused(mode, config, capsys)
    assert networks.image_ids(replace(config, recurseed_maps="cam"), "val") == read_ids(done.voc_root, "val")


def test_a_bare_state_dict_is_evaluated(done, tmp_path):
    bare = tmp_path / "theirs.pth"
    torch.save(saved(done), bare)
    config = replace(done, out=str(tmp_path / "out"), weights=str(bare))
    run("evaluate", config)
    one, other = (stages.folder(c, "recurseed evaluate") for c in (done, config))
    for path in (*one.glob("mask/*.png"), *one.glob("crf/*.png")):
        assert path.read_bytes() == (other / path.parent.name / path.name).read_bytes()


def test_bad_input_is_one_line(done, own_voc, tmp_path, capsys):
    early = small(own_voc, tmp_path / "early")
    line = refused("labels", early, capsys)
    assert "main_recurseed.py --mode=train" in line
    unlabelled = own_voc / "Annotations" / f"{read_ids(own_voc, 'train')[0]}.xml"
    kept = unlabelled.read_text()
    unlabelled.write_text(re.sub(r"<object>.*</object>", "", kept, flags=re.S))
    assert "names no object" in refused("train", early, capsys)
    weights = stages.checkpoint_path(logs(done), "recurseed", 3)
    assert "another width" in refused("evaluate", replace(early, recurseed_width=0.125, weights=str(weights)), capsys)
    other = tmp_path / "ssdd.pth"
    checkpoint.save_weights(other, torch.nn.Linear(2, 2), done, CLASSES)
    assert "does not fit this network" in refused("evaluate", replace(early, weights=str(other)), capsys)
    assert "belongs to main_ssdd.py" in refused("train", replace(early, seed_source="psa"), capsys)
    assert "--mode=evaluate --split=test" in refused("evaluate", replace(early, submit="x.tgz"), capsys)
    assert "was made with other settings" in refused("train", replace(done, certain=0.6), capsys)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--certain=0.05", "--unsure"),
        ("--scg_background=0.4", "--scg_background"),
        ("--recurseed_side 80 40", "--recurseed_side"),
        ("--recurseed_batch=0", "--recurseed_batch"),
        ("--average_decay=1", "--average_decay"),
        ("--score=nan", "--score"),
    ],
)
def test_settings_that_cannot_work_are_one_line(flags, named, capsys):
    with pytest.raises(SystemExit) as end:
        main_recurseed.main(["--mode=train", *flags.split()])
    assert end.value.code == 2 and named in capsys.readouterr().err


def test_a_stage_depends_on_its_own_settings():
    train_on, label_on, judge_on = (set(settings_of(stage)) for stage in stages.RECURSEED)
    assert {"recurseed_width", "seed", "epochs", "dropout", "recurseed_lr", "certain", "recurseed_crop"} <= train_on
    assert {"recurseed_width", "recurseed_scales", "recurseed_crf_sxy"} <= label_on and "score" in judge_on - label_on
    assert not (train_on | label_on | judge_on) & {"crop", "lr", "bn", "crf_sxy", "knowledge", "backbone_dilation"}


def test_mode_4_learns_from_the_seeds_by_name(done, tmp_path, capsys):
    config = replace(done, out=str(tmp_path / "out"))
    shutil.copytree(Path(done.out) / "seeds", tmp_path / "out" / "seeds")
    classifier = Classifier(20, config.width, config.dropout, config.backbone_dilation)
    checkpoint.save_weights(stages.label_network(config, "train_cls"), classifier)
    flags = as_flags(replace(config, epochs=1))
    main_ssdd.main(["--mode=4", "--seed_source=recurseed", *flags])
    assert (tmp_path / "out" / "logs" / "fixed_recurseed_ssdd" / "models" / "seg_0001.pth").is_file()
    seeds.need(config, seeds.source(config, "recurseed_crf"), read_ids(config.voc_root, "train"))
    shutil.rmtree(tmp_path / "out" / "seeds" / "ssdd" / "recurseed_crf")
    with pytest.raises(SystemExit):
        main_ssdd.main(["--mode=4", "--seed_source=recurseed_crf", *flags])
    assert "main_recurseed.py --mode=labels" in capsys.readouterr().err


def test_ssdd_integrates_the_seeds_by_name(done, tmp_path):
    """With psa's maps under recurseed's name, and the reverse, the networks are the same to the bit."""
    shutil.copytree(Path(done.out) / "seeds", tmp_path / "out" / "seeds")
    config = replace(done, out=str(tmp_path / "out"), lr=1e-4)
    reference.adopt_weights(config, stages.label_network(config, "train_cls"))
    for which, source in enumerate(("recurseed", "recurseed_crf")):
        shutil.copytree(tmp_path / "out" / "seeds" / "ssdd" / source, stages.folder(config, "make_aff_labels", which))
    for name, pair in (("ssdd", ("recurseed", "recurseed_crf")), ("psa", ("psa", "psa_crf"))):
        own = replace(config, modelid=name, knowledge=pair[0], advice=pair[1])
        for mode in (0, 1, 2):
            main_ssdd.main([f"--mode={mode}", *as_flags(own)])
    logs_of = tmp_path / "out" / "logs"
    for mode, network in (("sssdd", "ssdd"), ("dssdd", "seg")):
        one, other = (
            checkpoint.load_state(logs_of / f"{mode}_{n}" / "models" / f"{network}_0001.pth") for n in ("ssdd", "psa")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)
    stored = json.loads((logs_of / "dssdd_ssdd" / "config.json").read_text())
    assert {"recurseed", "recurseed_crf"} <= stored["made_from"].keys()


def test_help_shows_its_commands_and_settings(capsys):
    with pytest.raises(SystemExit):
        main_recurseed.main(["--help"])
    said = capsys.readouterr().out
    assert "    python main_recurseed.py --mode=train" in said and "--mix-from" in said and "--walk_power" not in said


def test_classes_of_the_weights_must_be_those_of_the_images(done, tmp_path):
    path = tmp_path / "odd.pth"
    checkpoint.save_weights(path, networks.build(done, 21), done, (*CLASSES[:-1], "sofa bed"))
    with pytest.raises(InputError, match="knows other classes"):
        networks.trained_network(replace(done, weights=str(path)), torch.device("cpu"))


def test_predict_makes_the_masks_of_the_evaluation(done, tiny_voc, tmp_path):
    weights = stages.checkpoint_path(logs(done), "recurseed", 3)
    bare = tmp_path / "bare.pth"
    torch.save(saved(done), bare)
    assert checkpoint.system_of(weights) == checkpoint.system_of(bare) == "recurseed"
    folder = stages.folder(done, "recurseed evaluate")
    for kind, crf in (("mask", False), ("crf", True)):
        predictor = Predictor(weights, "cpu", crf=crf)
        for image_id in read_ids(tiny_voc, "val"):
            image = read_image(tiny_voc, image_id)
            assert np.array_equal(predictor.mask(image), read_mask(folder / kind / f"{image_id}.png"))
    maps = predictor.maps(image)
    assert maps.shape == (21, *image.shape[:2]) and np.allclose(maps.sum(axis=0), 1, atol=1e-5)
    with pytest.raises(InputError, match="only networks of SSDD"):
        export(predictor, tmp_path / "net.pt2", [image])
