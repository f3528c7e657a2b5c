"""Exchange seeds, difference maps and weights without trusting pickles.

    python -m tools.pack . --to psa.zip --what psa                    # seeds of the run in this folder, by their source
    python -m tools.pack . --to maps.zip --what differences           # the difference maps of mode 1
    python -m tools.pack . --to net.zip --what logs/dssdd_ssdd/models/seg_0041.pth
    python -m tools.pack import psa.zip --to seeds/theirs             # then --knowledge=masks:seeds/theirs and the like
    python -m tools.pack import net.zip --to theirs.pth               # then --weights=theirs.pth
    python -m tools.pack import FOLDER --to seeds/theirs              # masks ID.png that others released, checked too

An archive holds PNG and safetensors files and pack.json: Config, split, digest of the list, mIoU, CRF, versions, and
the digest of every part. Importing believes none of it: parts must be what pack.json says, fit the photographs and
classes of --voc-root, and come to lie in --to all together or not at all.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets import archive
from datasets.archive import Archive
from datasets.errors import InputError, program
from datasets.files import PARTIAL, atomic_write, read_bytes, refuse_among_others, refuse_overwrite
from datasets.seed_store import LARGEST_STORE, load_differences, load_maps, read_fields, seed_path, store_path
from datasets.voc import class_names, image_size, list_path, mask_path, read_ids, read_mask, write_mask
from engine import checkpoint, notes, runs, seeds, stages
from evaluation.masks import evaluate
from settings.config import FIELDS, Config
from settings.field import RUN, STAGE
from settings.flags import Parser

MAPS, DIFFERENCES = ("classes", "size", "maps", "made_by"), ("d_k", "d_a", "made_by")
_LARGEST_WEIGHTS = 1 << 34


def about_run(config: Config, kind: str, folder: Path | None) -> dict:
    """What pack.json says of where its parts come from; no path of this machine is in it."""
    made = runs.stage_folder(folder) if folder else None
    stored = notes.read_config(made / "config.json") if made else {}
    kept = [name for name, entry in FIELDS.items() if entry.metadata["reach"] in (RUN, STAGE) and name in stored]
    return {
        "kind": kind,
        "stage": stored.get("stage", ""),
        "classes": list(class_names(config.voc_root)),
        "config": {name: stored[name] for name in kept},
        "crf": stored.get("crf_used"),
        "versions": stored.get("versions", {}),
    }


def list_of(config: Config, ids: list[str]) -> dict:
    path = list_path(config.voc_root, config.train_split)
    return {"split": config.train_split, "list": notes.digest(path), "images": len(ids)}


def miou_of(folder: Path, config: Config, ids: list[str]) -> float | None:
    """mIoU of seeds on the images of a list that have true masks; None if there are none."""
    judged = [image_id for image_id in ids if mask_path(config.voc_root, image_id).exists()]
    return evaluate(folder, config.voc_root, judged)["miou"] if judged else None


def truths_of(config: Config, ids: list[str]) -> str:
    """What the true masks of a list hold, on which `miou_of` judges; masks that are missing are not judged."""
    return notes.digest_of([mask_path(config.voc_root, image_id) for image_id in ids])


def seed_parts(folder: Path, ids: list[str]) -> Iterator[tuple[str, bytes]]:
    for image_id in ids:
        path = seed_path(folder, image_id)
        if path.suffix == ".png":
            yield f"masks/{image_id}.png", read_bytes(path, LARGEST_STORE)
        else:
            yield f"maps/{image_id}.safetensors", archive.packed_arrays(read_fields(path, MAPS))


def pack(config: Config, what: str, target: Path) -> str:
    """Write an archive of a seed source, of the difference maps, or of a weights file; what to print."""
    if what.endswith(".pth"):
        return pack_weights(config, Path(what), target)
    ids = read_ids(config.voc_root, config.train_split)
    differences = what == "differences"
    source = None if differences else seeds.source(config, what)
    folder = source.folder if source else stages.folder(config, "mode 1")
    about = about_run(config, "differences" if differences else "seeds", folder) | list_of(config, ids)
    if differences:
        runs.need_all([store_path(folder, image_id) for image_id in ids], stages.command(config, "mode 1"))
        stored = ((image_id, read_fields(store_path(folder, image_id), DIFFERENCES)) for image_id in ids)
        parts = ((f"maps/{image_id}.safetensors", archive.packed_arrays(fields)) for image_id, fields in stored)
    else:
        if source.stage:  # CAMs too, of which seeds.need wants a background
            runs.need_all([folder / f"{i}{source.ending}" for i in ids], stages.command(config, source.stage))
        else:
            seeds.need(config, source, ids)
        about |= {
            "source": what.partition(":")[0],
            "miou": miou_of(folder, config, ids),
            "judged": truths_of(config, ids),
        }
        parts = seed_parts(folder, ids)
    count = archive.write_archive(target, about, parts)
    figure = f", mIoU {100 * about['miou']:.2f}" if about.get("miou") is not None else ""
    return f"packed {what} of {count} images into {target}{figure}"


def pack_weights(config: Config, path: Path, target: Path) -> str:
    state = checkpoint.load_state(path)
    trained, classes = checkpoint.load_description(path)
    about = about_run(config, "weights", path) | {"classes": list(classes)}
    kept = {name: getattr(trained, name) for name, e in FIELDS.items() if e.metadata["reach"] in (RUN, STAGE)}
    about["config"] = kept
    archive.write_archive(target, about, [(f"weights/{path.stem}.safetensors", archive.packed_weights(state))])
    return f"packed {path} into {target}"


def unpack(path: Path, target: Path, config: Config) -> str:
    """Bring an archive, or a folder of masks ID.png, to `target`, all of it or nothing; what to print."""
    if target.name in ("", ".."):  # a folder is made beside it, which takes its place
        raise InputError(f"--to={target}: name a new folder or file")
    if target.is_symlink() and not target.exists():
        raise InputError(f"{target} is a link to nothing: name another place with --to")
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise InputError(f"{target} is there already: name a new place with --to")
    if path.is_dir():
        with whole(target) as new:
            return import_masks(path, new, config) + f" to {target}"
    with archive.open_archive(path) as found:
        if found.about["kind"] == "weights":
            return import_weights(found, target)
        ours = list(class_names(config.voc_root))
        if found.about["classes"] != ours:
            other = next((c for c in found.about["classes"] if c not in ours), f"{len(found.about['classes'])} classes")
            raise InputError(f"{path} is of another class list than {config.voc_root} ({other[:60]}): name its data")
        ids = read_ids(config.voc_root, config.train_split)
        with whole(target) as new:
            said = import_images(found, new, config, ids)
        return f"{said} to {target}"


@contextmanager
def written(target: Path) -> Iterator[None]:
    """Where the body cannot write, the target is named, and not the archive that is being read."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}): name another place with --to") from None


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the body ends well, and is removed otherwise."""
    new = target.with_name(f"{PARTIAL}{os.getpid()}-{target.name}")
    try:
        with written(target):
            new.mkdir(parents=True)
        yield new
        with written(target):
            if target.exists():
                target.rmdir()
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def import_images(found: Archive, folder: Path, config: Config, ids: list[str]) -> str:
    """Masks or maps of an archive; every one must fit its photograph, and every image of the list must have one."""
    parts = {Path(name).stem: name for name in found.sizes}
    if len(parts) < len(found.sizes):
        raise ValueError("an image is there as a mask and as maps")
    missing, strange = [i for i in ids if i not in parts], sorted(parts.keys() - set(ids))
    if missing or strange:
        raise InputError(
            f"the archive is of another list: {len(missing)} of the {len(ids)} images of {config.train_split} are "
            f"missing, {len(strange)} are not in it, first {(missing + strange)[0]}; name its list with --train-split"
        )
    classes = len(class_names(config.voc_root))
    for image_id, name in parts.items():
        height, width = image_size(config.voc_root, image_id)
        # float32 maps of all classes at full size, and a header
        content = found.read(name, min(LARGEST_STORE, 4 * (classes + 1) * height * width + (1 << 16)))
        check = check_differences if found.about["kind"] == "differences" else check_seed
        path = folder / (f"{image_id}.png" if name.startswith("masks/") else f"{image_id}.npz")
        if path.suffix == ".png":
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        else:
            fields = archive.unpacked_arrays(content, ("made_by",))
            if fields.keys() - {"version", "peak", *MAPS, *DIFFERENCES}:
                raise ValueError(f"{name} holds other fields than maps have")
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **fields)
        check(path, (height, width), classes)
    said = f"imported {found.about['kind']} of {len(parts)} images"
    if found.about["kind"] != "seeds":
        return said
    noted, here = found.about.get("miou"), miou_of(folder, config, ids)
    compared = noted is not None and found.about.get("judged") == truths_of(config, ids)
    if compared and here is not None and abs(noted - here) > 1e-9:
        raise InputError(f"the archive says mIoU {noted!r}, its masks have {here!r} on these true masks: it is refused")
    figure = f", mIoU {100 * here:.2f}" if here is not None else ""
    if noted is not None and not compared:
        figure += " (not compared with the archive's, which is not known to be of these true masks)"
    return said + figure


def check_seed(path: Path, size: tuple[int, int], classes: int) -> None:
    """Raise an InputError unless a seed is of its photograph's size and of known classes."""
    if path.suffix == ".png":
        shape, most = read_mask(path, classes).shape, 0
    else:
        stored = load_maps(path)
        shape, most = stored.maps.shape[1:], stored.classes.max()
    if tuple(shape) != size or most >= classes:
        raise InputError(f"{path.name} is {tuple(shape)}, its photograph {size}, or has a class that is none; refused")


