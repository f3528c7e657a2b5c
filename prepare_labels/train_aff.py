"""Step 3 of the label chain: train AffinityNet on the confident parts of the CRF'd CAMs (PSA).

    python -m prepare_labels.train_aff

It starts from the classifier's weights.
"""

from functools import partial

import torch

from datasets.errors import program
from datasets.samples.affinity_labels import AffinityLabelSamples
from datasets.seed_store import store_path
from engine import checkpoint, distributed, runs, stages
from engine.history import History
from engine.training import Losses, Training, poly_rate, sgd, train
from models.psa.affinity import AffinityNet, affinity_loss, pair_affinities
from models.psa.rates import parameter_groups
from models.resnet38 import freeze_first_blocks, train_with_frozen_batchnorm
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.flags import parse

STAGE = "train_aff"
NEW = ("f8_", "f9.")


def run(config: Config) -> None:
    config = config.stage(config.aff_epochs)
    device = distributed.start(config.device, ("--aff_batch", config.aff_batch), config.precision)
    layout = distributed.memory_format(device, config.width, config.precision)
    ids = runs.image_ids(config, config.train_split)
    weights = runs.start_weights(config, "train_cls")
    low, high = (stages.folder(config, "make_cam_labels", which) for which in (1, 2))
    for folder in (low, high):
        maps = [store_path(folder, image_id) for image_id in ids]
        runs.need_all(maps, stages.command(config, "make_cam_labels"))
    path = stages.label_network(config, STAGE)
    torch.manual_seed(config.seed)
    network = AffinityNet(config.width, config.dropout, config.backbone_dilation)
    checkpoint.load_into(network, weights, new=NEW, unused=("fc8.",))
    runs.claim(config, STAGE, [weights, low, high, *runs.training_data(config)])
    if path.exists():
        print(f"affinity: {path} is complete")
        return
    train_with_frozen_batchnorm(network)
    freeze_first_blocks(network)
    network.to(device, memory_format=layout)
    parallel = distributed.data_parallel(network, device)

    def losses(batch: dict, _epoch: float) -> Losses:
        with distributed.autocast(device, config.precision):
            features = parallel(batch["x"].contiguous(memory_format=layout))
        return {"loss": affinity_loss(pair_affinities(features), batch["labels"])}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if epoch == config.epochs and distributed.rank() == 0:
            checkpoint.save_weights(path, network)

    training = Training(
        title="affinity",
        folder=path.parent,
        networks={"affinity": network},
        optimisers=[sgd(parameter_groups(network, NEW), 0, config.label_weight_decay)],
        rate=poly_rate(config.aff_lr, config.epochs, config.label_power),
        samples=AffinityLabelSamples(config.voc_root, ids, low, high, config.crop),
        batch=config.aff_batch,
        batch_flag="--aff_batch",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config, "labels"),
    )
    train(training, config, device)
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"affinity: wrote {path}; next: {stages.command(config, 'make_aff_labels')}")


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "psa"))
    distributed.stop()


if __name__ == "__main__":
    main()
