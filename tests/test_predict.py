"""The trained network on one's own pictures: the masks of mode 3, whatever the size, and one line for bad input."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.errors import InputError
from datasets.pictures import read_photo
from datasets.voc import CLASSES, PALETTE, read_ids, read_image, read_mask
from engine import checkpoint
from engine.workers import crf_kernel
from modes.ssdd import evaluate
from tests.conftest import tiny
from tools import predict
from tools.predict import Predictor


@pytest.fixture(scope="module")
def weights(finished_run):
    return finished_run / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth"


def test_weights_say_what_they_are(weights, finished_run, tiny_voc):
    config, classes = checkpoint.load_description(weights)
    trained = tiny(tiny_voc, finished_run)
    assert classes == CLASSES
    assert (config.width, config.head_dilation, config.eval_scales) == (0.0625, 1, (0.5, 1.0))
    assert crf_kernel(config) == crf_kernel(trained) and config.epochs == 1
    text = weights.read_bytes()
    assert str(finished_run).encode() not in text and str(tiny_voc).encode() not in text


def test_masks_are_those_of_mode_3(weights, finished_run, tiny_voc):
    for kind, crf in (("mask", False), ("crf", True)):
        predictor = Predictor(weights, "cpu", crf=crf)
        for image_id in read_ids(tiny_voc, "val"):
            expected = read_mask(finished_run / "validation" / "ssdd" / kind / f"{image_id}.png")
            assert np.array_equal(predictor.mask(read_image(tiny_voc, image_id)), expected)


def test_maps_are_probabilities_whose_winner_is_the_mask(weights, tiny_voc):
    predictor = Predictor(weights, "cpu", crf=False)
    image = read_image(tiny_voc, read_ids(tiny_voc, "val")[0])
    maps = predictor.maps(image)
    assert maps.shape == (21, *image.shape[:2]) and maps.min() >= 0
    assert np.allclose(maps.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(maps.argmax(axis=0), predictor.mask(image))


def test_scales_replace_those_of_training(weights, tiny_voc):
    image = read_image(tiny_voc, read_ids(tiny_voc, "val")[0])
    one, both = Predictor(weights, "cpu", (1.0,)).maps(image), Predictor(weights, "cpu").maps(image)
    half = Predictor(weights, "cpu", (0.5,)).maps(image)
    assert np.allclose(both, (one + half) / 2, atol=1e-6) and not np.allclose(one, half, atol=1e-4)
    with pytest.raises(InputError, match="eval_scales"):
        Predictor(weights, "cpu", (0.01,))


def test_folders_keep_their_structure_and_results_their_size(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "LARGEST_SIDE", 100)
    rng = np.random.default_rng(0)
    noise = lambda *size: Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))  # noqa: E731
    (tmp_path / "in" / "deep").mkdir(parents=True)
    noise(30, 170, 3).save(tmp_path / "in" / "wide.PNG", format="PNG")
    noise(1, 1, 4).save(tmp_path / "in" / "deep" / "dot.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees to see it upright
    noise(40, 60, 3).save(tmp_path / "in" / "deep" / "turned.jpg", exif=turned)
    noise(33, 20).save(tmp_path / "grey.jpg")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    arguments = [str(tmp_path / "in"), str(tmp_path / "grey.jpg"), "--weights", str(weights), "--soft", "--device=cpu"]
    predict.main([*arguments, "--out", str(tmp_path / "out")])
    sizes = {"wide": (30, 170), "deep/dot": (1, 1), "deep/turned": (60, 40), "grey": (33, 20)}
    assert "4 pictures" in capsys.readouterr().out
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 3 * len(sizes)
    for name, size in sizes.items():
        assert read_mask(tmp_path / "out" / f"{name}.png").shape == size
        with Image.open(tmp_path / "out" / f"{name}_overlay.jpg") as image:
            assert image.width == size[1] and image.height > size[0]
        soft = np.load(tmp_path / "out" / f"{name}.npz")
        assert soft["probabilities"].shape[0] == 21 and max(soft["probabilities"].shape[1:]) <= 100
        assert soft["classes"].tolist() == list(CLASSES)


def test_overlay_shows_picture_colours_and_a_legend():
    image, mask = np.full((200, 300, 3), 100, np.uint8), np.zeros((200, 300), np.uint8)
    mask[50:150, 50:250] = 8
    shown = np.array(predict.overlay(image, mask, CLASSES))
    assert (shown[10, 10] == 100).all() and (shown[50, 100] == 255).all()
    assert np.allclose(shown[100, 100], 0.45 * 100 + 0.55 * PALETTE[8].astype(float), atol=1)
    legend = shown[200:]
    assert (legend == PALETTE[8]).all(axis=2).sum() > 50 and (legend == PALETTE[3]).all(axis=2).sum() == 0


def test_exported_program_is_checked(weights, tiny_voc, tmp_path, capsys, monkeypatch):
    picture = tiny_voc / "JPEGImages" / f"{read_ids(tiny_voc, 'val')[0]}.jpg"
    arguments = [str(picture), "--weights", str(weights), "--device=cpu", "--export", str(tmp_path / "net.pt2")]
    predict.main(arguments)
    assert "the same masks" in capsys.readouterr().out
    predictor, image = Predictor(weights, "cpu", crf=False), read_photo(picture)
    maps = torch.export.load(tmp_path / "net.pt2").module()(predictor.square(image))
    maps = predict.resize(maps, image.shape[:2])[0].numpy()
    assert np.allclose(maps, predictor.maps(image), atol=1e-5)
    # A file that computes something else is not left behind.
    load = torch.export.load
    mirrored = lambda square: load_again(square).flip(-1)  # noqa: E731
    load_again = load(tmp_path / "net.pt2").module()
    monkeypatch.setattr(torch.export, "load", lambda path: type("P", (), {"module": lambda self: mirrored})())
    with pytest.raises(SystemExit):
        predict.main(arguments)
    assert "another class" in capsys.readouterr().err and not (tmp_path / "net.pt2").exists()


def bad_config(path):
    checkpoint.save(path, {"state_dict": {}, "config": {"width": -1.0}, "classes": ["background", "cat"]})


def no_classes(path):
    checkpoint.save(path, {"state_dict": {}, "config": {}, "classes": [1]})


@pytest.mark.parametrize(
    ("make", "said"),
    [(bad_config, "--width=-1.0"), (no_classes, "classes must be"), (lambda path: None, "is missing")],
)
def test_bad_weights_end_in_one_line(make, said, tmp_path, tiny_voc, capsys):
    make(tmp_path / "w.pth")
    with pytest.raises(SystemExit) as end:
        predict.main([str(tiny_voc / "JPEGImages"), "--weights", str(tmp_path / "w.pth"), "--out", str(tmp_path / "o")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_weights_that_make_no_masks_are_told_apart(finished_run, tiny_voc, tmp_path, capsys):
    results = finished_run / "prepare_labels" / "results"
    models = finished_run / "logs" / "dssdd_ssdd" / "models"
    systems = {"ssdd": models / "seg_0001.pth", "ddnet": models / "ssdd_0001.pth"}
    systems |= {"psa": results / "cls" / "weights.pth", "psa ": results / "aff" / "weights.pth"}
    for system, path in systems.items():
        assert checkpoint.system_of(path) == system.strip()
        if system != "ssdd":
            with pytest.raises(SystemExit):
                predict.main([str(tiny_voc / "JPEGImages"), "--weights", str(path), "--out", str(tmp_path / "o")])
            error = capsys.readouterr().err
            assert str(path) in error and "makes no masks" in error and error.count("\n") == 1


def test_bad_pictures_end_in_one_line_and_the_others_are_done(weights, tiny_voc, tmp_path, capsys):
    good = read_image(tiny_voc, read_ids(tiny_voc, "val")[0])
    Image.fromarray(good).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:500])
    flags = ["--weights", str(weights), "--device=cpu", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        predict.main([str(tmp_path / "bad.jpg"), str(tmp_path / "good.jpg"), *flags])
    assert "1 of 2 pictures were left out" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.png", "good_overlay.jpg"]
    Image.fromarray(good).save(tmp_path / "good.png")
    for inputs, said in (
        ([tmp_path / "good.jpg", tmp_path / "good.png"], "would both become"),
        ([tmp_path / "absent.jpg"], "no such file"),
        ([tmp_path / "out"], None),
    ):
        if said:
            with pytest.raises(SystemExit):
                predict.main([*map(str, inputs), *flags])
            assert said in capsys.readouterr().err


def test_mode_3_takes_the_weights_too(own_run, capsys):
    evaluate.run(own_run)
    assert "mIoU" in capsys.readouterr().out
