"""HTML pages of a run, for a browser, without a server or network: index, labels, sssdd, dssdd and val.

    python -m script.make_pages                                                   # of the run in this folder
    python -m script.make_pages --preset demo --out demo --voc-root demo/VOC2012  # of the demo

Writes script/*.html in the run's --out folder and prints the path to open. The programs of the run do the same at
their end and every few minutes. The pages link to the run's pictures, so they belong beside it.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from datasets.errors import InputError, program
from datasets.files import read_bytes
from datasets.pictures import scale_colours
from datasets.seed_store import load_maps, store_path
from datasets.voc import IGNORE, PALETTE, class_names, image_path, mask_path, read_ids, read_mask
from engine import history
from evaluation.metrics import confusion, iou
from settings.config import Config, parse

PAGES = {
    "index": "The run",
    "labels": "Seeds",
    "sssdd": "Static SSDD",
    "dssdd": "Dynamic SSDD",
    "val": "Validation",
}
SECONDS_BETWEEN = 300
LABEL_IMAGES = 200  # seeds of at most this many training images are shown
LABEL_SIDE = 256  # pixels, of their pictures
GRID = 24  # cells a side, of the small copy of a mask that names the class under the pointer
POINTS = 400  # of a curve
# Where a mask is wrong: colours that colour-blind people tell apart (Okabe and Ito).
WRONG = {
    "object missed": (0, 114, 178),
    "object where there is none": (230, 159, 0),
    "wrong class": (204, 121, 167),
}
HERE = Path(__file__).parent
_made_at = time.monotonic()


def make_pages(config: Config, names: Iterable[str] = PAGES) -> Path:
    """Write the pages of a run; the path of its index.

    Args:
        names: of PAGES, which to make; the others stay as they are, and are made where they are missing.
    """
    folder = Path(config.out) / "script"
    makers: dict[str, Callable[[Config, Path], dict]] = {
        "index": index_page,
        "labels": labels_page,
        "sssdd": static_page,
        "dssdd": dynamic_page,
        "val": validation_page,
    }
    for name, make in makers.items():
        if name in names:
            try:
                data = make(config, folder)
            except InputError as error:
                data = {"view": "nothing", "reason": str(error)}
            write_page(folder, name, config, data)
        elif not (folder / f"{name}.html").exists():
            write_page(folder, name, config, {"view": "nothing", "reason": "This part of the run has not started."})
    return folder / "index.html"


def refresh(config: Config, *names: str) -> None:
    """make_pages for a program that has better things to do: whatever fails is said in one line and forgotten."""
    global _made_at
    _made_at = time.monotonic()
    try:
        print(f"pages: {make_pages(config, ('index', *names))}", flush=True)
    except Exception as error:
        print(f"pages not made ({type(error).__name__}: {error})", flush=True)


def refresh_now_and_then(config: Config, *names: str) -> None:
    """refresh, unless the last time is less than a few minutes ago."""
    if time.monotonic() - _made_at > SECONDS_BETWEEN:
        refresh(config, *names)


def write_page(folder: Path, name: str, config: Config, data: dict) -> None:
    """One page: script/page.html filled in. `data` becomes JSON in which no tag can end or begin."""
    classes = [{"name": c, "colour": "#" + bytes(PALETTE[i]).hex()} for i, c in enumerate(class_names(config.voc_root))]
    data = {"classes": classes, "wrong": {k: "#" + bytes(v).hex() for k, v in WRONG.items()}} | data
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    links = "".join(
        f'<a href="{page}.html"{" aria-current=page" if page == name else ""}>{title}</a>'
        for page, title in PAGES.items()
    )
    parts = {
        "title": escape(f"{PAGES[name]} · {config.modelid}"),
        "heading": escape(PAGES[name]),
        "links": links,
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "data": text,
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    pieces = page.split("@")
    page = "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))
    _replace(folder / f"{name}.html", lambda path: path.write_text(page, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write and rename, so that a browser never sees a half file; not forced to disk, as it can be made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, folder: Path) -> str:
    """A relative URL from a page in `folder`."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())


# Pages of rows of pictures: labels and val


