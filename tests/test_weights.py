"""The reader of torch's files and of pickles: what torch writes is read as torch reads it, and nothing else is."""

import pickle
import re
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

from datasets.errors import InputError
from datasets.weights import load, read_pickle

NEW_AND_OLD = [True, False]


def trained() -> dict:
    """What a training state holds: weights, AdamW's state, plain values."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.AdamW([{"params": [p]} for p in network.parameters()], betas=(0.9, 0.99))
    network(torch.ones(2, 3, 5, 5)).square().sum().backward()
    optimiser.step()
    return {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "seen": [(1, ["a"], {"loss": 0.5})]}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("new", NEW_AND_OLD)
def test_files_are_read_as_torch_reads_them(new, tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    content = trained() | {
        "kinds": [torch.arange(3).to(kind) for kind in (*kinds, torch.uint8, torch.bool)],
        "views": (whole, whole.t(), whole[1:3, ::2], whole.expand(2, 4, 6)),
        "odd": {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(whole)},
        7: [None, True, -1, 2.5, 1 << 40, "ü", (), {}],
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=new)
    assert same(load(path), torch.load(path, weights_only=True))
    assert same(load(path)["views"], content["views"])


def test_any_flipped_bit_of_weights_or_structure_is_found(tmp_path):
    path = tmp_path / "state.pth"
    torch.save(trained(), path)
    good, content = path.read_bytes(), torch.load(path, weights_only=True)
    with zipfile.ZipFile(path) as archive:
        parts = [p for p in archive.infolist() if p.file_size and re.search(r"data\.pkl|/data/", p.filename)]
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        start = part.header_offset + 30 + sum(struct.unpack_from("<2H", good, part.header_offset + 26))
        place = start + int(torch.randint(part.file_size, (), generator=generator))
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with pytest.raises(InputError, match=re.escape(str(path))):
            load(path)
    path.write_bytes(good)
    assert same(load(path), content)


@pytest.mark.parametrize("new", NEW_AND_OLD)
def test_files_that_end_early(new, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(trained(), path, _use_new_zipfile_serialization=new)
    good = path.read_bytes()
    for length in range(0, len(good), 97):
        path.write_bytes(good[:length])
        with pytest.raises(InputError, match=re.escape(str(path))):
            load(path)


def archive(path, content: bytes, packing: int = zipfile.ZIP_STORED, **storages: bytes):
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr("x/data.pkl", content)
        for key, values in storages.items():
            file.writestr(f"x/data/{key}", values)
    return path


def tensor(key: str, count: int, size: tuple, stride: tuple) -> bytes:
    """The pickle of a tensor."""
    identity = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0%bX\3\0\0\0cpuJ%btQ" % (key.encode(), number(count))
    shape = b"".join(b"(" + b"".join(b"J" + number(side) for side in sides) + b"t" for sides in (size, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + b"K\0" + shape + b"\x89}tR"


def number(value: int) -> bytes:
    return struct.pack("<i", value)


START = b"\x80\2"
HOSTILE = {
    "a call that makes room": (START + b"cbuiltins\nbytearray\n(J" + number(2**31 - 1) + b"tR.", "builtins.bytearray"),
    "code": (pickle.dumps(print, 2), "print"),
    "very many steps": (START + b"]" + b"Na" * 600_000 + b".", "steps"),
    "nested lists": (START + b"]" * 600_000 + b"a" * 599_999 + b".", "steps"),
    "a long pickle": (START + b"N0" * (9 << 20) + b".", "bytes besides"),
    "a claim of text": (START + b"X\xff\xff\xff\x7f.", "damaged"),
    "keys of one hash": (pickle.dumps({k * (2**61 - 1): None for k in range(1, 50)}, 2), "int as a key"),
    "a state for a tensor": (START + tensor("k", 1, (1,), (1,)) + b"(J" + number(1 << 30) + b"tb.", "build"),
    "a tensor beyond its storage": (START + tensor("k", 1, (2,), (1,)) + b".", "out of bounds"),
    "an expanded tensor": (START + tensor("k", 1, (1 << 20, 1 << 20), (0, 0)) + b".", "claim more bytes"),
    "a storage larger than the file": (START + tensor("k", 1 << 28, (1,), (1,)) + b".", "claim more bytes"),
    "a storage larger than its part": (START + tensor("k", 8, (1,), (1,)) + b".", "not 32 bytes"),
    "a storage that is absent": (START + tensor("z", 1, (1,), (1,)) + b".", "x/data/z"),
    "a negative size": (START + tensor("k", -1, (1,), (1,)) + b".", "claim more bytes"),
    "very many dimensions": (START + tensor("k", 1, (1,) * 1000, (1,) * 1000) + b".", "dimensions"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_archives_that_are_made_to_harm(kind, tmp_path):
    content, reason = HOSTILE[kind]
    with pytest.raises(InputError, match=re.escape(reason)):
        load(archive(tmp_path / "x.pth", content, k=b"\0\0\x80\x3f"))


def test_the_tensors_above_are_read_where_they_are_true(tmp_path):
    content = START + tensor("k", 2, (2, 1), (1, 2)) + b"."
    assert load(archive(tmp_path / "x.pth", content, k=b"\0\0\x80\x3f" * 2)).tolist() == [[1.0], [1.0]]


def test_one_storage_shown_very_often(tmp_path):
    shown = b"".join(tensor("k", 1000, (1000,), (1,)) + b"a" for _ in range(200))
    with pytest.raises(InputError, match="claim more bytes"):
        load(archive(tmp_path / "x.pth", START + b"]" + shown + b".", k=bytes(4000)))


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_parts_that_inflate_beyond_what_they_claim(packing, tmp_path):
    path = archive(tmp_path / "x.pth", bytes(1 << 20), packing)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\1\2") + 24, 1000)
    path.write_bytes(content)
    with pytest.raises(InputError, match="unusual"):
        load(path)


def test_directories_that_are_very_long(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        for name in range(20_000):
            file.writestr(f"x/{name:050}", b"")
    with pytest.raises(InputError, match="more bytes than make sense"):
        load(path)


def test_parts_that_lie_over_each_other(tmp_path):
    # Twenty storages of a directory that all are one part of the file.
    shown = b"".join(tensor(key, 1 << 14, (1,), (1,)) + b"a" for key in "abcdefghijklmnopqrst")
    path = archive(tmp_path / "x.pth", START + b"]" + shown + b".", **dict.fromkeys("bcdefghijklmnopqrst", b""))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/data/a", bytes(1 << 16))
        only = file.getinfo("x/data/a")
        for key in "bcdefghijklmnopqrst":
            entry = file.getinfo(f"x/data/{key}")
            entry.header_offset, entry.CRC = only.header_offset, only.CRC
            entry.file_size = entry.compress_size = only.file_size
    with pytest.raises(InputError):
        load(path)


def test_pickles_of_plain_values_by_any_protocol():
    content = {"a": [1, 2.5, "x", b"y", None, True, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], 3: {}, "big": 1 << 70}
    for protocol in (2, 3, 4):
        assert read_pickle(pickle.dumps(content, protocol), {"_codecs encode": lambda t, e: t.encode(e)}) == content
    ordered = pickle.dumps(OrderedDict(a=1, b=2), 2)
    assert read_pickle(ordered, {"collections OrderedDict": lambda pairs=(): dict(pairs)}) == {"a": 1, "b": 2}
