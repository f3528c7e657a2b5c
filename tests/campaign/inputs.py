"""Programs that are given what they read as the place of their results: they refuse, and nothing of it changes."""

import hashlib
import importlib
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from datasets.voc import CLASSES_FILE, annotation_path, image_path, list_path, mask_path, read_ids
from engine import stages
from tests.campaign.processes import Found, Whole, do, flags_of


def cases(at: Path, other: Callable[[Path], Path]) -> dict[str, tuple[str, list]]:
    """Programs and their command lines in a folder that `lay_out` made, by what they would write over.

    Args:
        other: gives a path another name.
    """
    root, out, image_id = at / "VOC2012", at / "out", first(at)
    static = out / "precompute" / "ssdd"
    judged = ["ssdd", static, "--out", out, "--voc-root", root, "--json"]
    rivals = [out, "--voc-root", root, "--json"]
    photos = [at / "photos", "--weights"]
    dynamic, trained = (stages.checkpoint_path(out / "logs" / name, "seg", 2) for name in ("dssdd_ssdd", "sssdd_ssdd"))
    own = {"modelid": "own", "weights": str(trained), "knowledge": f"masks:{other(out / 'precompute' / 'own')}"}
    return {
        "pictures, predict": ("tools.predict", [*photos, dynamic, "--out", other(at / "photos")]),
        "weights, predict": ("tools.predict", [*photos, at / "w.pt2", "--export", other(at / "w.pt2")]),
        "weights, convert_weights": ("tools.convert_weights", [at / "w.pth", other(at / "w.pth")]),
        "masks, eval_masks": ("tools.eval_masks", [*judged, other(static / f"{image_id}.png")]),
        "truth, eval_masks": ("tools.eval_masks", [*judged, other(mask_path(root, image_id))]),
        "list, eval_masks": ("tools.eval_masks", [*judged, other(list_path(root, "train"))]),
        "annotations, import_images": (
            "tools.import_images",
            [at / "photos", at / "own" / "Annotations", "--to", other(at / "own")],
        ),
        "pictures, import_images": (
            "tools.import_images",
            [at / "own" / "JPEGImages", at / "own.csv", "--to", other(at / "own")],
        ),
        "maps, seed_rivals": ("tools.seed_rivals", [*rivals, other(static / f"{image_id}.npz")]),
        "truth, seed_rivals": ("tools.seed_rivals", [*rivals, other(mask_path(root, image_id))]),
        "Config, seed_rivals": ("tools.seed_rivals", [*rivals, other(static / "config.json")]),
        "masks, paper_tables": (
            "tools.paper_tables",
            [out, "--voc-root", root, "--into", other(out / "validation" / "ssdd" / "mask")],
        ),
        "masks, mode 1": ("main_ssdd", ["--mode=1", *flags_of(root, out, **own)]),
        "masks, coco": ("tools.coco", ["prepare", at / "coco", "--to", other(at / "coco" / "own")]),
        "photographs, demo": ("datasets.demo", [other(at / "own"), "--train=3", "--val=2"]),
        "lists, demo": ("datasets.demo", [other(at / "lists"), "--train=3", "--val=2"]),
    }


def first(at: Path) -> str:
    return read_ids(at / "VOC2012", "train")[0]


def lay_out(whole: Whole, at: Path) -> None:
    """A run, its data, and own pictures in every arrangement that the cases need."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(whole.root, at / "VOC2012")
    shutil.copytree(whole.out, at / "out", ignore=shutil.ignore_patterns("tensorboard", "state.pth", "script"))
    shutil.copytree(at / "out" / "precompute" / "ssdd", at / "out" / "precompute" / "own")
    for path in (at / "out" / "precompute" / "own").glob("*.[jn]*"):
        path.unlink()
    (at / "photos").mkdir()
    image_id = first(at)
    shutil.copy(mask_path(whole.root, read_ids(whole.root, "val")[0]), at / "photos" / "cat.png")
    (at / "own" / "Annotations").mkdir(parents=True)
    (at / "own" / "JPEGImages").mkdir()
    (at / "own" / "Annotations" / "cat.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    shutil.copy(image_path(whole.root, image_id), at / "own" / "JPEGImages" / "cat.jpg")
    (at / "own.csv").write_text("cat.jpg,cat\n")
    shutil.copytree(whole.root / "ImageSets", at / "lists" / "ImageSets")
    list_path(at / "lists", "train").write_text("2007_000032\n")
    (at / "own" / CLASSES_FILE).write_text("cat\n")
    for split in ("train", "val"):
        for name, made in (("image", image_path), ("mask", mask_path), ("xml", annotation_path)):
            target = at / "coco" / split / name / made(whole.root, image_id).name.replace("demo", split)
            target.parent.mkdir(parents=True)
            shutil.copy(made(whole.root, image_id), target)
    (at / "coco" / "own").mkdir()
    (at / "coco" / "own" / "SegmentationClass").symlink_to(at / "coco" / "train" / "mask")
    torch.save({"bn7.weight": torch.ones(2)}, at / "w.pth")
    shutil.copy(stages.checkpoint_path(at / "out" / "logs" / "dssdd_ssdd", "seg", 2), at / "w.pt2")


def digests(at: Path) -> dict[str, str]:
    paths = (path for path in sorted(at.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(at)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def aliased(path: Path, how: str) -> Path:
    """The same file or folder under another name."""
    if how == "..":
        return path.parent / "." / path.parent.name / ".." / ".." / path.parent.name / path.name
    if how == "link":
        link = path.parent.parent / f"link-to-{path.parent.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(path.parent.name)
        return link / path.name
    return path


def run(program: str, arguments: list[str]) -> None:
    main = importlib.import_module(program).main
    main(arguments)


def input_campaign(count: int, seed: int, whole: Whole, work: Path) -> Found:
    rng, found, log = random.Random(seed), Found({}, []), work / "inputs.log"
    for number in range(count):
        at, how = work / "inputs", rng.choice(["", "..", "link"])
        lay_out(whole, at)
        known = list(cases(at, partial(aliased, how=how)).items())
        name, (program, arguments) = known[number % len(known)]
        given = [str(argument) for argument in arguments]
        before = digests(at)
        log.write_bytes(b"")
        status = do(partial(run, program, given), log)
        after, said = digests(at), log.read_text(errors="replace")
        changed = [path for path in before if after.get(path) != before[path]]
        what = f"{name} ({how or 'plain'}): status {status}, changed {changed}"
        good = status == 2 and not changed and "Traceback" not in said and said.count("error: ") == 1
        found.note(name, "" if good else what, log)
    return found
