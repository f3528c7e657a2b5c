"""COCO 2014 as a data set in VOC's layout, on which everything here works.

    python -m tools.coco prepare COCO --to coco_root
    python -m tools.coco check --root coco_root

COCO is the folder that holds train2014, val2014 and annotations/instances_{train,val}2014.json. A folder of the
RecurSeed authors' archives will do too: {train,val}/{image,mask,xml}, whose masks are taken as they are.

`prepare` links the photographs and writes Annotations, SegmentationClass, classes.txt, masks.json, which records how
the masks were made, and the lists train and val (all images), train_annotated and val_annotated (those with a
class), and train_aug, the same as train_annotated, which training reads. Interrupted, it goes on where it was.
`check` ends with status 0 if nothing is missing, 1 otherwise.
"""

import hashlib
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from datasets.coco import (
    CLASSES,
    CROWDS,
    OVERLAPS,
    Instances,
    Picture,
    paint,
    picture_classes,
    read_boxed_names,
    read_instances,
)
from datasets.errors import InputError, program
from datasets.files import atomic_write, read_bytes, refuse_filled, refuse_overwrite, remove_partial
from datasets.voc import (
    CLASSES_FILE,
    class_names,
    decode,
    image_path,
    list_path,
    mask_path,
    read_ids,
    write_mask,
)
from engine import locks
from engine.progress import progress
from settings.flags import Parser

SPLITS = ("val", "train")  # the smaller first: what is wrong shows sooner
RECORD = "masks.json"
# All images, and those with an annotation, of the published 2014 edition.
PUBLISHED = {"train": 82_783, "val": 40_504, "train_annotated": 82_081, "val_annotated": 40_137}
# The names that a split's folder has in the authors' archives or after unpacking them.
ARCHIVES = {"train": ("train", "train2014"), "val": ("val", "validation", "val2014")}
ID = re.compile(r"\w[\w-]*", re.ASCII)


class Item(NamedTuple):
    image_id: str
    photograph: Path
    names: list[str]  # of its classes
    mask: Path | None  # one that is there already
    picture: Picture | None  # from which to paint one


class Source(NamedTuple):
    """One split of whatever layout was found."""

    classes: tuple[str, ...]
    items: list[Item]
    instances: Instances | None


def prepare(folder: Path, root: Path, overlap: str, crowd: str) -> None:
    """Make a data set at `root`; see the module's text.

    Raises:
        InputError: something cannot be read or used, or `root` was prepared in another way; then the lists, which are
            written last, are not there.
    """
    archive = not (folder / "annotations").is_dir()
    places = {split: (_archive_of if archive else _instances_of)(folder, split) for split in SPLITS}
    read = [path / part for place in places.values() for path in place for part in (".", "mask", "xml")]
    refuse_overwrite(
        (root / name for name in ("JPEGImages", "SegmentationClass", "Annotations")), [folder / "annotations", *read]
    )
    _claim(root, _archive_record(folder) if archive else _painting_record(places, overlap, crowd))
    lists: dict[str, list[str]] = {}
    for split in SPLITS:
        source = _read_archive(places[split]) if archive else _read_instances(places[split])
        _check_items(places[split], source.items, root, lists)
        names = "".join(f"{name}\n" for name in source.classes[1:])
        if lists and read_bytes(root / CLASSES_FILE, 1 << 20).decode("utf-8") != names:
            raise InputError(f"{places[split][0]} has other categories than {places['val'][0]}")
        with atomic_write(root / CLASSES_FILE) as temporary:
            temporary.write_text(names, encoding="utf-8")
        with progress(f"COCO {split}", len(source.items)) as bar:
            for item in source.items:
                _write_item(root, item, source.instances, overlap, crowd)
                bar.update()
        lists[split] = [item.image_id for item in source.items]
        lists[f"{split}_annotated"] = [item.image_id for item in source.items if item.names]
    lists["train_aug"] = lists["train_annotated"]
    for name, ids in lists.items():
        with atomic_write(list_path(root, name)) as temporary:
            temporary.write_text("".join(f"{image_id}\n" for image_id in ids), encoding="ascii")
    print(f"wrote {root}: " + ", ".join(f"{name} {len(ids)}" for name, ids in lists.items()))


