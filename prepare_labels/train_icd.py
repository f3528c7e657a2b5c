"""Step 2 of ICD: train its network on image-level labels and superpixels.

    python -m prepare_labels.train_icd --weights vgg16_20M.pth
    python -m prepare_labels.train_icd --weights vgg16_20M.pth --superpixels THEIRS      # the authors' files
    torchrun --nproc_per_node=2 -m prepare_labels.train_icd --weights vgg16_20M.pth

--weights: vgg16_20M (through tools.convert_weights), from which all starts that the published network does;
torchvision's vgg16, for the convolutions alone; or none, then everything learns from scratch, for which
--icd_batchnorm is meant. BatchNorm and the class means see the images of all devices together.
"""

import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.errors import InputError, program
from datasets.samples.superpixels import SuperpixelSamples
from datasets.superpixels import superpixel_path
from datasets.voc import check_pictures, class_names, read_present
from engine import checkpoint, distributed, runs, stages
from engine.history import History
from engine.training import Losses, Training, poly_rate, train
from models.icd.network import IcdNetwork
from models.icd.optimiser import Momentum
from models.icd.step import IcdStep
from models.icd.top_down import warm_up, warm_up_steps
from models.vgg16 import subtract_mean
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.flags import parse

STAGE = "train_icd"
FEW = 16  # images a step, with which the authors' statistics were made; with 4 a user lost 10 points
DRAWN = ("fc6.", "fc7.", "fc8.", "feat_bn.", "icd_", "fc6_ft.", "fc7_ft.", "conv_ft.")


def run(config: Config) -> None:
    config = config.stage(config.icd_epochs)
    device = distributed.start(config.device, ("--icd_batch", config.icd_batch), config.precision)
    layout = distributed.memory_format(device, config.icd_width, config.precision)
    ids = runs.image_ids(config, config.train_split)
    superpixels = superpixel_folder(config, ids)
    check_labels_and_batch(config, ids)
    path = stages.label_network(config, STAGE)
    torch.manual_seed(config.seed)
    classes = class_names(config.voc_root)
    network = IcdNetwork(len(classes) - 1, config.icd_width, config.icd_batchnorm, config.dropout)
    start = start_from(network, runs.start_weights(config, STAGE)) if config.weights else "from scratch, no --weights"
    made_from = [Path(config.weights)] if config.weights else []
    runs.claim(config, STAGE, [*made_from, superpixels, *runs.training_data(config)])
    if distributed.rank() == 0:
        print(f"ICD: {path} is complete" if path.exists() else f"ICD: learning {start}", flush=True)
    if path.exists():
        return
    step = IcdStep(network, config.superpixel_most + 1).to(device, memory_format=layout).train()
    parallel = distributed.data_parallel(step, device)
    steps, slow_start = len(ids) // config.icd_batch, warm_up_steps(len(ids), config.icd_batch)

    def losses(batch: dict, epoch: float) -> Losses:
        x = subtract_mean(batch["image"]).contiguous(memory_format=layout)
        with distributed.autocast(device, config.precision):
            factor = warm_up(round(epoch * steps), slow_start)
            result = parallel(x, batch["present"], batch["superpixels"], factor)
        names = ("loss_cam", "loss_bottom_up", "loss_top_down")
        return {name: getattr(result, name) for name in names}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if distributed.rank() == 0:
            checkpoint.save_weights(stages.checkpoint_path(path.parent, "icd", epoch), network, config, classes)
            stages.checkpoint_path(path.parent, "icd", epoch - config.icd_checkpoints).unlink(missing_ok=True)
            if epoch == config.epochs:
                checkpoint.save_weights(path, network, config, classes)

    training = Training(
        title="ICD",
        folder=path.parent,
        networks={"icd": network},
        optimisers=[optimiser_of(config, network)],
        rate=rate_of(config),
        samples=SuperpixelSamples(
            config.voc_root, ids, superpixels, config.icd_crop, config.icd_scales, config.superpixel_most
        ),
        batch=config.icd_batch,
        batch_flag="--icd_batch",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config, "labels"),
        drop_rest=True,
    )
    train(training, config, device)
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"ICD: wrote {path}; next: {stages.command(config, 'make_icd_labels')}")


