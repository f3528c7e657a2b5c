"""Writing files so that a reader never meets a half-written one, and reading files that strangers made."""

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from datasets.errors import MACHINE_FAULTS, InputError

PARTIAL = ".partial-"
_LARGEST_FILE = 1 << 36
_LARGEST_DIRECTORY = 1 << 20  # bytes, of a zip archive; about 10,000 parts


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


@contextmanager
def open_regular(path: str | Path, most: int) -> Iterator[BinaryIO]:
    """Open a file for reading if it is one: not a pipe, on which reading would wait for ever, nor a device.

    What its reader, the body, takes for damage must not be a fault of the machine: that becomes an InputError here.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is missing, no regular file, or larger.
        InputError: it may be whole, but this machine cannot read it now.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("no file")
            if status.st_size > most:
                raise OSError(f"{status.st_size} bytes, at most {most} make sense")
            yield file
    except (OSError, MemoryError, RuntimeError) as error:
        # torch has no error of its own for memory of the CPU.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise InputError(f"{path} cannot be read: memory ran out") from None
        if isinstance(error, OSError) and error.errno in MACHINE_FAULTS:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        raise


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; raises like `open_regular`."""
    with open_regular(path, most) as file:
        return file.read()


def content_digest(path: Path) -> str:
    """16 hexadecimal digits that say what a file holds.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open_regular(path, _LARGEST_FILE) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from None


def refuse_overwrite(written: Iterable[str | Path], read: Iterable[str | Path]) -> None:
    """Refuse, before a program begins, that it writes over what it reads, under whatever name or link.

    Args:
        written, read: files, or folders that are filled and read.

    Raises:
        InputError: one of those to be written is one of those that are read.
    """
    # That a link goes elsewhere does not help: the link itself would be replaced.
    originals = {identity for path in read for identity in _identities(path)}
    for path in written:
        if originals & _identities(path):
            raise InputError(f"{path} is read here and would be written over: name another place for the result")


def refuse_filled(root: Path, parts: Iterable[str]) -> None:
    """Refuse to begin a data set where files of a user would be taken for it, or written over.

    Args:
        parts: files and folders that it will have.

    Raises:
        InputError: one of them is there.
    """
    there = next((root / part for part in parts if os.path.lexists(root / part)), None)
    if there:
        raise InputError(f"{there} is there already, of another data set or of yours: give another --to, or remove it")


def refuse_links(folder: Path) -> None:
    """Refuse links in a folder that is to be filled: what is written there could come to lie over true masks.

    Raises:
        InputError: there is one; a folder that is a link itself is none.
    """
    link = next((path for path in folder.rglob("*") if path.is_symlink()), None)
    if link:
        raise InputError(
            f"{link} is a link, through which results could be written over other files: put what it leads to in its "
            f"place, or give --fresh, which moves {folder} aside; that folder itself may be a link"
        )


def refuse_among_others(written: str | Path) -> None:
    """Refuse a result that would lie among the files of a stage or of a data set, one of which it might replace.

    Args:
        written: the file that a user names for a result, or the folder for several.

    Raises:
        InputError: it would.
    """
    path = Path(os.path.realpath(written))
    for folder in (path, *path.parents[:3]):
        if (folder / "ImageSets").is_dir() or is_config(folder / "config.json"):
            raise InputError(f"{written}: {folder} holds a data set or what a stage of a run made: name another place")


def is_config(path: Path) -> bool:
    """Whether a config.json is of this program, which writes an identity into each."""
    try:
        with open_regular(path, 1 << 20) as file:
            return b'"identity"' in file.read()
    except OSError:
        return False


def _identities(path: str | Path) -> set[tuple[int, int]]:
    folder, name = os.path.split(path)
    found = set()
    # Folders that are still to be made are no hindrance: new/../a is a.
    for real in (os.path.realpath(path), os.path.join(os.path.realpath(folder), name)):
        with suppress(OSError):
            status = os.lstat(real)
            found.add((status.st_dev, status.st_ino))
    return found


class Metered:
    """A file of which `left` more bytes can be read, however many its content claims."""

    def __init__(self, file: BinaryIO, left: int):
        self.file, self.left = file, left
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        return self._counted(self.file.read(self.left + 1 if count < 0 else min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._counted(self.file.readline(self.left + 1))

    def _counted(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError("more bytes than make sense")
        return data


@contextmanager
def open_zip(file: BinaryIO, most: int, directory: int = _LARGEST_DIRECTORY) -> Iterator[zipfile.ZipFile]:
    """A zip archive of whose parts at most `most` bytes can be read, packed or unpacked.

    Args:
        directory: bytes that the list of its parts may take.

    Raises:
        ValueError: its directory is too long, its parts claim more, or are packed in an unusual way.
        zipfile.BadZipFile: it is damaged.
    """
    metered = Metered(file, directory)
    with zipfile.ZipFile(metered) as archive:
        parts = archive.infolist()
        # Python's readers of the other ways unpack without a bound, whatever a part claims.
        if any(part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for part in parts):
            raise ValueError("its parts are packed in an unusual way")
        claimed = sum(part.file_size for part in parts)
        if claimed > most:
            raise ValueError(f"its parts claim {claimed} bytes, at most {most} make sense")
        metered.left = most
        yield archive
