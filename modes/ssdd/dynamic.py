"""Mode 2: two SSDD modules and the segmentation network, end to end."""

from functools import partial

import torch

from datasets.seed_store import store_path
from datasets.voc import read_ids
from engine import distributed, runs
from engine.training import wrapped
from models.crf import CrfWorkers, masks_after_crf
from models.exact_crf import exact_masks
from models.ssdd.difference.steps import DynamicStep, StepResult, integrated
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
    config = config.stage(config.dynamic_epochs)
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    folder = config.run_folder(2)
    differences = config.precompute_folder()
    ids = read_ids(config.voc_root, config.train_split)
    command = f"python main_ssdd.py --mode=1{config.flags()}"
    runs.need_maps([store_path(differences, image_id) for image_id in ids], command)
    samples = seed_samples(
        config,
        ids,
        config.dynamic_side,
        differences=differences,
        move_maps=config.move_maps,
        swap_maps=config.swap_maps,
    )

    torch.manual_seed(config.seed)
    segmentation, ddnet = build(config, dynamic=True)
    weights = start_from_classifier(config, segmentation)
    made_from = [weights, samples.knowledge, samples.advice, differences, *runs.training_data(config)]
    runs.claim_folder(folder, config, "mode 2", made_from)
    last = runs.numbered(folder, "seg", config.epochs)
    if last.exists():
        print(f"mode 2: {last} is complete")
        return
    exact = config.crf == "exact"
    with CrfWorkers(distributed.workers(config.workers) if config.crf_workers and not exact else 0) as workers:
        function = exact_masks if exact else partial(masks_after_crf, workers=workers)
        crf = partial(function, iterations=config.crf_train, kernel=config.crf_kernel())
        step = DynamicStep(segmentation, ddnet, config.integration(), config.alpha, config.seed_target, crf)
        step.to(device, memory_format=layout)
        freeze_for_ssdd(step, segmentation)
        parallel = wrapped(step, device)

        def result_of(batch: dict, network=step) -> StepResult:
            m_ssdd0 = integrated(
                batch["knowledge"],
                batch["advice"],
                batch["d_k"],
                batch["d_a"],
                batch["present"],
                config.seed_integration(),
            ).refined
            return network(network_input(batch, layout), batch["present"], batch["small"], m_ssdd0)

        def losses(batch: dict) -> tuple[dict, dict]:
            with distributed.autocast(device, config.precision):
                result = result_of(batch, parallel)
            return {"loss_seg": result.loss_seg, "loss_dd": result.loss_dd}, module_figures(result)

        train_ssdd(config, 2, device, step, samples, losses, result_of)
    if distributed.rank() == 0:
        refresh(config, "dssdd")
        print(f"mode 2: wrote {last}, pictures in {folder / 'imgs'}")
        print(f"next: python main_ssdd.py --mode=3{config.flags()}")
