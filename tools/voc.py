"""Get PASCAL VOC 2012 ready: look at what is there, make the list train_aug, download.

    python -m tools.voc check --voc-root voc_root
    python -m tools.voc trainaug --voc-root voc_root --sbd benchmark_RELEASE/dataset
    python -m tools.voc download --to ~/data

`check` ends with status 0 if everything for training and for evaluation on val is there, 1 otherwise. `trainaug` lists
VOC train, SBD train and SBD val without VOC val, sorted by id.
"""

import re
import sys
import tarfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from torchvision.datasets import SBDataset, VOCSegmentation

from datasets.errors import InputError, program
from datasets.files import atomic_write, read_bytes
from datasets.voc import LARGEST_LIST, image_path, read_ids
from settings.config import Config
from settings.flags import Parser

TRAIN_AUG_IMAGES = 10_582
FOLDERS = {"JPEGImages": ".jpg", "Annotations": ".xml", "SegmentationClass": ".png"}
ID = re.compile(r"\w[\w-]*", re.ASCII)

TRAINVAL = "python -m tools.voc download --to DIR"
TRAIN_AUG = f"python -m tools.voc trainaug --voc-root {{root}} --sbd DIR; with no VOC or SBD yet: {TRAINVAL}"
TEST = "VOC's evaluation server gives the test images to registered users; unpack them over {root}"


class Stage(NamedTuple):
    name: str
    split: str
    folders: tuple[str, ...]
    needed: bool  # for training and for evaluation on val
    list_from: str  # how to get the list
    files_from: str  # how to get the files


STAGES = (
    Stage("label chain, modes 0-2", "train_aug", ("JPEGImages", "Annotations"), True, TRAIN_AUG, TRAINVAL),
    Stage("mode 3", "val", ("JPEGImages",), True, TRAINVAL, TRAINVAL),
    Stage("mIoU in mode 3", "val", ("SegmentationClass",), True, TRAINVAL, TRAINVAL),
    Stage("mode 3 --split test", "test", ("JPEGImages",), False, TEST, TEST),
)


def check(root: Path) -> bool:
    """Print what of VOC lies at `root` and what each stage still needs; True if training and val lack nothing."""
    files = {folder: stems(root / folder, ending) for folder, ending in FOLDERS.items()}
    print(f"VOC at {root}" if root.is_dir() else f"VOC at {root}: no such folder")
    for folder, there in files.items():
        print(f"  {folder:<18} {f'{len(there):6d} {FOLDERS[folder]} files' if there else 'missing or empty'}")
    lists = {}
    for split in ("train", "train_aug", "val", "test"):
        try:
            lists[split] = read_ids(root, split)
            state = f"{len(lists[split]):6d} images"
        except InputError as error:
            lists[split] = []
            state = str(error) if (root / "JPEGImages").is_dir() else "not read without JPEGImages"
        print(f"  {f'{split}.txt':<18} {state}")
    complete = True
    for stage in STAGES:
        lacks, remedy = lacking(stage, lists[stage.split], files)
        needs = ", ".join([f"{stage.split}.txt", *stage.folders])
        print(f"{stage.name:<23} needs {needs}: {'ok' if not lacks else f'missing: {lacks}'}")
        if lacks:
            print(f"{'':<23} get it: {remedy.format(root=root)}")
        complete &= not (lacks and stage.needed)
    return complete


