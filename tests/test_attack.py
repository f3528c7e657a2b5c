"""What an independent attack found: results over inputs, changes that went unseen, small files that blow up."""

import importlib
import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_recurseed
import main_ssdd
from datasets import coco
from datasets.errors import InputError
from datasets.files import PARTIAL
from datasets.seed_store import load_maps, read_seed, save_maps, seed_path, store_path
from datasets.voc import CLASSES, image_path, mask_path, open_image, read_ids, read_mask, write_mask
from engine import checkpoint, distributed, notes, passes, runs, stages
from prepare_labels import make_aff_labels, make_cam_labels
from script import make_pages
from tests.conftest import as_flags, labels_folder, tiny
from tests.test_bad_input import refused
from tests.test_locks import end, holder
from tools import eval_masks, import_images, pack, predict, seed_rivals

RECURSEED = [lambda flags, mode=m: main_recurseed.main([f"--mode={mode}", *flags]) for m in ("labels", "evaluate")]


@pytest.mark.parametrize("name", ["seeds", "list", "annotation", "truth", "Config", "maps"])
def test_no_archive_and_no_table_lands_among_what_a_run_or_a_data_set_holds(name, own_run, tmp_path, capsys):
    out, root = Path(own_run.out), Path(own_run.voc_root)
    image_id = read_ids(root, "train")[0]
    victim = {
        "seeds": store_path(labels_folder(own_run, "out_aff"), image_id),
        "list": root / "ImageSets" / "Segmentation" / "train_aug.txt",
        "annotation": root / "Annotations" / f"{image_id}.xml",
        "truth": mask_path(root, image_id),
        "Config": out / "logs" / "dssdd_ssdd" / "config.json",
        "maps": store_path(stages.folder(own_run, "mode 1"), image_id),
    }[name]
    before = victim.read_bytes()
    own = ["--voc-root", str(root)]
    weights = out / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth"
    for program, flags in (
        (pack.main, [str(out), "--to", str(victim), "--what", "psa", *own]),
        (eval_masks.main, ["psa", "--out", str(out), "--split", "train", "--json", str(victim), *own]),
        (seed_rivals.main, [str(out), "--json", str(victim), *own]),
        (predict.main, [str(root / "JPEGImages"), "--weights", str(weights), "--out", str(victim.parent)]),
    ):
        assert "name another place" in refused(program, flags, tmp_path, capsys)
    assert victim.read_bytes() == before


def test_every_of_several_folders_of_one_name_is_known_by_its_content(own_run, tmp_path):
    folders = []
    for letter in "abc":
        folders.append(tmp_path / letter / "m")
        folders[-1].mkdir(parents=True)
        write_mask(folders[-1] / "x.png", np.full((4, 4), ord(letter) - 97, np.uint8))
    runs.claim_folder(tmp_path / "run", own_run, "mode 0", folders)
    for folder in folders:
        kept = (folder / "x.png").read_bytes()
        write_mask(folder / "x.png", np.full((4, 4), 9, np.uint8))
        with pytest.raises(InputError, match="other settings or inputs"):
            runs.claim_folder(tmp_path / "run", own_run, "mode 0", folders)
        (folder / "x.png").write_bytes(kept)
    runs.claim_folder(tmp_path / "run", own_run, "mode 0", folders)


def test_a_strangers_config_beside_masks_hides_no_change(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"tool": "grabcut"}))
    write_mask(tmp_path / "x.png", np.zeros((4, 4), np.uint8))
    before = notes.digest(tmp_path)
    write_mask(tmp_path / "x.png", np.ones((4, 4), np.uint8))
    assert notes.digest(tmp_path) != before and runs.stage_folder(tmp_path) is None


