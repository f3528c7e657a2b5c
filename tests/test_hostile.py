"""Files that are made to harm: none is believed, runs code, hangs a reader or takes memory without bound."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.errors import InputError
from datasets.seed_store import load_differences, load_maps, save_differences, save_maps
from datasets.voc import (
    check_pixels,
    class_names,
    image_size,
    open_image,
    read_ids,
    read_image,
    read_mask,
    read_present,
)
from datasets.weights import read_pickle
from engine import checkpoint, history, notes, runs, stages
from script import make_pages
from script.pages.document import write_page
from settings.common import MOST_PIXELS
from settings.config import Config, demo
from tools import import_images, import_labels


def refused(read, path, reason=""):
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        read(path)
    assert reason in str(error.value)


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG that claims a size and holds `rows`."""
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.parametrize("side", [6000, 20_000, 2**31 - 1])
def test_pictures_that_claim_too_many_pixels(side, tmp_path):
    (tmp_path / "x.jpg").write_bytes(png(side, side, b"\0" * 100))
    refused(open_image, tmp_path / "x.jpg")
    refused(read_mask, tmp_path / "x.jpg")


def test_photographs_of_more_pixels_than_label_making_bears(tmp_path):
    # 110 KB of zeros; masks, which take a byte a pixel, may be larger.
    (tmp_path / "JPEGImages").mkdir()
    path = tmp_path / "JPEGImages" / "x.jpg"
    path.write_bytes(png(2049, 2048, bytes(2050 * 2048)))
    with pytest.raises(InputError, match=r"x\.jpg has 2049×2048 pixels.*shrink it.*or give a higher --most-pixels"):
        check_pixels(tmp_path, ["x"], MOST_PIXELS)
    check_pixels(tmp_path, ["x"], 2049 * 2048)
    assert read_mask(path).shape == (2048, 2049)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_formats_other_than_jpeg_and_png_are_not_opened(tmp_path, monkeypatch):
    # PostScript would be run by Ghostscript.
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    picture = Image.new("RGB", (8, 8))
    for kind in ("EPS", "GIF", "TIFF", "BMP", "PPM", "WEBP", "ICO"):
        refused(open_image, saved(tmp_path / f"{kind}.jpg", picture, format=kind), "cannot be read as a picture")
    assert not (tmp_path / "ran").exists()


def test_wrong_extension_and_animation_are_read_as_what_they_are(tmp_path):
    first, second = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    path = saved(tmp_path / "x.jpg", first, format="PNG", save_all=True, append_images=[second])
    assert np.array_equal(open_image(path), np.array(first))


def test_sixteen_bit_pictures_are_refused_and_not_cut_off(tmp_path):
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    refused(open_image, saved(tmp_path / "x.jpg", deep, format="PNG"), "more than 8 bits")


def test_exif_rotation_changes_neither_pixels_nor_size(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "JPEGImages").mkdir()
    plain = saved(tmp_path / "JPEGImages" / "a.jpg", image, quality=95)
    saved(tmp_path / "JPEGImages" / "b.jpg", image, quality=95, exif=exif)
    assert np.array_equal(open_image(plain), read_image(tmp_path, "b"))
    assert image_size(tmp_path, "b") == (16, 24)


def test_a_jpeg_of_very_many_scans(tmp_path):
    path = saved(tmp_path / "x.jpg", Image.new("RGB", (64, 64)), progressive=True)
    content = path.read_bytes()
    assert open_image(path).shape == (64, 64, 3)
    scan = content.rindex(b"\xff\xda")
    path.write_bytes(content[:scan] + content[scan:-2] * 5000 + content[-2:])
    refused(open_image, path, "progressive scans")


