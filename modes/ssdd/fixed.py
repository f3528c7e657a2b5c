"""Mode 4: train the segmentation network alone on fixed seeds, with mode 0's schedule.

This is the "trained segmentation model" column of the poster: what a network makes of PSA, of PSA+CRF, of static
SSDD, and, as the upper bound, of the true masks.
"""

import torch
import torch.nn.functional as F

from datasets.errors import InputError
from datasets.samples.seeds import FixedSeedSamples
from datasets.seed_store import store_path
from datasets.voc import IGNORE, class_names, mask_path, read_ids
from engine import checkpoint, distributed, runs
from engine.history import History
from engine.training import cosine_rate, train, wrapped
from models.ssdd.difference import per_process_share
from modes.ssdd.networks import build, freeze_for_ssdd, network_input, segmentation_optimiser, start_from_classifier
from script.make_pages import refresh
from settings.config import SEED_SOURCES, Config


def run(config: Config) -> None:
    config = config.stage(config.static_epochs)
    samples = fixed_seeds(config, read_ids(config.voc_root, config.train_split))
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    folder = config.run_folder(4)

    torch.manual_seed(config.seed)
    segmentation, _ = build(config, dynamic=False)
    weights = start_from_classifier(config, segmentation)
    runs.claim_folder(folder, config, "mode 4", [weights, samples.seeds, *runs.training_data(config)])
    last = runs.numbered(folder, "seg", config.epochs)
    if last.exists():
        print(f"mode 4: {last} is complete")
        return
    segmentation.to(device, memory_format=layout)
    freeze_for_ssdd(segmentation, segmentation)
    parallel = wrapped(segmentation, device)
    classes = class_names(config.voc_root)

    def losses(batch: dict) -> tuple[dict, dict]:
        with distributed.autocast(device, config.precision):
            logits = parallel(network_input(batch, layout)).main.logits
        known = per_process_share((batch["seed"] != IGNORE).sum()).clamp(min=1)
        return {"loss_seg": F.cross_entropy(logits, batch["seed"], ignore_index=IGNORE, reduction="sum") / known}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if distributed.rank() == 0 and (epoch % config.checkpoint_epochs == 0 or epoch == config.epochs):
            checkpoint.save_weights(runs.numbered(folder, "seg", epoch), segmentation, config, classes)

    train(
        config,
        f"mode 4, {config.seed_source}",
        folder,
        device,
        {"segmentation": segmentation},
        [segmentation_optimiser(config, segmentation)],
        cosine_rate(config.lr, config.epochs),
        samples,
        config.bn,
        losses,
        after_epoch,
        "index",
    )
    if distributed.rank() == 0:
        refresh(config)
        print(f"mode 4: wrote {last}")
        print(f"next: python main_ssdd.py --mode=3 --seed_source={config.seed_source}{config.flags()}")


def fixed_seeds(config: Config, ids: list[str]) -> FixedSeedSamples:
    """Samples of the seeds that --seed_source names, which must all be there.

    Raises:
        InputError: no source is named, or seeds are missing.
    """
    if not config.seed_source:
        raise InputError(f"--mode=4 needs --seed_source: one of {', '.join(SEED_SOURCES[1:])}")
    if config.seed_source == "truth":
        paths = [mask_path(config.voc_root, image_id) for image_id in ids]
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(paths)} true masks are missing, first {missing[0]}: put them there, or name a "
                "list whose images have them with --train_split"
            )
    elif config.seed_source == "ssdd":
        paths = [config.precompute_folder() / f"{image_id}.png" for image_id in ids]
        runs.need_maps(paths, f"python main_ssdd.py --mode=1{config.flags()}")
    else:
        kind = {"psa": "out_aff", "crf": "out_aff_crf"}[config.seed_source]
        paths = [store_path(config.labels_folder(kind), image_id) for image_id in ids]
        runs.need_maps(paths, f"python -m prepare_labels.make_aff_labels{config.flags()}")
    return FixedSeedSamples(config.voc_root, ids, paths[0].parent, config.crop, config.static_side)
