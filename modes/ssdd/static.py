"""Mode 0: train the segmentation network and the DD-Net on the knowledge (PSA) against the advice (PSA+CRF).

Of several advisers each has a DD module of its own, which learns against what the integration of those before gave.
"""

from functools import partial

import torch

from engine import distributed, runs, seeds, stages
from engine.training import Losses
from models.ssdd.steps import StaticStep, StepResult
from modes.ssdd import segments
from modes.ssdd.networks import (
    build,
    freeze_for_ssdd,
    integration,
    masks_of,
    network_input,
    pair_samples,
    start_from_classifier,
    train_ssdd,
)
from modes.ssdd.pictures import module_figures, module_titles, write_columns
from script.make_pages import refresh
from settings.config import Config

STAGE = "mode 0"


def run(config: Config) -> None:
    config = config.stage(config.static_epochs)
    device = distributed.start(config.device, ("--bn", config.bn))
    layout = distributed.memory_format(device, config.width, config.precision)
    folder = stages.folder(config, STAGE)
    ids = runs.image_ids(config, config.train_split)
    segments.make(config, ids)
    samples = pair_samples(config, ids, config.static_side)

    torch.manual_seed(config.seed)
    segmentation, ddnet = build(config, dynamic=False)
    weights = start_from_classifier(config, segmentation)
    runs.claim(config, STAGE, [weights, *samples.seeds.values(), *runs.training_data(config)])
    dd_last, last = (stages.checkpoint_path(folder, name, config.epochs) for name in ("ssdd", "seg"))
    if dd_last.exists() and last.exists():
        print(f"mode 0: {last} is complete")
        return
    step = StaticStep(segmentation, ddnet, integration(config)).to(device, memory_format=layout)
    freeze_for_ssdd(step, segmentation)
    parallel = distributed.data_parallel(step, device)

    def result_of(batch: dict, network=step) -> StepResult:
        return network(network_input(batch, layout), batch["present"], *masks_of(batch))

    def losses(batch: dict, _epoch: float) -> Losses:
        with distributed.autocast(device, config.precision):
            result = result_of(batch, parallel)
        return {"loss_seg": result.loss_seg, "loss_dd": result.loss_dd}, module_figures(result, batch["present"])

    titles = module_titles([source.title for source in seeds.pair(config).values()])
    columns = partial(write_columns, folder, samples, config.pictures, titles, 1, integration(config))
    train_ssdd(config, STAGE, device, step, samples, losses, result_of, columns)
    if distributed.rank() == 0:
        refresh(config, stages.STAGES[STAGE].page)
        print(f"mode 0: wrote {last}, pictures in {folder / 'imgs'}")
        print(f"next: {stages.command(config, 'mode 1')}")
