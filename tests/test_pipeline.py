"""The whole method on nine small images: what is read, what is left behind, what a second start does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main_ssdd
from datasets.samples import seeds as training_sets
from datasets.seed_store import load_differences, load_maps, store_path
from datasets.voc import read_ids, read_mask, read_present, write_mask
from engine import checkpoint, stages
from evaluation.metrics import mean_iou
from modes.ssdd.networks import seed_integration
from modes.ssdd.precompute import refined_seed
from prepare_labels import make_aff_labels, make_cam_labels, train_aff, train_cls
from tests.conftest import as_flags, labels_folder, tiny


def whole_method(flags: list[str]) -> None:
    for program in (train_cls, make_cam_labels, train_aff, make_aff_labels):
        program.main(flags)
    main_ssdd.main(["--mode=all", *flags])


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a run's folder, but the notes on time and memory and the pages that show them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"tensorboard", "script", "history.jsonl", "made_from.txt"} & {*path.parts}
    }


def test_no_pixel_label_is_read_but_by_evaluation(own_voc, finished_run, tmp_path, capsys):
    shutil.rmtree(own_voc / "SegmentationClass")
    whole_method(as_flags(tiny(own_voc, tmp_path / "out")))
    assert "no mIoU" in capsys.readouterr().out
    made, with_masks = contents(tmp_path / "out"), contents(finished_run)
    # The same files, byte for byte, whether true masks exist or not (their paths stand in the stored Configs).
    assert set(with_masks) - set(made) == {"validation/ssdd/result_val.json"}
    assert [name for name in made if not name.endswith("config.json") and made[name] != with_masks[name]] == []


def test_files_lie_where_the_released_program_puts_them(finished_run, tiny_voc):
    ids = read_ids(tiny_voc, "train_aug")
    shown = {ids[0], ids[-1]}
    for image_id in ids:
        present = np.flatnonzero(read_present(tiny_voc, image_id)).tolist()
        results = finished_run / "prepare_labels" / "results"
        assert load_maps(results / "out_cam" / f"{image_id}.npz").classes.tolist() == present[1:]
        assert load_maps(results / "out_aff" / f"{image_id}.npz").classes.tolist() == present
        assert load_maps(results / "out_aff_crf" / f"{image_id}.npz").classes.tolist() == present
        assert set(np.unique(read_mask(finished_run / "precompute" / "ssdd" / f"{image_id}.png"))) <= set(present)
    static, dynamic = finished_run / "logs" / "sssdd_ssdd", finished_run / "logs" / "dssdd_ssdd"
    for run, pictures in ((static, "k1 a1 d1 dk1 da1"), (dynamic, "k1 a1 d1 dk1 da1 k2 a2 d2 dk2 da2")):
        assert (run / "models" / "seg_0001.pth").exists() and (run / "models" / "ssdd_0001.pth").exists()
        expected = {f"{i}_0001_{what}.png" for i in shown for what in pictures.split()} | {f"{i}.jpg" for i in shown}
        expected |= {f"{i}_0001_s{n}.npy" for i in shown for n in ((1, 2) if run == dynamic else (1,))}
        assert {path.name for path in (run / "imgs").iterdir()} == expected
    for image_id in read_ids(tiny_voc, "val"):
        for kind in ("mask", "crf"):
            assert (finished_run / "validation" / "ssdd" / kind / f"{image_id}.png").exists()


def test_state_dicts_have_the_released_keys(finished_run):
    keys = set(checkpoint.load_state(finished_run / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth"))
    assert {"encoder.conv1a.weight", "encoder.b2.bn_branch2a.running_mean", "encoder.b7.conv_branch2b2.weight"} <= keys
    assert {"encoder.bn7.weight", "seg_main.seg1.conv1.bias", "seg_sub.seg1.bn1.weight", "seg_sub.seg2.bias"} <= keys
    keys = set(checkpoint.load_state(finished_run / "logs" / "dssdd_ssdd" / "models" / "ssdd_0001.pth"))
    assert {"dd_head0.conv1ab.conv1.weight", "dd1.conv1c.bn1.bias", "dd1.conv1abc.bnd.running_var"} <= keys
    assert {"dd0.conv1abc.downsample.weight", "dd1.pred_abc.weight"} <= keys and "dd0.pred_abc.bias" not in keys


def test_ssdd_training_leaves_batchnorm_and_conv1a_as_the_classifier_had_them(finished_run):
    classifier = checkpoint.load_state(finished_run / "prepare_labels" / "results" / "cls" / "weights.pth")
    trained = checkpoint.load_state(finished_run / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth")
    frozen = [key for key in classifier if "bn" in key or key.startswith("conv1a")]
    assert len(frozen) > 100
    assert all(torch.equal(trained[f"encoder.{key}"], classifier[key]) for key in frozen)
    assert not torch.equal(trained["encoder.b2.conv_branch2a.weight"], classifier["b2.conv_branch2a.weight"])


def test_result_file_holds_the_miou_of_the_masks_on_disk(finished_run, tiny_voc):
    result = json.loads((finished_run / "validation" / "ssdd" / "result_val.json").read_text())
    counts = np.zeros((21, 22), np.int64)
    for image_id in read_ids(tiny_voc, "val"):
        mask = read_mask(finished_run / "validation" / "ssdd" / "crf" / f"{image_id}.png")
        truth = read_mask(tiny_voc / "SegmentationClass" / f"{image_id}.png")
        for t, m in zip(truth.flat, mask.flat, strict=True):
            if t != 255:
                counts[t, m] += 1
    assert result["mask after CRF"]["miou"] == mean_iou(counts)


def test_a_second_start_changes_nothing(own_run, capsys):
    before = contents(Path(own_run.out))
    whole_method(as_flags(own_run))
    assert contents(Path(own_run.out)) == before
    assert capsys.readouterr().out.count("is complete") >= 4


def test_what_is_missing_is_made_again_and_equal(own_run):
    out = Path(own_run.out)
    before = contents(out)
    first = read_ids(own_run.voc_root, "train_aug")[0]
    for kind in ("out_cam", "out_aff_crf"):
        store_path(labels_folder(own_run, kind), first).unlink()
    store_path(stages.folder(own_run, "mode 1"), first).unlink()
    (stages.folder(own_run, "mode 3") / "crf" / f"{read_ids(own_run.voc_root, 'val')[0]}.png").unlink()
    whole_method(as_flags(own_run))
    assert contents(out) == before


def test_static_seed_integrates_psa_and_crf_at_the_image_size(own_run):
    image_id = read_ids(own_run.voc_root, "train_aug")[0]
    maps = [load_maps(store_path(labels_folder(own_run, kind), image_id)) for kind in ("out_aff", "out_aff_crf")]
    knowledge, advice = (m.classes[m.maps.argmax(axis=0)] for m in maps)
    differences = [d[None] for d in load_differences(store_path(stages.folder(own_run, "mode 1"), image_id))]
    pair = (stages.folder(own_run, "make_aff_labels"), stages.folder(own_run, "make_aff_labels", 1))
    how = seed_integration(own_run)
    never, always = (how._replace(bias=bias) for bias in (-9, 9))
    assert np.array_equal(refined_seed(own_run.voc_root, image_id, pair, differences, never), knowledge)
    assert np.array_equal(refined_seed(own_run.voc_root, image_id, pair, differences, always), advice)


def test_recipe_released_stores_mirrored_maps(own_run, monkeypatch):
    # Difference 4: with random flips while storing, about half of the maps are those of the mirrored image. Without the
    # jitter, whose effect on a network that has learned nothing is as large as the mirror's.
    monkeypatch.setattr(training_sets, "draw_jitter", lambda: ("bcsh", torch.tensor([1.0, 1.0, 1.0, 0.0])))
    flags = as_flags(own_run)
    ids = read_ids(own_run.voc_root, "train_aug")
    plain = [load_differences(store_path(stages.folder(own_run, "mode 1"), i))[0] for i in ids]
    main_ssdd.main(["--mode=1", *flags, "--precompute-augmented", "--fresh"])
    moved = [load_differences(store_path(stages.folder(own_run, "mode 1"), i))[0] for i in ids]
    closer = [np.abs(m - p[:, ::-1]).mean() < np.abs(m - p).mean() for m, p in zip(moved, plain, strict=True)]
    same = [np.allclose(m, p, atol=1e-4) for m, p in zip(moved, plain, strict=True)]
    assert 0 < sum(same) < len(ids) and any(closer) and not any(s and c for s, c in zip(same, closer, strict=True))


def test_odd_pictures_go_through_the_whole_method(own_voc, tmp_path):
    rng = np.random.default_rng(0)
    noise = lambda *size: rng.integers(0, 256, size, dtype=np.uint8)  # noqa: E731
    odd = {
        "train": [Image.fromarray(noise(1, 1, 3)), Image.fromarray(noise(40, 60)), Image.fromarray(noise(7, 200, 3))],
        "val": [Image.fromarray(noise(1, 1, 3)), Image.fromarray(noise(50, 30, 4), "CMYK")],
    }
    odd["train"].append(Image.fromarray(noise(33, 65, 4), "RGBA"))
    for split, pictures in odd.items():
        for image_id, picture in zip(read_ids(own_voc, split), pictures, strict=False):
            kind = "PNG" if picture.mode == "RGBA" else "JPEG"
            picture.save(own_voc / "JPEGImages" / f"{image_id}.jpg", format=kind)
            write_mask(own_voc / "SegmentationClass" / f"{image_id}.png", np.zeros(picture.size[::-1], np.uint8))
    config = tiny(own_voc, tmp_path / "out")
    whole_method(as_flags(config))
    for image_id, picture in zip(read_ids(own_voc, "val"), odd["val"], strict=False):
        assert read_mask(stages.folder(config, "mode 3") / "crf" / f"{image_id}.png").shape == picture.size[::-1]
    for image_id, picture in zip(read_ids(own_voc, "train"), odd["train"], strict=False):
        assert read_mask(stages.folder(config, "mode 1") / f"{image_id}.png").shape == picture.size[::-1]


@pytest.mark.parametrize(
    ("mode", "folder", "name", "other"),
    [
        ("0", "prepare_labels/results/out_aff", "preset", "voc"),
        ("1", "logs/sssdd_ssdd", "recipe", "released"),
        ("2", "precompute/ssdd", "recipe", "released"),
        ("3", "logs/dssdd_ssdd", "preset", "voc"),
        ("2", "prepare_labels/results/cls", "width", 0.5),
    ],
)
def test_inputs_of_another_preset_recipe_or_width_are_refused_naming_both(mode, folder, name, other, own_run, capsys):
    path = Path(own_run.out) / folder / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {name: other}))
    with pytest.raises(SystemExit) as end:
        main_ssdd.main([f"--mode={mode}", *as_flags(own_run), "--fresh"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert f"{path.parent} was made with --{name}={other}, this run has --{name}={stored[name]}" in said


def test_labels_serve_both_recipes(own_run):
    main_ssdd.main(["--mode=0", *as_flags(own_run), "--recipe=released", "--modelid=released"])


def test_a_complete_evaluation_keeps_its_masks_and_judges_them_anew(own_run, monkeypatch, capsys):
    flags = ["--mode=3", *as_flags(own_run)]
    main_ssdd.main(flags)
    table = capsys.readouterr().out.split("| val")[1]
    with monkeypatch.context() as patch:
        patch.setattr("modes.ssdd.evaluate.multiscale_probabilities", lambda *_: pytest.fail("computed again"))
        main_ssdd.main(flags)
    assert capsys.readouterr().out.split("| val")[1] == table
    truth = Path(own_run.voc_root) / "SegmentationClass" / f"{read_ids(own_run.voc_root, 'val')[0]}.png"
    write_mask(truth, np.full_like(read_mask(truth), 7))
    main_ssdd.main(flags)
    assert capsys.readouterr().out.split("| val")[1] != table
