"""Kills runs and damages files, and says what came of it.

    python -m tests.campaign --kills 200 --mutations 20000 --seed 0

Kills: a stage of the method on a tiny set is killed (kill -9) at a random moment, started again, perhaps killed again,
and let finish; what it made must equal, byte for byte, what an undisturbed run made. Mutations: damaged files of every
kind go to their readers; each must work or end with an InputError, in 10 s and 1 GB. Exits with 1 if anything else
happens.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import main_ssdd
from datasets.demo import make_demo
from datasets.errors import InputError
from datasets.pictures import read_photo
from datasets.seed_store import load_differences, load_maps, save_differences, save_maps
from datasets.voc import class_names, image_size, read_ids, read_image, read_mask, read_present
from engine import checkpoint, history, passes, runs, stages
from engine.resume import Standing, read_state, weights_are_finite, write_state
from engine.training import sgd
from models.psa.classifier import Classifier
from modes.ssdd.networks import build
from settings.config import voc
from tests.conftest import as_flags, tiny
from tools import import_images, import_labels
from tools.convert_weights import MXNET_FILE, read_weights
from tools.voc import read_sbd_ids

LONGEST, MOST_MEMORY = 10.0, 1 << 30  # seconds, bytes a file
PER_PROCESS = 50  # files
MOST_PATIENCE = 300  # seconds a stage
PNG = b"\x89PNG\r\n\x1a\n"


STAGES = (*stages.PSA, *stages.SSDD, "mode 4")
SOURCE = "ssdd"  # that mode 4 learns from


def run_stage(stage: str, flags: list[str]) -> None:
    """Run a stage in this process."""
    first, *rest = stages.STAGES[stage].command.split()
    source = [f"--seed_source={SOURCE}"] if stage == "mode 4" else []
    main = importlib.import_module(rest[0]).main if first == "-m" else partial(main_of_ssdd, rest)
    main([*flags, *source])


def main_of_ssdd(mode: list[str], flags: list[str]) -> None:
    main_ssdd.main([*mode, *flags])


def folders_of(stage: str) -> list[str]:
    """That it fills."""
    return [stages.filled(f, "ssdd", SOURCE if stage == "mode 4" else "") for f in stages.STAGES[stage].folders]


def start(task: Callable[[], None], log: Path) -> int:
    """Run `task` in a process forked from this one, which has loaded everything already; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    signal.alarm(MOST_PATIENCE)  # its default: the process ends
    try:
        os.setsid()
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        task()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def flags_of(root: Path, out: Path, **fields) -> list[str]:
    config = replace(tiny(root, out), static_epochs=2, dynamic_epochs=2, cls_epochs=2, aff_epochs=2, dropout=1.0, bn=2)
    return as_flags(replace(config, cls_batch=2, aff_batch=2, **fields))


def artefacts(folder: Path) -> dict[str, bytes]:
    """What is compared: every file but event files, which hold times, the stored Config, which holds paths, the lock,
    which holds the process, and the training state, which no later stage reads; of histories what is no time."""
    left_out = ("config.json", "state.pth", ".ssdd.lock", passes.MADE_FROM)
    return {
        str(path.relative_to(folder)): steps_of(path) if path.name == history.FILE else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts and path.name not in left_out
    }


def steps_of(path: Path) -> bytes:
    return b"".join(line for line in path.read_bytes().splitlines(keepends=True) if b'"step"' in line)


class Kills(NamedTuple):
    landed: Counter  # by stage
    runs: int
    failures: list[str]


