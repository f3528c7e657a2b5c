"""One process or several (torchrun): devices, shards, and the precision that a device computes in."""

import hashlib
import json
import os
import platform
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets.errors import InputError

_LAST_PORT = 65535
LONGEST_TMPDIR = 70  # characters; the name of a socket below it may have 108 in all
JOINING_SECONDS = 60
LONGEST_WAIT = timedelta(days=1)  # for one that has more CRFs to do; torchrun tells of one that is lost
ROOMS = ("settings", "datasets", "models", "evaluation", "engine", "script", "modes", "prepare_labels")
LOST = "another process of this run was lost; what is done is kept: give the same command again"
# For a few numbers between CPUs, which must not wait for the GPUs.
_talk: dist.ProcessGroup | None = None
# What each torchrun of this run is called, of one process for the time being.
_starters: list[str] | None = None


def start(device: str, batch: tuple[str, int] | None = None, precision: str = "auto") -> torch.device:
    """Join the other processes if torchrun started several, and return this process's device.

    Args:
        device: auto, cpu, cuda or cuda:N; with several processes each takes the GPU of its local rank.
        batch: of a program that trains, the flag for the images a step and their number, which all processes share.
        precision: auto, float32 or bfloat16, asked for here so that a stage's folder never keeps one that cannot be.

    Raises:
        InputError: the device cannot be used here, or not in this precision, or the batch cannot be dealt out evenly.
    """
    several = _started_several()
    together = int(os.environ["WORLD_SIZE"]) if several else 1
    if batch and batch[1] % together:
        flag, images = batch
        raise InputError(f"{flag}={images}: {together} processes share these images; give a multiple of {together}")
    if len(tempfile.gettempdir()) > LONGEST_TMPDIR:
        raise InputError(f"TMPDIR={tempfile.gettempdir()}: at most {LONGEST_TMPDIR} characters, as sockets go there")
    chosen = _usable(device, several)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        if precision == "bfloat16":
            computes_in_bfloat16(chosen, precision)
        # torch's default computes float32 convolutions in TensorFloat-32, which keeps 10 bits of the mantissa.
        torch.backends.cudnn.allow_tf32 = False
        # In training all inputs are of one size, for which it pays to try every kernel once. Passes over the images do
        # not, as two runs may choose other kernels, and an image's last digits would tell where a pass was cut.
        torch.backends.cudnn.benchmark = batch is not None
        torch.cuda.reset_peak_memory_stats(chosen)
    if several and not dist.is_initialized():
        _join(chosen)
    return chosen


def _started_several() -> bool:
    """Whether torchrun started this process as one of several.

    Raises:
        InputError: what it should have said is missing.
    """
    words = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    if words["WORLD_SIZE"] in (None, "1"):
        return False
    if not words["WORLD_SIZE"].isdecimal() or int(words["WORLD_SIZE"]) < 1:
        raise InputError(f"WORLD_SIZE={words['WORLD_SIZE'][:40]!a}: start with torchrun, or unset it")
    missing = [name for name, word in words.items() if not word or (name != "MASTER_ADDR" and not word.isdecimal())]
    if not missing and int(words["MASTER_PORT"]) > _LAST_PORT:
        missing = ["a MASTER_PORT that can be"]
    if missing:
        raise InputError(f"WORLD_SIZE={words['WORLD_SIZE']} without {missing[0]}: start with torchrun, or unset it")
    return True


def processes_here() -> int:
    """The processes of this run on this machine, as torchrun has said.

    Raises:
        InputError: LOCAL_WORLD_SIZE is no number of processes.
    """
    word = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not word.isdecimal() or int(word) < 1:
        raise InputError(f"LOCAL_WORLD_SIZE={word[:40]!a}: start with torchrun, or unset it")
    return int(word)


