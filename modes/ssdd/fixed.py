"""Mode 4: train the segmentation network alone on fixed seeds, with mode 0's schedule.

This is the "trained segmentation model" column of the poster: what a network makes of PSA, of PSA+CRF, of static
SSDD, and, as the upper bound, of the true masks.
"""

from functools import partial

import torch

from datasets.errors import InputError
from datasets.samples.seeds import SeedSamples
from datasets.voc import class_names
from engine import checkpoint, distributed, runs, seeds, stages
from engine.history import History
from engine.training import Losses, Training, cosine_rate, train
from models.ssdd.difference import cross_entropy
from modes.ssdd.networks import (
    build,
    freeze_for_ssdd,
    keeps_checkpoint,
    mixed_batch,
    need_partners,
    network_input,
    segmentation_optimiser,
    start_from_classifier,
)
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "mode 4"


def run(config: Config) -> None:
    config = config.stage(config.static_epochs)
    samples = fixed_seeds(config, runs.image_ids(config, config.train_split))
    device = distributed.start(config.device, ("--bn", config.bn))
    need_partners(config)
    layout = distributed.memory_format(device, config.width)
    folder = stages.folder(config, STAGE)

    torch.manual_seed(config.seed)
    segmentation, _ = build(config, dynamic=False)
    weights = start_from_classifier(config, segmentation)
    runs.claim(config, STAGE, [weights, samples.seeds["seed"], *runs.training_data(config)])
    last = stages.checkpoint_path(folder, "seg", config.epochs)
    if last.exists():
        print(f"mode 4: {last} is complete")
        return
    segmentation.to(device, memory_format=layout)
    freeze_for_ssdd(segmentation, segmentation)
    parallel = distributed.data_parallel(segmentation, device)
    classes = class_names(config.voc_root)

    def losses(batch: dict, _epoch: float) -> Losses:
        if config.certain_mix:
            batch = mixed_batch(config, batch, batch["seed"])
        with distributed.autocast(device, config.precision):
            logits = parallel(network_input(batch, layout)).main.logits
        return {"loss_seg": cross_entropy(logits, batch["seed"])}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if distributed.rank() == 0 and keeps_checkpoint(config, epoch):
            checkpoint.save_weights(stages.checkpoint_path(folder, "seg", epoch), segmentation, config, classes)

    training = Training(
        title=f"mode 4, {config.seed_source}",
        folder=folder,
        networks={"segmentation": segmentation},
        optimisers=[segmentation_optimiser(config, segmentation)],
        rate=cosine_rate(config.lr, config.epochs),
        samples=samples,
        batch=config.bn,
        batch_flag="--bn",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config),
    )
    train(training, config, device)
    if distributed.rank() == 0:
        refresh(config)
        print(f"mode 4: wrote {last}")
        print(f"next: {stages.command(config, 'mode 3')}")


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