def superpixel_folder(config: Config, ids: list[str]) -> Path:
    """The folder of --superpixels, or of make_superpixels, which has a file for every image.

    Raises:
        InputError: a file is missing, or its header says that it is another picture's.
    """
    folder = Path(config.superpixels) if config.superpixels else stages.folder(config, "make_superpixels")
    if not config.superpixels:
        paths = [superpixel_path(folder, image_id) for image_id in ids]
        runs.need_all(paths, stages.command(config, "make_superpixels"))
    if distributed.rank() == 0:
        check_pictures(folder, config.voc_root, ids, "RGB", "superpixel files")
    return folder


def check_labels_and_batch(config: Config, ids: list[str]) -> None:
    """Warn of what ICD cannot learn from; the first process does.

    Raises:
        InputError: a step takes more images than there are, or an annotation cannot be read.
    """
    images = config.icd_batch
    if images > len(ids):
        raise InputError(f"--icd_batch={images}: {config.train_split} lists {len(ids)} images; give a smaller one")
    if distributed.rank() != 0:
        return
    present = np.stack([read_present(config.voc_root, image_id, difficult=False)[1:] for image_id in ids])
    alone = present[present.sum(axis=1) == 1].sum(axis=0)
    never = [name for c, name in enumerate(class_names(config.voc_root)[1:]) if present[:, c].any() and not alone[c]]
    if never:
        warn(
            f"{', '.join(never)}: never alone in an image; the bottom-up part learns from such images only, so that "
            "its direction stays the one that was drawn, and the seeds of the class are not to be trusted"
        )
    if images < FEW:
        warn(
            f"a step takes {images} images; BatchNorm and the class means need {FEW} or more "
            "(with 4 instead of 32 about 50 instead of 60 mIoU): give a larger --icd_batch"
        )


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def start_from(network: IcdNetwork, path: Path) -> str:
    """Fill the network from VGG16's weights, or from those of a trained ICD; which layers were drawn instead.

    Raises:
        InputError: the weights are another network's.
    """
    state = checkpoint.load_vgg(path)
    own = network.state_dict()
    if "icd_bu_weight" in state:
        checkpoint.fill_icd(network, state, path)
        return f"on from the trained network {path}"
    # An ImageNet classifier's last layers are of no use here.
    state = {key: value for key, value in state.items() if key in own and not key.startswith(("fc8.", "feat_bn."))}
    checkpoint.fill_icd(network, state, path, new=DRAWN)
    network.start_fine_tuned_layers()
    drawn = {key.split(".")[0]: None for key in own if key not in state and not key.startswith(("fc6_ft.", "fc7_ft."))}
    drawn.pop("icd_accum_resign_moving_mean")
    return f"from {path}; drawn are {', '.join(drawn)}; fc6_ft and fc7_ft start as copies of fc6 and fc7"


def optimiser_of(config: Config, network: IcdNetwork) -> Momentum:
    groups = network.parameter_groups(config.icd_lr, config.icd_weight_decay)
    for group in groups:
        group["factor"] = group.pop("rate")
    return Momentum(groups, config.icd_lr, config.icd_momentum)


def rate_of(config: Config):
    """lr(e) = base·(1 − e/epochs)^power, e the number of complete epochs: constant within each."""
    poly = poly_rate(config.icd_lr, config.epochs, config.icd_power)
    # What is added makes up for rounding: 2 + 3/3 may be less than 3.
    return lambda epoch: poly(math.floor(epoch + 1e-9))


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "icd"))
    distributed.stop()


if __name__ == "__main__":
    main()
