"""What folders say of how they were made, and by what their inputs are known again: by content."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from datasets.errors import InputError
from datasets.files import content_digest, is_config, read_bytes
from datasets.voc import annotation_path, image_path, list_path, read_ids
from settings.config import Config

_LARGEST_CONFIG = 1 << 20
# In a stage's first folder, a line an image: its id, and what its photograph and annotation held when its files were
# made.
MADE_FROM = "made_from.txt"
WITHDRAWN = "0" * 16  # in place of what an image's files were made from, while they are made again


def add_notes(notes: Path, made: dict[str, str]) -> None:
    try:
        with open(notes, "a", encoding="utf-8") as file:
            file.write("".join(f"{image_id} {what}\n" for image_id, what in made.items()))
    except OSError as error:  # which names no file where the disk is full
        raise InputError(f"cannot write {notes}: {error.strerror}; what is done is kept") from None


def notes_of(path: Path) -> dict[str, str]:
    """What each image was made from, the last word on it; empty if there are no notes.

    Raises:
        InputError: they cannot be read.
    """
    try:
        text = read_bytes(path, 1 << 28).decode("utf-8", "replace") if path.exists() else ""
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); move {path.parent} aside") from None
    return dict(re.findall(r"^(\S+) ([0-9a-f]{16})$", text, re.M))


def read_config(path: Path) -> dict:
    """The Config that a stage left.

    Raises:
        InputError: it is damaged.
    """
    try:
        stored = json.loads(read_bytes(path, _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a Config ({error}); move {path.parent} aside") from None
    if not isinstance(stored, dict):
        raise InputError(f"{path} is no Config; move {path.parent} aside")
    return stored


def digest(path: Path, by_content: bool = False) -> str:
    """What a file holds, what a stage's folder was made from, or what masks lie in a folder that others filled.

    Args:
        by_content: of a stage's folder too, what lies in it.
    """
    if not by_content and is_config(path / "config.json"):
        return str(read_config(path / "config.json")["identity"])
    if path.is_dir():
        # Masks, or regions, which have a file or a folder an image; a folder may be a link, which rglob does not enter.
        below = (*path.glob("*"), *path.glob("*/*"))
        found = sorted(file for file in below if file.suffix in (".png", ".npz", ".json"))
        names = "".join(f"{file.relative_to(path)} {content_digest(file)}\n" for file in found)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]
    return content_digest(path)


def digest_of(paths: Iterable[Path]) -> str:
    """What some files hold, with their names; a missing one counts as missing."""
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name} {content_digest(path) if path.exists() else 'missing'}\n".encode())
    return total.hexdigest()[:16]


def picture_digest(root: str, image_id: str) -> str:
    """What a photograph and its annotation hold."""
    return digest_of([image_path(root, image_id), annotation_path(root, image_id)])


def pictures_digest(config: Config, split: str) -> str:
    """The same of all images of a list."""
    if not list_path(config.voc_root, split).exists():
        return ""
    total = "".join(picture_digest(config.voc_root, image_id) for image_id in read_ids(config.voc_root, split))
    return hashlib.sha256(total.encode()).hexdigest()[:16]