@pytest.mark.parametrize("read", [open_image, read_mask, load_maps, load_differences, checkpoint.load_state])
def test_pipes_and_folders_in_place_of_files_do_not_hang(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(read, tmp_path / "pipe")
    refused(read, tmp_path)


def test_pipes_in_place_of_lists_annotations_and_configs(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    for folder in ("ImageSets/Segmentation", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    os.mkfifo(tmp_path / "ImageSets" / "Segmentation" / "train.txt")
    os.mkfifo(tmp_path / "Annotations" / "x.xml")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"train\.txt"):
        read_ids(tmp_path, "train")
    with pytest.raises(InputError, match=r"x\.xml"):
        read_present(tmp_path, "x")
    refused(notes.read_config, tmp_path / "config.json")


@pytest.mark.parametrize("line", ["../../etc/passwd", "a/b", "..", "/etc/passwd", "a\0b", "~root", "a b c", "-rf", "*"])
def test_ids_that_would_leave_their_folder(line, tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "x.txt").write_text(f"fine\n{line}\n")
    with pytest.raises(InputError, match=r"x\.txt, line 2"):
        read_ids(tmp_path, "x")


BOMB = '<!DOCTYPE a [<!ENTITY a "lol"><!ENTITY b "' + "&a;" * 1000 + '">]>'
XML = {
    "entities": f"{BOMB}<annotation><object><name>&b;</name></object></annotation>",
    "external": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>',
    "deep": "<a>" * 200_000,
    "other encoding": "<?xml version='1.0' encoding='cp037'?><annotation/>",
}


@pytest.mark.parametrize("kind", XML)
def test_annotations_with_entities_depth_or_other_encodings(kind, tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "x.xml").write_text(XML[kind])
    with pytest.raises(InputError, match=r"x\.xml"):
        read_present(tmp_path, "x")


def npy(shape: str, data: bytes = b"", kind: str = "<f4") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "shape", ["(1000000, 1000000)", "(-1,)", "(10000000000000000000000,)", "(True,)", "(1.5,)", "(0, -5)"]
)
def test_maps_that_claim_more_than_they_hold(shape, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version.npy", npy("()", struct.pack("<f", 1)))
        archive.writestr("d_k.npy", npy(shape))
        archive.writestr("d_a.npy", npy(shape))
    refused(load_differences, path)
    refused(load_maps, path)


def test_maps_packed_into_nothing(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("maps.npy", b"\0" * (200 << 20))
    refused(load_maps, path, "claim")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_maps_packed_in_ways_that_inflate_without_bound(packing, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("maps.npy", bytes(1 << 20))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\1\2") + 24, 1000)
    path.write_bytes(content)
    refused(load_maps, path, "unusual")


def test_class_lists_of_very_many_names_are_counted_first(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(100_000))))
    with pytest.raises(InputError, match="names 100000 classes"):
        class_names(tmp_path)


def test_maps_of_very_many_fields_or_with_a_pickle(tmp_path):
    np.savez(tmp_path / "many.npz", **{f"x{n}": np.zeros(1) for n in range(100)})
    refused(load_maps, tmp_path / "many.npz", "16 fields")
    np.savez(tmp_path / "pickle.npz", version=np.array(1), d_k=np.array([print]), d_a=np.zeros(1))
    refused(load_differences, tmp_path / "pickle.npz")


def test_maps_made_by_letters_that_do_not_exist(tmp_path):
    # Found by the campaign: NumPy's SystemError.
    save_maps(tmp_path / "x.npz", np.array([0]), np.ones((1, 4, 5), np.float32), (4, 5), "x")
    with np.load(tmp_path / "x.npz") as good:
        fields = dict(good)
    fields["made_by"] = np.frombuffer(b"\xff\xff\xff\x7f", "<U1").reshape(())
    np.savez(tmp_path / "x.npz", **fields)
    refused(load_maps, tmp_path / "x.npz")


def test_difference_maps_that_are_not_finite(tmp_path):
    save_differences(tmp_path / "x.npz", np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), np.float32), "x")
    refused(load_differences, tmp_path / "x.npz", "not finite")


