"""Step 2 of the label chain: multi-scale CAMs of the training images, and their CRFs for AffinityNet (PSA).

    python -m prepare_labels.make_cam_labels

Writes out_cam (CAMs of the present classes), out_la_crf and out_ha_crf (CRF with 'perhaps' and 'surely' background).
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.errors import program
from datasets.seed_store import save_maps, store_path
from datasets.transforms import normalise
from datasets.voc import class_names, image_path, open_image, read_image, read_present
from engine import checkpoint, distributed, runs, stages
from engine.passes import image_pass
from engine.workers import crf_kernel
from models.crf import CrfKernel, dense_crf
from models.psa.affinity import seed_maps
from models.psa.classifier import Classifier, scaled_images, summed_cam
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.crf import as_text, noted
from settings.flags import parse

STAGE = "make_cam_labels"


def run(config: Config) -> None:
    device = distributed.start(config.device, precision=config.precision)
    ids = runs.image_ids(config, config.train_split, "cam_scales")
    weights = runs.start_weights(config, "train_cls")
    checkpoint.need_classes(weights, config.voc_root)
    folders = [stages.folder(config, STAGE, which) for which in range(3)]
    foreground = len(class_names(config.voc_root)) - 1
    classifier = Classifier(foreground, config.width, config.dropout, config.backbone_dilation)
    checkpoint.load_into(classifier, weights)
    runs.claim(config, STAGE, [weights, *runs.training_data(config)])
    classifier.to(device, memory_format=distributed.memory_format(device, config.width, config.precision)).eval()

    def is_done(image_id: str) -> bool:
        return all(store_path(folder, image_id).exists() for folder in folders)

    def read(image_id: str) -> tuple:
        image = read_image(config.voc_root, image_id)
        classes = np.flatnonzero(read_present(config.voc_root, image_id))[1:]
        return image.shape[:2], scaled_images(image, config.cam_scales), classes

    refreshed = partial(refresh_now_and_then, config, "labels")
    alphas = (config.alpha_low, config.alpha_high)
    with image_pass(config, "CAM", folders[0], ids, is_done, refreshed) as left:
        for image_id, (size, images, classes) in left.read_ahead(read):
            present = torch.from_numpy(classes - 1).to(device)
            with distributed.autocast(device, config.precision):
                cam = summed_cam(classifier, images, size, present, normalise).cpu().numpy()
            crf = (config.crf_labels, crf_kernel(config))
            photo = image_path(config.voc_root, image_id)
            left.write(image_id, store_cam, folders, image_id, photo, classes, cam, alphas, *crf)
    if distributed.rank() == 0:
        refresh(config, "labels")
        names = ", ".join(str(folder) for folder in folders)
        print(f"CAM: {names} are complete; next: {stages.command(config, 'train_aff')}")


def store_cam(
    folders: list[Path],
    image_id: str,
    photo: Path,
    classes: np.ndarray,
    cam: np.ndarray,
    alphas: tuple[float, float],
    iterations: int,
    kernel: CrfKernel,
) -> None:
    """Write the CAMs of one image (K×H×W) and the two CRFs of background and CAMs; photo: its file."""
    image = open_image(photo)
    size = image.shape[:2]
    for folder, alpha in zip(folders[1:], alphas, strict=True):
        maps = dense_crf(image, seed_maps(torch.from_numpy(cam), alpha).numpy(), iterations, kernel)
        made_by = f"CAM, background {alpha:g}, {as_text(noted(kernel, iterations))}"
        save_maps(store_path(folder, image_id), np.array([0, *classes]), maps, size, made_by)
    save_maps(store_path(folders[0], image_id), classes, cam, size, "CAM")


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "psa"))
    distributed.stop()


if __name__ == "__main__":
    main()
