"""Writing files so that a reader never meets a half-written one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
