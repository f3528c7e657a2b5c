"""Writing files so that a reader never meets a half-written one, and reading files that strangers made."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from datasets.errors import InputError

PARTIAL = ".partial-"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success flush it to disk and rename it to `path`.

    Folders are made as needed. The temporary name ends like `path`, so that writers which look at the extension work.

    Raises:
        InputError: the disk is full or the folder cannot be written to; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half-written below `folder`, where nobody may be writing now."""
    for path in folder.rglob(f"{PARTIAL}*"):
        with suppress(OSError):
            path.unlink()


def open_regular(path: str | Path, most: int) -> BinaryIO:
    """Open a file for reading if it is one: not a pipe, on which reading would wait for ever, nor a device.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is missing, cannot be read, is no regular file, or larger.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        file.close()
        kind = f"{status.st_size} bytes, at most {most} make sense" if stat.S_ISREG(status.st_mode) else "no file"
        raise OSError(kind)
    return file


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; raises like `open_regular`."""
    with open_regular(path, most) as file:
        return file.read()