def _instances_of(folder: Path, split: str) -> tuple[Path, Path]:
    """The instances file of a split, of whatever year there is, and its folder of photographs."""
    found = sorted((folder / "annotations").glob(f"instances_{split}*.json"))
    if len(found) != 1:
        raise InputError(f"{folder / 'annotations'} has {len(found)} files instances_{split}*.json, needed: one")
    name = found[0].stem.removeprefix("instances_")
    photographs = next((p for p in (folder / name, folder / "images" / name) if p.is_dir()), None)
    if photographs is None:
        raise InputError(f"{folder / name} is missing: the photographs of {found[0].name} must lie there")
    return found[0], photographs


def _archive_of(folder: Path, split: str) -> tuple[Path, Path]:
    """The folder of a split that has image, mask and xml, and its folder of photographs."""
    for name in ARCHIVES[split]:
        if all((folder / name / part).is_dir() for part in ("image", "mask", "xml")):
            return folder / name, folder / name / "image"
    raise InputError(
        f"{folder} is no COCO: needed annotations, train2014 and val2014, or the folders image, mask and xml below "
        f"each of train and val ({split} has none)"
    )


def _archive_record(folder: Path) -> dict:
    return {"masks": "taken from an archive, which does not say how they were made", "archive": str(folder.resolve())}


def _painting_record(places: dict[str, tuple[Path, Path]], overlap: str, crowd: str) -> dict:
    digests = {path.name: hashlib.sha256(read_bytes(path, 1 << 31)).hexdigest() for path, _ in places.values()}
    return {
        "masks": "painted from the instances files by tools.coco",
        "overlap": f"{overlap} on top",
        "crowd": crowd,
        "classes": "1… in the order of the category ids, 0 background, 255 ignore",
        "pycocotools": version("pycocotools"),
        "sha256": digests,
    }


def _claim(root: Path, record: dict) -> None:
    """Write the record first, so that masks of two kinds never come to lie together."""
    path = root / RECORD
    locks.lock_for_writing(root, "--to")
    if path.exists():
        remove_partial(root)
        if read_record(root) != record:
            raise InputError(f"{path} says that the masks at {root} were made otherwise: give another --to")
    else:
        refuse_filled(root, ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets", CLASSES_FILE))
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(root: Path) -> dict:
    """How the masks of a prepared data set were made."""
    try:
        return dict(json.loads(read_bytes(root / RECORD, 1 << 20)))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{root / RECORD} cannot be read ({error}): run `python -m tools.coco prepare`") from None


def _read_instances(place: tuple[Path, Path]) -> Source:
    instances = read_instances(place[0])
    items = [
        Item(picture.image_id, place[1] / picture.file_name, picture_classes(instances, picture), None, picture)
        for picture in instances.pictures
    ]
    return Source(instances.classes, items, instances)


def _read_archive(place: tuple[Path, Path]) -> Source:
    folder, photographs = place
    items = []
    for path in sorted(photographs.glob("*.jpg")):
        xml, mask = folder / "xml" / f"{path.stem}.xml", folder / "mask" / f"{path.stem}.png"
        # Images without annotations may have no file.
        names = list(dict.fromkeys(read_boxed_names(xml))) if xml.exists() else []
        strange = next((name for name in names if name not in CLASSES[1:]), None)
        if strange is not None:
            raise InputError(f"{xml} names the class {strange[:40]!r}, which is none of COCO's 80")
        if not mask.exists():
            raise InputError(f"{mask} is missing, the mask of {path.name}")
        items.append(Item(path.stem, path, names, mask, None))
    if not items:
        raise InputError(f"{photographs} has no .jpg file")
    return Source(CLASSES, items, None)


def _check_items(place: tuple[Path, Path], items: list[Item], root: Path, lists: dict[str, list[str]]) -> None:
    strange = next((item.image_id for item in items if not ID.fullmatch(item.image_id)), None)
    if strange is not None:
        raise InputError(f"{place[0]}: {strange[:60]!r} cannot be an image id; needed: letters, digits, _ and -")
    there = {path.name for path in place[1].iterdir()}
    missing = [item for item in items if item.photograph.name not in there]
    if missing:
        first = f"{missing[0].photograph} is missing, and {len(missing) - 1} more of {len(items)} photographs"
        raise InputError(f"{first}: unpack {place[1].name} completely")
    common = set(lists.get("val", ())) & {item.image_id for item in items}
    if common:
        raise InputError(f"{min(common)} is in train and in val: the ids of {root} must differ")


def _write_item(root: Path, item: Item, instances: Instances | None, overlap: str, crowd: str) -> None:
    """Mask, annotation and, last, the photograph's link, which says that the other two were there.

    The annotations of an archive may have changed since; those that masks.json knows by their digest have not.
    """
    photograph, annotation = image_path(root, item.image_id), _annotation_path(root, item.image_id)
    mask = mask_path(root, item.image_id)
    objects = "".join(f"<object><name>{escape(name)}</name></object>" for name in item.names)
    content = f"<annotation>{objects}</annotation>\n"
    there = mask.exists() and annotation.exists() and photograph.exists()
    if there and photograph.samefile(item.photograph) and read_bytes(annotation, 1 << 20) == content.encode():
        return
    if instances is None:
        _link(mask, item.mask)
    else:
        size = decode(item.photograph, lambda image: (image.height, image.width))
        if size != item.picture.size:
            raise InputError(f"{item.photograph} is {size}, but {instances.path.name} says {item.picture.size}")
        write_mask(mask, paint(instances, item.picture, overlap, crowd))
    with atomic_write(annotation) as temporary:
        temporary.write_text(content, encoding="utf-8")
    _link(photograph, item.photograph)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.resolve())


