"""Mode 0: train the segmentation network and the DD-Net on PSA (knowledge) against PSA+CRF (advice)."""

import torch

from datasets.voc import read_ids
from engine import distributed, runs
from engine.training import wrapped
from models.ssdd.difference.steps import StaticStep, StepResult
from modes.ssdd.networks import (
    build,
    freeze_for_ssdd,
    module_figures,
    network_input,
    seed_samples,
    start_from_classifier,
    train_ssdd,
)
from script.make_pages import refresh
from settings.config import Config


def run(config: Config) -> None:
    config = config.stage(config.static_epochs)
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    folder = config.run_folder(0)
    samples = seed_samples(config, read_ids(config.voc_root, config.train_split), config.static_side)

    torch.manual_seed(config.seed)
    segmentation, ddnet = build(config, dynamic=False)
    weights = start_from_classifier(config, segmentation)
    made_from = [weights, samples.knowledge, samples.advice, *runs.training_data(config)]
    runs.claim_folder(folder, config, "mode 0", made_from)
    last = runs.numbered(folder, "seg", config.epochs)
    if last.exists():
        print(f"mode 0: {last} is complete")
        return
    step = StaticStep(segmentation, ddnet, config.integration()).to(device, memory_format=layout)
    freeze_for_ssdd(step, segmentation)
    parallel = wrapped(step, device)

    def result_of(batch: dict, network=step) -> StepResult:
        return network(network_input(batch, layout), batch["present"], batch["knowledge"], batch["advice"])

    def losses(batch: dict) -> tuple[dict, dict]:
        with distributed.autocast(device, config.precision):
            result = result_of(batch, parallel)
        return {"loss_seg": result.loss_seg, "loss_dd": result.loss_dd}, module_figures(result)

    train_ssdd(config, 0, device, step, samples, losses, result_of)
    if distributed.rank() == 0:
        refresh(config, "sssdd")
        print(f"mode 0: wrote {last}, pictures in {folder / 'imgs'}")
        print(f"next: python main_ssdd.py --mode=1{config.flags()}")