def stems(folder: Path, ending: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{ending}")}


def lacking(stage: Stage, ids: list[str], files: dict[str, set[str]]) -> tuple[str, str]:
    """What a stage still needs, and how to get it; the first is empty where it needs nothing."""
    if not ids:
        return f"a usable {stage.split}.txt", stage.list_from
    parts = []
    for folder in stage.folders:
        absent = [image_id for image_id in ids if image_id not in files[folder]]
        if absent:
            names = ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
            parts.append(f"{len(absent)} of {len(ids)} in {folder} ({names})")
    return "; ".join(parts), stage.files_from


def read_sbd_ids(folder: Path, split: str) -> list[str]:
    """The ids of SBD's own list `split`.txt.

    Raises:
        InputError: the list is missing or empty, or a line of it is no id.
    """
    path = folder / f"{split}.txt"
    try:
        ids = read_bytes(path, LARGEST_LIST).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): SBD has it in benchmark_RELEASE/dataset") from None
    strange = next((name for name in ids if not ID.fullmatch(name)), None)
    if strange is not None or not ids:
        raise InputError(f"{path} is not a list of image ids ({strange or 'it is empty'!r}): take SBD's own")
    return ids


def make_train_aug(root: Path, sbd: Path) -> Path:
    """Write ImageSets/Segmentation/train_aug.txt: VOC train ∪ SBD train ∪ SBD val − VOC val, sorted.

    Args:
        root: VOC folder.
        sbd: folder of SBD's train.txt and val.txt.

    Raises:
        InputError: a list is missing or unusable, or an image has no photograph; nothing is written.
    """
    sbd_ids = read_sbd_ids(sbd, "train") + read_sbd_ids(sbd, "val")
    ids = sorted({*read_ids(root, "train"), *sbd_ids} - set(read_ids(root, "val")))
    photographs = stems(root / "JPEGImages", FOLDERS["JPEGImages"])
    absent = [image_id for image_id in ids if image_id not in photographs]
    if absent:
        raise InputError(
            f"{image_path(root, absent[0])} is missing, and {len(absent) - 1} more of the {len(ids)} images: "
            "unpack VOC 2012 trainval completely"
        )
    path = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(ids) + "\n", encoding="ascii")
    note = "" if len(ids) == TRAIN_AUG_IMAGES else f" (the full data gives {TRAIN_AUG_IMAGES})"
    print(f"wrote {path}: {len(ids)} images{note}")
    return path


def download(folder: Path) -> None:
    """Fetch VOC 2012 trainval (2 GB) and SBD (1.4 GB) into `folder` and make the list train_aug.

    Raises:
        InputError: something cannot be fetched or unpacked.
    """
    sbd = folder / "SBD"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        VOCSegmentation(folder, year="2012", image_set="trainval", download=True)
        # torchvision unpacks SBD only into a folder without it; val.txt is what it puts there last.
        SBDataset(sbd, image_set="train", download=not (sbd / "val.txt").exists())
    except (OSError, RuntimeError, EOFError, tarfile.TarError, HTTPException) as error:
        raise InputError(
            f"{folder}: the download failed ({error}); try again, or fetch VOCtrainval_11-May-2012.tar and SBD's "
            "benchmark.tgz by hand, unpack them, and run `python -m tools.voc trainaug`"
        ) from None
    root = folder / "VOCdevkit" / "VOC2012"
    make_train_aug(root, sbd)
    print(f"link it: ln -s {root.resolve()} {Config().voc_root}")


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="say what is there and what each stage still needs")
    listing = commands.add_parser("trainaug", help="make the list train_aug from VOC's and SBD's lists")
    fetching = commands.add_parser("download", help="fetch VOC 2012 trainval and SBD, and make the list")
    for command in (checking, listing):
        command.add_argument("--voc-root", type=Path, default=Config().voc_root, help="VOC 2012 folder (%(default)s)")
    listing.add_argument("--sbd", type=Path, required=True, help="folder of SBD's train.txt and val.txt")
    fetching.add_argument("--to", type=Path, required=True, help="folder that receives VOCdevkit and SBD")
    arguments = parser.parse_args(argv)
    if arguments.command == "check":
        sys.exit(0 if check(arguments.voc_root) else 1)
    elif arguments.command == "trainaug":
        make_train_aug(arguments.voc_root, arguments.sbd)
    else:
        download(arguments.to)


if __name__ == "__main__":
    main()