def test_a_region_that_changes_or_moves_is_seen_beside_any_other_picture(tmp_path):
    for name in ("overview.png", "one/1.png", "two/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_mask(tmp_path / name, np.zeros((4, 4), np.uint8))
    seen = {notes.digest(tmp_path)}
    os.rename(tmp_path / "one" / "1.png", tmp_path / "two" / "1.png")
    seen.add(notes.digest(tmp_path))
    write_mask(tmp_path / "two" / "1.png", np.ones((4, 4), np.uint8))
    seen.add(notes.digest(tmp_path))
    assert len(seen) == 3


@pytest.mark.parametrize("flag", ["knowledge=masks:", "advice=psa,segments:", "seed_source=masks:", "superpixels="])
def test_a_copy_of_an_own_store_is_known_by_its_files(flag, own_run, tmp_path):
    copy = shutil.copytree(labels_folder(own_run, "out_aff"), tmp_path / "copy")
    name, _, value = flag.partition("=")
    config = replace(own_run, **{name: f"{value}{copy}"})
    runs.claim_folder(tmp_path / "run", config, "mode 0", [copy])
    runs.claim_folder(tmp_path / "run", config, "mode 0", [copy])
    shutil.copy(*sorted(copy.glob("*.npz"))[:2])
    with pytest.raises(InputError, match=r"other settings or inputs .*copy"):
        runs.claim_folder(tmp_path / "run", config, "mode 0", [copy])


def test_regions_behind_a_link_are_known_by_their_content(tmp_path):
    write_mask(tmp_path / "elsewhere" / "1.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "x").symlink_to(tmp_path / "elsewhere")
    before = notes.digest(tmp_path / "regions")
    write_mask(tmp_path / "elsewhere" / "1.png", np.full((4, 4), 255, np.uint8))
    assert notes.digest(tmp_path / "regions") != before


def test_an_outline_that_pycocotools_could_not_count_is_refused():
    outline = [[-1280.0, -1280.0, 1280.0, 1280.0] * 2000 + [0.0, 0.0]]
    with pytest.raises(ValueError, match="outline longer than"):
        coco.decode_region(outline, (480, 640))
    assert coco.decode_region([[0, 0, 4, 0, 4, 4, 0, 4]], (8, 8)).sum() == 16


def test_maps_of_another_size_are_refused_before_they_are_enlarged(tmp_path):
    save_maps(store_path(tmp_path, "x"), np.array([0, 3]), np.ones((2, 12, 16), np.float32), (96, 128), "test")
    assert load_maps(store_path(tmp_path, "x"), (96, 128)).maps.shape == (2, 96, 128)
    with pytest.raises(InputError, match=r"maps are \(96, 128\), the image is \(4, 4\)"):
        read_seed(tmp_path, "x", (4, 4))
    write_mask(tmp_path / "y.png", np.zeros((50, 60), np.uint8))
    with pytest.raises(InputError, match=r"maps are \(50, 60\)"):
        read_seed(tmp_path, "y", (4, 4))


@pytest.mark.parametrize("flag", ["--out=--", "--crop=--", "--preset=--", "--cls_side=--"])
def test_two_dashes_are_no_value(flag, own_run, tmp_path, capsys):
    said = refused(main_ssdd.main, ["--mode=0", *as_flags(own_run), flag], tmp_path, capsys)
    assert flag.split("=")[0].replace("_", "") in said.replace("_", "").replace("-side", "side")


@pytest.mark.parametrize("word", ["0", "-1", "abc", ""])
def test_a_number_of_processes_that_cannot_be(word, monkeypatch):
    for name, value in (("WORLD_SIZE", word), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="WORLD_SIZE="):
        distributed.start("cpu")


def test_a_submission_does_not_replace_the_weights_it_comes_from(own_run, tmp_path, capsys):
    weights = tmp_path / "w.tgz"
    shutil.copy(Path(own_run.out) / "logs" / "dssdd_ssdd" / "models" / "seg_0001.pth", weights)
    before = weights.read_bytes()
    flags = as_flags(replace(own_run, split="test", weights=str(weights), submit=str(weights)))
    assert "written over" in refused(lambda f: main_ssdd.main(["--mode=3", *f]), flags, tmp_path, capsys)
    assert weights.read_bytes() == before


def test_a_pass_that_is_cut_leaves_nothing_of_another_photograph(own_run):
    """Killed while an image is made again, then the old photograph put back: its files are not taken for whole."""
    ids = read_ids(own_run.voc_root, "train_aug")
    folder = stages.folder(own_run, "mode 1")
    photo = image_path(own_run.voc_root, ids[0])
    before = photo.read_bytes()
    photo.write_bytes(image_path(own_run.voc_root, ids[1]).read_bytes())

    def cut():
        raise KeyboardInterrupt

    same = (own_run, "mode 1", folder, ids, lambda _: True, lambda: None)
    with pytest.raises(KeyboardInterrupt), passes.image_pass(*same) as left:
        assert list(left.to_do) == ids[:1]
        left.write(ids[0], cut)
    photo.write_bytes(before)
    with passes.image_pass(*same) as left:
        assert list(left.to_do) == ids[:1]


@pytest.mark.parametrize(
    ("program", "stale"),
    [
        (make_aff_labels.main, "out_cam"),
        (lambda flags: main_ssdd.main(["--mode=1", *flags]), "out_aff"),
        (lambda flags: main_ssdd.main(["--mode=2", *flags]), "out_aff"),
    ],
    ids=["PSA", "mode 1", "mode 2"],
)
def test_files_of_a_photograph_that_was_replaced_are_not_built_upon(program, stale, own_run, own_voc, capsys):
    """Else what is made from the new photograph and the old file stays when the old file is made again."""
    config = replace(own_run, voc_root=str(own_voc))
    photo = image_path(config.voc_root, read_ids(config.voc_root, "train_aug")[0])
    Image.open(photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photo, quality=95)
    shutil.rmtree(stages.folder(config, "mode 2"))
    said = refused(program, as_flags(config), config.out, capsys)
    assert stale in said and f"was made from another {photo}" in said


def test_notes_of_a_folder_that_nobody_finished_are_not_taken_for_an_older_versions(own_run, tmp_path):
    ids = read_ids(own_run.voc_root, "train_aug")
    done = set()
    for expected in (ids, ids):  # files came without a note: the process was killed between the two
        with passes.image_pass(own_run, "x", tmp_path, ids, done.__contains__, lambda: None) as left:
            assert list(left.to_do) == expected
        done.update(ids)
    older = tmp_path / "older"
    older.mkdir()
    for _ in range(2):
        with passes.image_pass(own_run, "x", older, ids, done.__contains__, lambda: None) as left:
            assert not left.to_do
    with passes.image_pass(own_run, "x", older, ids, done.__contains__, lambda: None, how="by its labels") as left:
        assert list(left.to_do) == ids


@pytest.mark.parametrize("kind", [".npz", ".png"])
def test_a_copy_of_an_own_seed_store_is_no_second_source(kind, own_run, tmp_path, capsys):
    """Known by its masks, stored as they are or in another format."""
    ids, copy = read_ids(own_run.voc_root, "train_aug"), tmp_path / "copy"
    own = labels_folder(own_run, "out_aff")
    for image_id in ids:
        path, maps = copy / f"{image_id}{kind}", load_maps(store_path(own, image_id))
        path.parent.mkdir(exist_ok=True)
        if kind == ".npz":
            shutil.copy(store_path(own, image_id), path)
        else:
            write_mask(path, maps.mask())
    flags = [*as_flags(replace(own_run, modelid="twice", advice=f"masks:{copy}")), "--mode=0"]
    assert "hold the same masks" in refused(main_ssdd.main, flags, tmp_path, capsys)
    changed = seed_path(copy, ids[-1])
    changed.unlink()
    write_mask(changed.with_suffix(".png"), np.zeros_like(load_maps(store_path(own, ids[-1])).mask()))
    main_ssdd.main(flags)


def test_results_without_the_config_that_made_them_are_not_taken_over(own_run, tmp_path, capsys):
    folder = stages.folder(own_run, "mode 1")
    (folder / "config.json").unlink()
    flags = ["--mode=1", *as_flags(replace(own_run, seed_bias=0.9))]
    assert "no config.json" in refused(main_ssdd.main, flags, tmp_path, capsys)
    main_ssdd.main([*flags, "--fresh"])
    assert (folder / "config.json").exists() and folder.with_name(f"{folder.name}.old1").is_dir()


def test_a_pass_goes_on_in_the_precision_in_which_it_began(own_run, tmp_path, capsys):
    store_path(labels_folder(own_run, "out_cam"), read_ids(own_run.voc_root, "train_aug")[0]).unlink()
    flags = as_flags(replace(own_run, precision="bfloat16"))
    assert "precision float32, now bfloat16" in refused(make_cam_labels.main, flags, tmp_path, capsys)


@pytest.mark.parametrize("stage", ["mode 1", "mode 3"])
def test_a_pass_goes_on_with_the_batch_with_which_it_began(stage, tiny_config):
    """Convolutions round differently in batches of another size."""
    for _ in range(2):
        runs.claim(tiny_config, stage, [])
    with pytest.raises(InputError, match="eval_batch 1, now 2"):
        runs.claim(replace(tiny_config, eval_batch=2), stage, [])


@pytest.mark.parametrize("link", ["mask", "ID.png", "history.jsonl", "the folder itself"])
def test_nothing_is_written_through_a_link_over_what_is_read(link, own_voc, tmp_path):
    config = tiny(own_voc, tmp_path / "out")
    folder = stages.folder(config, "mode 3")
    image_id = read_ids(own_voc, "val")[0]
    original, place = {
        "mask": (own_voc / "SegmentationClass", folder / "mask"),
        "ID.png": (mask_path(own_voc, image_id), folder / "mask" / f"{image_id}.png"),
        "history.jsonl": (own_voc / "ImageSets" / "Segmentation" / "val.txt", folder / "history.jsonl"),
        "the folder itself": (own_voc / "SegmentationClass", folder),
    }[link]
    if link != "the folder itself":
        runs.claim(config, "mode 3", [])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(original)
    with pytest.raises(InputError, match=rf"^{place} (is a link|holds files, but no config)"):
        runs.claim(config, "mode 3", [])
    runs.claim(replace(config, fresh=True), "mode 3", [])
    assert [path.name for path in folder.iterdir()] == ["config.json"] and not folder.is_symlink()
    assert mask_path(own_voc, image_id).exists()
    assert folder.with_name(f".{folder.name}.lock").exists()  # of the new folder, not of what the link led to


def test_an_image_counts_once(own_voc):
    path = own_voc / "ImageSets" / "Segmentation" / "train.txt"
    first = read_ids(own_voc, "train")[0]
    path.write_text(path.read_text() + f"/JPEGImages/{first}.jpg /SegmentationClass/{first}.png\n")
    with pytest.raises(InputError, match=rf"train\.txt, line 7: {first} is there already, in line 1"):
        read_ids(own_voc, "train")


def photos_of(own_voc: Path, tmp_path: Path) -> list[str]:
    """Arguments of an import of the set's photographs."""
    return [str(own_voc / "JPEGImages"), str(own_voc / "Annotations"), "--to", str(tmp_path / "own")]


def test_an_import_goes_on_by_content_whatever_the_times_say(own_voc, tmp_path, monkeypatch, capsys):
    flags, photos = photos_of(own_voc, tmp_path), own_voc / "JPEGImages"
    first, second, *_, last = sorted(photos.iterdir())
    kept = last.read_bytes()
    last.write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        import_images.main(flags)
    last.write_bytes(kept)
    half = tmp_path / "own" / "JPEGImages" / f"{PARTIAL}7-left.jpg"  # by a kill
    half.touch()
    shutil.copy(second, first)
    os.utime(first, (1, 1))  # as `cp -p` and rsync leave it
    photos.rename(own_voc / "renamed")
    done = []
    monkeypatch.setattr(import_images, "read_photo", lambda path: (done.append(path.name), open_image(path))[1])
    import_images.main([str(own_voc / "renamed"), *flags[1:]])
    assert done == [first.name, last.name] and not half.exists()
    assert (
        image_path(tmp_path / "own", first.stem).read_bytes() == image_path(tmp_path / "own", second.stem).read_bytes()
    )
    assert "other pictures" not in capsys.readouterr().err


def test_an_import_that_leaves_nothing_to_train_on_is_refused(own_voc, tmp_path, capsys):
    flags = [*photos_of(own_voc, tmp_path), "--val=0.999"]
    assert "--val=0.999: none of 9 pictures is left" in refused(import_images.main, flags, tmp_path, capsys)


def test_pictures_of_seeds_are_those_of_the_source_that_a_run_names(own_run, tmp_path):
    image_id = read_ids(own_run.voc_root, "train_aug")[0]
    shown = []
    for number in (3, 7):
        folder = tmp_path / f"m{number}"
        write_mask(folder / f"{image_id}.png", np.full((8, 8), number, np.uint8))
        os.utime(folder / f"{image_id}.png", (1, 1))
        make_pages.make_pages(replace(own_run, advice=f"masks:{folder}"), ["labels"])
        (picture,) = (Path(own_run.out) / "script" / "labels").glob(f"{image_id}_masks*.png")
        shown.append(picture.read_bytes())
    assert shown[0] != shown[1]


def test_regions_of_a_large_picture_are_painted_one_by_one():
    side = 1000
    outlines = [[[n, n, n + 300.0, n, n + 300, n + 300, n, n + 300]] for n in range(0, 600, 20)]
    picture = coco.Picture("x", "x.jpg", (side, side), [{"category_id": 1, "segmentation": o} for o in outlines])
    tracemalloc.start()
    mask = coco.paint(coco.Instances(Path("x"), ("background", "cat"), {1: 1}, [picture]), picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.sum() > 300 * 300 and peak < 4 * side * side


@pytest.mark.parametrize("setting", ["cam_scales", "recurseed_scales"])
def test_scales_and_photographs_are_bounded_together(setting, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "LARGEST_INPUT", 200_000)
    flags = as_flags(replace(own_run, **{setting: (1.0, 4.0)}))
    for main in [make_cam_labels.main] if setting == "cam_scales" else RECURSEED:
        assert f"smaller --{setting}" in refused(main, flags, tmp_path, capsys)


def test_a_classifier_of_another_order_of_classes_is_refused(own_run, tmp_path, capsys):
    (Path(own_run.voc_root) / "classes.txt").write_text("\n".join(reversed(CLASSES[1:])))
    said = refused(make_cam_labels.main, [*as_flags(own_run), "--fresh"], tmp_path, capsys)
    assert "knows other classes" in said
    bare = tmp_path / "bare.pth"
    checkpoint.save(bare, checkpoint.load_state(stages.label_network(own_run, "train_cls")))
    said = refused(make_cam_labels.main, [*as_flags(own_run), "--fresh", f"--weights={bare}"], tmp_path, capsys)
    assert "knows other classes" in said


def test_fresh_that_is_refused_moves_no_folder(own_run, capsys):
    first, second = labels_folder(own_run, "out_aff"), labels_folder(own_run, "out_aff_crf")
    reader = holder("locks.lock_for_reading(folder)", second)
    with pytest.raises(InputError, match="out_aff_crf is being read by another run"):
        runs.claim(replace(own_run, fresh=True), "make_aff_labels", [])
    end(reader)
    assert any(first.glob("*.npz")) and not first.with_name("out_aff.old1").exists()


@pytest.mark.parametrize("place", [".", "", "new/.."])
def test_an_archive_needs_a_folder_with_a_name(place, own_voc, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = refused(pack.main, ["import", str(own_voc / "SegmentationClass"), "--to", place], tmp_path, capsys)
    assert "name a new folder or file" in said and not Path("new").exists()


def test_two_imports_do_not_fill_one_data_set(own_voc, tmp_path, capsys):
    other = holder("locks.lock_for_writing(folder)", tmp_path / "own")
    said = refused(import_images.main, photos_of(own_voc, tmp_path), tmp_path, capsys)
    assert "in use by another run" in said and "another --to" in said
    end(other)
    import_images.main(photos_of(own_voc, tmp_path))


@pytest.mark.parametrize("damage", ["", '{"mask": {}}', "{", "miou"])
def test_figures_of_a_network_are_of_the_masks_and_truth_that_are_there(damage, own_run, capsys):
    path = stages.folder(own_run, "mode 3") / "result_val.json"
    right = path.read_text()
    path.write_text(right.replace('"miou": 0', '"miou": 1') if damage == "miou" else damage or right)
    if not damage:
        for image_id in read_ids(own_run.voc_root, "val"):
            write_mask(mask_path(own_run.voc_root, image_id), 0 * read_mask(mask_path(own_run.voc_root, image_id)))
    figures = seed_rivals.network_figures(own_run)
    main_ssdd.main(["--mode=3", *as_flags(own_run)])
    assert (path.read_text() == right) == bool(damage)
    stored = json.loads(path.read_text())
    assert figures == {kind: stored[kind]["miou"] for kind in ("mask", "mask after CRF")}


@pytest.mark.parametrize(
    ("stage", "lost"),
    [("train_cls", "weights.pth"), ("train_aff", "weights.pth"), ("mode 0", "ssdd_*.pth"), ("mode 2", "seg_*.pth")],
)
def test_last_weights_that_were_lost_come_back_from_the_state(stage, lost, finished_run, own_run):
    program = importlib.import_module(f"prepare_labels.{stage}").main if stage in stages.PSA else main_ssdd.main
    folder = stages.folder(own_run, stage)
    shutil.copy(Path(finished_run) / folder.relative_to(own_run.out) / "state.pth", folder)
    (weights,) = folder.rglob(lost)
    before = weights.read_bytes()
    weights.unlink()
    program([*([] if stage in stages.PSA else [f"--mode={stage[-1]}"]), *as_flags(own_run)])
    assert weights.read_bytes() == before
