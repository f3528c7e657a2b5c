"""docs/build_on_it.md: each diff applies to this tree, and what it adds works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datasets.seed_store import load_differences, load_maps
from datasets.voc import read_ids, read_mask
from engine import checkpoint, stages
from evaluation.masks import evaluate
from models.inference import resize
from tests.conftest import as_flags, labels_folder

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "build_on_it.md").read_text(encoding="utf-8")
DIFFS = {
    title: re.search(r"```diff\n(.*?)```", text, re.S)[1]
    for title, text in (part.split("\n", 1) for part in DOC.split("\n## ")[1:])
}

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


@pytest.fixture
def patched(tmp_path, request):
    """A copy of the programs with the diff of a section applied; runs `python ARGUMENTS` there."""
    tree = tmp_path / "tree"
    tree.mkdir()
    rooms = ("datasets", "engine", "evaluation", "models", "modes", "prepare_labels", "script", "settings", "tools")
    for name in rooms:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for path in ROOT.glob("main_*.py"):
        shutil.copy(path, tree)
    (tree / "it.diff").write_text(DIFFS[request.param], encoding="utf-8")
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply", "it.diff"], cwd=tree, env=environment, check=True)

    def run(*arguments) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("patched", ["A seed source"], indirect=True)
def test_a_seed_source(patched, own_run):
    patched("-m", "prepare_labels.make_cam_masks", *as_flags(own_run))
    masks = Path(own_run.out) / "prepare_labels/results/out_cam_mask"
    ids = read_ids(own_run.voc_root, "train_aug")
    cut = evaluate(masks, own_run.voc_root, ids)["miou"]
    assert cut == evaluate(labels_folder(own_run, "out_cam"), own_run.voc_root, ids)["sweep"]["0.3"]
    where = ["--out", own_run.out, "--voc-root", own_run.voc_root, "--split", "train_aug"]
    assert f"| cut | **{100 * cut:.2f}** |" in patched("-m", "tools.eval_masks", "cut=cam_mask", *where)


@pytest.mark.parametrize("patched", ["A network"], indirect=True)
def test_a_network(patched, own_run):
    flags = [*as_flags(own_run), "--network=largefov", "--seed_source=psa", "--lr=0.001"]
    patched("main_ssdd.py", "--mode=4", *flags)
    patched("main_ssdd.py", "--mode=3", *flags)
    run = Path(own_run.out) / "logs" / "fixed_psa_largefov_ssdd"
    state = checkpoint.load_state(run / "models" / "seg_0001.pth")
    assert "aspp.0.weight" in state and "aspp.1.weight" not in state
    result = Path(own_run.out) / "validation" / "fixed_psa_largefov_ssdd" / "result_val.json"
    assert json.loads(result.read_text())["mask after CRF"]["images"] == 3


@pytest.mark.parametrize("patched", ["An integration rule"], indirect=True)
def test_an_integration_rule(patched, own_run):
    flags = [*as_flags(own_run), "--fresh", "--seed-bias=0"]
    patched("main_ssdd.py", "--mode=1", *flags, "--integration=smooth")
    folder = stages.folder(own_run, "mode 1")
    equal = []
    for image_id in read_ids(own_run.voc_root, "train_aug"):
        seeds = [load_maps(labels_folder(own_run, kind) / f"{image_id}.npz") for kind in ("out_aff", "out_aff_crf")]
        k, a = (seed.mask() for seed in seeds)
        lost = np.zeros(256)
        for c in seeds[0].classes[1:]:
            lost[c] = (a == c).sum() < 0.5 * max((k == c).sum(), 1)
        w = lost[a] - lost[k]
        for sign, d in zip((1, -1), load_differences(folder / f"{image_id}.npz"), strict=True):
            large = resize(torch.from_numpy(d)[None, None], k.shape)[0, 0].numpy()
            sums = [cv2.blur(x, (5, 5), borderType=cv2.BORDER_CONSTANT) for x in (large, np.ones_like(large))]
            w = w + sign / (1 + np.exp(-sums[0] / sums[1]))
        sure = np.abs(w) > 1e-6
        equal.append((read_mask(folder / f"{image_id}.png") == np.where(w >= 0, a, k))[sure].all())
    assert all(equal)
