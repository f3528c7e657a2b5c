"""Masks of a split from the trained network without and with CRF, and their mIoU.

The image-level labels choose the classes of training images; of others, the network's own scores.
"""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.voc import write_mask, write_submission
from engine import distributed, runs, stages
from engine.passes import image_pass
from models.crf import CrfKernel, dense_crf
from modes.recurseed.networks import ImageMaps, crf_kernel, image_ids, labelled_maps, trained_network
from modes.scores import kinds_of, report
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "recurseed evaluate"


def run(config: Config) -> None:
    device = distributed.start(config.device)
    ids = image_ids(config, config.split)
    network, weights = trained_network(config, device)
    runs.claim(config, STAGE, [weights])
    folder = stages.folder(config, STAGE)
    kinds = kinds_of(config, STAGE)

    def is_done(image_id: str) -> bool:
        return all((kind / f"{image_id}.png").exists() for kind in kinds.values())

    page = stages.STAGES[STAGE].page
    refreshed = partial(refresh_now_and_then, config, page)
    labelled = config.split == "train"
    how = "by its labels" if labelled else ""
    with image_pass(config, "RecurSeed, validation", folder, ids, is_done, refreshed, how=how) as left:
        for image_id in left.to_do:
            found = labelled_maps(config, network, device, image_id, labelled)
            outputs = [kind / f"{image_id}.png" for kind in kinds.values()]
            left.write(image_id, write_masks, found, outputs, config.recurseed_crf, crf_kernel(config))
    if distributed.rank() == 0:
        report(config, STAGE, ids)
        if config.submit:
            write_submission(config.submit, folder / "crf", config.voc_root, ids)
            print(f"RecurSeed: packed {len(ids)} masks for VOC's evaluation server into {config.submit}")
        refresh(config, page)


def write_masks(found: ImageMaps, outputs: list[Path], iterations: int, kernel: CrfKernel) -> None:
    """Write the mask of one image without and with CRF."""
    refined = dense_crf(found.image, found.maps, iterations, kernel)
    for path, maps in zip(outputs, (found.maps, refined), strict=True):
        write_mask(path, found.classes[maps.argmax(axis=0)].astype(np.uint8))
