"""The pictures that training logs after every epoch: the labels as they grow, and mixed images with mixed labels."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.pictures import mask_colours, scale_colours, write_photo, write_picture
from datasets.transforms import MEAN, STD, as_tensor, normalise, resize_square
from datasets.voc import class_names, mask_path, read_mask, read_present, read_reduced, write_mask
from engine import distributed, stages
from engine.history import History, note_columns
from evaluation.metrics import confusion, mean_iou
from models.crf import present_probabilities
from models.inference import resize
from models.recurseed.cam import choose, normalised_cam
from models.recurseed.certain import Mixed, certain_mix
from models.recurseed.inference import crf_images
from models.recurseed.network import Output
from models.recurseed.steps import RecurSeedStep, Seeds
from settings.config import Config

MASKS = ("seed", "decoder", "mixseed")
ABOUT = (
    "M_rs: what SCG and PAMR make of the CAM; the certain labels are what the decoder learns from, unknown where "
    "CertainFilter is not certain. Pictures are made by the network in evaluation mode, also for epochs before "
    "RecurSeed and CertainMix start, when the decoder has learned nothing."
)


def logged(ids: list[str], count: int) -> list[str]:
    """The images whose pictures are logged, spread over the training list."""
    return [ids[n] for n in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]


def write_columns(folder: Path, ids: list[str], config: Config) -> None:
    """Say, for the pages, which pictures a run logs and how they stand side by side."""
    rows = {
        f"RecurSeed, from epoch {config.recurseed_from} on": {
            "photo": "image",
            "cam": "CAM",
            "seed": "certain labels of M_rs",
            "decoder": "decoder",
            "truth": "true mask",
        },
        f"CertainMix, from epoch {config.mix_from} on": {"mixed": "mixed image", "mixseed": "mixed labels"},
    }
    note_columns(folder, rows, list(MASKS), ids, ABOUT, "CAM, relative to its maximum")


@torch.no_grad()
def write_pictures(config: Config, step: RecurSeedStep, ids: list[str], epoch: int, history: History) -> None:
    """<id>_<epoch>_<what>.png for what = cam, seed, decoder, mixed, mixseed; <id>.jpg once; mIoU of the labels.

    Args:
        step: in evaluation mode.
    """
    folder = stages.folder(config, "recurseed train") / "imgs"
    counts: dict[str, np.ndarray] = {}
    for start in range(0, len(ids), config.recurseed_batch):
        some = ids[start : start + config.recurseed_batch]
        x, present = whole_images(config, some, next(step.parameters()).device)
        inside = torch.ones_like(x[:, 0], dtype=torch.bool)
        with distributed.autocast(x.device, config.precision):
            output = step.network(x)
            seeds = step.seeds(output, x, present, inside)
        # Each with the one before it: what is drawn would not be the same in a run that was interrupted here.
        mixed = certain_mix(x, seeds.mix_labels, present, torch.arange(len(some), device=x.device).roll(1))
        pictures = pictures_of(x, present, output, seeds, mixed)
        photos = crf_images(x, MEAN, STD).cpu().numpy()
        for n, image_id in enumerate(some):
            if not (folder / f"{image_id}.jpg").exists():
                write_photo(folder / f"{image_id}.jpg", photos[n])
            own = {what: pixels[n] for what, pixels in pictures.items()}
            for what, pixels in own.items():
                write = write_mask if what in MASKS else write_picture
                write(folder / f"{image_id}_{epoch:04d}_{what}.png", pixels)
            count_pixels(config.voc_root, image_id, {what: own[what] for what in ("seed", "decoder")}, counts)
            history.picture(image_id, side_by_side(photos[n], own), epoch)
    if counts:
        history.epoch(epoch, {f"miou_{what}": mean_iou(total) for what, total in counts.items()})


def whole_images(config: Config, ids: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """N×3×crop×crop normalised, the aspect ratio not kept, and their labels N×C."""
    side, root = config.recurseed_crop, config.voc_root
    images = [resize_square(as_tensor(read_reduced(root, image_id, side)[0]), side) for image_id in ids]
    present = torch.stack([torch.from_numpy(read_present(root, image_id)) for image_id in ids])
    layout = distributed.memory_format(device, config.recurseed_width, config.precision)
    x = normalise(torch.stack(images).to(device)).contiguous(memory_format=layout)
    return x, present.to(device)


def pictures_of(x: Tensor, present: Tensor, output: Output, seeds: Seeds, mixed: Mixed) -> dict[str, np.ndarray]:
    """Of each kind N pictures: masks N×h×w, others N×h×w×3 uint8."""
    size = tuple(x.shape[-2:])
    cam = choose(normalised_cam([resize(output.cam.float(), size)]), seeds.chosen).amax(dim=1)
    decoded = resize(present_probabilities(output.seg, present), size).argmax(dim=1)
    return {
        "cam": np.stack([scale_colours(one) for one in cam.clamp(0, 1).cpu().numpy()]),
        "seed": seeds.labels.cpu().numpy().astype(np.uint8),
        "decoder": decoded.cpu().numpy().astype(np.uint8),
        "mixed": crf_images(mixed.x, MEAN, STD).cpu().numpy(),
        "mixseed": mixed.labels.cpu().numpy().astype(np.uint8),
    }


def side_by_side(photo: np.ndarray, own: dict[str, np.ndarray]) -> np.ndarray:
    """One row for TensorBoard, all as large as the photograph."""
    columns = [photo, *(mask_colours(pixels) if what in MASKS else pixels for what, pixels in own.items())]
    size = photo.shape[1::-1]
    return np.concatenate([cv2.resize(one, size, interpolation=cv2.INTER_NEAREST) for one in columns], axis=1)


def count_pixels(root: str, image_id: str, masks: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> None:
    """Add to `counts` the confusion of masks of an image that has a true mask; for people only."""
    if not mask_path(root, image_id).exists():
        return
    classes = len(class_names(root))
    truth = read_mask(mask_path(root, image_id), classes)
    for what, mask in masks.items():
        mask = cv2.resize(mask, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
        counts[what] = counts.get(what, 0) + confusion(truth, mask, classes)