def labels_page(config: Config, folder: Path) -> dict:
    ids = read_ids(config.voc_root, config.train_split)
    sources = {"cam": "out_cam", "psa": "out_aff", "crf": "out_aff_crf"}
    stores = {key: config.labels_folder(kind) for key, kind in sources.items()}
    places = np.linspace(0, len(ids) - 1, min(LABEL_IMAGES, len(ids))).astype(int)
    shown = [ids[i] for i in places if store_path(stores["cam"], ids[i]).exists()]
    if not shown:
        raise InputError("There are no seeds yet: python -m prepare_labels.make_cam_labels writes the first.")
    root, made, classes = config.voc_root, folder / "labels", len(class_names(config.voc_root))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda image_id: label_row(root, stores, made, image_id, classes), shown))
    columns = [
        _column("image", "image", image_path(root, "ID"), folder),
        _column("cam", "CAM", made / "ID_cam.png", folder),
        _column("psa", "PSA", made / "ID_psa.png", folder),
        _column("crf", "PSA + CRF", made / "ID_crf.png", folder),
        _column("truth", "true mask", mask_path(root, "ID"), folder),
    ]
    return {
        "view": "rows",
        "note": f"{len(shown)} of {len(ids)} training images ({config.train_split}). CAM: the strongest class of each "
        "pixel, on the scale below. True masks are shown where there are any; training never reads them.",
        "columns": columns,
        "scores": {"psa": "PSA", "crf": "PSA + CRF"},
        "scale": "CAM, relative to its maximum",
        "first": "",
        "rows": rows,
    }


def validation_page(config: Config, folder: Path) -> dict:
    ids = read_ids(config.voc_root, config.split)
    masks, root, made = config.validation_folder(), config.voc_root, folder / "wrong" / config.validation_folder().name
    classes = len(class_names(root))
    shown = [image_id for image_id in ids if (masks / "crf" / f"{image_id}.png").exists()]
    if not shown:
        raise InputError(f"There are no masks yet: python main_ssdd.py --mode=3{config.flags()} writes them.")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda image_id: validation_row(root, masks, made, image_id, classes), shown))
    columns = [
        _column("image", "image", image_path(root, "ID"), folder),
        _column("mask", "mask", masks / "mask" / "ID.png", folder),
        _column("crf", "mask after CRF", masks / "crf" / "ID.png", folder),
        _column("truth", "true mask", mask_path(root, "ID"), folder),
        _column("wrong", "where it is wrong, after CRF", made / "ID.png", folder) | {"over": "image"},
    ]
    return {
        "view": "rows",
        "note": f"{len(shown)} of {len(ids)} images of the split {config.split}.",
        "columns": columns,
        "scores": {"crf": "mask after CRF", "mask": "mask"},
        "first": "crf",
        "rows": rows,
    }


def _column(key: str, title: str, path: Path, folder: Path) -> dict:
    """`path` holds ID where an image's id belongs."""
    before, after = path.name.split("ID")
    return {"key": key, "title": title, "before": link(path.parent, folder) + "/" + before, "after": after}


def label_row(root: str, stores: dict[str, Path], made: Path, image_id: str, classes: int) -> dict:
    paths = {key: store_path(folder, image_id) for key, folder in stores.items()}
    truth = _stamped(mask_path(root, image_id))
    files = tuple((key, _stamped(path)) for key, path in paths.items())
    return _label_row(str(made), image_id, truth, files, classes)


@cache
def _label_row(
    made: str, image_id: str, truth_file: "Stamped", stores: tuple[tuple[str, "Stamped"], ...], classes: int
) -> dict:
    truth = read_mask(truth_file[0], classes) if truth_file else None
    row = {"id": image_id, "grids": {}, "scores": {}, "missing": []}
    there: set[int] = set()
    for key, file in stores:
        if not file:
            row["missing"].append(key)
            continue
        seed = load_maps(file[0])
        mask = seed.classes[seed.maps.argmax(axis=0)].astype(np.uint8)
        row["size"] = mask.shape[::-1]
        there |= set(seed.classes.tolist())
        picture = Path(made) / f"{image_id}_{key}.png"
        if not _newer(picture, file[1]):
            _save_small(picture, scale_colours(seed.maps.max(axis=0).clip(0, 1)) if key == "cam" else mask)
        row["grids"][key] = grid(mask)
        if key != "cam" and truth is not None and truth.shape == mask.shape:
            row["scores"][key] = scores(confusion(truth, mask, classes))
    if truth is None:
        row["missing"].append("truth")
    else:
        row["grids"]["truth"] = grid(truth)
    row["classes"] = sorted(there - {0})
    return row


