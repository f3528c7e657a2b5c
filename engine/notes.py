"""What the files of each image were made from: notes in the folder of a stage that goes over the images."""

import re
from pathlib import Path

from datasets.files import read_bytes

# In a stage's first folder, a line an image: its id, and what its photograph and annotation held when its files were
# made.
MADE_FROM = "made_from.txt"
WITHDRAWN = "0" * 16  # in place of what an image's files were made from, while they are made again


def add_notes(notes: Path, made: dict[str, str]) -> None:
    with open(notes, "a", encoding="utf-8") as file:
        file.write("".join(f"{image_id} {what}\n" for image_id, what in made.items()))


def notes_of(path: Path) -> dict[str, str]:
    """What each image was made from, the last word on it; empty if there are no notes."""
    text = read_bytes(path, 1 << 28).decode("utf-8", "replace") if path.exists() else ""
    return dict(re.findall(r"^(\S+) ([0-9a-f]{16})$", text, re.M))
