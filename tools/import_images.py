"""Bring your own pictures and their labels into VOC's layout, on which everything here works.

    python -m tools.import_images photos/ labels.csv --to mydata
    python -m tools.import_images photos/ annotations/ --to mydata --val 0.2

labels.csv has one row a picture: its file name below photos/, then the classes that are in it, a column each or
separated by semicolons; a first row starting with "file" or "image" is a heading, and rows of the same picture add up.
Instead of a CSV, a folder of VOC-style XML files with the pictures' names will do. See docs/own_dataset.md.

Writes JPEGImages, Annotations, ImageSets/Segmentation (train, train_aug, val) and classes.txt below --to. Larger
pictures are shrunk to 4 megapixels. After a kill or a broken picture the same command goes on.
"""

import csv
import hashlib
import io
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from datasets.errors import InputError, program
from datasets.files import atomic_write, content_digest, read_bytes, refuse_filled, refuse_overwrite, remove_partial
from datasets.pictures import ENDINGS, read_photo
from datasets.voc import CLASSES_FILE, IGNORE, LARGEST_LIST, image_path, list_path, read_names
from engine import locks
from settings.common import MOST_PIXELS
from settings.flags import Parser

HEADINGS = ("file", "filename", "image", "name", "path")
LARGEST_NOTES = 1 << 28
SPLITS = ("train", "train_aug", "val")
UNFINISHED = ".import"  # lies in a data set while it is being made, and notes each picture and what was made of it
# Neither a list of class names nor XML can hold them.
UNFIT = re.compile(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


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


def planned(photos: Path, labels: Path) -> tuple[dict[str, str], dict[str, list[str]], int]:
    """The picture's file name by the id it gets, class names by file name, and how many pictures have none.

    Raises:
        InputError: see `import_images`.
    """
    pictures = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*") if p.suffix.lower() in ENDINGS)
    found = labels_from_xml(labels, pictures) if labels.is_dir() else labels_from_csv(labels)
    absent = sorted(found.keys() - set(pictures))
    if absent:
        raise InputError(f"{labels} names {absent[0]}, and {len(absent) - 1} more, that are no pictures below {photos}")
    ids: dict[str, str] = {}
    for name in found:
        image_id = re.sub(r"[^0-9A-Za-z_-]", "_", str(Path(name).with_suffix(""))).lstrip("-") or "_"
        if ids.setdefault(image_id, name) != name:
            raise InputError(f"{name} and {ids[image_id]} would both become {image_id}: rename one")
    names = {label: name for name, labels_of in found.items() for label in labels_of}
    unfit = next((label for label in names if UNFIT.search(label)), None)
    if unfit:
        raise InputError(f"{labels}: the class {unfit[:40]!r} of {names[unfit]} has a control character or line break")
    if "background" in names or len(names) >= IGNORE:
        raise InputError(f"{labels} names 'background' or over {IGNORE - 1} classes; background is always there")
    return ids, found, len(pictures) - len(ids)


def claim(root: Path, ids: dict[str, str]) -> dict[str, str]:
    """Begin a data set, or go on with one that a killed import left; what it noted of its pictures, by id."""
    marker = root / UNFINISHED
    locks.lock_for_writing(root, "--to")
    if marker.exists():
        remove_partial(root)
    else:
        refuse_filled(root, ("JPEGImages", "Annotations", "ImageSets", CLASSES_FILE))
        with atomic_write(marker) as temporary:
            temporary.touch()
    notes = read_bytes(marker, LARGEST_NOTES).decode("ascii", "replace")
    noted = dict(re.findall(r"^([\w-]+) ([0-9a-f]+ [0-9a-f]+)$", notes, re.M))
    others = sorted(noted.keys() - ids.keys())
    if others:
        raise InputError(
            f"{root} holds an unfinished import of other pictures (first {others[0]}): give another --to, or remove it"
        )
    return noted


def import_picture(source: Path, target: Path) -> bool:
    """Store a picture as JPEG; whether it was shrunk."""
    image = Image.fromarray(read_photo(source))
    factor = math.sqrt(MOST_PIXELS / (image.width * image.height))
    if factor < 1:
        image = image.resize([max(1, int(side * factor)) for side in image.size], Image.Resampling.BOX)
    with atomic_write(target) as temporary:
        image.save(temporary, format="JPEG", quality=95)
    return factor < 1


def dealt(ids: Iterable[str], share: float) -> tuple[list[str], list[str]]:
    """The ids to train on and those of val, a share of them that depends on their names alone.

    Raises:
        InputError: none is left to train on.
    """
    order = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).digest())
    count = round(share * len(order))
    if count == len(order):
        raise InputError(f"--val={share}: none of {count} pictures is left to train on; give a smaller share")
    return sorted(order[count:]), sorted(order[:count])