def validation_row(root: str, masks: Path, made: Path, image_id: str, classes: int) -> dict:
    files = tuple(_stamped(masks / kind / f"{image_id}.png") for kind in ("mask", "crf"))
    return _validation_row(str(made / f"{image_id}.png"), image_id, _stamped(mask_path(root, image_id)), files, classes)


@cache
def _validation_row(
    wrong: str, image_id: str, truth_file: "Stamped", files: tuple["Stamped", ...], classes: int
) -> dict:
    masks = {key: read_mask(file[0], classes) for key, file in zip(("mask", "crf"), files, strict=True) if file}
    truth = read_mask(truth_file[0], classes) if truth_file else None
    row = {"id": image_id, "size": masks["crf"].shape[::-1], "scores": {}, "missing": []}
    row["grids"] = {key: grid(mask) for key, mask in masks.items()}
    row["missing"] = [key for key in ("mask", "crf") if key not in masks]
    if truth is not None and truth.shape == masks["crf"].shape:
        row["grids"]["truth"] = grid(truth)
        counts = {key: confusion(truth, mask, classes) for key, mask in masks.items()}
        row["scores"] = {key: scores(found) for key, found in counts.items()}
        there = set(np.flatnonzero(counts["crf"].sum(axis=1) + counts["crf"].sum(axis=0)[:-1]).tolist())
        if not _newer(Path(wrong), max(truth_file[1], *(file[1] for file in files if file))):
            _save_wrong(Path(wrong), truth, masks["crf"])
    else:
        row["missing"] += ["truth", "wrong"]
        there = set(np.unique(masks["crf"]).tolist())
    row["classes"] = sorted(there - {0, IGNORE})
    return row


Stamped = tuple[str, int] | None  # a file that is there, and when it was written


def _stamped(path: Path) -> Stamped:
    try:
        return str(path), path.stat().st_mtime_ns
    except OSError:
        return None


def _newer(path: Path, stamp: int) -> bool:
    file = _stamped(path)
    return file is not None and file[1] >= stamp


def scores(counts: np.ndarray) -> dict[str, float]:
    """IoU in percent of the classes that an image's true mask has, and their mean under "all"."""
    per_class = iou(counts)
    there = np.flatnonzero(np.isfinite(per_class)).tolist()
    figures = {str(c): round(100 * float(per_class[c]), 1) for c in there}
    return figures | ({"all": round(100 * float(per_class[there].mean()), 1)} if there else {})


def grid(mask: np.ndarray) -> str:
    """A mask on GRID×GRID cells, row by row, as runs "class*length"."""
    rows, columns = (((np.arange(GRID) + 0.5) * side / GRID).astype(int) for side in mask.shape)
    cells = mask[np.ix_(rows, columns)].ravel().tolist()
    return ",".join(f"{value}*{len(list(run))}" for value, run in groupby(cells))


def _save_small(path: Path, pixels: np.ndarray) -> None:
    """A mask (h×w) or a picture (h×w×3), no larger than people need."""
    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image.putpalette(PALETTE.tobytes())
    if max(image.size) > LABEL_SIDE:
        factor = LABEL_SIDE / max(image.size)
        size = tuple(max(1, round(side * factor)) for side in image.size)
        image = image.resize(size, Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BILINEAR)
    _replace(path, lambda temporary: image.save(temporary, format="PNG", compress_level=1))