def check_differences(path: Path, size: tuple[int, int], classes: int) -> None:
    load_differences(path)


def import_weights(found: Archive, target: Path) -> str:
    (name,) = found.sizes
    if target.suffix != ".pth":
        raise InputError(f"--to={target}: weights become a .pth file")
    state = archive.unpacked_weights(found.read(name, _LARGEST_WEIGHTS))
    content = {"state_dict": state, "config": found.about["config"], "classes": found.about["classes"]}
    with atomic_write(target) as temporary:
        checkpoint.save(temporary, content)
        checkpoint.load_description(temporary)
        checkpoint.load_state(temporary)
    return f"imported {len(state)} tensors to {target}"


def import_masks(source: Path, folder: Path, config: Config) -> str:
    """Masks that others released as ID.png, checked and written anew."""
    ids = read_ids(config.voc_root, config.train_split)
    missing = [image_id for image_id in ids if not (source / f"{image_id}.png").exists()]
    if missing:
        raise InputError(
            f"{source}: {len(missing)} of the {len(ids)} masks of {config.train_split} are missing, first "
            f"{missing[0]}.png; .npy files go through `python -m tools.import_labels`"
        )
    classes = len(class_names(config.voc_root))
    for image_id in ids:
        path = source / f"{image_id}.png"
        check_seed(path, image_size(config.voc_root, image_id), classes)
        write_mask(folder / path.name, read_mask(path, classes))
    here = miou_of(folder, config, ids)
    return f"imported masks of {len(ids)} images" + (f", mIoU {100 * here:.2f}" if here is not None else "")


