"""Seeds of the training images from the trained network: its maps by the image-level labels, and their CRF."""

from functools import partial
from pathlib import Path

from datasets.seed_store import save_maps, store_path
from engine import distributed, runs, stages
from engine.passes import image_pass
from models.crf import CrfKernel, dense_crf
from modes.recurseed.networks import ImageMaps, crf_kernel, image_ids, labelled_maps, trained_network
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.crf import as_text, noted

STAGE = "recurseed labels"


def run(config: Config) -> None:
    device = distributed.start(config.device)
    ids = image_ids(config, config.train_split)
    network, weights = trained_network(config, device)
    runs.claim(config, STAGE, [weights, *runs.training_data(config)])
    folders = [stages.folder(config, STAGE, which) for which in range(2)]

    def is_done(image_id: str) -> bool:
        return all(store_path(folder, image_id).exists() for folder in folders)

    refreshed = partial(refresh_now_and_then, config, "labels")
    with image_pass(config, "RecurSeed, seeds", folders[0], ids, is_done, refreshed) as left:
        for image_id in left.to_do:
            found = labelled_maps(config, network, device, image_id, labelled=True)
            paths = [store_path(folder, image_id) for folder in folders]
            left.write(image_id, store_seeds, paths, found, config.recurseed_crf, crf_kernel(config))
    if distributed.rank() == 0:
        refresh(config, "labels")
        names = " and ".join(str(folder) for folder in folders)
        print(f"RecurSeed: seeds of {len(ids)} images are complete in {names}")
        print(f"next: {stages.command(config, 'recurseed evaluate')}")


def store_seeds(paths: list[Path], found: ImageMaps, iterations: int, kernel: CrfKernel) -> None:
    """Write the maps of one image after the CRF, and last the maps that it was given."""
    refined = dense_crf(found.image, found.maps, iterations, kernel)
    after = f"RecurSeed, {as_text(noted(kernel, iterations))}"
    for path, maps, made_by in ((paths[1], refined, after), (paths[0], found.maps, "RecurSeed")):
        save_maps(path, found.classes, maps, found.image.shape[:2], made_by)
