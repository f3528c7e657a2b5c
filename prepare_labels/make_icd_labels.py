"""Step 3 of ICD: the seeds of the training images.

    python -m prepare_labels.make_icd_labels
    python -m prepare_labels.make_icd_labels --saliency SALIENCY      # background from grey maps ID.png, no CRF

Writes masks with 255 for unknown pixels: out_icd (the seed, source `icd`) and out_icd_crf (after CRF, `icd_crf`); with
--saliency out_icd_saliency (`icd_saliency`).
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.errors import program
from datasets.saliency import read_saliency
from datasets.transforms import as_tensor
from datasets.voc import (
    IGNORE,
    check_pictures,
    class_names,
    image_path,
    open_image,
    read_image,
    read_present,
    write_mask,
)
from engine import checkpoint, distributed, runs, stages
from engine.passes import image_pass
from engine.workers import crf_kernel
from models.crf import CrfKernel
from models.icd.network import IcdNetwork
from models.icd.seeds import class_maps, icd_seed, seed_after_crf
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.flags import parse


def run(config: Config) -> None:
    stage = "make_icd_saliency_labels" if config.saliency else "make_icd_labels"
    device = distributed.start(config.device, precision=config.precision)
    ids = runs.image_ids(config, config.train_split)
    if config.saliency and distributed.rank() == 0:
        check_pictures(config.saliency, config.voc_root, ids, "L", "saliency maps")
    weights = runs.start_weights(config, "train_icd")
    checkpoint.need_classes(weights, config.voc_root)
    folders = [stages.folder(config, stage, which) for which in range(len(stages.STAGES[stage].folders))]
    classes = len(class_names(config.voc_root))
    network = IcdNetwork(classes - 1, config.icd_width, config.icd_batchnorm)
    checkpoint.fill_icd(network, checkpoint.load_vgg(weights), weights)
    saliency = [Path(config.saliency)] if config.saliency else []
    runs.claim(config, stage, [weights, *saliency, *runs.training_data(config)])
    network.to(device, memory_format=distributed.memory_format(device, config.icd_width, config.precision)).eval()

    def is_done(image_id: str) -> bool:
        return all((folder / f"{image_id}.png").exists() for folder in folders)

    unknown = []
    refreshed = partial(refresh_now_and_then, config, "labels")
    with image_pass(config, stages.STAGES[stage].title, folders[0], ids, is_done, refreshed) as left:
        for image_id in left.to_do:
            with distributed.autocast(device, config.precision):
                seed = seed_of(config, network, image_id, device)
            if (seed == IGNORE).all():
                unknown.append(image_id)
            crf = (config.crf_icd, crf_kernel(config))
            left.write(
                image_id, store_seed, folders, image_id, image_path(config.voc_root, image_id), seed, classes, *crf
            )
    if unknown:
        print(f"warning: nothing is known in the seeds of {' '.join(unknown)}", file=sys.stderr, flush=True)
    if distributed.rank() == 0:
        refresh(config, "labels")
        names = [seeds.name for seeds in stages.STAGES[stage].seeds]
        follow = stages.command(replace(config, knowledge=names[0], advice=names[-1]), "mode 0")
        said = f"next: {follow}" if len(names) > 1 else f"named --knowledge={names[0]} or --advice={names[0]}"
        print(f"ICD: {' and '.join(map(str, folders))} complete; {said}")


def seed_of(config: Config, network: IcdNetwork, image_id: str, device: torch.device) -> np.ndarray:
    """The seed of an image before CRF, H×W uint8."""
    image = as_tensor(read_image(config.voc_root, image_id))
    present = np.flatnonzero(read_present(config.voc_root, image_id, difficult=False))[1:]
    classes = torch.from_numpy(present).to(device)
    t, cam = class_maps(network, image.to(device), classes, config.icd_side)
    saliency = None
    if config.saliency:
        saliency = torch.from_numpy(read_saliency(Path(config.saliency) / f"{image_id}.png", image.shape[1:])).to(
            device
        )
    return icd_seed(t, cam, classes, saliency).cpu().numpy().astype(np.uint8)


def store_seed(
    folders: list[Path],
    image_id: str,
    photo: Path,
    seed: np.ndarray,
    classes: int,
    iterations: int,
    kernel: CrfKernel,
) -> None:
    """Write the seed of one image into the first folder and, where there is a second one, what a CRF makes of it.

    Args:
        photo: the image's file.
        classes: how many there are, background included.
    """
    for folder in folders[1:]:
        refined = seed_after_crf(open_image(photo), seed, classes, iterations, kernel)
        write_mask(folder / f"{image_id}.png", refined)
    write_mask(folders[0] / f"{image_id}.png", seed)


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "icd"))
    distributed.stop()


if __name__ == "__main__":
    main()