def _save_wrong(path: Path, truth: np.ndarray, mask: np.ndarray) -> None:
    """Transparent where the mask is right or the truth unknown; else the colours of WRONG."""
    wrong = (truth != mask) & (truth != IGNORE)
    kind = wrong * np.where(mask == 0, 1, np.where(truth == 0, 2, 3))
    image = Image.fromarray(kind.astype(np.uint8))
    image.putpalette([0, 0, 0, *(value for colour in WRONG.values() for value in colour)])
    _replace(path, lambda temporary: image.save(temporary, format="PNG", transparency=0, compress_level=1))


# Pages of a training run: sssdd and dssdd


def static_page(config: Config, folder: Path) -> dict:
    module = [("k1", "K: PSA"), ("dk1", "d_K"), ("da1", "d_A"), ("a1", "A: PSA + CRF"), ("d1", "integrated")]
    top = [("photo", "image"), ("k1", "seed: PSA"), ("d1", "integrated"), ("truth", "true mask")]
    return training_page(config, 0, folder, {"": top, "SSDD module": module})


def dynamic_page(config: Config, folder: Path) -> dict:
    first = [("k1", "K: mask"), ("dk1", "d_K"), ("da1", "d_A"), ("a1", "A: after CRF"), ("d1", "integrated")]
    second = [("k2", "K: seed"), ("dk2", "d_K"), ("da2", "d_A"), ("a2", "A: module 1"), ("d2", "integrated")]
    top = [("photo", "image"), ("k2", "seed"), ("d2", "integrated"), ("truth", "true mask")]
    modules = {"Module 1: the network's mask": first, "Module 2: the seed": second}
    return training_page(config, 2, folder, {"": top} | modules)


def training_page(config: Config, mode: int, folder: Path, groups: dict[str, list[tuple[str, str]]]) -> dict:
    pictures = config.run_folder(mode) / "imgs"
    logged: dict[str, set[int]] = {}
    for entry in os.scandir(pictures) if pictures.is_dir() else ():
        image_id, _, rest = entry.name.removesuffix("_d1.png").rpartition("_")
        if entry.name.endswith("_d1.png") and rest.isdecimal():
            logged.setdefault(image_id, set()).add(int(rest))
    if not logged:
        raise InputError(f"There are no pictures yet: python main_ssdd.py --mode={mode}{config.flags()} writes them.")
    masks = [what for what in "k1 a1 d1 k2 a2 d2".split() if any(what == w for g in groups.values() for w, _ in g)]
    samples = []
    for image_id, epochs in sorted(logged.items()):
        grids = {}
        for epoch in sorted(epochs):
            files = {what: _stamped(pictures / f"{image_id}_{epoch:04d}_{what}.png") for what in masks}
            grids[epoch] = {what: _grid_of(*file) for what, file in files.items() if file}
        truth = _stamped(mask_path(config.voc_root, image_id))
        classes = {int(run.split("*")[0]) for g in grids.values() for text in g.values() for run in text.split(",")}
        samples.append({
            "id": image_id,
            "classes": sorted(classes - {0, IGNORE}),
            "grids": grids,
            "truth": link(Path(truth[0]), folder) if truth else None,
            "truth_grid": _grid_of(*truth) if truth else "",
        })  # fmt: skip
    epochs_logged = sorted(set().union(*logged.values()))
    done, epochs = progress_of(config.run_folder(mode))
    done = max(done, epochs_logged[-1])
    return {
        "view": "training",
        "note": f"{len(samples)} training images, logged after every epoch; {done} of {epochs} epochs are done. "
        "d_K and d_A: how likely the DD-Net, seeing K or A, thinks a pixel to change between the two.",
        "running": done < epochs,
        "pictures": link(pictures, folder) + "/",
        "epochs": epochs_logged,
        "groups": [{"title": title, "columns": columns} for title, columns in groups.items()],
        "scale": "d_K, d_A: probability of a change",
        "samples": samples,
    }


@cache
def _grid_of(path: str, stamp: int) -> str:
    return grid(read_mask(path, IGNORE))


def progress_of(folder: Path) -> tuple[int, int]:
    """Complete epochs of a training run, and how many it is to have."""
    epochs = _json(folder / "config.json").get("epochs")
    if not isinstance(epochs, int):
        return 0, 0
    return max((line.get("epoch", 0) for line in history.read(folder) if "seconds" in line), default=0), epochs


# The index


