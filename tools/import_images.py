"""Bring your own pictures and their labels into VOC's layout, on which everything here works.

    python -m tools.import_images photos/ labels.csv --to mydata
    python -m tools.import_images photos/ annotations/ --to mydata --val 0.2

labels.csv has one row a picture: its file name below photos/, then the classes that are in it, a column each or
separated by semicolons; a first row starting with "file" or "image" is a heading, and rows of the same picture add up.
Instead of a CSV, a folder of VOC-style XML files with the pictures' names will do. See docs/own_dataset.md.

Writes JPEGImages, Annotations, ImageSets/Segmentation (train, train_aug, val) and classes.txt below --to.
"""

import argparse
import csv
import hashlib
import io
import re
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from datasets.errors import InputError, program
from datasets.files import atomic_write, read_bytes
from datasets.voc import CLASSES_FILE, IGNORE, LARGEST_LIST, image_path, list_path, read_names
from tools.predict import ENDINGS, read

HEADINGS = ("file", "filename", "image", "name", "path")


def labels_from_csv(path: Path) -> dict[str, list[str]]:
    """Class names by the picture's file name.

    Raises:
        InputError: the file cannot be read, or a row has no class.
    """
    found: dict[str, list[str]] = {}
    try:
        text = read_bytes(path, LARGEST_LIST).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV of labels ({error})") from None
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[0].lower() in HEADINGS):
            continue
        names = [name.strip() for cell in cells[1:] for name in cell.split(";") if name.strip()]
        if not cells[0] or not names:
            raise InputError(f"{path}, line {number}: needs a file name and at least one class")
        found.setdefault(cells[0], []).extend(names)
    if not found:
        raise InputError(f"{path} names no picture")
    return found


def labels_from_xml(folder: Path, pictures: list[str]) -> dict[str, list[str]]:
    """Class names by the picture's file name, for pictures that have <name>.xml in `folder`."""
    paths = {name: folder / Path(name).with_suffix(".xml") for name in pictures}
    found = {name: read_names(path) for name, path in paths.items() if path.exists()}
    if not found:
        raise InputError(f"{folder} has no XML file with the name of a picture")
    return found


def import_images(photos: Path, labels: Path, root: Path, share: float) -> None:
    """Make a data set at `root`; see the module's text.

    Args:
        share: of the pictures that go to val, in [0, 1). Which ones depends on their names alone.

    Raises:
        InputError: something cannot be read or used; the lists, which are written last, are then not there.
    """
    if not photos.is_dir():
        raise InputError(f"{photos}: there is no such folder of pictures")
    if (root / "JPEGImages").exists():
        raise InputError(f"{root} is a data set already: give another --to, or remove it")
    if not 0 <= share < 1:
        raise InputError(f"--val={share}: must lie in [0, 1)")
    pictures = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*") if p.suffix.lower() in ENDINGS)
    found = labels_from_xml(labels, pictures) if labels.is_dir() else labels_from_csv(labels)
    absent = [name for name in found if name not in set(pictures)]
    if absent:
        raise InputError(f"{labels} names {absent[0]}, and {len(absent) - 1} more, that are no pictures below {photos}")
    ids: dict[str, str] = {}
    for name in found:
        image_id = re.sub(r"[^0-9A-Za-z_-]", "_", str(Path(name).with_suffix(""))).lstrip("-") or "_"
        if ids.setdefault(image_id, name) != name:
            raise InputError(f"{name} and {ids[image_id]} would both become {image_id}: rename one")
    names = sorted({label for labels_of in found.values() for label in labels_of})
    if "background" in names or len(names) >= IGNORE:
        raise InputError(f"{labels} names 'background' or over {IGNORE - 1} classes; background is always there")
    with atomic_write(root / CLASSES_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for image_id, name in ids.items():
        image = Image.fromarray(read(photos / name))
        with atomic_write(image_path(root, image_id)) as temporary:
            image.save(temporary, format="JPEG", quality=95)
        objects = "".join(f"<object><name>{escape(label)}</name></object>" for label in dict.fromkeys(found[name]))
        with atomic_write(root / "Annotations" / f"{image_id}.xml") as temporary:
            temporary.write_text(f"<annotation>{objects}</annotation>\n", encoding="utf-8")
    order = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())
    val = sorted(order[: round(share * len(order))])
    train = sorted(set(ids) - set(val))
    for split, members in (("train", train), ("train_aug", train), ("val", val)):
        with atomic_write(list_path(root, split)) as temporary:
            temporary.write_text("".join(f"{image_id}\n" for image_id in members), encoding="ascii")
    left = len(pictures) - len(ids)
    print(f"wrote {root}: {len(train)} pictures to train on, {len(val)} in val, {len(names)} classes")
    if left:
        print(f"{left} pictures have no labels and were left out")
    print(
        f"next: python -m prepare_labels.train_cls --voc-root {root} --weights imagenet.pth (see docs/own_dataset.md)"
    )


@program
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of pictures, with or without folders in it")
    parser.add_argument("labels", type=Path, help="CSV file, or folder of XML files")
    parser.add_argument("--to", type=Path, required=True, help="folder of the new data set")
    parser.add_argument("--val", type=float, default=0.1, help="share of pictures to look at after training (0.1)")
    arguments = parser.parse_args(argv)
    import_images(arguments.photos, arguments.labels, arguments.to, arguments.val)


if __name__ == "__main__":
    main()