@program
def main(argv: list[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    importing = given[:1] == ["import"]
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="ARCHIVE" if importing else "RUN", help="an archive or folder; a run")
    parser.add_argument(
        "--to", type=Path, required=True, help="the archive to write; the folder or .pth file to import to"
    )
    parser.add_argument("--what", default="ssdd", help="seed source, differences, or a .pth file (default: ssdd)")
    parser.add_argument("--modelid", default="ssdd", help="name of the run (default: ssdd)")
    parser.add_argument("--voc-root", default="voc_root", help="folder of the photographs (default: voc_root)")
    parser.add_argument("--train-split", default="train_aug", help="list of the images (default: train_aug)")
    arguments = parser.parse_args(given[1:] if importing else given)
    config = replace(
        Config(), modelid=arguments.modelid, voc_root=arguments.voc_root, train_split=arguments.train_split,
        out="." if importing else str(arguments.run),
    )  # fmt: skip
    if importing:
        print(unpack(arguments.run, arguments.to, config))
        return
    if not arguments.run.is_dir():
        raise InputError(f"{arguments.run} is no folder of a run")
    refuse_among_others(arguments.to)
    if arguments.to.suffix != ".zip":
        raise InputError(f"--to={arguments.to}: must end in .zip, it becomes an archive")
    masks = Path(arguments.what.removeprefix(stages.MASKS))
    refuse_overwrite([arguments.to.parent], [masks] if arguments.what.startswith(stages.MASKS) else [])
    refuse_overwrite([arguments.to], [arguments.what] if arguments.what.endswith(".pth") else [])
    print(pack(config, arguments.what, arguments.to))


if __name__ == "__main__":
    main()
