"""Mode 4: train a segmentation network alone on fixed seeds.

With --network=resnet38 and mode 0's schedule this is the "trained segmentation model" column of the poster: what a
network makes of PSA, of PSA+CRF, of static SSDD, and, as the upper bound, of the true masks. With deeplabv2 or
deeplabv3plus it is the final network of other papers, with their schedule.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from datasets.errors import InputError
from datasets.samples.seeds import SeedSamples
from datasets.voc import class_names
from engine import checkpoint, distributed, runs, seeds, stages
from engine.history import History
from engine.training import Losses, Training, cosine_rate, poly_rate, sgd, train
from models.resnet38 import train_with_frozen_batchnorm
from models.ssdd.difference import cross_entropy
from modes.ssdd.networks import (
    build,
    final_network,
    freeze_for_ssdd,
    keeps_checkpoint,
    mixed_batch,
    need_partners,
    network_input,
    segmentation_optimiser,
    start_from_classifier,
    start_from_imagenet,
)
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "mode 4"


def run(config: Config) -> None:
    config = config.stage(config.static_epochs)
    samples = fixed_seeds(config, runs.image_ids(config, config.train_split))
    device = distributed.start(config.device, ("--bn", config.bn))
    need_partners(config)
    layout = distributed.memory_format(device, config.width, config.precision)
    folder = stages.folder(config, STAGE)

    torch.manual_seed(config.seed)
    segmentation, weights = started(config)
    runs.claim(config, STAGE, [*weights, samples.seeds["seed"], *runs.training_data(config)])
    last = stages.checkpoint_path(folder, "seg", config.epochs)
    if last.exists():
        print(f"mode 4: {last} is complete")
        return
    segmentation.to(device, memory_format=layout)
    learns = learns_batchnorm(config)
    if config.network == "resnet38":
        freeze_for_ssdd(segmentation, segmentation)
    elif not learns:
        train_with_frozen_batchnorm(segmentation)
    parallel = distributed.data_parallel(segmentation, device)
    classes = class_names(config.voc_root)

    def losses(batch: dict, _epoch: float) -> Losses:
        if config.certain_mix:
            batch = mixed_batch(config, batch, batch["seed"])
        with distributed.autocast(device, config.precision):
            output = parallel(network_input(batch, layout))
        logits = output.main.logits if config.network == "resnet38" else output
        return {"loss_seg": cross_entropy(logits, batch["seed"])}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if distributed.rank() == 0 and keeps_checkpoint(config, epoch):
            checkpoint.save_weights(stages.checkpoint_path(folder, "seg", epoch), segmentation, config, classes)

    training = Training(
        title=f"mode 4, {config.seed_source}",
        folder=folder,
        networks={"segmentation": segmentation},
        optimisers=[optimiser_of(config, segmentation)],
        rate=rate_of(config),
        samples=samples,
        batch=config.bn,
        batch_flag="--bn",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config),
        drop_rest=learns,
    )
    train(training, config, device)
    if distributed.rank() == 0:
        refresh(config)
        print(f"mode 4: wrote {last}")
        print(f"next: {stages.command(config, 'mode 3')}")


def started(config: Config) -> tuple[nn.Module, list[Path]]:
    """The network, with the weights that it starts from, and the files that these came from.

    Raises:
        InputError: they are missing or do not fit, or the batch is too small for the network.
    """
    if config.network == "resnet38":
        segmentation, _ = build(config, dynamic=False)
        return segmentation, [start_from_classifier(config, segmentation)]
    if distributed.share(config.bn) < 2 and learns_batchnorm(config):
        raise InputError(f"--bn={config.bn}: {config.network} learns BatchNorm, which needs 2 images a process or more")
    network = final_network(config, len(class_names(config.voc_root)))
    return network, start_from_imagenet(config, network)


def learns_batchnorm(config: Config) -> bool:
    """DeepLabv3+ does, as published; others from scratch alone; ResNet-38, which the classifier starts, never."""
    return config.network == "deeplabv3plus" or (config.network != "resnet38" and not config.weights)


def optimiser_of(config: Config, network: nn.Module) -> torch.optim.SGD:
    """Heads learn 10 times as fast as the backbone; those of DeepLabv3+ as fast (both as published)."""
    if config.network == "deeplabv3plus":
        return sgd([(list(network.parameters()), 1.0)], config.momentum, config.weight_decay)
    return segmentation_optimiser(config, network)


def rate_of(config: Config) -> Callable[[float], float]:
    if config.network == "resnet38":
        return cosine_rate(config.lr, config.epochs)
    return poly_rate(config.lr, config.epochs, config.poly_power)


def fixed_seeds(config: Config, ids: list[str]) -> SeedSamples:
    """Samples of the seeds that --seed_source names, which must all be there.

    Raises:
        InputError: no source is named, it is unknown, or seeds are missing.
    """
    if not config.seed_source:
        raise InputError(f"--mode=4 needs --seed_source: one of {seeds.known_names()}")
    source = seeds.source(config, config.seed_source)
    seeds.need(config, source, ids)
    return SeedSamples(config.voc_root, ids, {"seed": source.folder}, config.crop, config.static_side)
