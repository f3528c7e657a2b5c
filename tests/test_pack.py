"""Archives: what goes in comes out to the last bit, and nothing of a stranger's archive is believed."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import archive
from datasets.seed_store import load_differences, load_maps, read_seed, save_maps
from datasets.voc import image_size, mask_path, read_ids, read_mask, read_present, write_mask
from engine import checkpoint, stages
from evaluation.masks import evaluate
from tests.conftest import labels_folder
from tests.test_files import refused
from tools import pack


@pytest.fixture(scope="module")
def packed(finished_run, tiny_voc, tmp_path_factory):
    """One archive of each kind, of the finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    weights = str(finished_run / "logs/dssdd_ssdd/models/seg_0001.pth")
    for name, what in (("psa", "psa"), ("ssdd", "ssdd"), ("cam", "cam"), ("maps", "differences"), ("net", weights)):
        pack.main([str(finished_run), "--to", str(folder / f"{name}.zip"), "--what", what, "--voc-root", str(tiny_voc)])
    return folder


def imported(path, target, voc) -> Path:
    pack.main(["import", str(path), "--to", str(target), "--voc-root", str(voc)])
    return target


@pytest.mark.parametrize("name", ["psa", "ssdd", "cam"])
def test_seeds_come_out_as_they_went_in(name, packed, finished_run, tiny_voc, own_run, tmp_path, capsys):
    folder = imported(packed / f"{name}.zip", tmp_path / "theirs", tiny_voc)
    kinds = {"psa": labels_folder(own_run, "out_aff"), "cam": labels_folder(own_run, "out_cam")}
    own = kinds.get(name, stages.folder(own_run, "mode 1"))
    ids = read_ids(tiny_voc, "train_aug")
    for image_id in ids:
        size = image_size(tiny_voc, image_id)
        first, second = (read_seed(f, image_id, size) for f in (own, folder))
        assert np.array_equal(first.classes, second.classes) and np.array_equal(first.maps, second.maps)
        assert np.array_equal(first.mask(), second.mask())
        if name != "ssdd":
            assert load_maps(own / f"{image_id}.npz").made_by == load_maps(folder / f"{image_id}.npz").made_by
    assert len(list(folder.iterdir())) == len(ids)
    miou = evaluate(own, tiny_voc, ids)["miou"]
    with archive.open_archive(packed / f"{name}.zip") as found:
        assert found.about["miou"] == miou == evaluate(folder, tiny_voc, ids)["miou"]
    assert f"mIoU {100 * miou:.2f}" in capsys.readouterr().out


def test_difference_maps_and_weights_come_out_as_they_went_in(packed, finished_run, tiny_voc, tmp_path):
    folder = imported(packed / "maps.zip", tmp_path / "maps", tiny_voc)
    for image_id in read_ids(tiny_voc, "train_aug"):
        pairs = [load_differences(f / f"{image_id}.npz") for f in (folder, finished_run / "precompute/ssdd")]
        assert all(np.array_equal(one, other) for one, other in zip(*pairs, strict=True))
    theirs = tmp_path / "theirs.pth"
    imported(packed / "net.zip", theirs, tiny_voc)
    own = finished_run / "logs/dssdd_ssdd/models/seg_0001.pth"
    assert checkpoint.load_description(theirs) == checkpoint.load_description(own)
    one, other = checkpoint.load_state(own), checkpoint.load_state(theirs)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_an_archive_says_what_it_is_and_nothing_of_this_machine(packed, finished_run, tiny_voc, own_run, tmp_path):
    with archive.open_archive(packed / "psa.zip") as found:
        about = found.about
    assert (about["kind"], about["source"], about["split"], about["images"]) == ("seeds", "psa", "train_aug", 6)
    assert about["config"]["crf_sxy"] == 80 and about["config"]["seed"] == 0 and about["crf"]["setting"] == "psa, ssdd"
    assert (
        about["classes"][:2] == ["background", "aeroplane"]
        and "torch" in about["versions"]
        and len(about["list"]) == 16
    )
    for path in packed.iterdir():
        with zipfile.ZipFile(path) as content:
            text = b"".join(content.read(name) for name in content.namelist())
        assert not any(str(place).encode() in text for place in (finished_run, tiny_voc))
    again = tmp_path / "again.zip"
    pack.main([str(finished_run), "--to", str(again), "--what", "psa", "--voc-root", str(tiny_voc)])
    assert again.read_bytes() == (packed / "psa.zip").read_bytes()


