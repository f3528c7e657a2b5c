"""Two processes under torchrun of which one is lost: the other ends, keeps its folder till then, and all goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from engine import locks
from tests.campaign.processes import Found, Whole, arguments_of, differing, do, flags_of, folders_of, lay_out, made

ROOT = Path(__file__).parent.parent.parent
LONGEST = 20  # seconds that a process may outlive the other
# Long enough that the loss comes within the work; a pass and a training.
SLOW = {"make_cam_labels": {"crf_labels": 300}, "mode 0": {"static_epochs": 30, "checkpoint_every": 1e-9}}
# The places of the processes that are killed: torchrun's own is None.
LOSSES = ((0,), (0, None), (1,), (None,))


def rank_campaign(count: int, seed: int, whole: Whole, work: Path) -> Found:
    rng, found, log = random.Random(seed), Found({}, []), work / "ranks.log"
    wanted: dict[str, dict[str, bytes]] = {}
    seconds: dict[str, float] = {}
    for number in range(count):
        stage, lost = list(SLOW)[number % len(SLOW)], LOSSES[number // len(SLOW) % len(LOSSES)]
        if stage not in wanted:
            run, seconds[stage] = begun(stage, whole, work, log), -time.monotonic()
            if run.wait():
                raise RuntimeError(f"{stage} fails undisturbed under torchrun:\n{log.read_text()}")
            seconds[stage] += time.monotonic()
            wanted[stage] = made(stage, work / "out")
        run = begun(stage, whole, work, log)
        time.sleep(rng.uniform(0, 0.8 * seconds[stage]))
        children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        met = len([pid for pid in children if works(pid)]) == 2
        for place in lost:
            os.kill(run.pid if place is None else children[place], signal.SIGKILL)
        what = ["it lives on" for pid in children if not has_ended(pid, work / "out" / folders_of(stage)[0], log)]
        run.wait()
        again = begun(stage, whole, work, log, going_on=True).wait()
        strange = differing(made(stage, work / "out"), wanted[stage])
        if again or strange:
            what.append(f"started again: status {again}, differing {strange}")
        names = " and ".join("torchrun" if place is None else f"process {place}" for place in lost)
        found.note(f"{stage}{'' if met else ', too late'}", f"{stage} lost {names}: {what}" if what else "", log)
    return found


def begun(stage: str, whole: Whole, work: Path, log: Path, going_on: bool = False) -> subprocess.Popen:
    """A run of two processes that has begun its work, or ended."""
    if not going_on:
        lay_out(whole, stage, work / "out")
        log.write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [*arguments_of(stage), *flags_of(whole.root, work / "out", **SLOW[stage])]
    with open(log, "ab") as file:
        run = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
    claimed = [work / "out" / folder / "config.json" for folder in folders_of(stage)]
    while run.poll() is None and not all(path.exists() for path in claimed):
        time.sleep(0.05)
    return run


def works(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_ended(pid: int, folder: Path, log: Path) -> bool:
    """Whether a process soon does, and lets no other run into its folder before."""
    end = time.monotonic() + LONGEST
    while works(pid):
        let_in = not do(partial(locks.lock_for_writing, folder), log)
        if works(pid) and (let_in or time.monotonic() > end):
            os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.1)
    return True
