"""Kills runs, damages files, exchanges what lies there, and says what came of it.

    python -m tests.campaign --seed 0

Kills: a stage of the method on a tiny set is killed (kill -9) at a random moment, started again, perhaps killed again,
and let finish; what it made must equal, byte for byte, what an undisturbed run made. Mutations: damaged files of every
kind go to their readers; each must work or end with an InputError, in 10 s and 1 GB. Roots: a stage that has run on
one data root runs on another with the same ids; its results must be the second's. Partial: files of a finished pass
are deleted; going on must give the same bytes. Ranks: one of two processes, torchrun's, or both are killed; the rest
must end and keep the folder till then. Flips: state.pth is damaged; the run must refuse it or end as it would have.
Inputs: programs are given what they read as their output; they must refuse. Exits with 1 if anything else happens.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from engine.resume import Standing, weights_are_finite, write_state
from engine.training import sgd
from modes.ssdd.networks import build
from settings.config import voc
from tests.campaign.changes import flip_campaign, partial_campaign, root_campaign
from tests.campaign.inputs import input_campaign
from tests.campaign.kills import kill_campaign
from tests.campaign.mutations import mutation_campaign
from tests.campaign.processes import whole_run
from tests.campaign.ranks import rank_campaign

# By flag: how many by default, what they are called, and what does them.
RUNS = {
    "kills": (200, "kills", kill_campaign),
    "roots": (40, "runs on a second data root", root_campaign),
    "partial": (40, "passes with deleted files", partial_campaign),
    "ranks": (12, "lost processes", rank_campaign),
    "flips": (200, "damaged states", flip_campaign),
    "inputs": (32, "inputs as outputs", input_campaign),
}


def checkpoint_cost(folder: Path) -> str:
    """What a save within an epoch of mode 2 takes at the published size, of the time between two saves."""
    config = voc()
    segmentation, ddnet = build(config, dynamic=True)
    networks = {"segmentation": segmentation, "ddnet": ddnet}
    parameters = [list(network.parameters()) for network in networks.values()]
    optimisers = [sgd([(own, 1.0)], config.momentum, config.weight_decay) for own in parameters]
    begun = time.perf_counter()
    weights_are_finite(networks)
    write_state(folder / "state.pth", Standing(1, 2), 3, networks, optimisers)
    took, size = time.perf_counter() - begun, (folder / "state.pth").stat().st_size
    share = took / (60 * config.checkpoint_every)
    return f"a save of mode 2 at the published size: {size >> 20} MiB, {took:.1f} s, {share:.1%} of the interval"


def table(title: str, rows: dict[str, tuple]) -> None:
    print(title)
    for name, cells in rows.items():
        print(f"  {name:<28}", *(f"{cell:>8}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20_000)
    for flag, (count, _, _) in RUNS.items():
        parser.add_argument(f"--{flag}", type=int, default=count)
    parser.add_argument("--checkpoint", action="store_true", help="measure instead what a save costs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the processes are forks, in which threads that ran before do not exist
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.checkpoint:
            print(checkpoint_cost(folder))
            return 0
        begun = time.monotonic()
        if arguments.mutations:
            done = mutation_campaign(arguments.mutations, arguments.seed, folder / "files")
            rows = {name: (done.worked[name], done.refused[name]) for name in done.worked | done.refused}
            table(f"{'damaged files':<30} {'worked':>8} {'refused':>8}", rows)
            print(
                f"{done.worked.total() + done.refused.total() + len(done.failures)} damaged files, "
                f"{len(done.failures)} defects; slowest {done.slowest:.2f} s, "
                f"most memory {done.most_memory / (1 << 20):.0f} MiB, {time.monotonic() - begun:.0f} s in all"
            )
            failures += len(done.failures)
        if any(getattr(arguments, flag) for flag in RUNS):
            (folder / "runs").mkdir()
            whole = whole_run(folder / "runs")
        for flag, (_, title, campaign) in RUNS.items():
            begun, count = time.monotonic(), getattr(arguments, flag)
            if count:
                found = campaign(count, arguments.seed, whole, folder / "runs")
                table(title, {outcome: (times,) for outcome, times in found.counts.items()})
                what = f"{sum(found.counts.values())} {title}, {len(found.failures)} that differ or fail"
                print(f"{what}, {time.monotonic() - begun:.0f} s", flush=True)
                failures += len(found.failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