def kill_campaign(kills: int, seed: int, work: Path) -> Kills:
    """Kill until `kills` kills have met a working process."""
    rng = random.Random(seed)
    root, whole, out = work / "VOC2012", work / "whole", work / "out"
    make_demo(root, train=6, val=3)
    durations = {}
    for stage in STAGES:
        begun = time.monotonic()
        pid = start(lambda stage=stage: run_stage(stage, flags_of(root, whole)), work / "whole.log")
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            raise RuntimeError(f"{stage} fails undisturbed:\n{(work / 'whole.log').read_text()}")
        durations[stage] = time.monotonic() - begun
    landed, failures, count = Counter(), [], 0
    while landed.total() < kills:
        stage = STAGES[count % len(STAGES)]
        count += 1
        shutil.rmtree(out, ignore_errors=True)
        for earlier in STAGES[: STAGES.index(stage)]:
            for folder in folders_of(earlier):
                shutil.copytree(whole / folder, out / folder)
        workers, minutes = rng.choice([0, 0, 0, 1]), rng.choice([1e-9, 0.002, 10.0])
        flags = flags_of(root, out, checkpoint_every=minutes, workers=workers, crf_workers=bool(workers))
        log = work / "run.log"
        log.write_bytes(b"")
        moments, status = [], None
        for _ in range(rng.choice([1, 1, 2, 3])):
            moments.append(rng.uniform(0, 1.1 * durations[stage]))
            pid = start(lambda stage=stage, flags=flags: run_stage(stage, flags), log)
            time.sleep(moments[-1])
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            landed[stage] += 1
        pid = start(lambda stage=stage, flags=flags: run_stage(stage, flags), log)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        made = {name: artefacts(out / name) for name in folders_of(stage)}
        wanted = {name: artefacts(whole / name) for name in folders_of(stage)}
        differing = [
            f"{folder}/{name}"
            for folder in folders_of(stage)
            for name in made[folder].keys() | wanted[folder].keys()
            if made[folder].get(name) != wanted[folder].get(name)
        ]
        if status or differing:
            told = " ".join(f"{moment:.2f}" for moment in moments)
            failures.append(f"{stage}, killed after {told} s: status {status}, differing {differing}")
            print(failures[-1], log.read_text()[-2000:], sep="\n", flush=True)
    return Kills(landed, count, failures)


class Reader(NamedTuple):
    samples: list[bytes]  # good files
    name: str  # of the file
    read: Callable[[Path], object]


