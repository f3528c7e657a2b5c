"""What lies there when a stage starts is not what was left: other data, deleted files, a damaged training state."""

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.voc import PALETTE
from engine import training
from tests.campaign.mutations import damaged
from tests.campaign.processes import (
    PASSES,
    STAGES,
    TRAINING,
    Found,
    Whole,
    differing,
    do,
    flags_of,
    folders_of,
    lay_out,
    made,
    run_stage,
)

EVERY_STEP = 1e-9  # minutes between two saves
EVALUATIONS = ("mode 3", "recurseed evaluate")
SAVES = 4  # after which the damaged state was written: within the second epoch


def second_root(first: Path, root: Path, changed: tuple[str, ...]) -> None:
    """The same ids, sizes and lists, other pictures, and files that are older than the first root's, as copies are."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(first, root)
    for folder in changed:
        for path in (root / folder).iterdir():
            with Image.open(path) as image:
                pixels = np.array(image)[::-1].copy()
            image = Image.fromarray(pixels)
            if path.suffix == ".png":
                image.putpalette(PALETTE.tobytes())
            image.save(path, **({"quality": 90} if path.suffix == ".jpg" else {}))
            os.utime(path, (1e9, 1e9))


def root_campaign(count: int, seed: int, whole: Whole, work: Path) -> Found:
    """A stage that has run on one data root runs on another: its results are those of the second, or it refuses and
    leaves what the first gave. Evaluations, which read no training image, may not refuse."""
    rng, found, log = random.Random(seed), Found({}, []), work / "roots.log"
    for number in range(count):
        stage = rng.choice(EVALUATIONS) if number % 2 == 0 else rng.choice(STAGES)
        pictures, truth = ("JPEGImages",), ("SegmentationClass",)
        changed = rng.choice([pictures, truth, pictures + truth]) if stage in EVALUATIONS else pictures
        second_root(whole.root, work / "second", changed)
        log.write_bytes(b"")
        results, statuses = [], []
        for with_own in (False, True):
            lay_out(whole, stage, work / "out", with_own)
            statuses.append(do(partial(run_stage, stage, flags_of(work / "second", work / "out")), log))
            results.append(made(stage, work / "out"))
        refused = statuses[1] == 2 and stage not in EVALUATIONS and not differing(results[1], made(stage, whole.out))
        strange = [] if refused else differing(*results)
        what = f"{stage}, other {' and '.join(changed)}: status {statuses}, differing {strange}"
        # What an earlier stage made of the first's photographs may be refused where nothing of the stage's own lies.
        good = (statuses in ([0, 2], [2, 2]) if refused else statuses == [0, 0]) and not strange
        found.note("refused" if refused else "the second's", "" if good else what, log)
    return found


def partial_campaign(count: int, seed: int, whole: Whole, work: Path) -> Found:
    """Some files of a finished pass are deleted: going on gives the same bytes. Half of the time of mode 1."""
    rng, found, log = random.Random(seed), Found({}, []), work / "partial.log"
    for number in range(count):
        stage = "mode 1" if number % 2 == 0 else rng.choice(PASSES)
        lay_out(whole, stage, work / "out", with_own=True)
        files = [p for f in folders_of(stage) for p in sorted((work / "out" / f).rglob("*.*")) if p.suffix in ENDINGS]
        gone = rng.sample(files, rng.choice([1, 2, 3, len(files) - 1]))
        for path in gone:
            path.unlink()
        log.write_bytes(b"")
        status = do(partial(run_stage, stage, flags_of(whole.root, work / "out")), log)
        strange = differing(made(stage, work / "out"), made(stage, whole.out))
        what = f"{stage} without {' '.join(path.name for path in gone)}: status {status}, differing {strange}"
        found.note(stage, what if status or strange else "", log)
    return found


ENDINGS = (".npz", ".png")  # of what passes write for an image


def flip_campaign(count: int, seed: int, whole: Whole, work: Path) -> Found:
    """A run goes on from a damaged state.pth: it refuses, or ends as an undisturbed one; never silently otherwise."""
    rng, found, log = random.Random(seed), Found({}, []), work / "flips.log"
    states: dict[str, Path] = {}
    for number in range(count):
        stage = TRAINING[number % len(TRAINING)]
        out, folder = work / "out", folders_of(stage)[0]
        if stage not in states:
            states[stage] = work / "stopped" / stage
            lay_out(whole, stage, out)
            flags = flags_of(whole.root, out, checkpoint_every=EVERY_STEP)
            if do(partial(run_and_stop, stage, flags), log) != 9:
                raise RuntimeError(f"{stage} did not stop:\n{log.read_text()}")
            shutil.copytree(out / folder, states[stage])
        lay_out(whole, stage, out)
        shutil.copytree(states[stage], out / folder)
        path = out / folder / "state.pth"
        content = path.read_bytes()
        how: Callable = flipped if rng.random() < 0.7 else partial(damaged, others=[content])
        path.write_bytes(how(content, rng=rng))
        log.write_bytes(b"")
        status = do(partial(run_stage, stage, flags_of(whole.root, out)), log)
        said = log.read_text(errors="replace").splitlines()
        refused = status == 2 and said[-1].startswith("error: ") and str(path) in said[-1]
        strange = [] if refused else differing(made(stage, out), made(stage, whole.out))
        what = f"{stage}, attack {number} on state.pth: status {status}, differing {strange}"
        good = "Traceback" not in "\n".join(said) and (refused or (status == 0 and not strange))
        found.note("refused" if refused else "no harm", "" if good else what, log)
    return found


def flipped(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 3, 30, 200])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def run_and_stop(stage: str, flags: list[str]) -> None:
    """Leave like a killed process after some saves."""
    save, left = training.save, [SAVES]

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        left[0] -= 1
        if not left[0]:
            os._exit(9)

    training.save = save_and_stop
    run_stage(stage, flags)
