"""Locks on the folders of stages: one run fills a folder, any number read it, never both at once.

A folder's lock lies beside it and is held until the process ends, however it ends. Of fcntl's two kinds it is the one
that belongs to the process: loader workers that outlive it keep nothing. Who fills a folder holds a byte of the lock,
each process of a run its own, so that the run counts as alive as long as one of them is; who reads it shares all bytes.
"""

import fcntl
import os
import platform
from pathlib import Path
from typing import NoReturn

from datasets.errors import InputError

# The descriptor of each lock, and whether it is that of a writer. Python's own files would be closed, and the locks
# lost, some time before the process ends.
_held: dict[Path, tuple[int, bool]] = {}


def lock_for_writing(folder: Path, flags: str = "--out or --modelid") -> None:
    """Keep other runs out of a folder until this process, the first of its run, ends; flags: what names another.

    Raises:
        InputError: another process fills or reads it, or the lock cannot be written.
    """
    path = _path(folder)
    if path in _held and _held[path][1]:
        return
    file = _held[path][0] if path in _held else _open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        _refuse(file, path, error, folder, flags)
    fcntl.lockf(file, fcntl.LOCK_UN, 0, 1)
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    _held[path] = file, True


def join(folder: Path, number: int) -> None:
    """What the other processes of the run that fills a folder hold; number: of the process, from 1."""
    path = _path(folder)
    if path not in _held:
        file = _open(path, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(file, fcntl.LOCK_EX, 1, number)
        _held[path] = file, True


def lock_for_reading(folder: Path) -> None:
    """Keep a folder as it is while this process reads it; where nothing can be written, nobody else can either.

    Raises:
        InputError: another process is filling it.
    """
    path = _path(folder)
    writable = os.access(path if path.exists() else path.parent, os.W_OK)
    if path in _held or not (writable or path.exists()):
        return
    file = _open(path, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY)
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        _refuse(file, path, error, folder)
    _held[path] = file, False


def _path(folder: Path) -> Path:
    """Beside the folder itself, under whatever link or name it is known."""
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.lock")


def _open(path: Path, flags: int) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise InputError(f"the lock {path} cannot be opened: {error.strerror}") from None


def _refuse(file: int, path: Path, error: OSError, folder: Path, flags: str = "--out or --modelid") -> NoReturn:
    if not isinstance(error, BlockingIOError | PermissionError):
        raise InputError(f"{path} cannot be locked ({error.strerror}): give a place that can be") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        what = "being read by another run"
    except OSError:
        what = f"in use by another run ({os.pread(file, 100, 0).decode(errors='replace').strip() or 'unknown'})"
    if path not in _held:
        os.close(file)
    raise InputError(f"{folder} is {what}: wait for it, or give another {flags}") from None
