"""Step 4 of the label chain: spread the CAMs by the learned affinities, then CRF (PSA).

    python -m prepare_labels.make_aff_labels

Writes out_aff (PSA, the knowledge of mode 0, on the feature grid) and out_aff_crf (PSA+CRF, its advice).
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.errors import program
from datasets.seed_store import read_seed, save_maps, store_path
from datasets.transforms import as_tensor, normalise
from datasets.voc import image_path, open_image, read_image
from engine import checkpoint, distributed, runs, stages
from engine.passes import image_pass
from engine.workers import crf_kernel
from models.crf import CrfKernel, dense_crf
from models.psa.affinity import (
    AffinityNet,
    pad_to_cells,
    pair_affinities,
    pool_to_cells,
    random_walk,
    seed_maps,
    unpool_from_cells,
)
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.crf import as_text, noted
from settings.flags import parse

STAGE = "make_aff_labels"


def run(config: Config) -> None:
    device = distributed.start(config.device, precision=config.precision)
    layout = distributed.memory_format(device, config.width, config.precision)
    ids = runs.image_ids(config, config.train_split)
    weights = runs.start_weights(config, "train_aff")
    cams = stages.folder(config, "make_cam_labels")
    maps = [store_path(cams, image_id) for image_id in ids]
    runs.need_all(maps, stages.command(config, "make_cam_labels"))
    walked, refined = (stages.folder(config, STAGE, which) for which in (0, 1))
    network = AffinityNet(config.width, config.dropout, config.backbone_dilation)
    checkpoint.load_into(network, weights)
    runs.claim(config, STAGE, [weights, cams, *runs.training_data(config)])
    network.to(device, memory_format=layout).eval()

    def is_done(image_id: str) -> bool:
        return store_path(walked, image_id).exists() and store_path(refined, image_id).exists()

    def read(image_id: str) -> tuple:
        image = read_image(config.voc_root, image_id)
        return image, read_seed(cams, image_id, image.shape[:2])

    refreshed = partial(refresh_now_and_then, config, "labels")
    with image_pass(config, "PSA", walked, ids, is_done, refreshed) as left:
        for image_id, (image, cam) in left.read_ahead(read):
            with torch.inference_mode():
                x = pad_to_cells(normalise(as_tensor(image)[None].to(device)))
                with distributed.autocast(device, config.precision):
                    features = network(x.contiguous(memory_format=layout))
                maps = pool_to_cells(seed_maps(torch.from_numpy(cam.maps).to(device), config.alpha_walk))
                low = random_walk(pair_affinities(features), maps[None], config.walk_power, config.walk_log_steps)[0]
            classes = np.array([0, *cam.classes])
            crf = (config.crf_labels, crf_kernel(config))
            photo = image_path(config.voc_root, image_id)
            left.write(image_id, store_psa, walked, refined, image_id, photo, classes, low.cpu().numpy(), *crf)
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"PSA: {walked} and {refined} are complete; next: {stages.command(config, 'mode 0')}")


def store_psa(
    walked: Path,
    refined: Path,
    image_id: str,
    photo: Path,
    classes: np.ndarray,
    low: np.ndarray,
    iterations: int,
    kernel: CrfKernel,
) -> None:
    """Write the walk's result of one image (K×h×w on the feature grid) and its CRF at full size; photo: its file."""
    image = open_image(photo)
    size = image.shape[:2]
    maps = unpool_from_cells(torch.from_numpy(low), size).numpy()
    made_by = f"PSA+CRF, {as_text(noted(kernel, iterations))}"
    save_maps(store_path(refined, image_id), classes, dense_crf(image, maps, iterations, kernel), size, made_by)
    save_maps(store_path(walked, image_id), classes, low, size, "PSA")


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "psa"))
    distributed.stop()


if __name__ == "__main__":
    main()
