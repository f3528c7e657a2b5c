"""Mode 2: two SSDD modules and the segmentation network, end to end."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from datasets.samples.seeds import StoredDifferences
from datasets.seed_store import store_path
from datasets.voc import class_names
from engine import checkpoint, distributed, notes, runs, stages
from engine.training import Losses
from engine.workers import Workers, at_most_cores, crf_kernel
from models.crf import masks_after_crf
from models.exact_crf import exact_masks
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import DynamicStep, StepResult, integrated_in_turn
from modes.ssdd.networks import (
    build,
    freeze_for_ssdd,
    integration,
    masks_of,
    mixed_batch,
    need_partners,
    network_input,
    pair_samples,
    seed_integration,
    start_from_classifier,
    train_ssdd,
)
from modes.ssdd.pictures import module_figures, write_columns
from script.make_pages import refresh
from settings.config import Config

STAGE = "mode 2"
MODULES = {"Module 1: the network's mask": ("mask", "after CRF"), "Module 2: the seed": ("seed", "module 1")}


def run(config: Config) -> None:
    config = config.stage(config.dynamic_epochs)
    device = distributed.start(config.device, ("--bn", config.bn))
    need_partners(config)
    layout = distributed.memory_format(device, config.width, config.precision)
    folder = stages.folder(config, STAGE)
    config = with_settled_crf(config, device, folder / "config.json")
    ids = runs.image_ids(config, config.train_split)
    differences = StoredDifferences(stages.folder(config, "mode 1"), config.move_maps, config.swap_maps)
    maps = [store_path(differences.folder, image_id) for image_id in ids]
    runs.need_all(maps, stages.command(config, "mode 1"))
    runs.need_same_pair(config, differences.folder)
    samples = pair_samples(config, ids, config.dynamic_side, differences=differences)
    runs.need_same_seeds(config, differences.folder, list(samples.seeds.values()))

    torch.manual_seed(config.seed)
    segmentation, ddnet = build(config, dynamic=True)
    weights = start(config, segmentation)
    runs.claim(config, STAGE, [weights, *samples.seeds.values(), differences.folder, *runs.training_data(config)])
    last = stages.checkpoint_path(folder, "seg", config.epochs)
    if last.exists():
        print(f"mode 2: {last} is complete")
        return
    exact = config.crf == "exact"
    with Workers(at_most_cores(config.workers) if config.crf_workers and not exact else 0) as workers:
        crf = training_crf(config, workers)
        step = DynamicStep(segmentation, ddnet, integration(config), config.alpha, config.seed_target, crf)
        step.to(device, memory_format=layout)
        freeze_for_ssdd(step, segmentation)
        parallel = distributed.data_parallel(step, device)

        def result_of(batch: dict, network=step, epoch: float = config.epochs, mix: bool = False) -> StepResult:
            (knowledge, *advices), maps = masks_of(batch), (batch["d_k"], batch["d_a"])
            seeded = integrated_in_turn(knowledge, advices, *maps, batch["present"], seed_integration(config))
            m_ssdd0 = seeded[-1].refined
            if mix:
                # What all members of the pair say is certain.
                agreed = torch.stack([advice == knowledge for advice in advices]).all(dim=0)
                batch = mixed_batch(config, batch, m_ssdd0, agreed)
                m_ssdd0 = batch["seed"]
            seed_teaches = epoch < config.seed_epochs
            return network(network_input(batch, layout), batch["present"], batch["small"], m_ssdd0, seed_teaches)

        def losses(batch: dict, epoch: float) -> Losses:
            with distributed.autocast(device, config.precision):
                result = result_of(batch, parallel, epoch, config.certain_mix > 0)
            return {"loss_seg": result.loss_seg, "loss_dd": result.loss_dd}, module_figures(result, batch["present"])

        columns = partial(write_columns, folder, samples, config.pictures, MODULES, 2, integration(config))
        train_ssdd(config, STAGE, device, step, samples, losses, result_of, columns)
    if distributed.rank() == 0:
        refresh(config, stages.STAGES[STAGE].page)
        print(f"mode 2: wrote {last}, pictures in {folder / 'imgs'}")
        print(f"next: {stages.command(config, 'mode 3')}")


def start(config: Config, segmentation: SegmentationNetwork) -> Path:
    """Fill the network with what --dynamic_start names, both heads alike where that has one; the file it came from."""
    if config.dynamic_start == "classifier":
        return start_from_classifier(config, segmentation)
    weights = runs.last_checkpoint(config, "mode 0", "seg", config.static_checkpoint)
    state = checkpoint.load_state(weights)
    heads = {key.replace("seg_main.", "seg_sub.", 1): value for key, value in state.items() if "seg_main." in key}
    checkpoint.fill(segmentation, state | heads, weights)
    return weights


def with_settled_crf(config: Config, device: torch.device, path: Path) -> Config:
    """--crf=auto as the CRF that the run took before, or the one that is faster here; so the folder's Config names it.

    Args:
        path: of the Config that the run has left, if it has.
    """
    if config.crf != "auto":
        return config
    exact = False
    if distributed.rank() == 0:
        goes_on = path.exists() and (not config.fresh or runs.same_job(path))
        exact = notes.read_config(path).get("crf") == "exact" if goes_on else exact_is_faster(config, device)
        print(f"mode 2: --crf=auto takes {'exact' if exact else 'pydensecrf'}", flush=True)
    exact = bool(distributed.highest([int(exact)])[0])
    return replace(config, crf="exact" if exact else "pydensecrf")


def exact_is_faster(config: Config, device: torch.device) -> bool:
    """Whether the exact CRF of this process's batch takes less time than pydensecrf in its workers; on CUDA only."""
    if device.type != "cuda":
        return False
    size = distributed.share(config.bn), config.crop // 4, config.crop // 4
    classes = len(class_names(config.voc_root))
    images = torch.randint(256, (*size, 3), dtype=torch.uint8, device=device)
    logits = torch.randn(size[0], classes, *size[1:], device=device)
    present = (torch.arange(classes, device=device) < 3).float().expand(size[0], -1)  # as many as VOC's images show
    seconds = {}
    with Workers(at_most_cores(config.workers) if config.crf_workers else 0) as workers:
        for name in ("exact", "pydensecrf"):
            crf = training_crf(replace(config, crf=name), workers)
            times = []
            for _ in range(4):  # the first one chooses kernels and starts processes
                began = time.perf_counter()
                crf(images, logits, present)().cpu()
                times.append(time.perf_counter() - began)
            seconds[name] = min(times)
    print("mode 2: CRFs of a batch: " + ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in seconds.items()))
    return seconds["exact"] < seconds["pydensecrf"]


def training_crf(config: Config, workers: Workers) -> Callable:
    """The dense CRF of the training step, as DynamicStep takes it."""
    crf = exact_masks if config.crf == "exact" else partial(masks_after_crf, submit=workers.submit)
    return partial(crf, iterations=config.crf_train, kernel=crf_kernel(config))