def test_imported_seeds_are_a_source(packed, own_run, tmp_path):
    import main_ssdd
    from tests.conftest import as_flags

    folder = imported(packed / "psa.zip", tmp_path / "theirs", own_run.voc_root)
    main_ssdd.main(["--mode=4", f"--seed_source=masks:{folder}", *as_flags(own_run)])


def test_masks_of_others_enter_from_a_folder(finished_run, tiny_voc, tmp_path, capsys):
    source = tmp_path / "released"
    shutil.copytree(tiny_voc / "SegmentationClass", source)
    imported(source, tmp_path / "new", tiny_voc)
    assert "mIoU 100.00" in capsys.readouterr().out
    ids = read_ids(tiny_voc, "train_aug")
    assert sorted(path.stem for path in (tmp_path / "new").iterdir()) == sorted(ids)
    write_mask(source / f"{ids[1]}.png", read_mask(source / f"{ids[1]}.png")[:-1])
    flags = ["import", str(source), "--to", str(tmp_path / "bad"), "--voc-root", str(tiny_voc)]
    assert ids[1] in refused(pack.main, flags, capsys)
    (source / f"{ids[2]}.png").unlink()
    assert "1 of the 6 masks" in refused(pack.main, flags, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "released"]


def rewritten(path, target, change) -> Path:
    """An archive whose parts and manifest went through `change`, with fitting digests unless it makes them wrong."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    about = json.loads(parts.pop(archive.MANIFEST))
    fit = change(parts, about)
    if fit is not False:
        about["files"] = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in parts.items()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)
        new.writestr(archive.MANIFEST, json.dumps(about))
    return target


def first(parts) -> str:
    return next(iter(parts))


HOSTILE = {
    "out of the folder": (lambda p, a: p.update({"masks/../../evil.png": b""}), "which can be no mask"),
    "an absolute place": (lambda p, a: p.update({"/tmp/evil.png": b""}), "which can be no mask"),
    "a program": (lambda p, a: p.update({"maps/evil.pkl": b""}), "which can be no mask"),
    "another content": (
        lambda p, a: (p.update({first(p): p[first(p)][:-1] + b"x"}), False)[1],
        "not what pack.json says",
    ),
    "a shorter part": (lambda p, a: (p.update({first(p): p[first(p)][:-1]}), False)[1], "others than pack.json names"),
    "a part too many": (lambda p, a: (p.update({"masks/x.png": b""}), False)[1], "others than pack.json names"),
    "a part too few": (lambda p, a: (p.pop(first(p)), False)[1], "others than pack.json names"),
    "an image too few": (lambda p, a: p.pop(first(p)) and None, "of another list: 1 of the 6"),
    "a bomb": (lambda p, a: p.update({first(p): bytes(1 << 26)}), "bytes, at most"),
    "rubbish": (lambda p, a: p.update({first(p): b"rubbish"}), "refused"),
    "other classes": (lambda p, a: a["classes"].append("zebra"), "of another class list"),
    "another kind": (lambda p, a: a.update(kind="program"), "kind 'program'"),
    "a newer version": (lambda p, a: a.update(version=2), "version 2"),
    "another mIoU": (lambda p, a: a.update(miou=0.99), "the archive says mIoU 0.99"),
    "no files": (lambda p, a: (a.pop("files"), False)[1], "refused"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_and_leaves_nothing(kind, packed, tiny_voc, tmp_path, capsys):
    change, reason = HOSTILE[kind]
    path = rewritten(packed / "psa.zip", tmp_path / "bad.zip", change)
    said = refused(pack.main, ["import", path, "--to", tmp_path / "new", "--voc-root", tiny_voc], capsys)
    assert reason in said
    assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]


def test_maps_that_fit_no_photograph_are_refused(packed, tiny_voc, tmp_path, capsys):
    """Maps that are well-made, but one pixel too small, or of a class that there is not."""

    def smaller(parts, about):
        name = first(parts)
        image_id = Path(name).stem
        height, width = image_size(tiny_voc, image_id)
        classes = np.flatnonzero(read_present(tiny_voc, image_id))
        maps = np.ones((len(classes), height - 1, width), np.float32)
        save_maps(tmp_path / "one.npz", classes, maps, (height - 1, width), "PSA")
        fields = pack.read_fields(tmp_path / "one.npz", pack.MAPS)
        (tmp_path / "one.npz").unlink()
        parts[name] = archive.packed_arrays(fields)

    def stranger(parts, about):
        fields = archive.unpacked_arrays(parts[first(parts)], ("made_by",))
        fields["classes"] = fields["classes"] + np.uint8(200)
        parts[first(parts)] = archive.packed_arrays(fields)

    for change in (smaller, stranger):
        path = rewritten(packed / "psa.zip", tmp_path / "bad.zip", change)
        said = refused(pack.main, ["import", path, "--to", tmp_path / "new", "--voc-root", tiny_voc], capsys)
        assert "refused" in said and not (tmp_path / "new").exists()


@pytest.mark.parametrize("at", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_or_changed_archive_is_refused(at, packed, tiny_voc, tmp_path, capsys):
    content = (packed / "ssdd.zip").read_bytes()
    place = int(at * len(content))
    for number, damaged in enumerate((content[:place], content[:place] + b"\x00\xff\x00\xff" + content[place + 4 :])):
        (tmp_path / "bad.zip").write_bytes(damaged)
        target = tmp_path / f"new{number}"
        said = refused(pack.main, ["import", tmp_path / "bad.zip", "--to", target, "--voc-root", tiny_voc], capsys)
        assert "refused" in said and not target.exists()


def test_bad_requests_are_one_line(packed, finished_run, tiny_voc, tmp_path, capsys):
    root = ["--voc-root", tiny_voc]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    theirs = ["import", packed / "psa.zip", "--to"]
    for flags, said in (
        ([tmp_path / "absent", "--to", tmp_path / "a.zip", *root], "no folder of a run"),
        ([finished_run, "--to", tmp_path / "a.zip", "--what", "nine", *root], "no seed source 'nine'"),
        ([finished_run, "--to", tmp_path / "a.zip", "--what", "icd", *root], "missing, first"),
        ([finished_run, "--to", tmp_path / "a.zip", "--what", tmp_path / "no.pth", *root], "is missing"),
        (["import", tmp_path / "absent.zip", "--to", tmp_path / "a", *root], "is missing"),
        ([*theirs, tmp_path / "full", *root], "is there already"),
        (["import", packed / "net.zip", "--to", tmp_path / "net", *root], ".pth"),
    ):
        assert said in refused(pack.main, flags, capsys)
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("change", ["one is missing", "one is another", "none is here"])
def test_figures_of_other_true_masks_are_not_compared(change, packed, own_run, tmp_path, capsys):
    ids = read_ids(own_run.voc_root, "train_aug")
    truths = [mask_path(own_run.voc_root, image_id) for image_id in ids]
    if change == "one is another":
        write_mask(truths[0], np.full_like(read_mask(truths[0]), 3))
    else:
        for truth in truths[:1] if change == "one is missing" else truths:
            truth.unlink()
    folder = imported(packed / "psa.zip", tmp_path / "theirs", own_run.voc_root)
    said = capsys.readouterr().out
    assert len(list(folder.iterdir())) == len(ids) and "not compared" in said
    assert ("mIoU " in said) == (change != "none is here")
