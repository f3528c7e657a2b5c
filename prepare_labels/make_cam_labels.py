"""Step 2 of the label chain: multi-scale CAMs of the training images, and their CRFs for AffinityNet (PSA).

    python -m prepare_labels.make_cam_labels

Writes out_cam (CAMs of the present classes), out_la_crf and out_ha_crf (CRF with 'perhaps' and 'surely' background).
"""

import time
from pathlib import Path

import numpy as np
import torch

from datasets.errors import program
from datasets.seed_store import save_maps, store_path
from datasets.transforms import normalise
from datasets.voc import class_names, read_ids, read_image, read_present
from engine import checkpoint, distributed, runs
from engine.history import note_pass
from engine.progress import progress
from models.crf import CrfKernel, CrfWorkers, dense_crf
from models.psa.affinity import seed_maps
from models.psa.classifier import Classifier, multiscale_cam
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config, parse

KINDS = ("out_cam", "out_la_crf", "out_ha_crf")


def run(config: Config) -> None:
    device = distributed.start(config.device)
    ids = read_ids(config.voc_root, config.train_split)
    command = f"python -m prepare_labels.train_cls{config.flags()}"
    weights = runs.weights_or(config, config.label_network("cls"), command)
    folders = [config.labels_folder(kind) for kind in KINDS]
    foreground = len(class_names(config.voc_root)) - 1
    classifier = Classifier(foreground, config.width, config.dropout, config.backbone_dilation)
    checkpoint.load_into(classifier, weights)
    for folder in folders:
        runs.claim_folder(folder, config, "make_cam_labels", [weights, *runs.training_data(config)])
    classifier.to(device, memory_format=distributed.memory_format(device, config.width)).eval()
    started = time.perf_counter()
    mine = distributed.shard(ids)
    todo = [image_id for image_id in mine if not all(store_path(folder, image_id).exists() for folder in folders)]
    with (
        distributed.faults("--eval_batch", 1),
        CrfWorkers(distributed.workers(config.workers)) as workers,
        progress("CAM", len(todo), len(ids)) as bar,
    ):
        for image_id in todo:
            image = read_image(config.voc_root, image_id)
            classes = np.flatnonzero(read_present(config.voc_root, image_id))[1:]
            with distributed.autocast(device, config.precision):
                cam = multiscale_cam(
                    classifier, image, torch.from_numpy(classes - 1).to(device), config.cam_scales, normalise
                )
            alphas = (config.alpha_low, config.alpha_high)
            kernel = config.crf_kernel()
            workers.queue(
                store_cam, folders, image_id, image, classes, cam.cpu().numpy(), alphas, config.crf_labels, kernel
            )
            bar.update()
            refresh_now_and_then(config, "labels")
    distributed.barrier()
    if distributed.rank() == 0:
        note_pass(folders[0], len(todo), started)
        refresh(config, "labels")
        names = ", ".join(str(folder) for folder in folders)
        print(f"CAM: {names} are complete; next: python -m prepare_labels.train_aff{config.flags()}")


def store_cam(
    folders: list[Path],
    image_id: str,
    image: np.ndarray,
    classes: np.ndarray,
    cam: np.ndarray,
    alphas: tuple[float, float],
    iterations: int,
    kernel: CrfKernel,
) -> None:
    """Write the CAMs of one image (K×H×W) and the two CRFs of background and CAMs."""
    size = image.shape[:2]
    for folder, alpha in zip(folders[1:], alphas, strict=True):
        maps = dense_crf(image, seed_maps(torch.from_numpy(cam), alpha).numpy(), iterations, kernel)
        save_maps(store_path(folder, image_id), np.array([0, *classes]), maps, size, f"CAM, background {alpha:g}, CRF")
    save_maps(store_path(folders[0], image_id), classes, cam, size, "CAM")


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__))
    distributed.stop()


if __name__ == "__main__":
    main()
