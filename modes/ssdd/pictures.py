"""The pictures that modes 0 and 2 log after every epoch, the columns in which they stand, and figures about them."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from datasets.files import atomic_write
from datasets.pictures import difference_colours, mask_colours, write_photo, write_picture
from datasets.samples.seeds import SeedSamples
from datasets.voc import mask_path, read_mask, write_mask
from engine.history import History, note_columns
from engine.loading import to_device
from evaluation.metrics import confusion
from models.ssdd.difference import class_pixels, difference_map
from models.ssdd.segmentation import masked_prediction
from models.ssdd.steps import Integration, StepResult

MASKS, MAPS = "kad", ("dk", "da")  # knowledge, advice, integrated; difference maps; the number is that of the module
ABOUT = "d_K and d_A: how likely the DD-Net, seeing K or A, thinks a pixel to change between the two."


def write_columns(
    folder: Path, samples: SeedSamples, count: int, titles: dict[str, tuple], seed: int, how: Integration
) -> None:
    """Say, for the pages, which pictures a run logs and how they stand side by side.

    Args:
        folder: of the run.
        count: logged images.
        titles: of each SSDD module, (knowledge, advice).
        seed: number of the module whose knowledge is the seed.
        how: the integration that the page begins with.
    """
    rows = {"": {"photo": "image", f"k{seed}": "seed", f"d{seed}": "integrated", "truth": "true mask"}}
    for n, (module, (knowledge, advice)) in enumerate(titles.items(), 1):
        rows[module] = {
            f"k{n}": f"K: {knowledge}",
            f"dk{n}": "d_K",
            f"da{n}": "d_A",
            f"a{n}": f"A: {advice}",
            f"d{n}": "integrated",
        }
    masks = [f"{what}{n}" for n in range(1, len(titles) + 1) for what in MASKS]
    ids = [samples.ids[n] for n in places(samples, count)]
    scores = {module: (f"k{n}", f"a{n}", f"s{n}") for n, module in enumerate(titles, 1)}
    start = {"scores": scores, "bias": how.bias, "bg": how.bg}
    note_columns(folder, rows, masks, ids, ABOUT, "d_K, d_A: probability of a change", start)


def places(samples: SeedSamples, count: int) -> list[int]:
    """Of the images whose pictures are logged, spread over the training list."""
    count = min(count, len(samples))
    return np.linspace(0, len(samples) - 1, count).astype(int).tolist() if count else []


class PictureSamples:
    """The same few whole images after every epoch.

    Args:
        count: how many.
        batch: images a forward pass.
    """

    def __init__(self, samples: SeedSamples, count: int, batch: int):
        self.places, self.batch = places(samples, count), batch
        self.samples = SeedSamples(
            samples.root, samples.ids, samples.seeds, samples.crop, differences=samples.differences
        )

    def batches(self, device: torch.device) -> Iterator[dict]:
        for start in range(0, len(self.places), self.batch):
            samples = [self.samples[n] for n in self.places[start : start + self.batch]]
            yield to_device(default_collate(samples), device)


def write_pictures(folder: Path, epoch: int, batch: dict, result: StepResult, history: History) -> None:
    """<id>_<epoch>_<what>.png for what = k1 a1 dk1 da1 d1, in mode 2 also k2 … d2; <id>.jpg once; and
    <id>_<epoch>_s1.npy, σ(d_K) − σ(d_A) in steps of 1/32767, from which the page integrates anew.

    TensorBoard gets K, d_K, d_A, A and the integrated mask side by side, one row a module.
    """
    for n, image_id in enumerate(batch["id"]):
        photo = folder / f"{image_id}.jpg"
        if not photo.exists():
            write_photo(photo, batch["image"][n].movedim(0, -1).cpu().numpy())
        rows = []
        for number, module in enumerate(result.modules, 1):
            file = {what: folder / f"{image_id}_{epoch:04d}_{what}{number}.png" for what in ("k", "dk", "da", "a", "d")}
            masks = {"k": module.knowledge, "a": module.advice, "d": module.refined}
            masks = {what: mask[n].cpu().numpy() for what, mask in masks.items()}
            maps = {"dk": module.d_k, "da": module.d_a}
            maps = {what: difference_colours(d[n, 0].float().cpu().numpy()) for what, d in maps.items()}
            for what, mask in masks.items():
                write_mask(file[what], mask)
            for what, pixels in maps.items():
                write_picture(file[what], pixels)
            score = (torch.sigmoid(module.d_k[n, 0].float()) - torch.sigmoid(module.d_a[n, 0].float())).cpu().numpy()
            with atomic_write(folder / f"{image_id}_{epoch:04d}_s{number}.npy") as path, open(path, "wb") as stream:
                np.save(stream, np.rint(32767 * score).astype(np.int16))
            colours = maps | {what: mask_colours(mask) for what, mask in masks.items()}
            rows.append(np.concatenate([colours[what] for what in file], axis=1))
        history.picture(image_id, np.concatenate(rows), epoch)


def count_pixels(root: str, batch: dict, result: StepResult, counts: dict[str, np.ndarray]) -> None:
    """Add to `counts` the confusion of each mask of the logged pictures that have a true mask; for people only."""
    for n, image_id in enumerate(batch["id"]):
        if not mask_path(root, image_id).exists():
            continue
        classes = batch["present"].shape[1]
        truth = read_mask(mask_path(root, image_id), classes)
        for number, module in enumerate(result.modules, 1):
            for what, masks in {"k": module.knowledge, "a": module.advice, "d": module.refined}.items():
                mask = masks[n].cpu().numpy().astype(np.uint8)
                mask = cv2.resize(mask, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
                counts[f"{what}{number}"] = counts.get(f"{what}{number}", 0) + confusion(truth, mask, classes)


def module_figures(result: StepResult, present: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of each module: the share of pixels with advice taken, among those where knowledge and advice differ, and the
    share of images with a missing-class flag; and the share of labelled classes that the network's own mask shows."""
    labelled = present[:, 1:].sum().clamp(min=1)
    own = masked_prediction(result.logits[0], present)
    shares = {"shown": ((class_pixels(own, present.shape[1]) > 0) * present)[:, 1:].sum() / labelled}
    for number, module in enumerate(result.modules, 1):
        differs = difference_map(module.knowledge, module.advice)[:, 0] > 0
        taken = differs & (module.refined == module.advice)
        shares[f"advice{number}"] = taken.sum() / differs.sum().clamp(min=1)
        shares[f"flagged{number}"] = module.flags.any(dim=1).float().mean()
    return shares
