"""Locks on the folders of stages: one run fills a folder, any number read it, never both at once.

A folder's lock lies beside it and is held until the process ends, however it ends. Of fcntl's two kinds it is the one
that belongs to the process: loader workers that outlive it keep nothing.
"""

import fcntl
import os
import platform
from pathlib import Path
from typing import TextIO

from datasets.errors import InputError

# The first byte belongs to who fills the folder, or reads it; the second to every process of the run that fills it, so
# that the run counts as alive as long as one of them is.
_OWNER, _MEMBERS = 0, 1
_held: dict[Path, tuple[TextIO, bool]] = {}  # the open file of each lock, and whether it is that of a writer


def lock_for_writing(folder: Path) -> None:
    """Keep other runs out of a folder until this process ends.

    Raises:
        InputError: another process fills or reads it, or the lock cannot be written.
    """
    path = _path(folder)
    if path in _held and _held[path][1]:
        return
    file = _held[path][0] if path in _held else _open(path)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, _OWNER)
        fcntl.lockf(file, fcntl.LOCK_SH, 1, _MEMBERS)
    except OSError as error:
        _refuse(file, path, error, f"{folder} is in use by another run")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    _held[path] = file, True


def join(folder: Path) -> None:
    """What the other processes of the run that fills a folder hold."""
    path = _path(folder)
    if path not in _held:
        file = _open(path)
        fcntl.lockf(file, fcntl.LOCK_SH, 1, _MEMBERS)
        _held[path] = file, True


def lock_for_reading(folder: Path) -> None:
    """Keep a folder as it is while this process reads it; where nothing can be written, nobody else can either.

    Raises:
        InputError: another process is filling it.
    """
    path = _path(folder)
    if path in _held or not os.access(path.parent, os.W_OK):
        return
    file = _open(path)
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _OWNER)
    except OSError as error:
        _refuse(file, path, error, f"{folder} is being filled by another run")
    _held[path] = file, False


def _path(folder: Path) -> Path:
    return folder.absolute().with_name(f".{folder.name}.lock")


def _open(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _refuse(file: TextIO, path: Path, error: OSError, what: str) -> None:
    if not isinstance(error, BlockingIOError | PermissionError):
        raise InputError(f"{path} cannot be locked ({error.strerror}): give an --out that can be") from None
    file.seek(0)
    owner = file.read(100).strip() or "unknown"
    if path not in _held:
        file.close()
    raise InputError(f"{what} ({owner}): wait for it, or give another --out or --modelid") from None
