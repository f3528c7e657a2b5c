"""The masks of an adviser `segments:FOLDER`: regions without classes, which take them from the knowledge.

Made before mode 0, as a store of masks like any other's; modes 1 and 2 read that.
"""

from functools import partial
from pathlib import Path

import torch

from datasets.seed_store import read_seed
from datasets.segments import need_segments, read_segments
from datasets.voc import class_names, image_size, write_mask
from engine import distributed, runs, seeds, stages
from engine.passes import image_pass
from models.ssdd.regions import region_advice
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "segments"


def make(config: Config, ids: list[str]) -> None:
    """Make what is missing of the masks, if one of the advisers is of this kind.

    Raises:
        InputError: regions are missing, damaged, or of another size than their image.
    """
    regions = seeds.segments_folder(config)
    if regions is None:
        return
    knowledge = seeds.pair(config)["knowledge"]
    seeds.need(config, knowledge, ids)
    need_segments(regions, ids)
    runs.claim(config, STAGE, [knowledge.folder, regions, *runs.training_data(config)])
    folder, classes = stages.folder(config, STAGE), len(class_names(config.voc_root))

    def is_done(image_id: str) -> bool:
        return (folder / f"{image_id}.png").exists()

    refreshed = partial(refresh_now_and_then, config, "labels")
    with image_pass(config, stages.STAGES[STAGE].title, folder, ids, is_done, refreshed) as left:
        for image_id in left.to_do:
            size = image_size(config.voc_root, image_id)
            left.write(image_id, write_advice, folder, image_id, knowledge.folder, regions, size, classes)
    if distributed.rank() == 0:
        refresh(config, "labels")


def write_advice(
    folder: Path, image_id: str, knowledge: Path, regions: Path, size: tuple[int, int], classes: int
) -> None:
    """Write the mask of one image."""
    mask = torch.from_numpy(read_seed(knowledge, image_id, size, None, classes).mask())
    found = torch.from_numpy(read_segments(regions, image_id, size))
    write_mask(folder / f"{image_id}.png", region_advice(mask, found, classes).numpy())
