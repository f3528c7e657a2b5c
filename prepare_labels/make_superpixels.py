"""Step 1 of ICD: superpixels of the training images, Felzenszwalb's, the most similar merged to at most 64.

    python -m prepare_labels.make_superpixels --weights vgg16_20M.pth
    python -m prepare_labels.make_superpixels --superpixel_features=colour

What is similar, the features of an ImageNet VGG16 say (vgg16_20M, or torchvision's), or without weights the colours.
Who has the authors' superpixels gives their folder to train_icd as --superpixels instead. Writes superpixels/ID.png.
"""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.errors import InputError, program
from datasets.superpixels import superpixel_path, write_superpixels
from datasets.transforms import as_tensor
from datasets.voc import image_path, open_image, read_image
from engine import checkpoint, distributed, runs, stages
from engine.passes import image_pass
from models.icd.superpixels import colour_histograms, felzenszwalb, merged, region_means, superpixel_features
from models.vgg16 import Vgg16, padded_side
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.flags import parse

STAGE = "make_superpixels"


def run(config: Config) -> None:
    device = distributed.start(config.device, precision=config.precision)
    ids = runs.image_ids(config, config.train_split)
    folder = stages.folder(config, STAGE)
    network = imagenet_network(config) if config.superpixel_features == "imagenet" else None
    made_from = [Path(config.weights)] if network else []
    runs.claim(config, STAGE, [*made_from, *runs.training_data(config)])
    if network:
        network.to(device, memory_format=distributed.memory_format(device, 1.0)).eval()

    def is_done(image_id: str) -> bool:
        return superpixel_path(folder, image_id).exists()

    refreshed = partial(refresh_now_and_then, config, "labels")
    with image_pass(config, "superpixels", folder, ids, is_done, refreshed) as left:
        for image_id in left.to_do:
            features = None
            if network:
                image = as_tensor(read_image(config.voc_root, image_id)).to(device)
                with distributed.autocast(device, config.precision):
                    features = superpixel_features(network, image, config.icd_side).float().cpu().numpy()
            photo, path = image_path(config.voc_root, image_id), superpixel_path(folder, image_id)
            sizes = (config.superpixel_threshold, config.superpixel_least, config.superpixel_most)
            left.write(image_id, store_superpixels, path, photo, features, config.icd_side, *sizes)
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"superpixels: {folder} is complete; next: {stages.command(config, 'train_icd')}")


def imagenet_network(config: Config) -> Vgg16:
    """The VGG16 of --weights, of which the convolutions alone are needed.

    Raises:
        InputError: no weights are named, or they are another network's.
    """
    if not config.weights:
        raise InputError(
            "--weights: superpixels are compared by the features of an ImageNet VGG16, so name vgg16_20M.pth or "
            "torchvision's; without one give --superpixel_features=colour"
        )
    state = checkpoint.load_vgg(runs.start_weights(config, STAGE))
    network = Vgg16()
    own = {key: value for key, value in state.items() if key in network.state_dict()}
    checkpoint.fill(network, own, config.weights)
    return network


def store_superpixels(
    path: Path, photo: Path, features: np.ndarray | None, side: int, threshold: float, least: int, most: int
) -> None:
    """Write the superpixels of one image.

    Args:
        photo: its file.
        features: C×h×w of the image in a square of at least `side` pixels; None: its colours instead.
        threshold, least: see models.icd.superpixels.felzenszwalb; most: that are left.
    """
    image = open_image(photo)
    ids = felzenszwalb(image, threshold, least)
    if features is None:
        means = colour_histograms(image, ids)
    else:
        means = region_means(features, ids, padded_side(*image.shape[:2], side))
    write_superpixels(path, merged(ids, means, most))


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "icd"))
    distributed.stop()


if __name__ == "__main__":
    main()
