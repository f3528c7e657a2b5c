"""For the first minutes on a GPU box: does everything work there, and how fast? One report, a verdict a line.

    python -m tools.check_gpu                            # or: make gpu
    python -m tools.check_gpu --only crf programs        # a part of it
    python -m tools.check_gpu --write my_box             # report.md, raw/ and bench.json go there

Without a GPU it says so and tries what a CPU can. Exit status 0: what is possible here works; 1: something fails.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from datasets.demo import make_demo
from datasets.errors import InputError, program
from datasets.files import atomic_write
from engine import distributed
from evaluation.bench_table import measured_peak
from settings.flags import Parser
from tools.check_gpu.hardware import crf_verdicts, gpu_verdicts, parity_verdicts
from tools.check_gpu.training import (
    IMAGES,
    deterministic_verdicts,
    process_verdicts,
    program_verdicts,
    resume_verdicts,
)
from tools.check_gpu.trial import FAILS, ROOT, WORKS, Place, Verdict, run


def speed_verdicts(place: Place) -> Iterator[Verdict]:
    """The benchmark's rows, with the share of the measured peak, and what --deterministic costs."""
    if not place.on_gpu:
        yield from bench_verdicts(place, "bench", ["--preset=demo", "--only", "peak", "step0", "loader", "--repeats=1"])
        return
    yield from bench_verdicts(place, "bench", ["--crf=auto"])
    for made in bench_verdicts(place, "bench_deterministic", ["--deterministic", "--only", "step0", "step2"]):
        yield made._replace(what=f"{made.what}, --deterministic")


def bench_verdicts(place: Place, name: str, flags: list[str]) -> Iterator[Verdict]:
    """A line for each row of tools.bench, whose times go into name.json of the report."""
    path = place.report / f"{name}.json"
    path.unlink(missing_ok=True)
    made = run(place, name, ["-m", "tools.bench", "--device", str(place.device), "--write", str(path), *flags])
    if made.verdict != WORKS:
        yield made
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    peak = measured_peak(rows)
    for row in rows:
        rate = statistics.median(row["rates"])
        why = f"{rate:.3g} {row['unit']}"
        if peak and row["what"].endswith("arithmetic"):
            why += f", {100 * rate / peak:.0f} % of the measured convolution"
        if row.get("memory") is not None:
            why += f", peak memory {row['memory']:.1f} GB"
        if "baseline" in row:
            why += f" ({row['baseline']}: {statistics.median(row['baseline_rates']):.3g})"
        yield Verdict(row["what"], WORKS, why + (f"; {row['note']}" if "note" in row else ""))


CHECKS = {
    "gpu": gpu_verdicts,
    "parity": parity_verdicts,
    "crf": crf_verdicts,
    "programs": program_verdicts,
    "resume": resume_verdicts,
    "processes": process_verdicts,
    "deterministic": deterministic_verdicts,
    "speed": speed_verdicts,
}


def verdicts(place: Place, only: list[str]) -> Iterator[Verdict]:
    for name in CHECKS:
        try:
            yield from CHECKS[name](place) if name in only else ()
        except (InputError, RuntimeError, OSError) as error:
            yield Verdict(name, FAILS, " ".join(str(error).split())[:300])


def report(place: Place, found: list[Verdict]) -> str:
    """The report as Markdown."""
    name = torch.cuda.get_device_name(place.device) if place.on_gpu else "CPU, no GPU"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    lines = [
        f"# Does it work here? {name}",
        "",
        f"*`python -m tools.check_gpu`, {time.strftime('%Y-%m-%d')}; {versions}*",
    ]
    lines += ["", "What each program said lies in raw/.", "", "| verdict | what | |", "|---|---|---|"]
    lines += [f"| {v.verdict} | {v.what} | {v.why.replace('|', '/')} |" for v in found]
    return "\n".join(lines) + "\n"


def default_folder(device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return ROOT / "docs" / "benchmarks" / f"check_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}"


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="what to try")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="of the report (default: below docs/benchmarks)")
    arguments = parser.parse_args(argv)
    device = distributed.start(arguments.device)
    folder = arguments.write or default_folder(device)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--write={folder}: is a file, name a folder")
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(device, Path(scratch), folder.resolve())
        make_demo(place.scratch / "VOC2012", train=IMAGES, val=3)
        for verdict in verdicts(place, arguments.only):
            found.append(verdict)
            print(verdict, flush=True)
            with atomic_write(folder / "report.md") as temporary:
                temporary.write_text(report(place, found), encoding="utf-8")
    failed = sum(verdict.verdict == FAILS for verdict in found)
    print(f"{len(found) - failed} of {len(found)} without a fault; the report is {folder / 'report.md'}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
