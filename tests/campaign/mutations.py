"""Damaged files of every kind for their readers: each must work or end with an InputError, in 10 s and 1 GB."""

import io
import json
import os
import random
import resource
import signal
import struct
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from datasets.errors import InputError
from tests.campaign.processes import start
from tests.campaign.readers import Reader, readers

LONGEST, MOST_MEMORY = 10.0, 1 << 30  # seconds, bytes a file
PER_PROCESS = 50  # files
PNG = b"\x89PNG\r\n\x1a\n"
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