def check(root: Path) -> bool:
    """Print what is at `root` and what it lacks; True if it lacks nothing."""
    record = read_record(root)
    print(f"COCO at {root}: {len(class_names(root)) - 1} classes; masks {record['masks']}")
    print("".join(f"  {key}: {record[key]}\n" for key in ("overlap", "crowd") if key in record), end="")
    complete = True
    for split in ("train", "val", "train_annotated", "val_annotated", "train_aug"):
        try:
            ids = read_ids(root, split)
        except InputError as error:
            print(f"  {split}: {error}")
            complete = False
            continue
        published = PUBLISHED.get(split, len(ids))
        note = "" if len(ids) == published else f" (COCO 2014 has {published})"
        print(f"  {split}: {len(ids)} images{note}")
        for path_of, what in ((image_path, "photographs"), (mask_path, "masks"), (_annotation_path, "annotations")):
            absent = [image_id for image_id in ids if not path_of(root, image_id).exists()]
            if absent:
                print(f"    {len(absent)} {what} are missing, first {path_of(root, absent[0])}")
                complete = False
    if not complete:
        print("get it: python -m tools.coco prepare COCO --to", root)
    return complete


def _annotation_path(root: Path, image_id: str) -> Path:
    return root / "Annotations" / f"{image_id}.xml"


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="make the data set from a COCO download or an archive")
    preparing.add_argument("folder", type=Path, help="where COCO, or the unpacked archive, is")
    preparing.add_argument("--to", type=Path, required=True, help="folder of the new data set")
    preparing.add_argument("--overlap", choices=OVERLAPS, default="smaller", help="instance on top (%(default)s)")
    preparing.add_argument(
        "--crowd", choices=CROWDS, default="ignore", help="crowd regions: 255, their class, or left out (%(default)s)"
    )
    checking = commands.add_parser("check", help="say what is there and what is missing")
    checking.add_argument("--root", type=Path, required=True, help="a data set that `prepare` made")
    arguments = parser.parse_args(argv)
    if arguments.command == "check":
        sys.exit(0 if check(arguments.root) else 1)
    prepare(arguments.folder, arguments.to, arguments.overlap, arguments.crowd)


if __name__ == "__main__":
    main()