def index_page(config: Config, folder: Path) -> dict:
    stages = {
        "classifier": config.label_network("cls").parent,
        "CAM": config.labels_folder("out_cam"),
        "AffinityNet": config.label_network("aff").parent,
        "PSA": config.labels_folder("out_aff"),
        "mode 0, static SSDD": config.run_folder(0),
        "mode 1, difference maps": config.precompute_folder(),
        "mode 2, dynamic SSDD": config.run_folder(2),
        "mode 3, validation": config.validation_folder(),
    }
    rows, curves, running = [], [], False
    for title, path in stages.items():
        lines = history.read(path)
        timed = [line for line in lines if "seconds" in line]
        done, epochs = progress_of(path) if any("epoch" in line for line in lines) else (0, 0)
        state = f"epoch {done} of {epochs}" if epochs else "done" if timed else "–"
        if not lines and (path / "config.json").exists():
            state = "started"
        running = done < epochs or state == "started" or (state == "–" and running)
        rows.append({
            "stage": title,
            "state": state,
            "seconds": sum(line["seconds"] for line in timed),
            "rate": timed[-1]["images_per_second"] if timed else None,
            "memory": max((line["memory_gib"] for line in timed), default=None),
        })  # fmt: skip
        curves += curves_of(title, lines)
    stored = next((s for f in reversed(stages.values()) if (s := _json(f / "config.json"))), {})
    defaults = Config()
    settings = [
        {"name": f.name, "value": _shown(stored.get(f.name)), "help": f.metadata["help"],
         "changed": stored.get(f.name) != json.loads(json.dumps(getattr(defaults, f.name)))}
        for f in fields(Config) if f.name in stored
    ]  # fmt: skip
    return {
        "view": "index",
        "note": f"Run {config.modelid} in {Path(config.out).absolute()}",
        "running": running,
        "stages": rows,
        "curves": curves,
        "results": results(config),
        "settings": settings,
    }


def curves_of(title: str, lines: list[dict]) -> list[dict]:
    """Figures of a training run against epochs: losses, learning rate, what the modules did, mIoU, speed."""
    charts = {
        "loss": lambda name: name.startswith("loss"),
        "share of pixels with advice taken, of images flagged": lambda name: name.startswith(("advice", "flagged")),
        "mIoU of the logged pictures, %": lambda name: name.startswith("miou"),
        "learning rate": lambda name: name == "learning_rate",
    }
    names = dict.fromkeys(name for line in lines for name in line)
    result = []
    for chart, belongs in charts.items():
        series = []
        for name in filter(belongs, names):
            points = [(line["epoch"], line[name]) for line in lines if name in line and "epoch" in line]
            factor = 100 if name.startswith("miou") else 1
            series.append({"name": name, "points": [(x, float(f"{factor * y:.5g}")) for x, y in thinned(points)]})
        if series:
            result.append({"stage": title, "title": chart, "series": series})
    return result


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of its neighbours."""
    groups = np.array_split(np.array(points, np.float64), min(len(points), POINTS))
    return [(round(float(x), 3), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def results(config: Config) -> list[dict]:
    """Tables that tools.eval_masks and mode 3 left in the run's folders."""
    found = sorted(Path(config.out).glob("*.json")) + sorted(config.validation_folder().glob("result_*.json"))
    tables = []
    for path in found:
        content = _json(path)
        rows = {name: value for name, value in content.items() if isinstance(value, dict) and "iou" in value}
        if rows:
            names = next(iter(rows.values()))["iou"]
            shown = [c for c in names if any(row["iou"].get(c) is not None for row in rows.values())]
            lines = [{"name": n, "miou": r["miou"], "iou": [r["iou"].get(c) for c in shown]} for n, r in rows.items()]
            images = next(iter(rows.values())).get("images")
            tables.append({"file": path.name, "images": images, "classes": shown, "rows": lines})
    return tables


def _json(path: Path) -> dict:
    try:
        content = json.loads(read_bytes(path, 1 << 24))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@program
def main(argv: list[str] | None = None) -> None:
    print(f"open {make_pages(parse(argv, __doc__)).absolute()}")


if __name__ == "__main__":
    main()
