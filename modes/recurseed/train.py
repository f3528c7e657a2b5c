"""Train RecurSeed: one network that makes its own seeds at every step, then mixes certain objects into other images."""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from datasets.samples.recurseed import RecurSeedSamples
from datasets.voc import class_names
from engine import checkpoint, distributed, runs, stages
from engine.history import History
from engine.training import Losses, Training, poly_rate, train
from models.recurseed.certain import label_shares
from models.recurseed.network import RecurSeedNetwork
from models.recurseed.optimisation import parameter_groups, update_average
from models.recurseed.steps import RecurSeedStep, StepResult
from modes.recurseed.networks import NETWORK, build, seed_settings, start_from_given
from modes.recurseed.pictures import logged, write_columns, write_pictures
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "recurseed train"
NEW_LAYERS = 10.0  # factor on the learning rate (later code)


def run(config: Config) -> None:
    config = config.stage(config.recurseed_epochs)
    device = distributed.start(config.device, ("--recurseed_batch", config.recurseed_batch))
    layout = distributed.memory_format(device, config.recurseed_width, config.precision)
    folder = stages.folder(config, STAGE)
    ids = runs.image_ids(config, config.train_split)

    torch.manual_seed(config.seed)
    classes = class_names(config.voc_root)
    network = build(config, len(classes))
    weights = start_from_given(config, network)
    runs.claim(config, STAGE, [*weights, *runs.training_data(config)])
    pictures = logged(ids, config.pictures)
    if distributed.rank() == 0:
        write_columns(folder, pictures, config)
    last = stages.checkpoint_path(folder, NETWORK, config.epochs)
    if last.exists():
        print(f"RecurSeed: {last} is complete")
        return
    step = RecurSeedStep(network, seed_settings(config)).train()
    step.to(device, memory_format=layout)
    average = deepcopy(network).requires_grad_(False)
    parallel = distributed.data_parallel(step, device)

    def losses(batch: dict, moment: float) -> Losses:
        x = batch["x"].contiguous(memory_format=layout)
        with distributed.autocast(device, config.precision):
            result = parallel(x, batch["present"], batch["inside"], *started(config, moment))
        return {f"loss_{name}": loss for name, loss in result.losses._asdict().items()}, shares(result)

    def after_epoch(epoch: int, history: History | None) -> None:
        if history is not None:
            step.eval()
            write_pictures(config, step, pictures, epoch, history)
            step.train()
        if distributed.rank() == 0 and (epoch % config.checkpoint_epochs == 0 or epoch == config.epochs):
            checkpoint.save_weights(stages.checkpoint_path(folder, NETWORK, epoch), average, config, classes)

    training = Training(
        title="RecurSeed",
        folder=folder,
        networks={"network": network, "average": average},
        optimisers=[optimiser_of(config, network)],
        rate=poly_rate(config.recurseed_lr, config.epochs, config.recurseed_power),
        samples=RecurSeedSamples(config.voc_root, ids, config.recurseed_side, config.recurseed_crop),
        batch=config.recurseed_batch,
        batch_flag="--recurseed_batch",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config, stages.STAGES[STAGE].page),
        after_step=lambda steps: update_average(average, network, steps, config.average_decay),
    )
    train(training, config, device)
    if distributed.rank() == 0:
        refresh(config, stages.STAGES[STAGE].page)
        print(f"RecurSeed: wrote {last}, pictures in {folder / 'imgs'}")
        print(f"next: {stages.command(config, 'recurseed labels')}")


def started(config: Config, moment: float) -> tuple[bool, bool]:
    """Whether own seeds, and mixed images, are learned from at a fractional epoch; the settings count from 1."""
    epoch = int(moment) + 1
    learns = epoch >= config.recurseed_from
    return learns, learns and epoch >= config.mix_from


def shares(result: StepResult) -> dict[str, Tensor]:
    """Shares of pixels whose label is ignored (255), foreground and background; and of images that were mixed."""
    found = {}
    if result.seeds is not None:
        names = ("share_ignored", "share_foreground", "share_background")
        found |= dict(zip(names, label_shares(result.seeds.labels), strict=True))
    if result.mixed is not None:
        found["share_mixed"] = result.mixed.mixed.float().mean()
    return found


def optimiser_of(config: Config, network: RecurSeedNetwork) -> torch.optim.Optimizer:
    """Over the release's four groups: SGD, new layers learn faster; or AdamW, one rate for all. Only weights decay."""
    groups = parameter_groups(network)
    from_scratch = config.recurseed_optimiser == "adamw"
    faster = 1.0 if from_scratch else NEW_LAYERS
    chosen = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for parameters, factor, decay in (
            (groups.backbone_weights, 1.0, config.recurseed_weight_decay),
            (groups.backbone_biases, 1.0, 0.0),
            (groups.new_weights, faster, config.recurseed_weight_decay),
            (groups.new_biases, faster, 0.0),
        )
    ]
    if from_scratch:
        # The decoder's loss begins far above what L_cls has become: the mean of squared gradients has to follow.
        return torch.optim.AdamW(chosen, lr=0, betas=(0.9, 0.99), fused=True)
    return torch.optim.SGD(chosen, lr=0, momentum=config.recurseed_momentum, fused=True)
