"""The store of maps: what comes back, how large it is, and what damaged files do."""

import re

import numpy as np
import pytest

from datasets.errors import InputError
from datasets.seed_store import grid_size, load_differences, load_maps, save_differences, save_maps, store_path


def upsampled(maps, size):
    """Bilinear ×8 with half-pixel centres and clamped borders, then cropped: written out, in float64."""

    def weights(length, cells):
        place = np.clip((np.arange(length) + 0.5) / 8 - 0.5, 0, None)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, cells - 1)
        matrix = np.zeros((length, cells))
        np.add.at(matrix, (np.arange(length), low), 1 - (place - low))
        np.add.at(matrix, (np.arange(length), high), place - low)
        return matrix

    rows, columns = (weights(length, cells) for length, cells in zip(size, maps.shape[1:], strict=True))
    return rows @ maps.astype(np.float64) @ columns.T


@pytest.mark.parametrize("size", [(64, 80), (61, 33), (1, 9), (8, 8)])
def test_grid_maps_come_back_as_their_bilinear_upsampling(size, tmp_path):
    low = np.random.default_rng(0).random((3, *grid_size(size)), np.float32)
    save_maps(tmp_path / "a.npz", np.array([0, 5, 20]), low, size, "PSA")
    seed = load_maps(tmp_path / "a.npz")
    assert seed.classes.tolist() == [0, 5, 20]
    assert seed.made_by == "PSA"
    assert seed.maps.dtype == np.float32
    assert seed.maps.shape == (3, *size)
    np.testing.assert_allclose(seed.maps, upsampled(low, size), rtol=0, atol=1e-6)


def near_ties(rng):
    """Values that 8 bits cannot tell apart, at all places of the scale, also exact ties and zeros."""
    maps = (rng.integers(0, 256, (1, 40, 50)) + rng.normal(0, 0.3, (4, 40, 50))) / 255
    maps[:, :5] = maps[:1, :5]
    maps[:, 5:8] = 0
    maps[:, 8:12] = rng.random((4, 4, 50)) / 600
    maps[:, 12:16] = 1 - rng.random((4, 4, 50)) / 600
    return maps.clip(0, 1).astype(np.float32)


MAPS = {
    "random": lambda rng: rng.random((3, 40, 50), np.float32),
    "near ties": near_ties,
    "large": lambda rng: 1e6 * near_ties(rng),
    "small": lambda rng: 1e-6 * near_ties(rng),
    "one map": lambda rng: rng.random((1, 40, 50), np.float32),
    "zeros": lambda rng: np.zeros((2, 40, 50), np.float32),
    "21 maps": lambda rng: (rng.integers(0, 3, (21, 40, 50)) / 765 + rng.random((21, 40, 50)) / 3000).astype("f4"),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("seed", range(3))
def test_full_maps_keep_values_within_a_step_and_argmax_everywhere(kind, seed, tmp_path):
    maps = MAPS[kind](np.random.default_rng(seed)).astype(np.float32)
    save_maps(tmp_path / "a.npz", np.arange(len(maps)), maps, (40, 50), "CRF")
    back = load_maps(tmp_path / "a.npz").maps
    assert back.dtype == np.float32
    assert np.abs(back - maps).max() <= maps.max() / 255 * (1 + 1e-5)
    assert np.array_equal(back.argmax(axis=0), maps.argmax(axis=0))


def test_winner_by_less_than_a_step_is_worked_out_by_hand(tmp_path):
    # In steps of 1/255 the two maps are (200.4, 200.45), (254.6, 255), (100.2, 99.9): the second must win twice.
    maps = np.array([[[200.4, 254.6, 100.2]], [[200.45, 255, 99.9]]], np.float32) / 255
    save_maps(tmp_path / "a.npz", np.array([0, 1]), maps, (1, 3), "x")
    steps = np.rint(load_maps(tmp_path / "a.npz").maps * 255).astype(int)
    assert steps[:, 0].tolist() == [[200, 254, 100], [201, 255, 100]]


def test_maps_of_neither_size_are_not_stored(tmp_path):
    with pytest.raises(ValueError, match="fit neither"):
        save_maps(tmp_path / "a.npz", np.array([0]), np.zeros((1, 5, 6), np.float32), (40, 50), "x")
    assert not list(tmp_path.iterdir())


def test_difference_maps_come_back_bit_by_bit(tmp_path):
    d_k, d_a = np.random.default_rng(0).normal(0, 50, (2, 14, 14)).astype(np.float32)
    save_differences(tmp_path / "d.npz", d_k, d_a, "static")
    for value, back in zip((d_k, d_a), load_differences(tmp_path / "d.npz"), strict=True):
        assert np.array_equal(value, back)


def test_same_content_gives_the_same_bytes(tmp_path):
    maps = np.random.default_rng(0).random((2, 40, 50), np.float32)
    for name in ("a", "b"):
        save_maps(tmp_path / f"{name}.npz", np.array([0, 3]), maps, (40, 50), "x")
        save_differences(tmp_path / f"{name}_d.npz", maps[0], maps[1], "x")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a_d.npz").read_bytes() == (tmp_path / "b_d.npz").read_bytes()


def test_a_pair_of_ordinary_size_takes_at_most_120_kilobytes(tmp_path):
    size = height, width = 375, 500
    y, x = np.mgrid[:height, :width]
    blobs = [np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 2 / s**2) for cy, cx, s in ((150, 180, 60), (240, 360, 45))]
    low = np.stack([1 - np.maximum(*blobs), *blobs])[:, 4::8, 4::8]
    low = np.pad(low, ((0, 0), (0, 47 - low.shape[1]), (0, 63 - low.shape[2])), mode="edge").astype(np.float32)
    low += np.random.default_rng(0).normal(0, 1e-3, low.shape).astype(np.float32)
    full = upsampled(low, size)
    crf = np.exp(12 * full)
    crf = (crf / crf.sum(axis=0)).astype(np.float32)
    save_maps(tmp_path / "psa.npz", np.array([0, 8, 15]), low.clip(0), size, "PSA")
    save_maps(tmp_path / "crf.npz", np.array([0, 8, 15]), crf, size, "PSA+CRF")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 120_000


