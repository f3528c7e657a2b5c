"""Step 3 of the label chain: train AffinityNet on the confident parts of the CRF'd CAMs (PSA).

    python -m prepare_labels.train_aff
"""

import torch

from datasets.errors import program
from datasets.samples.seeds import AffinityLabelSamples
from datasets.seed_store import store_path
from datasets.voc import read_ids
from engine import checkpoint, distributed, runs
from engine.history import History
from engine.training import poly_rate, sgd, train, wrapped
from models.psa.affinity import AffinityNet, affinity_loss, pair_affinities
from models.resnet38 import train_with_frozen_batchnorm
from prepare_labels.train_cls import freeze_first_blocks, groups
from script.make_pages import refresh
from settings.config import Config, parse

NEW = ("f8_", "f9.")


def run(config: Config) -> None:
    config = config.stage(config.aff_epochs)
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    ids = read_ids(config.voc_root, config.train_split)
    command = f"python -m prepare_labels.train_cls{config.flags()}"
    weights = runs.weights_or(config, config.label_network("cls"), command)
    low, high = (config.labels_folder(kind) for kind in ("out_la_crf", "out_ha_crf"))
    command = f"python -m prepare_labels.make_cam_labels{config.flags()}"
    for folder in (low, high):
        runs.need_maps([store_path(folder, image_id) for image_id in ids], command)
    path = config.label_network("aff")
    torch.manual_seed(config.seed)
    network = AffinityNet(config.width, config.dropout, config.backbone_dilation)
    checkpoint.load_into(network, weights, new=NEW, unused=("fc8.",))
    runs.claim_folder(path.parent, config, "train_aff", [weights, low, high, *runs.training_data(config)])
    if path.exists():
        print(f"affinity: {path} is complete")
        return
    train_with_frozen_batchnorm(network)
    freeze_first_blocks(network)
    network.to(device, memory_format=layout)
    optimiser = sgd(groups(network, NEW), 0, config.label_weight_decay)
    parallel = wrapped(network, device)

    def losses(batch: dict) -> tuple[dict, dict]:
        with distributed.autocast(device, config.precision):
            features = parallel(batch["x"].contiguous(memory_format=layout))
        return {"loss": affinity_loss(pair_affinities(features), batch["labels"])}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if epoch == config.epochs and distributed.rank() == 0:
            checkpoint.save_weights(path, network)

    train(
        config,
        "affinity",
        path.parent,
        device,
        {"affinity": network},
        [optimiser],
        poly_rate(config.aff_lr, config.epochs, config.label_power),
        AffinityLabelSamples(config.voc_root, ids, low, high, config.crop),
        config.aff_batch,
        losses,
        after_epoch,
        "labels",
        "--aff-batch",
    )
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"affinity: wrote {path}; next: python -m prepare_labels.make_aff_labels{config.flags()}")


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__))
    distributed.stop()


if __name__ == "__main__":
    main()
