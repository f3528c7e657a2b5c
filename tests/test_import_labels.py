"""The authors' .npy seeds → the store; and that no pickle can run code or claim memory."""

import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from datasets.seed_store import load_maps
from tools.import_labels import main

SIZE = (20, 26)
ID, OTHER = "2007_000001", "2007_000002"
HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n"


@pytest.fixture
def root(tmp_path):
    """Two images: ID with a bird (3) and a dog (12), OTHER with a dog alone."""
    root = tmp_path / "voc"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for image_id, names in ((ID, ("dog", "bird", "dog")), (OTHER, ("dog",))):
        Image.new("RGB", SIZE[::-1]).save(root / "JPEGImages" / f"{image_id}.jpg")
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "in").mkdir()
    return root


def maps_of(count, seed=0):
    return np.random.default_rng(seed).random((count, *SIZE), np.float32)


def run(root, kind, *flags):
    main([str(root.parent / "in"), str(root.parent / "out"), "--kind", kind, "--voc-root", str(root), *flags])


def npy(pickled, shape="()", descr="|O"):
    """An .npy file around bytes of our own."""
    header = (HEADER % (descr, shape)).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


def np_save(content):
    file = io.BytesIO()
    np.save(file, content)
    return file.getvalue()


def assert_stored(root, image_id, classes, maps):
    result = load_maps(root.parent / "out" / f"{image_id}.npz")
    assert result.classes.tolist() == classes
    assert np.abs(result.maps - maps).max() <= 1 / 255 * maps.max()
    assert np.array_equal(result.maps.argmax(0), maps.argmax(0))


def test_aff_crf(root, capsys):
    for image_id, count in ((ID, 3), (OTHER, 2)):
        np.save(root.parent / "in" / f"{image_id}.npy", maps_of(count))
    run(root, "aff_crf")
    assert_stored(root, ID, [0, 3, 12], maps_of(3))
    assert_stored(root, OTHER, [0, 12], maps_of(2))
    assert "2 imported" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "keys", "classes"), [("cam", [2, 11], [3, 12]), ("aff", [0, 3, 12], [0, 3, 12])])
def test_dictionaries(kind, keys, classes, root):
    maps = maps_of(len(keys))
    # The order in which the dictionary was filled means nothing.
    np.save(root.parent / "in" / f"{ID}.npy", dict(reversed(list(zip(keys, maps, strict=True)))))
    run(root, kind, "--allow-pickle")
    assert_stored(root, ID, classes, maps)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("variant", ["plain", "fortran", "float64", "big-endian", "numpy keys", "old module"])
def test_dictionaries_as_any_numpy_wrote_them(variant, protocol, root):
    maps = maps_of(2)
    change = {
        "fortran": np.asfortranarray,
        "float64": lambda m: m.astype(np.float64),
        "big-endian": lambda m: m.astype(">f4"),
    }.get(variant, np.asarray)
    key = np.int64 if variant == "numpy keys" else int
    outer = np.array({key(2): change(maps[0]), key(11): change(maps[1])}, object)
    pickled = pickle.dumps(outer, protocol)
    if variant == "old module":
        # NumPy before 2.0 says numpy.core; protocol 4 puts the length before the name.
        pickled = pickled.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
        pickled = pickled.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
        if protocol == 4:
            length = struct.unpack("<Q", pickled[3:11])[0]
            pickled = pickled[:3] + struct.pack("<Q", length - 1) + pickled[11:]
        assert b"numpy._core" not in pickled
    (root.parent / "in" / f"{ID}.npy").write_bytes(npy(pickled))
    run(root, "cam", "--allow-pickle")
    assert_stored(root, ID, [3, 12], maps)


def refused(root, kind, capsys, *flags):
    """The one line on stderr with which the program ends; the store stays as it was."""
    out = root.parent / "out"
    before = {path: path.read_bytes() for path in out.glob("*")}
    with pytest.raises(SystemExit) as end:
        run(root, kind, *flags)
    assert end.value.code == 2
    assert {path: path.read_bytes() for path in out.glob("*")} == before
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("kind", ["cam", "aff"])
def test_pickles_need_the_flag(kind, root, capsys):
    np.save(root.parent / "in" / f"{ID}.npy", {2: maps_of(1)[0]})
    assert "--allow-pickle" in refused(root, kind, capsys)


def edited(value):
    maps = maps_of(2)
    maps[1, 2, 3] = value
    return maps


