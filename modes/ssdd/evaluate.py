"""Mode 3: multi-scale inference with seg_main, dense CRF, mIoU."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.transforms import as_tensor
from datasets.voc import (
    image_path,
    open_image,
    read_image,
    write_mask,
    write_submission,
)
from engine import checkpoint, distributed, runs, stages
from engine.loading import Batches
from engine.passes import image_pass
from engine.workers import crf_kernel
from models.crf import CrfKernel, dense_crf
from models.inference import multiscale_probabilities, resize
from modes.scores import kinds_of, report
from modes.ssdd.networks import network_input, network_to_evaluate
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "mode 3"


class SquareImages(Dataset):
    """image 3×side×side uint8, the photograph resized with OpenCV."""

    def __init__(self, root: str, ids: list[str], side: int):
        self.root, self.ids, self.side = root, ids, side

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image = cv2.resize(read_image(self.root, self.ids[index]), (self.side, self.side))
        return {"id": self.ids[index], "image": as_tensor(image)}


def run(config: Config) -> None:
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width, config.precision)
    ids = runs.image_ids(config, config.split)
    folder = stages.folder(config, STAGE)
    if config.weights:
        weights = runs.start_weights(config, "train_cls")
    else:
        weights = runs.last_checkpoint(config, "mode 4" if config.seed_source else "mode 2", "seg")
    checkpoint.need_classes(weights, config.voc_root)
    network = network_to_evaluate(config)
    checkpoint.load_into(network, weights, unused=("seg_sub.",))
    network.to(device, memory_format=layout).eval()
    runs.claim(config, STAGE, [weights])

    kinds = kinds_of(config, STAGE)

    def is_done(image_id: str) -> bool:
        return all((kind / f"{image_id}.png").exists() for kind in kinds.values())

    images = SquareImages(config.voc_root, ids, config.eval_size)
    write = write_masks if config.network == "resnet38" else write_masks_of_mean
    refreshed = partial(refresh_now_and_then, config, "val")
    with image_pass(config, STAGE, folder, ids, is_done, refreshed, ("--eval_batch", config.eval_batch)) as left:
        for batch in Batches(config, images, left.keys(), device):
            with distributed.autocast(device, config.precision):
                summed = multiscale_probabilities(network, network_input(batch, layout), config.eval_scales)
            for image_id, maps in zip(batch["id"], summed.cpu().numpy(), strict=True):
                outputs = [kind / f"{image_id}.png" for kind in kinds.values()]
                photo = image_path(config.voc_root, image_id)
                left.write(image_id, write, photo, maps, outputs, config.crf_eval, crf_kernel(config))
    if distributed.rank() == 0:
        report(config, STAGE, ids)
        if config.submit:
            write_submission(config.submit, folder / "crf", config.voc_root, ids)
            print(f"mode 3: packed {len(ids)} masks for VOC's evaluation server into {config.submit}")
        refresh(config, "val")
        print(f"next: python -m tools.predict PICTURES --weights {weights} --out masks")


def write_masks(photo: Path, summed: np.ndarray, outputs: list[Path], iterations: int, kernel: CrfKernel) -> None:
    """Write the mask of one image without and with CRF, at the image's own size.

    Args:
        photo: file of the image.
        summed: C×s×s, the sum of softmaxes over scales and mirrors.
    """
    image = open_image(photo)
    # The softmax of a sum of probabilities is flat; the published evaluation feeds just that to the CRF.
    probabilities = torch.softmax(resize(torch.from_numpy(summed)[None], image.shape[:2]), dim=1)[0].numpy()
    write_both(image, probabilities, outputs, iterations, kernel)


def write_masks_of_mean(
    photo: Path, summed: np.ndarray, outputs: list[Path], iterations: int, kernel: CrfKernel
) -> None:
    """`write_masks` whose CRF is given the mean of the softmaxes, as DeepLab's is."""
    image = open_image(photo)
    mean = torch.from_numpy(summed / summed.sum(axis=0))
    write_both(image, resize(mean[None], image.shape[:2])[0].numpy(), outputs, iterations, kernel)


def write_both(
    image: np.ndarray, probabilities: np.ndarray, outputs: list[Path], iterations: int, kernel: CrfKernel
) -> None:
    refined = dense_crf(image, probabilities, iterations, kernel)
    for path, maps in zip(outputs, (probabilities, refined), strict=True):
        write_mask(path, maps.argmax(axis=0).astype(np.uint8))