def readers(work: Path) -> dict[str, Reader]:
    """Every reader of files that strangers can have made, with good files for it."""
    root = work / "readers"
    make_demo(root, train=4, val=2)
    train, val = read_ids(root, "train"), read_ids(root, "val")
    folder = work / "made"
    classes, (height, width) = np.array([0, 3, 15]), image_size(root, train[0])
    rng = np.random.default_rng(0)
    maps = rng.random((3, height, width), np.float32)
    grid = rng.random((3, -(-height // 8), -(-width // 8)), np.float32)
    save_maps(folder / "full.npz", classes, maps, (height, width), "x")
    save_maps(folder / "grid.npz", classes, grid, (height, width), "x")
    save_differences(folder / "d.npz", grid[0], grid[1], "x")
    network = Classifier(20, 0.0625)
    checkpoint.save_weights(folder / "new.pth", network)
    checkpoint.save_weights(folder / "described.pth", torch.nn.Linear(3, 2), voc(), ("background", "cat"))
    (folder / "classes.txt").write_text("cat\ndog\nsea lion\n")
    (folder / "labels.csv").write_text("a.jpg,cat;dog\nb.jpg,dog\n")
    (folder / history.FILE).write_text('{"step": 1, "epoch": 0.5, "loss": 1.0}\n{"epoch": 1, "seconds": 3.0}\n')
    small = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(small.parameters())
    small(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    torch.save(small.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    checkpoint.save_weights(folder / "small.pth", small)
    figures = [(0, ["a"], {"loss": torch.tensor(1.0)})]
    write_state(folder / "state.pth", Standing(1, 2, {"loss": 1.0}, figures), 3, {"n": small}, [optimiser])
    runs.claim_folder(folder / "run", tiny(root, work).stage(1), "mode 0", [])
    models = work / "damaged" / "run" / "models"
    models.mkdir(parents=True)
    (models / "seg_0001.pth").touch()
    (work / "damaged" / "JPEGImages").mkdir()
    np.save(folder / "crf.npy", maps)
    np.save(folder / "aff.npy", {int(c): m for c, m in zip(classes, maps, strict=True)}, allow_pickle=True)
    np.save(folder / "cam.npy", {int(c) - 1: m for c, m in zip(classes[1:], maps, strict=False)}, allow_pickle=True)
    name = b"arg:conv1a_weight"
    mxnet = MXNET_FILE + np.array([0, 1], "<u8").tobytes() + np.array([0xF993FAC9, 0, 2], "<u4").tobytes()
    mxnet += np.array([2, 3], "<i8").tobytes() + np.array([1, 0, 0], "<i4").tobytes() + np.ones(6, "<f4").tobytes()
    mxnet += np.array([1, len(name)], "<u8").tobytes() + name

    def good(*names: str) -> list[bytes]:
        return [(folder / name).read_bytes() for name in names]

    def photos(kind: str, names: list[str], ending: str) -> list[bytes]:
        return [(root / kind / f"{name}{ending}").read_bytes() for name in names]

    def of_id(read: Callable) -> Callable[[Path], object]:
        """For readers that take a VOC root and an id."""
        return lambda path: read(path.parent.parent, path.stem)

    def state(path: Path) -> None:
        other = torch.nn.Linear(3, 2)
        read_state(path, 3, 3, {"n": other}, [torch.optim.AdamW(other.parameters())])

    def imported(kind: str, shown: np.ndarray) -> Callable[[Path], object]:
        return lambda path: import_labels.read_maps(path, kind, shown, (height, width))

    lists = [(root / "ImageSets" / "Segmentation" / "train.txt").read_bytes()]
    return {
        "list": Reader(lists, "ImageSets/Segmentation/x.txt", lambda path: read_ids(path.parents[2], "x")),
        "SBD list": Reader(lists, "sbd/train.txt", lambda path: read_sbd_ids(path.parent, "train")),
        "photograph": Reader(photos("JPEGImages", train, ".jpg"), "JPEGImages/x.jpg", of_id(read_image)),
        "photograph's size": Reader(photos("JPEGImages", train, ".jpg"), "JPEGImages/x.jpg", of_id(image_size)),
        "photograph in PNG": Reader(photos("SegmentationClass", val, ".png"), "JPEGImages/x.jpg", of_id(read_image)),
        "mask": Reader(photos("SegmentationClass", val, ".png"), "SegmentationClass/x.png", read_mask),
        "annotation": Reader(photos("Annotations", train, ".xml"), "Annotations/x.xml", of_id(read_present)),
        "stored maps": Reader(good("full.npz", "grid.npz"), "x.npz", load_maps),
        "difference maps": Reader(good("d.npz"), "x.npz", load_differences),
        "weights": Reader(good("new.pth"), "x.pth", lambda path: checkpoint.load_into(Classifier(20, 0.0625), path)),
        "weights, small": Reader(
            good("small.pth", "old.pth"), "x.pth", lambda path: checkpoint.load_into(torch.nn.Linear(3, 2), path)
        ),
        "published weights": Reader([mxnet, *good("small.pth")], "x.params", read_weights),
        "weights, described": Reader(good("described.pth"), "x.pth", checkpoint.load_description),
        "class names": Reader(good("classes.txt"), "classes.txt", lambda path: class_names(path.parent)),
        "labels in CSV": Reader(good("labels.csv"), "x.csv", import_images.labels_from_csv),
        "history": Reader(good(history.FILE), history.FILE, lambda path: history.read(path.parent)),
        "picture": Reader(photos("JPEGImages", train, ".jpg"), "x.jpg", read_photo),
        "training state": Reader(good("state.pth"), "x.pth", state),
        "Config": Reader(
            good("run/config.json"),
            "run/config.json",
            lambda path: runs.read_config(path),
        ),
        "import of CRF maps": Reader(good("crf.npy"), "x.npy", imported("aff_crf", classes)),
        "import of PSA maps": Reader(good("aff.npy"), "x.npy", imported("aff", classes)),
        "import of CAMs": Reader(good("cam.npy"), "x.npy", imported("cam", classes[1:])),
    }


NUMBERS = (b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\xff" * 8, b"\0" * 8)


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Damage a file from outside, or, for archives and PNGs, a part of it so that the file's own checks still pass."""
    parts, join = taken_apart(content)
    if len(parts) == 1 or rng.random() < 0.5:
        return damaged(content, others, rng)
    one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
    if rng.random() < 0.3:
        parts[one], parts[other] = parts[other], parts[one]
    else:
        parts[one] = damaged(parts[one], [*others, *parts], rng)
    return join(parts)


def taken_apart(content: bytes) -> tuple[list[bytes], Callable[[list[bytes]], bytes]]:
    """The parts of an archive or the chunks of a PNG, and what makes a file of such parts; else the file itself."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            return [archive.read(name) for name in names], partial(archive_of, names)
    if content.startswith(PNG):
        kinds, chunks, place = [], [], len(PNG)
        while place < len(content):
            length, kind = struct.unpack(">I4s", content[place : place + 8])
            chunk = content[place + 8 : place + 8 + length]
            kinds.append(kind)
            chunks.append(zlib.decompress(chunk) if kind == b"IDAT" else chunk)
            place += length + 12
        return chunks, partial(png_of, kinds)
    return [content], lambda parts: parts[0]


def archive_of(names: list[str], parts: list[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in zip(names, parts, strict=True):
            archive.writestr(name, part)
    return file.getvalue()


def png_of(kinds: list[bytes], chunks: list[bytes]) -> bytes:
    content = PNG
    for kind, chunk in zip(kinds, chunks, strict=True):
        packed = zlib.compress(chunk) if kind == b"IDAT" else chunk
        check = struct.pack(">I", zlib.crc32(kind + packed))
        content += struct.pack(">I", len(packed)) + kind + packed + check
    return content


def damaged(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Flipped bits, odd numbers, a cut, a stretch taken out, doubled, exchanged, or from another file."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not data:
            break
        # Half of the damage in the first or last bytes, where headers and directories are.
        near = min(len(data), 256)
        place = rng.choice([*(rng.randrange(len(data)) for _ in range(2)), rng.randrange(near), -rng.randint(1, near)])
        place %= len(data)
        length = rng.choice([1, 2, 4, 8, 16, 64, rng.randint(1, len(data))])
        kind = rng.randrange(8)
        if kind < 2:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            number = rng.choice(NUMBERS)
            data[place : place + len(number)] = number
        elif kind == 3:
            del data[place:]
        elif kind == 4:
            del data[place : place + length]
        elif kind == 5:
            data[place:place] = data[place : place + length]
        elif kind == 6:
            second = rng.randrange(len(data))
            one, other = bytes(data[place : place + length]), bytes(data[second : second + length])
            data[place : place + length], data[second : second + length] = other, one
        else:
            strange = rng.choice([other for other in others if other])
            begin = rng.randrange(len(strange))
            data[place : place + length] = strange[begin : begin + length]
    return bytes(data)


class Mutations(NamedTuple):
    worked: Counter  # by reader
    refused: Counter
    slowest: float
    most_memory: int
    failures: list[str]


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_damaged(name: str, reader: Reader, others: list[bytes], seeds: range, folder: Path, report: Path) -> None:
    """Let `reader` meet one damaged file a seed; each outcome becomes a line of `report`."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = folder / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(report, "a", encoding="utf-8") as lines:
        for seed in seeds:
            rng = random.Random(f"{name} {seed}")
            path.write_bytes(mutated(rng.choice(reader.samples), others, rng))
            lines.write(json.dumps({"seed": seed, "outcome": "did not come back"}) + "\n")
            lines.flush()
            signal.alarm(int(LONGEST) + 1)
            before, begun = peak_memory(), time.perf_counter()
            try:
                reader.read(path)
                outcome = "worked"
            except InputError as error:
                outcome = "refused" if str(folder) in str(error) else f"unclear: {error}"
            except Exception:
                outcome = traceback.format_exc()
            signal.alarm(0)
            figures = {"seconds": time.perf_counter() - begun, "memory": peak_memory() - before}
            lines.write(json.dumps({"seed": seed, "outcome": outcome} | figures) + "\n")


def mutation_campaign(mutations: int, seed: int, work: Path) -> Mutations:
    """Spread `mutations` damaged files over all readers."""
    kinds = readers(work)
    others = [sample for reader in kinds.values() for sample in reader.samples]
    worked, refused, failures, slowest, most = Counter(), Counter(), [], 0.0, 0
    for place, (name, reader) in enumerate(kinds.items()):
        share = mutations // len(kinds) + (place < mutations % len(kinds))
        for first in range(0, share, PER_PROCESS):
            seeds = range(seed * 1_000_000 + first, seed * 1_000_000 + min(share, first + PER_PROCESS))
            folder, report = work / "damaged", work / "report"
            while seeds:
                report.write_text("")
                arguments = (name, reader, others, seeds, folder, report)
                pid = start(lambda arguments=arguments: read_damaged(*arguments), work / "damaged.log")
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                outcomes = {}
                for line in report.read_text().splitlines():
                    outcome = json.loads(line)
                    outcomes[outcome["seed"]] = outcome
                for number, outcome in outcomes.items():
                    slowest = max(slowest, outcome.get("seconds", 0))
                    most = max(most, outcome.get("memory", 0))
                    bad = outcome.get("seconds", 0) > LONGEST or outcome.get("memory", 0) > MOST_MEMORY
                    if outcome["outcome"] == "worked" and not bad:
                        worked[name] += 1
                    elif outcome["outcome"] == "refused" and not bad:
                        refused[name] += 1
                    else:
                        failures.append(f"{name}, seed {number}, status {status}: {outcome}")
                        print(failures[-1], flush=True)
                if not outcomes:
                    raise RuntimeError(f"{name}: {(work / 'damaged.log').read_text()[-2000:]}")
                seeds = range(max(outcomes) + 1, seeds.stop)  # what is left after a crash
    return Mutations(worked, refused, slowest, most, failures)


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
        print(f"  {name:<20}", *(f"{cell:>8}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--checkpoint", action="store_true", help="measure instead what a save costs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the processes are forks, in which threads that ran before do not exist
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        if arguments.checkpoint:
            print(checkpoint_cost(Path(folder)))
            return 0
        begun = time.monotonic()
        if arguments.mutations:
            done = mutation_campaign(arguments.mutations, arguments.seed, Path(folder) / "files")
            rows = {name: (done.worked[name], done.refused[name]) for name in done.worked | done.refused}
            table("damaged files           worked  refused", rows)
            print(
                f"{done.worked.total() + done.refused.total() + len(done.failures)} damaged files, "
                f"{len(done.failures)} defects; slowest {done.slowest:.2f} s, "
                f"most memory {done.most_memory / (1 << 20):.0f} MiB, {time.monotonic() - begun:.0f} s in all"
            )
            failures += len(done.failures)
        begun = time.monotonic()
        if arguments.kills:
            killed = kill_campaign(arguments.kills, arguments.seed, Path(folder) / "kills")
            table("stage                    kills", {name: (count,) for name, count in killed.landed.items()})
            print(
                f"{killed.landed.total()} kills in {killed.runs} runs, "
                f"{len(killed.failures)} runs that differ or fail, {time.monotonic() - begun:.0f} s"
            )
            failures += len(killed.failures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