BAD_ARRAYS = {
    "a class too few": (np_save(maps_of(1)), "claims the shape (1, 20, 26)"),
    "a class too many": (np_save(maps_of(3)), "claims the shape (3, 20, 26)"),
    "another size": (np_save(maps_of(2)[:, :, 1:]), "claims the shape (2, 20, 25)"),
    "integers": (np_save(maps_of(2).astype(np.int64)), "of int64"),
    "not a number": (np_save(edited(np.nan)), "negative or not finite"),
    "infinite": (np_save(edited(np.inf)), "negative or not finite"),
    "negative": (np_save(edited(-0.1)), "negative or not finite"),
    "truncated": (np_save(maps_of(2))[:-1], "4159 bytes of float32"),
    "claims 10^12 numbers": (npy(b"1234", "(1000000000000,)", "<f4"), "claims the shape (1000000000000,)"),
    "a pickle": (np_save({0: maps_of(1)[0]}), "a pickled object"),
    "no .npy": (b"PNG and so on", "cannot be imported"),
    "unknown version": (b"\x93NUMPY\x07\x00" + np_save(maps_of(2))[8:], "version"),
    "empty": (b"", "cannot be imported"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays_are_refused(kind, root, capsys):
    content, reason = BAD_ARRAYS[kind]
    # A good file comes first: a program that stores as it goes would leave it behind.
    np.save(root.parent / "in" / f"{ID}.npy", maps_of(3))
    (root.parent / "in" / f"{OTHER}.npy").write_bytes(content)
    said = refused(root, "aff_crf", capsys)
    assert reason in said
    assert f"{OTHER}.npy" in said


class RunsCode:
    def __reduce__(self):
        return print, ("this ran",)


def claimed_array():
    """An array inside the dictionary that claims 10^12 numbers and holds four bytes."""
    pickled = pickle.dumps(np.array({2: maps_of(1)[0], 11: maps_of(1)[0]}, object), 4)
    shape = b"K\x14K\x1a\x86"  # BININT1 20, BININT1 26, TUPLE2
    assert pickled.count(shape) == 2
    frame = struct.unpack("<Q", pickled[3:11])[0]
    longer = pickled.replace(shape, b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"K\x1a\x86", 1)
    return longer[:3] + struct.pack("<Q", frame + len(longer) - len(pickled)) + longer[11:]


MAP = maps_of(1)[0]
BAD_DICTIONARIES = {
    "code": (np_save({2: MAP, 11: RunsCode()}), "asks for builtins.print"),
    "code of numpy": (npy(b"cnumpy\nload\n(S'x'\ntR."), "asks for numpy.load"),
    "claims 10^12 dictionaries": (npy(b"\x80\x04N.", "(1000000000000,)"), "claims the shape (1000000000000,)"),
    "claims 10^12 numbers inside": (npy(claimed_array()), "a map has the shape (1000000000000, 26)"),
    "claims 10^12 bytes": (npy(b"\x80\x04\x8e" + struct.pack("<Q", 10**12) + b"1234"), "cannot be imported"),
    "far more than the maps": (npy(b"\x80\x04N." + bytes(200_000)), "200004 bytes are more than 2 maps"),
    "a class too few": (np_save({2: MAP}), "it holds [2], the annotation asks for [2, 11]"),
    "a class too many": (np_save({2: MAP, 11: MAP, 19: MAP}), "it holds [2, 11, 19]"),
    "names as keys": (np_save({"bird": MAP, "dog": MAP}), "cannot be imported"),
    "another size": (np_save({2: MAP, 11: MAP[1:]}), "a map has the shape (19, 26), the image (20, 26)"),
    "numbers for maps": (np_save({2: 0.5, 11: MAP}), "a map has the shape None"),
    "integers": (np_save({2: MAP, 11: MAP.astype(np.int32)}), "numbers of type <i4"),
    "objects": (np_save({2: MAP, 11: MAP.astype(object)}), "numbers of type |O8"),
    "not finite": (np_save({2: MAP, 11: MAP * np.nan}), "negative or not finite"),
    "negative": (np_save({2: MAP, 11: -MAP}), "negative or not finite"),
    "a list": (np_save(np.array([MAP, None], object)), "claims the shape (2,)"),
    "no array": (npy(pickle.dumps({2: 1})), "not one object in an array"),
    "no dictionary": (npy(pickle.dumps(np.array(3, object))), "it holds int"),
    "truncated": (np_save({2: MAP, 11: MAP})[:-9], "cannot be imported"),
    "a plain array": (np_save(maps_of(2)), "a plain array, not a pickled dictionary"),
}


@pytest.mark.parametrize("kind", BAD_DICTIONARIES)
def test_bad_dictionaries_are_refused(kind, root, capsys):
    content, reason = BAD_DICTIONARIES[kind]
    (root.parent / "in" / f"{ID}.npy").write_bytes(content)
    said = refused(root, "cam", capsys, "--allow-pickle")
    assert reason in said
    assert f"{ID}.npy" in said


def test_no_code_of_a_pickle_runs(root, capsys):
    (root.parent / "in" / f"{ID}.npy").write_bytes(np_save({2: RunsCode()}))
    with pytest.raises(SystemExit):
        run(root, "cam", "--allow-pickle")
    assert "this ran" not in capsys.readouterr().out


def test_empty_folder_and_unknown_image_are_refused(root, capsys):
    assert "no .npy file" in refused(root, "aff_crf", capsys)
    np.save(root.parent / "in" / "2007_999999.npy", maps_of(2))
    assert "2007_999999" in refused(root, "aff_crf", capsys)


def test_what_is_stored_already_is_left(root, capsys):
    path = root.parent / "out" / f"{ID}.npz"
    np.save(root.parent / "in" / f"{ID}.npy", maps_of(3))
    run(root, "aff_crf")
    first = path.stat().st_mtime_ns
    np.save(root.parent / "in" / f"{OTHER}.npy", maps_of(2))
    run(root, "aff_crf")
    assert "1 imported" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == first


def test_a_damaged_stored_file_is_made_anew(root):
    path = root.parent / "out" / f"{ID}.npz"
    np.save(root.parent / "in" / f"{ID}.npy", maps_of(3))
    run(root, "aff_crf")
    path.write_bytes(path.read_bytes()[:100])
    run(root, "aff_crf")
    assert_stored(root, ID, [0, 3, 12], maps_of(3))


def test_maps_of_another_making_are_not_mixed(root, capsys):
    np.save(root.parent / "in" / f"{ID}.npy", maps_of(3))
    run(root, "aff_crf")
    np.save(root.parent / "in" / f"{ID}.npy", dict(zip([0, 3, 12], maps_of(3), strict=True)))
    said = refused(root, "aff", capsys, "--allow-pickle")
    assert "was made by 'import of the released program's out_aff_crf'" in said