def test_weights_packed_into_nothing(tmp_path):
    torch.save({"weight": torch.zeros(1 << 24)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    refused(checkpoint.load, tmp_path / "bomb.pth", "claim")


CLAIMS = {
    "expanded": lambda: torch.zeros(1).expand(1 << 20, 1 << 20),
    "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (1 << 20, 1 << 20)),
    "meta": lambda: torch.empty(1 << 20, 1 << 20, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CLAIMS)
def test_tensors_that_claim_more_than_they_hold(kind, tmp_path):
    torch.save({"deep": [{"weight": CLAIMS[kind]()}]}, tmp_path / "x.pth")
    refused(checkpoint.load, tmp_path / "x.pth")


def endless_key() -> bytes:
    """A dictionary whose key has 2^60 parts, in a few hundred bytes; hashing it would take centuries."""
    key: tuple = (1, 2)
    for _ in range(60):
        key = (key, key)
    return b"\x80\x02}" + pickle.dumps(key, protocol=2)[2:-1] + b"K\x01s."


def test_keys_that_take_for_ever_to_hash(tmp_path, tiny_voc):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(tmp_path / "new.pth", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, endless_key() if name.endswith(".pkl") else good.read(name))
    refused(checkpoint.load, tmp_path / "new.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert list(checkpoint.load(tmp_path / "old.pth")) == ["weight"]
    starts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    (tmp_path / "old.pth").write_bytes(b"".join(starts) + endless_key() + pickle.dumps([], protocol=2))
    refused(checkpoint.load, tmp_path / "old.pth")

    image_id = read_ids(tiny_voc, "train")[0]
    (tmp_path / f"{image_id}.npy").write_bytes(npy("()", endless_key(), "|O"))
    with pytest.raises(InputError, match="over and over"):
        import_labels.import_labels(tmp_path, tmp_path / "store", "aff", Path(tiny_voc))


def test_tuples_that_are_shared_now_and_then_are_read():
    pair = ((3, 4), (5, 6))
    assert read_pickle(pickle.dumps([pair] * 10), {}) == [pair] * 10
    with pytest.raises(ValueError, match="over and over"):
        read_pickle(pickle.dumps([pair] * 20), {})
    assert read_pickle(pickle.dumps([(3, 4)] * 100), {}) == [(3, 4)] * 100
    with pytest.raises(ValueError):
        read_pickle(b"\xff\xd8", {})


def test_a_list_that_holds_itself(tmp_path):
    endless = []
    endless.append(endless)
    torch.save(endless, tmp_path / "x.pth")
    refused(checkpoint.load_state, tmp_path / "x.pth", "not a weights file")


@pytest.mark.parametrize("value", [torch.full((2, 3), v) for v in (torch.nan, torch.inf, 1)])
def test_weights_that_are_no_finite_floats(value, tmp_path):
    checkpoint.save(tmp_path / "x.pth", {"weight": value, "bias": torch.zeros(2)})
    network = torch.nn.Linear(3, 2)
    refused(lambda path: checkpoint.load_into(network, path), tmp_path / "x.pth", "not finite, or no floats")
    assert torch.isfinite(network.weight).all()


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "null", "1" * 10_000, '{"epochs": 1e999}', '{"epochs": true}', f'{{"epochs": {10**400}}}'],
    ids=lambda content: content[:16],
)
def test_configs_that_are_none(content, tmp_path):
    config = replace(demo(), out=str(tmp_path))
    folder = stages.folder(config, "mode 0")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(str(folder))):
        runs.last_checkpoint(config, "mode 0", "seg")


def test_unknown_fields_of_a_config_are_not_believed(tmp_path):
    strange = {"epochs": 1, "__class__": "os", "out": "/etc", "made_up": [1], "weights": "../../x"}
    config = replace(demo(), out=str(tmp_path))
    path = stages.checkpoint_path(stages.folder(config, "mode 0"), "seg", 1)
    path.parent.mkdir(parents=True)
    (path.parents[1] / "config.json").write_text(json.dumps(strange))
    path.touch()
    assert runs.last_checkpoint(config, "mode 0", "seg") == path


def test_png_with_text_that_unpacks_to_much(tmp_path):
    whole = io.BytesIO()
    Image.new("RGB", (4, 4)).save(whole, format="PNG")
    data = b"k\0\0" + zlib.compress(b"\0" * (64 << 20))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    (tmp_path / "x.jpg").write_bytes(whole.getvalue()[:33] + chunk + whole.getvalue()[33:])
    refused(open_image, tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "change",
    [
        {"width": 1e6},
        {"width": "wide"},
        {"crop": 1 << 30},
        {"eval_size": 448.5},
        {"eval_scales": [1.0] * 100_000},
        {"eval_scales": ["1"]},
        {"eval_scales": []},
        {"crf_eval": 1 << 40},
        {"head_dilation": -1},
        {"backbone_dilation": 1 << 20},
    ],
    ids=str,
)
def test_weights_that_describe_an_absurd_network(change, tmp_path):
    path = tmp_path / "x.pth"
    checkpoint.save_weights(path, torch.nn.Linear(2, 2), Config())
    content = checkpoint.load(path)
    checkpoint.load_description(path)
    checkpoint.save(path, content | {"config": content["config"] | change})
    refused(checkpoint.load_description, path, "cannot be used")


def test_histories_that_are_none(tmp_path):
    good = '{"step": 1, "epoch": 0.5}\n'
    for bad in ("[" * 100_000, '{"epoch": "late"}', "[1]", "null", '{"epoch": [1]}'):
        (tmp_path / "history.jsonl").write_text(good + bad + "\n")
        assert history.read(tmp_path) == [{"step": 1, "epoch": 0.5}]
    (tmp_path / "history.jsonl").unlink()
    os.mkfifo(tmp_path / "history.jsonl")
    assert history.read(tmp_path) == []


def test_pipes_in_place_of_class_names_and_csv(tmp_path):
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(InputError, match=r"classes\.txt"):
        class_names(tmp_path)
    refused(import_images.labels_from_csv, tmp_path / "classes.txt")


def test_pages_show_odd_ids_as_text(tmp_path):
    odd = "</script><script>alert(1)</script>"
    config = replace(Config(), voc_root=str(tmp_path))
    write_page(tmp_path, "val", make_pages.TITLES, config, {"view": "nothing", "reason": odd})
    page = (tmp_path / "val.html").read_text()
    assert "alert(1)" in page and odd not in page and page.count("<script") == page.count("</script")
