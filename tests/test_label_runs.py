"""Making labels, killed (kill -9) again and again, by several processes, on a full disk: the store is that of an
undisturbed run, byte for byte.

`make test` kills a few times. As many times as one likes, with a line about each:

    KILLS=50 python -m pytest -q -s tests/test_label_runs.py -k killed
"""

import os
import random
import resource
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
from engine import distributed, history, passes, stages
from engine.checkpoint import save_weights
from models.psa.affinity import AffinityNet
from models.psa.classifier import Classifier
from prepare_labels import make_cam_labels
from settings.config import demo
from tests.conftest import as_flags, labels_folder

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("KILLS", 3))
IMAGES = 10
CHAIN = (
    "import sys; from prepare_labels import make_aff_labels, make_cam_labels; "
    "make_cam_labels.main(sys.argv[1:]); make_aff_labels.main(sys.argv[1:])"
)
NOTES = (history.FILE, passes.MADE_FROM)
STORES = ("out_cam", "out_la_crf", "out_ha_crf", "out_aff", "out_aff_crf")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The demo's settings but for the number of workers, networks that have learned nothing, and what they make."""
    folder = tmp_path_factory.mktemp("runs")
    make_demo(folder / "VOC2012", train=IMAGES, val=1)
    config = replace(demo(), voc_root=str(folder / "VOC2012"), out=str(folder / "out"), workers=2)
    torch.manual_seed(0)
    for name, network in (
        ("cls", Classifier(len(CLASSES) - 1, config.width, 0, config.backbone_dilation)),
        ("aff", AffinityNet(config.width, 0, config.backbone_dilation)),
    ):
        save_weights(labels_folder(config, name) / "weights.pth", network)
    finish(start(config))
    whole = store(config)
    assert len(whole) == len(STORES) * (IMAGES + 1)
    emptied(config)
    return config, whole


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
    """Every file of the five folders by its path, hidden ones too, but the notes of how long it took."""
    results = stages.folder(config, "make_cam_labels").parent
    paths = [path for kind in STORES for path in sorted((results / kind).rglob("*")) if path.name not in NOTES]
    return {str(path.relative_to(results)): path.read_bytes() for path in paths}


def made(config) -> int:
    """How many files are done."""
    folders = [labels_folder(config, kind) for kind in STORES]
    return sum(not path.name.startswith(PARTIAL) and path.name not in NOTES for f in folders for path in f.glob("*"))


def emptied(config) -> None:
    for kind in STORES:
        shutil.rmtree(labels_folder(config, kind), ignore_errors=True)


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


def test_killed_at_random_moments_the_store_is_that_of_an_undisturbed_run(undisturbed):
    config, expected = undisturbed
    rng = random.Random(KILLS)
    kills = caller_kills = stores = 0
    while True:
        process = start(config)
        # A moment that is random in what is done and a little in time, whatever else the machine has to do.
        there = made(config)
        goal = there + int((len(expected) - there) * rng.random() ** 2)
        if kills < KILLS and there < len(expected):
            wait_for(lambda process=process, goal=goal: made(config) >= goal or process.poll() is not None, 600)
            time.sleep(rng.uniform(0, 3 if goal == there else 0.05))
        if kills < KILLS and there < len(expected) and process.poll() is None:
            kills += 1
            only_caller = rng.random() < 0.5
            caller_kills += only_caller
            kill(process, only_caller)
            print(f"kill {kills}, {'main process' if only_caller else 'all processes'}: {made(config)} files are there")
            continue
        finish(process)
        assert store(config) == expected
        stores += 1
        emptied(config)
        if kills == KILLS:
            break
    print(
        f"{kills} kills ({caller_kills} of the main process alone, the others with its workers); {stores} stores "
        f"finished, each of the same {len(expected)} files, byte for byte, as the undisturbed one"
    )


def test_several_processes_make_the_same_store(undisturbed):
    config, expected = undisturbed
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "-m"]
    flags = as_flags(replace(config, workers=0))
    for program in ("prepare_labels.make_cam_labels", "prepare_labels.make_aff_labels"):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, program, *flags], cwd=ROOT, env=environment, capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    maps = {name: content for name, content in store(config).items() if not name.endswith("config.json")}
    emptied(config)
    assert maps == {name: expected[name] for name in maps} and len(maps) == len(STORES) * IMAGES


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 12])
def test_shards_are_complete_and_disjoint(processes, monkeypatch):
    ids = [f"2007_{n:06d}" for n in range(10)]
    monkeypatch.setattr(distributed, "processes", lambda: processes)
    shards = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shards += distributed.shard(ids)
    assert sorted(shards) == ids


def test_disk_that_fills_up_mid_write_leaves_whole_maps_only(undisturbed, capsys):
    config, expected = undisturbed
    sizes = [len(content) for name, content in expected.items() if name.startswith("out_cam")]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files fails in the midst of a write, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 100, unlimited[1]))
    try:
        with pytest.raises(SystemExit) as end:
            make_cam_labels.main(as_flags(replace(config, workers=0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1 and f"cannot write {config.out}" in said and ".npz: File too large" in said
    left = {name: content for name, content in store(config).items() if not name.endswith("config.json")}
    assert left == {name: expected[name] for name in left}
    emptied(config)