def _usable(device: str, several: bool) -> torch.device:
    """The device that --device names, for this process.

    Raises:
        InputError: it is not there, torch cannot use it, or the machine has fewer GPUs than processes.
    """
    if device == "auto":
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            device = "cuda" if torch.cuda.is_available() else "cpu"
        trouble = next((str(w.message).splitlines()[0] for w in said if "CUDA initialization" in str(w.message)), None)
        if trouble:  # silently on a CPU a run would take weeks
            raise InputError(f"there is a GPU that torch cannot use ({trouble}): mend that, or give --device=cpu")
    if device == "cuda" or (several and device.startswith("cuda")):
        needed, there = processes_here(), torch.cuda.device_count()
        if 0 < there < needed:
            raise InputError(f"{needed} processes on this machine, which has {there} GPUs: --nproc_per_node={there}")
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if not re.fullmatch(r"cpu|cuda:\d+", device):
        raise InputError(f"--device={device}: it must be auto, cpu, cuda or cuda:N")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
        return chosen
    # RuntimeError: no such device, or a driver that torch cannot use. AssertionError: torch was built without CUDA.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f"--device={device} cannot be used here: {reason}")


def _join(device: torch.device) -> None:
    """Meet the other processes, all of which must run the same code on the same kind of device.

    Raises:
        InputError: they cannot be met, or differ.
    """
    if device.type == "cuda" and not dist.is_nccl_available():
        raise InputError("this torch has no NCCL, which joins GPUs: install one that has it, or give --device=cpu")
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    late = threading.Timer(JOINING_SECONDS, _leave_when_late)
    late.daemon = True
    late.start()
    try:
        place, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = _store(place, count)
        global _talk, _starters
        _starters = _check_others(store, place, count, device)
        dist.init_process_group(backend, store=store, rank=place, world_size=count, device_id=own)
        _talk = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes cannot be joined ({reason}); start them with torchrun") from None
    finally:
        late.cancel()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # else the parent may be a shell, which may leave
        threading.Thread(target=_leave_when_alone, args=(os.getppid(),), daemon=True).start()


def _store(place: int, count: int) -> dist.Store:
    """A store that only the processes of this attempt use.

    Those that torchrun starts again find what the lost ones left in the store that it keeps, and would wait for these
    or call them. torchrun's count of restarts does not tell, as each machine has its own. So each process leaves a
    word that nobody can know, and goes on when all have seen the same words.
    """
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    own = not kept_by_torchrun and place == 0
    _reach(address, port, own)
    store = dist.TCPStore(address, port, is_master=own, wait_for_workers=False, multi_tenant=True)
    store.set(f"word {place}", uuid.uuid4().hex)
    while True:
        seen = b" ".join(store.multi_get([f"word {n}" for n in range(count)]))
        store.set(f"seen {place}", seen)
        if all(other == seen for other in store.multi_get([f"seen {n}" for n in range(count)])):
            return dist.PrefixStore(hashlib.sha256(seen).hexdigest(), store)
        time.sleep(0.1)


def _reach(address: str, port: int, own: bool) -> None:
    """Wait for the store's machine, quietly: torch itself prints a page at each attempt.

    Args:
        own: the store will be this process's, so that there is a name to look up and nobody to call.
    """
    while True:
        try:
            if own:
                socket.getaddrinfo(address, port)
            else:
                socket.create_connection((address, port), timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)


