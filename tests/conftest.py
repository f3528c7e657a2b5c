"""A drawn set of nine images, a Config as small as works, and the files of a whole run with it."""

import contextlib
import importlib
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.demo import make_demo
from datasets.errors import InputError
from engine import commands, stages
from settings.config import Config, check, demo
from settings.field import MACHINE, RUN, STAGE, START
from settings.flags import flags_of
from tools.check_gpu.training import SIZES


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory):
    """6 train and 3 val images; not to be changed."""
    root = tmp_path_factory.mktemp("tiny") / "VOC2012"
    make_demo(root, train=6, val=3)
    return root


@pytest.fixture
def own_voc(tiny_voc, tmp_path):
    """A copy of the set for tests that change files."""
    return shutil.copytree(tiny_voc, tmp_path / "VOC2012")


def tiny(voc_root, out):
    config = replace(
        demo(),
        voc_root=str(voc_root),
        out=str(out),
        device="cpu",
        precision="float32",
        workers=0,
        **SIZES,
        bn=3,
        cls_batch=3,
        aff_batch=3,
        static_epochs=1,
        dynamic_epochs=1,
        cls_epochs=1,
        aff_epochs=1,
        eval_batch=1,  # convolutions round differently in batches of another size
    )
    check(config)
    return config


@pytest.fixture
def tiny_config(tiny_voc, tmp_path):
    return tiny(tiny_voc, tmp_path / "out")


def as_flags(config: Config) -> list[str]:
    """The command line that makes this Config."""
    return flags_of(config, (RUN, STAGE, MACHINE, START))


LABEL_FOLDERS = {
    Path(folder).name: (name, which) for name in stages.PSA for which, folder in enumerate(stages.STAGES[name].folders)
}


def labels_folder(config: Config, kind: str) -> Path:
    """kind: out_cam, out_la_crf, out_ha_crf, out_aff, out_aff_crf; cls, aff for the label networks."""
    name, which = LABEL_FOLDERS[kind]
    return stages.folder(config, name, which)


@pytest.fixture(scope="session")
def finished_run(tiny_voc, tmp_path_factory):
    """The out folder of the whole method on the tiny set; not to be changed."""
    import main_ssdd
    from prepare_labels import make_aff_labels, make_cam_labels, train_aff, train_cls

    out = tmp_path_factory.mktemp("finished") / "out"
    flags = as_flags(tiny(tiny_voc, out))
    for program in (train_cls, make_cam_labels, train_aff, make_aff_labels):
        program.main(flags)
    main_ssdd.main(["--mode=all", *flags])
    return out


@pytest.fixture
def own_run(finished_run, own_voc, tmp_path):
    """A Config with its own copy of the set and of what the whole method made from it, without training states."""
    unneeded = shutil.ignore_patterns("tensorboard", "state.pth", "script")
    shutil.copytree(finished_run, tmp_path / "out", ignore=unneeded)
    return tiny(own_voc, tmp_path / "out")


class AtOnce:
    """A pool whose jobs run where they are submitted: training handles signals, which only the main thread can."""

    def __init__(self, side_by_side):
        assert side_by_side == 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, job):
        future = Future()
        try:
            future.set_result(function(job))
        except InputError as error:
            future.set_exception(error)
        return future


def commands_here(monkeypatch, tool) -> list[list[str]]:
    """Let the jobs of a program of tools/ run in this process; the list of the stages that ran, as commands."""
    ran = []

    def run_command(command, log):
        program = importlib.import_module(command[1] if command[0] == "-m" else "main_ssdd").main
        if program.__module__.startswith("tools."):  # what reads the results runs at every start
            log.parent.mkdir(exist_ok=True)
            with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
                return program(command[2:])
        ran.append(command)
        return program(command[2:] if command[0] == "-m" else command[1:])

    for module in (commands, tool):
        monkeypatch.setattr(module, "run_command", run_command)
    monkeypatch.setattr(commands, "ThreadPoolExecutor", AtOnce)
    return ran
