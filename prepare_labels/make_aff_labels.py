"""Step 4 of the label chain: spread the CAMs by the learned affinities, then CRF (PSA).

    python -m prepare_labels.make_aff_labels

Writes out_aff (PSA, the knowledge of mode 0, on the feature grid) and out_aff_crf (PSA+CRF, its advice).
"""

import time
from pathlib import Path

import numpy as np
import torch

from datasets.errors import program
from datasets.samples.seeds import as_tensor, read_seed
from datasets.seed_store import save_maps, store_path
from datasets.transforms import normalise
from datasets.voc import read_ids, read_image
from engine import checkpoint, distributed, runs
from engine.history import note_pass
from engine.progress import progress
from models.crf import CrfKernel, CrfWorkers, dense_crf
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
from settings.config import Config, parse


def run(config: Config) -> None:
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    ids = read_ids(config.voc_root, config.train_split)
    command = f"python -m prepare_labels.train_aff{config.flags()}"
    weights = runs.weights_or(config, config.label_network("aff"), command)
    cams = config.labels_folder("out_cam")
    command = f"python -m prepare_labels.make_cam_labels{config.flags()}"
    runs.need_maps([store_path(cams, image_id) for image_id in ids], command)
    walked, refined = (config.labels_folder(kind) for kind in ("out_aff", "out_aff_crf"))
    network = AffinityNet(config.width, config.dropout, config.backbone_dilation)
    checkpoint.load_into(network, weights)
    for folder in (walked, refined):
        runs.claim_folder(folder, config, "make_aff_labels", [weights, cams, *runs.training_data(config)])
    network.to(device, memory_format=layout).eval()
    started = time.perf_counter()
    mine = distributed.shard(ids)
    todo = [i for i in mine if not (store_path(walked, i).exists() and store_path(refined, i).exists())]
    with (
        distributed.faults("--eval_batch", 1),
        CrfWorkers(distributed.workers(config.workers)) as workers,
        progress("PSA", len(todo), len(ids)) as bar,
    ):
        for image_id in todo:
            image = read_image(config.voc_root, image_id)
            cam = read_seed(cams, image_id, image.shape[:2])
            with torch.inference_mode():
                x = pad_to_cells(normalise(as_tensor(image)[None].to(device)))
                with distributed.autocast(device, config.precision):
                    features = network(x.contiguous(memory_format=layout))
                maps = pool_to_cells(seed_maps(torch.from_numpy(cam.maps).to(device), config.alpha_walk))
                low = random_walk(pair_affinities(features), maps[None], config.walk_power, config.walk_log_steps)[0]
            classes = np.array([0, *cam.classes])
            workers.queue(
                store_psa,
                walked,
                refined,
                image_id,
                image,
                classes,
                low.cpu().numpy(),
                config.crf_labels,
                config.crf_kernel(),
            )
            bar.update()
            refresh_now_and_then(config, "labels")
    distributed.barrier()
    if distributed.rank() == 0:
        note_pass(walked, len(todo), started)
        refresh(config, "labels")
        print(f"PSA: {walked} and {refined} are complete; next: python main_ssdd.py --mode=0{config.flags()}")


def store_psa(
    walked: Path,
    refined: Path,
    image_id: str,
    image: np.ndarray,
    classes: np.ndarray,
    low: np.ndarray,
    iterations: int,
    kernel: CrfKernel,
) -> None:
    """Write the walk's result of one image (K×h×w on the feature grid) and its CRF at full size."""
    size = image.shape[:2]
    maps = unpool_from_cells(torch.from_numpy(low), size).numpy()
    save_maps(store_path(refined, image_id), classes, dense_crf(image, maps, iterations, kernel), size, "PSA+CRF")
    save_maps(store_path(walked, image_id), classes, low, size, "PSA")


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__))
    distributed.stop()


if __name__ == "__main__":
    main()
