"""How fast is it, and against what? Measured on the machine that it runs on, each row beside its baseline.

    python -m tools.bench                                  # all rows, at the published sizes (an hour on two cores)
    python -m tools.bench --preset demo --only step0 crf    # a quick look
    python -m tools.bench --write docs/benchmarks/cpu.json  # keep every single time
    python -m tools.bench --readme                         # put its tables into docs/benchmarks/README.md

Row and baseline take turns in one process, so that whatever else the machine does hits both. The weights are random,
which changes no time. Images are those of --split in --voc-root if they are there with their masks, else drawn.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from datasets.errors import InputError, program
from datasets.files import atomic_write
from datasets.voc import CLASSES, class_names
from engine import distributed
from evaluation.bench_systems import icd_cases, recurseed_cases
from evaluation.bench_table import table, update_readme
from settings.config import Config, preset
from settings.flags import Parser, add_flags, flags_of, parsed
from tools.bench.inference import evaluation_rows, pass_rows, precompute_rows
from tools.bench.inputs import photographs_of
from tools.bench.parts import crf_rows, labels_rows, loader_rows, peak_rows, system_rows
from tools.bench.timing import choose_kernels
from tools.bench.training import final_rows, step_rows

ROWS = (
    "peak",
    "step0",
    "step2",
    "precompute",
    "pass",
    "evaluation",
    "crf",
    "labels",
    "loader",
    "final",
    "icd",
    "recurseed",
)
TRAINING = ("peak", "step0", "step2", "final")  # and the peak that training is compared with


def measure(config: Config, device: torch.device, repeats: int, only: list[str]) -> Iterator[dict]:
    functions = {
        "peak": peak_rows,
        "step0": partial(step_rows, mode=0),
        "step2": partial(step_rows, mode=2),
        "precompute": precompute_rows,
        "pass": pass_rows,
        "evaluation": evaluation_rows,
        "crf": crf_rows,
        "labels": labels_rows,
        "loader": loader_rows,
        "icd": partial(system_rows, cases=icd_cases),
        "recurseed": partial(system_rows, cases=recurseed_cases),
        "final": final_rows,
    }
    for name in only:
        choose_kernels(config, device, training=name in TRAINING)
        yield from functions[name](config, device, repeats)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units = [u for u in ("amx_bf16", "avx512_bf16") if getattr(torch.cpu, "get_capabilities", dict)().get(u)]
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, bfloat16 units: {', '.join(units) or 'none'}"


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to measure")
    parser.add_argument("--repeats", type=int, default=5, help="turns a row (default: 5)")
    parser.add_argument("--write", type=Path, metavar="FILE.json", help="keep the raw times here")
    parser.add_argument("--readme", action="store_true", help="measure nothing, make its tables")
    add_flags(parser, "ssdd")
    config, arguments = parsed(parser, argv)
    if arguments.readme:
        update_readme(Path("docs/benchmarks/README.md"))
        return
    if arguments.write and arguments.write.suffix != ".json":
        raise InputError(f"--write={arguments.write}: must end in .json")
    if arguments.repeats < 1:
        raise InputError(f"--repeats={arguments.repeats}: must be 1 or more")
    if class_names(config.voc_root) != CLASSES:
        raise InputError(f"--voc-root={config.voc_root} has its own classes: the benchmark needs VOC's, or no images")
    device = distributed.start(config.device)
    result = {
        "machine": machine(device),
        "device": device.type,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "command": " ".join(["python -m tools.bench", *command_of(arguments, config)]),
        "config": {name: getattr(config, name) for name in ("preset", "static_epochs", "dynamic_epochs", "bn", "crf")},
        "rows": [],
    }
    for made in measure(config, device, arguments.repeats, arguments.only):
        result["rows"].append(made)
        print(f"{made['what']}: {statistics.median(made['rates']):.3g} {made['unit']}", flush=True)
        if arguments.write:
            with atomic_write(arguments.write) as temporary:
                temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print()
    print(table(result))


def command_of(arguments: argparse.Namespace, config: Config) -> list[str]:
    """The command line without paths, which mean nothing to others."""
    own = preset(config.preset)
    flags = flags_of(replace(config, voc_root=own.voc_root, out=own.out))
    chosen = [] if list(arguments.only) == list(ROWS) else ["--only", *arguments.only]
    images = [f"--split={config.split}"] if photographs_of(config) else []
    return [*flags, *images, *chosen, f"--repeats={arguments.repeats}"]


if __name__ == "__main__":
    main()