@pytest.fixture(params=["grid", "full", "differences"])
def stored(request, tmp_path):
    """A good file and its reader."""
    rng, path = np.random.default_rng(0), store_path(tmp_path, "2007_000032")
    if request.param == "differences":
        save_differences(path, *rng.normal(0, 1, (2, 14, 14)).astype(np.float32), "x")
        return path, load_differences
    size = (5, 7) if request.param == "grid" else (40, 50)
    save_maps(path, np.array([0, 3]), rng.random((2, *size), np.float32), (40, 50), "x")
    return path, load_maps


def refused(path, read):
    with pytest.raises(InputError, match=re.escape(str(path))) as error:
        read(path)
    return str(error.value)


def test_truncation_anywhere_is_refused(stored):
    path, read = stored
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 29), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, read)


def test_no_damaged_byte_gives_other_maps(stored):
    path, read = stored
    whole, rng = path.read_bytes(), np.random.default_rng(0)

    def arrays():
        content = read(path)
        return content if isinstance(content, tuple) else (content.classes, content.maps)

    good = arrays()
    for place in rng.integers(0, len(whole), 400):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            back = arrays()
        except InputError:
            continue
        assert all(np.array_equal(a, b) for a, b in zip(good, back, strict=True)), place


def test_missing_file_folder_and_other_formats_are_refused(stored):
    path, read = stored
    path.unlink()
    assert refused(path, read).endswith("is missing")
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    refused(path, read)
    path.write_text("text\n")
    refused(path, read)
    path.unlink()
    path.mkdir()
    refused(path, read)


def changed(path, **fields):
    with np.load(path) as archive:
        kept = {key: archive[key] for key in archive.files} | fields
    np.savez(path, **{key: value for key, value in kept.items() if value is not None})


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a stored map was run",))


@pytest.mark.parametrize("field", ["version", "made_by", "anything"])
def test_pickled_object_is_refused_unread(field, stored):
    path, read = stored
    changed(path, **{field: np.array(Evil(), dtype=object)})
    refused(path, read)


@pytest.mark.parametrize("version", [0, 2, [1], "1", None])
def test_other_version_is_refused(version, stored):
    path, read = stored
    changed(path, version=None if version is None else np.array(version))
    assert "version 1" in refused(path, read)


BAD_FIELDS = {
    "other size": {"size": np.array([40, 60])},
    "size of three": {"size": np.array([40, 50, 1])},
    "negative size": {"size": np.array([-40, 50])},
    "size of text": {"size": np.array("large")},
    "size not whole": {"size": np.array([40.0, np.nan])},
    "no size": {"size": None},
    "one class": {"classes": np.array([0])},
    "no class": {"classes": np.zeros(0, np.uint8), "maps": np.zeros((0, 40, 50), np.uint8)},
    "no such class": {"classes": np.array([0, 255])},
    "class of text": {"classes": np.array(["cat", "dog"])},
    "number for classes": {"classes": np.array(3)},
    "float64": {"maps": np.zeros((2, 40, 50))},
    "flat": {"maps": np.zeros(2 * 40 * 50, np.uint8)},
    "no maps": {"maps": None},
    "no peak": {"maps": np.zeros((2, 40, 50), np.uint8), "peak": None},
    "two peaks": {"maps": np.zeros((2, 40, 50), np.uint8), "peak": np.ones(2, np.float32)},
    "peak of text": {"maps": np.zeros((2, 40, 50), np.uint8), "peak": np.array("high")},
}


@pytest.mark.parametrize("kind", BAD_FIELDS)
@pytest.mark.parametrize("size", [(5, 7), (40, 50)], ids=["grid", "full"])
def test_fields_that_do_not_fit_are_refused(kind, size, tmp_path):
    path = tmp_path / "a.npz"
    save_maps(path, np.array([0, 3]), np.ones((2, *size), np.float32), (40, 50), "x")
    changed(path, **BAD_FIELDS[kind])
    refused(path, load_maps)


def test_difference_maps_of_two_shapes_or_types_are_refused(tmp_path):
    path = tmp_path / "d.npz"
    for d_a in (np.zeros((14, 13), np.float32), np.zeros((14, 14))):
        save_differences(path, np.zeros((14, 14), np.float32), d_a, "x")
        refused(path, load_differences)
    save_differences(path, np.zeros(14, np.float32), np.zeros(14, np.float32), "x")
    refused(path, load_differences)


def test_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    maps = np.ones((1, 8, 8), np.float32)
    with pytest.raises(InputError, match="cannot write"):
        save_maps(tmp_path / "file" / "a.npz", np.array([0]), maps, (8, 8), "x")
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        save_maps(tmp_path / "a.npz", np.array([0]), maps, (8, 8), "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "file"]
