"""Surprises of machine and use: one clear line and status 2, or a quiet end, never a traceback or a wrong reason."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets import files, weights
from datasets.archive import open_archive, packed_weights, unpacked_weights
from datasets.errors import InputError, program
from datasets.seed_store import load_maps, read_fields
from datasets.voc import open_image, read_ids
from engine import commands, distributed, history, notes, workers
from script import make_pages
from settings.config import demo
from tests.conftest import as_flags
from tests.test_bad_input import refused
from tests.test_pages import data_of
from tools import check_parity, coco, eval_masks, import_labels, pack

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_fields(path, ()),
        weights.load,
        open_image,
        lambda path: notes.read_config(path),
        lambda path: history.read(path.parent),
        lambda path: open_archive(path).__enter__(),
        lambda path: import_labels.read_maps(path, "aff_crf", np.array([0]), (1, 1)),
    ],
    ids="maps weights picture Config history archive import".split(),
)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
    ],
)
def test_a_fault_of_the_machine_is_not_called_damage(read, fault, said, tmp_path, monkeypatch):
    path = tmp_path / history.FILE
    path.write_text("x")

    def failing(*_):
        raise fault

    monkeypatch.setattr(files, "stat", SimpleNamespace(S_ISREG=failing))
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value) == f"{path} cannot be read: {said}"


def outside(arguments: list[str], **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, timeout=120, **options)


def test_a_reader_that_leaves_ends_a_program_quietly(tiny_voc):
    reader, writer = os.pipe()
    os.close(reader)
    done = outside(["tools.voc", "check", f"--voc-root={tiny_voc}"], stdout=writer, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_folder_that_is_gone_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = outside(["datasets.demo", "here"], cwd=gone, preexec_fn=gone.rmdir)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is gone" in done.stderr


def test_names_that_are_not_utf8_are_shown_or_named(tmp_path, capsys):
    print_name = program(lambda: print("caf\udce9.jpg"))
    print_name()
    assert capsys.readouterr().out == "caf\\udce9.jpg\n"
    folder = tmp_path / "caf\udce9"
    for split in ("train", "val"):
        for part in ("image", "mask", "xml"):
            (folder / split / part).mkdir(parents=True)
    flags = ["prepare", str(folder), "--to", str(tmp_path / "root")]
    assert "is not UTF-8" in refused(coco.main, flags, tmp_path, capsys)


def test_too_many_open_files_are_one_line(tmp_path, capsys):
    @program
    def failing(_):
        raise OSError(errno.EMFILE, "Too many open files")

    assert "Too many open files" in refused(failing, None, tmp_path, capsys)
    with pytest.raises(InputError, match="Too many open files"), distributed.faults("--bn", 2):
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")


def test_a_process_lost_while_networks_are_joined_is_said(monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "DistributedDataParallel", failing)
    with pytest.raises(InputError, match="another process of this run was lost"):
        distributed.data_parallel(None, distributed.torch.device("cpu"))


@pytest.mark.parametrize(
    ("file", "content", "page"),
    [
        ("logs/sssdd_ssdd/pictures.json", {"ids": [3], "masks": 1}, "sssdd"),
        ("logs/dssdd_ssdd/pictures.json", [], "dssdd"),
        ("logs/dssdd_ssdd/history.jsonl", {"seconds": 1}, "index"),
        ("ledger.json", {"ledger": [3]}, "ledger"),
    ],
)
def test_damaged_notes_cost_one_page(file, content, page, own_run, capsys):
    (Path(own_run.out) / file).write_text(json.dumps(content))
    make_pages.main(as_flags(own_run))
    pages = {name: data_of(Path(own_run.out) / "script" / f"{name}.html")["view"] for name in ("val", page)}
    assert pages == {"val": "rows", page: "nothing"}
    assert capsys.readouterr().err.count("\n") <= 1


def test_golden_inputs_of_another_shape_are_refused(tmp_path, capsys):
    with np.load(ROOT / "tests" / "golden" / "icd_a.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    np.savez(tmp_path / "icd_x.npz", **(arrays | {"feat": arrays["feat"][..., :3]}))
    said = refused(check_parity.main, [str(tmp_path / "icd_x.npz")], tmp_path, capsys)
    assert "icd_x.npz" in said and "other shapes" in said


def test_a_name_stands_for_one_source(own_run, tmp_path, capsys):
    flags = ["A=psa", "A=psa_crf", "--out", own_run.out, "--voc-root", own_run.voc_root]
    assert "A=psa_crf: A is named twice" in refused(eval_masks.main, flags, tmp_path, capsys)


def test_an_archive_replaces_no_picture(own_run, tmp_path, capsys):
    photo = tmp_path / "photos" / "cat.jpg"
    photo.parent.mkdir()
    photo.write_bytes(b"a photograph")
    for target in (photo, photo.parent):
        flags = [own_run.out, "--to", str(target), "--what=psa", "--voc-root", own_run.voc_root]
        assert "must end in .zip" in refused(pack.main, flags, tmp_path, capsys)
    assert photo.read_bytes() == b"a photograph"


@pytest.mark.parametrize("word", ["0", "-1", "abc", ""])
def test_a_number_of_processes_on_this_machine_that_cannot_be(word, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", word)
    for reader in (lambda: workers.at_most_cores(1), lambda: distributed._usable("cuda", several=True)):
        with pytest.raises(InputError, match="LOCAL_WORLD_SIZE="):
            reader()


def test_weights_with_two_names_for_one_storage_are_packed():
    one = torch.arange(6.0).reshape(2, 3)
    state = {"one": one, "same": one, "part": one[1], "turned": one.T}
    found = unpacked_weights(packed_weights(state))
    assert all(torch.equal(found[name], value) for name, value in state.items()) and found.keys() == state.keys()


@pytest.mark.parametrize("damage", ["", "[]", "3", "{}", "garbage", "\udcff", '{"seconds": "x"}'])
def test_a_job_whose_marker_is_damaged_is_done_again(damage, tmp_path, monkeypatch):
    done, job = [], commands.Job("one job", demo(), [["nothing.py"]])
    monkeypatch.setattr(commands, "run_command", lambda command, log: done.append(command))
    for times in (1, 1, 2):
        if times == 2:
            marker = tmp_path / "done" / "one_job.json"
            marker.write_bytes(damage.encode("utf-8", "surrogateescape"))
            assert commands.minutes_of_work(tmp_path) == 0
        commands.run_all(tmp_path, [job], 1, {})
        assert len(done) == times
    assert commands.minutes_of_work(tmp_path) > 0


@pytest.mark.parametrize("place", ["a link", "below a file"])
def test_a_place_that_cannot_be_written_is_named_and_not_the_archive(place, own_run, tmp_path, capsys):
    voc = ["--voc-root", own_run.voc_root]
    pack.main([own_run.out, "--to", str(tmp_path / "psa.zip"), "--what=psa", *voc])
    (tmp_path / "a link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    target = tmp_path / "a link" if place == "a link" else tmp_path / "file" / "theirs"
    said = refused(pack.main, ["import", str(tmp_path / "psa.zip"), "--to", str(target), *voc], tmp_path, capsys)
    assert str(target) in said and "name another place with --to" in said and "psa.zip" not in said


def test_seeds_that_changed_are_imported_again(own_run, tmp_path, capsys):
    image_id = read_ids(own_run.voc_root, "train_aug")[0]
    classes, size = import_labels.wanted(tmp_path / image_id, "aff_crf", Path(own_run.voc_root))
    (tmp_path / "in").mkdir()
    flags = [str(tmp_path / "in"), str(tmp_path / "store"), "--kind=aff_crf", "--voc-root", own_run.voc_root]
    for number, said in ((0, "1 imported"), (0, "0 imported"), (1, "1 imported")):
        maps = np.zeros((len(classes), *size), np.float32)
        maps[number] = 1
        np.save(tmp_path / "in" / f"{image_id}.npy", maps)
        import_labels.main(flags)
        assert said in capsys.readouterr().out
        assert np.array_equal(load_maps(tmp_path / "store" / f"{image_id}.npz").maps, maps)


def test_a_port_that_cannot_be(monkeypatch):
    for name, word in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}.items():
        monkeypatch.setenv(name, word)
    with pytest.raises(InputError, match="MASTER_PORT"):
        distributed.start("cpu")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_notes_that_cannot_be_written_are_named():
    with pytest.raises(InputError, match="cannot write /dev/full: No space left"):
        notes.add_notes(Path("/dev/full"), {"image": "0" * 16})


def test_notes_that_are_no_file_are_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        notes.notes_of(tmp_path)
