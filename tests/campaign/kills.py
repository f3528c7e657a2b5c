"""Runs that are killed (kill -9) at random moments and go on: what they make is what an undisturbed run made."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from tests.campaign.processes import STAGES, Found, Whole, differing, do, flags_of, lay_out, made, run_stage, start


def kill_campaign(kills: int, seed: int, whole: Whole, work: Path) -> Found:
    """Kill until `kills` kills have met a working process; counts are those kills by stage."""
    rng, found, count = random.Random(seed), Found({}, []), 0
    out, log = work / "out", work / "run.log"
    while sum(found.counts.values()) < kills:
        stage = STAGES[count % len(STAGES)]
        count += 1
        lay_out(whole, stage, out)
        workers, minutes = rng.choice([0, 0, 0, 1]), rng.choice([1e-9, 0.002, 10.0])
        flags = flags_of(whole.root, out, checkpoint_every=minutes, workers=workers, crf_workers=bool(workers))
        task, moments = partial(run_stage, stage, flags), []
        log.write_bytes(b"")
        for _ in range(rng.choice([1, 1, 2, 3])):
            moments.append(rng.uniform(0, 1.1 * whole.seconds[stage]))
            pid = start(task, log)
            time.sleep(moments[-1])
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            found.note(stage)
        status = do(task, log)
        strange = differing(made(stage, out), made(stage, whole.out))
        if status or strange:
            told = " ".join(f"{moment:.2f}" for moment in moments)
            found.failures.append(f"{stage}, killed after {told} s: status {status}, differing {strange}")
            print(found.failures[-1], log.read_text()[-2000:], sep="\n", flush=True)
    return found
