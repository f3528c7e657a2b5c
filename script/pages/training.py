"""sssdd.html, dssdd.html, recurseed.html and the like: the pictures that a training run logs, epoch by epoch."""

import base64
from pathlib import Path

import numpy as np

from datasets.errors import InputError
from datasets.voc import IGNORE, mask_path, read_mask, read_present
from engine import history, stages
from script.pages.document import link, read_json
from script.pages.masks import grid, grid_of, stamped
from settings.config import Config


def training_page(config: Config, stage: str, folder: Path) -> dict:
    """The page of a stage that says in its folder which pictures it logs (engine.history.note_columns)."""
    run = stages.folder(config, stage)
    logged = read_json(run / history.COLUMNS)
    done, epochs = progress_of(run)
    if logged and done and not _complete(run / "imgs", logged, done):
        done -= 1  # training, beside which this page is made, is still writing its last pictures
    if not logged or not done or not logged["ids"]:
        raise InputError(f"There are no pictures yet: {stages.command(config, stage)} writes them.")
    samples = [sample(config, run / "imgs", folder, image_id, done, logged["masks"]) for image_id in logged["ids"]]
    scored = logged.get("scores", {})
    for one in samples:
        stem = run / "imgs" / f"{one['id']}_{done:04d}"
        one["modules"] = {title: module(config, stem, one["id"], *names) for title, names in scored.items()}
    return {
        "rule": {"bias": logged["bias"], "bg": logged["bg"]} if scored else None,
        "view": "training",
        "note": f"{len(samples)} training images, logged after every epoch; {done} of {epochs} epochs are done. "
        + logged.get("about", ""),
        "running": done < epochs,
        "pictures": link(run / "imgs", folder) + "/",
        "epochs": list(range(1, done + 1)),
        "groups": [{"title": title, "columns": list(row.items())} for title, row in logged["rows"].items()],
        "scale": logged.get("scale", ""),
        "samples": samples,
    }


def _complete(pictures: Path, logged: dict, epoch: int) -> bool:
    """Whether all masks and maps of an epoch are there."""
    names = [f"{what}.png" for what in logged["masks"]]
    names += [f"{score}.npy" for *_, score in logged.get("scores", {}).values()]
    return all((pictures / f"{one}_{epoch:04d}_{name}").exists() for one in logged["ids"] for name in names)


def sample(config: Config, pictures: Path, folder: Path, image_id: str, done: int, masks: list[str]) -> dict:
    """One image: the grids of its masks by epoch, and its true mask if there is one."""
    grids = {}
    for epoch in range(1, done + 1):
        files = {what: stamped(pictures / f"{image_id}_{epoch:04d}_{what}.png") for what in masks}
        grids[epoch] = {what: grid_of(*file) for what, file in files.items() if file}
    truth = stamped(mask_path(config.voc_root, image_id))
    classes = {int(run.split("*")[0]) for g in grids.values() for text in g.values() for run in text.split(",")}
    return {
        "id": image_id,
        "classes": sorted(classes - {0, IGNORE}),
        "grids": {epoch: found for epoch, found in grids.items() if found},
        "truth": link(Path(truth[0]), folder) if truth else None,
        "truth_grid": grid_of(*truth) if truth else "",
    }


def module(config: Config, stem: Path, image_id: str, k: str, a: str, score: str) -> dict:
    """Knowledge, advice, true mask and σ(d_K) − σ(d_A) of one image on the maps' grid: what the page integrates anew.

    Args:
        stem: of the pictures of the image and the epoch.
        k, a, score: what follows it in the names of the three files.
    """
    masks = {"k": read_mask(Path(f"{stem}_{k}.png"), IGNORE), "a": read_mask(Path(f"{stem}_{a}.png"), IGNORE)}
    size = masks["k"].shape
    truth = mask_path(config.voc_root, image_id)
    if truth.exists():
        masks["truth"] = read_mask(truth, IGNORE)
    runs = {what: grid(mask, size) for what, mask in masks.items()}
    values = np.load(f"{stem}_{score}.npy", allow_pickle=False).astype("<i2").reshape(size)
    present = np.flatnonzero(read_present(config.voc_root, image_id)).tolist()
    return {"size": size, "present": present, "score": base64.b64encode(values.tobytes()).decode()} | runs


def progress_of(folder: Path) -> tuple[int, int]:
    """Complete epochs of a training run, and how many it is to have."""
    epochs = read_json(folder / "config.json").get("epochs")
    if not isinstance(epochs, int):
        return 0, 0
    return max((line.get("epoch", 0) for line in history.read(folder) if "seconds" in line), default=0), epochs