def import_images(photos: Path, labels: Path, root: Path, share: float, skip_broken: bool = False) -> None:
    """Make a data set at `root`, or go on making it; see the module's text.

    Args:
        share: of the pictures that go to val, in [0, 1). Which ones depends on their names alone.
        skip_broken: leave out pictures that cannot be read.

    Raises:
        InputError: something cannot be read or used; the lists, which are written last, are then not there.
    """
    if not photos.is_dir():
        raise InputError(f"{photos}: there is no such folder of pictures")
    if not 0 <= share < 1:
        raise InputError(f"--val={share}: must lie in [0, 1)")
    ids, found, unlabelled = planned(photos, labels)
    annotations = {image_id: root / "Annotations" / f"{image_id}.xml" for image_id in ids}
    written = [*annotations.values(), *(image_path(root, image_id) for image_id in ids), root / CLASSES_FILE]
    written += [list_path(root, split) for split in SPLITS]
    refuse_overwrite(written, [labels, *labels.rglob("*.xml"), *(photos / name for name in found)])
    dealt(ids, share)
    noted = claim(root, ids)
    broken, shrunk = [], 0
    for image_id, name in ids.items():
        try:
            source, target = photos / name, image_path(root, image_id)
            if not target.exists() or noted.get(image_id) != f"{content_digest(source)} {content_digest(target)}":
                shrunk += import_picture(source, target)
                with open(root / UNFINISHED, "a", encoding="ascii") as notes:
                    notes.write(f"{image_id} {content_digest(source)} {content_digest(target)}\n")
        except InputError as error:
            print(error, file=sys.stderr)
            broken.append(image_id)
            continue
        objects = "".join(f"<object><name>{escape(label)}</name></object>" for label in dict.fromkeys(found[name]))
        with atomic_write(annotations[image_id]) as temporary:
            temporary.write_text(f"<annotation>{objects}</annotation>\n", encoding="utf-8")
    if broken and (not skip_broken or len(broken) == len(ids)):
        way_out = "mend them or take them out, or give --skip-broken; the same command then goes on"
        raise InputError(f"{photos}: {len(broken)} of {len(ids)} pictures cannot be used, named above: {way_out}")
    kept = sorted(ids.keys() - set(broken))
    names = sorted({label for image_id in kept for label in found[ids[image_id]]})
    train, val = dealt(kept, share)
    with atomic_write(root / CLASSES_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    for split, members in zip(SPLITS, (train, train, val), strict=True):
        with atomic_write(list_path(root, split)) as temporary:
            temporary.write_text("".join(f"{image_id}\n" for image_id in members), encoding="ascii")
    (root / UNFINISHED).unlink()
    print(f"wrote {root}: {len(train)} pictures to train on, {len(val)} in val, {len(names)} classes")
    for count, what in (
        (unlabelled, "have no labels and were left out"),
        (len(broken), "cannot be used and were left out"),
        (shrunk, f"were shrunk to {MOST_PIXELS >> 20} megapixels"),
    ):
        if count:
            print(f"{count} pictures {what}")
    print(
        f"next: python -m prepare_labels.train_cls --voc-root {root} --weights imagenet.pth (see docs/own_dataset.md)"
    )


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("photos", type=Path, help="folder of pictures, with or without folders in it")
    parser.add_argument("labels", type=Path, help="CSV file, or folder of XML files")
    parser.add_argument("--to", type=Path, required=True, help="folder of the new data set")
    parser.add_argument("--val", type=float, default=0.1, help="share of pictures to look at after training (0.1)")
    parser.add_argument("--skip-broken", action="store_true", help="leave out pictures that cannot be read")
    arguments = parser.parse_args(argv)
    import_images(arguments.photos, arguments.labels, arguments.to, arguments.val, arguments.skip_broken)


if __name__ == "__main__":
    main()