def _leave_when_late() -> None:
    """End this process, which waits within torch for others that do not come."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    others = f"the other processes did not come within {JOINING_SECONDS} s"
    print(f"error: {others}: {where} must be open to all machines; give the same command again", file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)


def _check_others(store: dist.Store, place: int, count: int, device: torch.device) -> list[str]:
    """Refuse processes of different code or devices, which would wait for each other in different places; the name of
    each process's torchrun.

    They are told apart before they are joined: NCCL waits for ever for a process that has no GPU.

    Raises:
        InputError: names two machines.
    """
    code = {"torch": str(torch.__version__), "the program's source": _source()}
    store.set(f"about {place}", json.dumps([platform.node(), device.type, code, _starter()]))
    everyone = [json.loads(store.get(f"about {n}")) for n in range(count)]
    store.set(f"knows {place}", "")
    if place == 0:  # with it the store may end
        store.wait([f"knows {n}" for n in range(count)])
    (first, kind, expected, _), *others = everyone
    for node, its_kind, found, _ in others:
        differs = [name for name in expected if found[name] != expected[name]]
        if differs:
            raise InputError(f"{first} and {node} run different code ({', '.join(differs)}): bring them to one version")
        if its_kind != kind:
            raise InputError(f"{first} computes on {kind} and {node} on {its_kind}: give all of them the same --device")
    return [starter for *_, starter in everyone]


def starters() -> list[str]:
    """A name of each torchrun that started a process of this run: another one at each start, the same when it starts
    the processes again because one was lost."""
    return [name for name in _starters or [_starter()] if name]


def _starter() -> str:
    # Only the folder of its logs tells two starts with one --rdzv-id apart: FOLDER/attempt_0/0/error.json.
    parts = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parts
    return parts[-4] if len(parts) > 3 else ""


def _source() -> str:
    """What the files of this program hold."""
    root, total = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted([*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).rglob("*.py"))]):
        total.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _leave_when_alone(parent: int) -> None:
    """End this process when torchrun's is gone, which would have told it that another one was lost."""
    while os.getppid() == parent:
        time.sleep(1)
    print("error: torchrun is gone; what is done is kept: give the same command again", file=sys.stderr, flush=True)
    os._exit(2)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for the other processes, however long their CRFs take."""
    highest([0])


def highest(numbers: list[int]) -> list[int]:
    """The highest of each number among all processes, which must all ask.

    Raises:
        InputError: another process was lost.
    """
    if processes() == 1:
        return numbers
    shared = torch.tensor(numbers)
    try:
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=_talk)
    except RuntimeError:
        raise InputError(LOST) from None
    return shared.tolist()


@contextmanager
def faults(batch_flag: str, batch: int) -> Iterator[None]:
    """Turns a lack of memory and the loss of another process or of a loader's into an InputError.

    Args:
        batch_flag, batch: the flag that takes less memory when smaller, and its value.
    """
    try:
        with lost_process():
            yield
    except RuntimeError as error:
        reason = str(error)
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in reason:
            own = "with --fresh, which starts over: by this stage's own command, not by --mode=all"
            less = f"{batch_flag}={batch // 2} {own}" if batch > 1 else "smaller sizes or --device=cpu"
            raise InputError(f"out of memory with {batch_flag}={batch}: try {less}") from None
        if "DataLoader worker" in reason or "Too many open files" in reason:
            said = reason.splitlines()[0]
            raise InputError(f"{said}; what is done is kept. If memory ran out, give a smaller --workers") from None
        raise


@contextmanager
def lost_process() -> Iterator[None]:
    """Turns the loss of another process, with which the body exchanges tensors, into an InputError."""
    try:
        yield
    except RuntimeError as error:
        met = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Connection"))
        if processes() > 1 and met:
            raise InputError(LOST) from None
        raise


def share(batch: int) -> int:
    """This process's part of a batch of all processes together."""
    return batch // processes()


def shard(items: Sequence) -> Sequence:
    """This process's part of a list; the parts of all processes are disjoint and complete."""
    return items[rank() :: processes()]


def data_parallel(step: nn.Module, device: torch.device) -> nn.Module:
    """The step, with gradients averaged over processes where there are several."""
    if processes() == 1:
        return step
    # A 1×1 convolution's gradient has ambiguous strides; copying it costs nothing that one would notice.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor is too new for most
    # No buffer that matters differs: BatchNorm is frozen or learns each process's own, and the first one's are saved.
    with lost_process():
        return DistributedDataParallel(
            step,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def compute_deterministically() -> None:
    """Take kernels that repeat themselves to the bit; torch names what has none, say reflection padding."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks run: bfloat16 or float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device, precision))


def computes_in_bfloat16(device: torch.device, precision: str) -> bool:
    """Whether networks run in bfloat16.

    Raises:
        InputError: they should, on a GPU that cannot.
    """
    if device.type == "cuda" and precision != "float32":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bfloat16" and not able:
            name = torch.cuda.get_device_name(device)
            raise InputError(f"--precision=bfloat16: {name} does not compute in it; give --precision=auto")
        return able
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cpu":
        # Without these units bfloat16 is emulated and slower than float32; older torch cannot tell.
        units = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(units.get("amx_bf16") or units.get("avx512_bf16"))
    return False


def memory_format(device: torch.device, width: float, precision: str) -> torch.memory_format:
    """Layout of images and weights: channels last, which convolutions are fastest in, but not in float32 on a CPU."""
    # There training steps of the published networks took 1.25 times as long (docs/benchmarks), and passes as long. And
    # with fewer than 16 channels the backward pass writes out of bounds, in bfloat16 too (seen with torch 2.15: "double
    # free or corruption" at width 0.125).
    if device.type == "cpu" and (64 * width < 16 or not computes_in_bfloat16(device, precision)):
        return torch.contiguous_format
    return torch.channels_last
