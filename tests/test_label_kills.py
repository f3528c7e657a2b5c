"""Making labels, killed (kill -9) again and again: the finished store is that of an undisturbed run, byte for byte.

`make test` kills a few times. As many times as one likes, with a line about each:

    KILLS=50 python -m pytest -q -s tests/test_label_kills.py
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datasets.demo import make_demo
from datasets.files import PARTIAL
from datasets.voc import CLASSES
from models.affinity import AffinityNet
from models.classifier import Classifier
from tests.conftest import as_flags
from tools.checkpoint import save_weights
from tools.config import demo

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", 3))
IMAGES = 10
CHAIN = (
    "import sys; from prepare_labels import make_aff_labels, make_cam_labels; "
    "make_cam_labels.main(sys.argv[1:]); make_aff_labels.main(sys.argv[1:])"
)
STORES = ("out_cam", "out_la_crf", "out_ha_crf", "out_aff", "out_aff_crf")


@pytest.fixture
def config(tmp_path):
    """The demo's settings but for the number of workers, with networks that have learned nothing."""
    make_demo(tmp_path / "VOC2012", train=IMAGES, val=1)
    config = replace(demo(), voc_root=str(tmp_path / "VOC2012"), out=str(tmp_path / "out"), workers=2)
    torch.manual_seed(0)
    for name, network in (
        ("cls", Classifier(len(CLASSES) - 1, config.width, 0, config.backbone_dilation)),
        ("aff", AffinityNet(config.width, 0, config.backbone_dilation)),
    ):
        save_weights(config.label_network(name), network)
    return config


def start(config) -> subprocess.Popen:
    """Both programs that make labels, in one process (and its workers), the leader of a group of its own."""
    command = [sys.executable, "-c", CHAIN, *as_flags(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen) -> None:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()[-3000:]


def store(config) -> dict[str, bytes]:
    """Every file of the five folders by its path, hidden ones too."""
    results = config.labels_folder("out_cam").parent
    paths = [path for kind in STORES for path in sorted((results / kind).rglob("*"))]
    return {str(path.relative_to(results)): path.read_bytes() for path in paths}


def emptied(config) -> None:
    for kind in STORES:
        shutil.rmtree(config.labels_folder(kind), ignore_errors=True)


def alive(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < until:
        time.sleep(0.01)
    return bool(met)


def kill(process: subprocess.Popen, only_caller: bool) -> None:
    """kill -9 the main process or, as at a power cut, its workers with it; then nothing of them may go on."""
    if only_caller:
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_for(lambda: not alive(process.pid), 30), alive(process.pid)


def test_killed_at_random_moments_the_store_is_that_of_an_undisturbed_run(config):
    began = time.monotonic()
    process = start(config)
    assert wait_for(config.labels_folder("out_cam").exists, 120)
    writing = time.monotonic() - began
    finish(process)
    whole = time.monotonic() - began
    undisturbed = store(config)
    assert len(undisturbed) == len(STORES) * (IMAGES + 1)
    emptied(config)

    rng = random.Random(0)
    # Random moments, spread so that a few of them already hit different stages.
    moments = [writing + (whole - writing) * (n + rng.random()) / KILLS for n in range(KILLS)]
    rng.shuffle(moments)
    stores = caller_kills = 0
    while moments:
        process = start(config)
        try:
            process.communicate(timeout=moments[-1])
        except subprocess.TimeoutExpired:
            moments.pop()
            only_caller = rng.random() < 0.5
            caller_kills += only_caller
            kill(process, only_caller)
            maps = [name for name in store(config) if not name.endswith("config.json") and PARTIAL not in name]
            print(f"kill {KILLS - len(moments)}: {len(maps)} of {len(STORES) * IMAGES} maps are there")
            if not moments:
                process = start(config)
                finish(process)
        if process.returncode == 0:
            assert store(config) == undisturbed
            stores += 1
            emptied(config)
    print(
        f"{KILLS} kills ({caller_kills} of the main process alone, the others with its workers); {stores} stores "
        f"finished, each of the same {len(undisturbed)} files, byte for byte, as the undisturbed one"
    )
