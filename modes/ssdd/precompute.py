"""Mode 1: store the static difference maps d_K, d_A of every training image, and the masks they give."""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.errors import InputError
from datasets.pictures import difference_colours, write_picture
from datasets.samples.seeds import read_seed
from datasets.seed_store import save_differences, store_path
from datasets.voc import class_names, image_size, read_ids, write_mask
from engine import checkpoint, distributed, runs
from engine.history import note_pass
from engine.progress import progress
from engine.training import epoch_seed, load_batches
from models.ssdd.difference.steps import Integration, StaticStep, integrated
from modes.ssdd.networks import build, network_input, seed_samples
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config


def run(config: Config) -> None:
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    ids = read_ids(config.voc_root, config.train_split)
    folder = config.precompute_folder()
    weights, dd_weights = static_weights(config)
    samples = seed_samples(config, ids, None, jitter_and_flip=config.precompute_augmented)
    segmentation, ddnet = build(config, dynamic=False)
    checkpoint.load_into(segmentation, weights)
    checkpoint.load_into(ddnet, dd_weights)
    made_from = [weights, dd_weights, samples.knowledge, samples.advice, *runs.training_data(config)]
    runs.claim_folder(folder, config, "mode 1", made_from)
    step = StaticStep(segmentation, ddnet, config.integration()).to(device, memory_format=layout).eval()

    started = time.perf_counter()
    mine = [
        (place, epoch_seed(config.seed, place))
        for place in distributed.shard(range(len(ids)))
        if not store_path(folder, ids[place]).exists()
    ]
    batches = load_batches(config, samples, config.eval_batch, mine, device)
    with (
        distributed.faults("--eval_batch", config.eval_batch),
        progress("mode 1", len(mine), len(ids)) as bar,
        torch.inference_mode(),
    ):
        for batch in iter(lambda: next(batches), None):
            with distributed.autocast(device, config.precision):
                _, module = step.predict(
                    network_input(batch, layout), batch["present"], batch["knowledge"], batch["advice"]
                )
            for image_id, d_k, d_a in zip(batch["id"], module.d_k.cpu(), module.d_a.cpu(), strict=True):
                store(config, folder, image_id, d_k, d_a)
            bar.update(len(batch["id"]))
            refresh_now_and_then(config)
    distributed.barrier()
    if distributed.rank() == 0:
        note_pass(folder, len(mine), started)
        refresh(config)
        print(f"mode 1: {folder} is complete; next: python main_ssdd.py --mode=2{config.flags()}")


def static_weights(config: Config) -> tuple[Path, Path]:
    """Checkpoints of the segmentation network and of the DD-Net: what mode 0 left, or --weights=…/seg_X.pth and the
    ssdd_X.pth beside it."""
    if config.weights:
        weights = Path(config.weights)
        pair = weights, weights.with_name(weights.name.replace("seg_", "ssdd_", 1))
        if pair[0] == pair[1] or not all(path.is_file() for path in pair):
            raise InputError(f"--weights={weights}: mode 1 needs seg_X.pth and, beside it, ssdd_X.pth")
        return pair
    command = f"python main_ssdd.py --mode=0{config.flags()}"
    trained = config.run_folder(0)
    return tuple(runs.finished(trained, name, command, config, config.static_checkpoint) for name in ("seg", "ssdd"))


def store(config: Config, folder: Path, image_id: str, d_k: torch.Tensor, d_a: torch.Tensor) -> None:
    """Write one image's pictures, its static SSDD mask at full size, and last the maps, which mark it as done.

    Args:
        d_k, d_a: 1×h×w logits.
    """
    write_picture(folder / f"{image_id}_dk.png", difference_colours(d_k[0].numpy()))
    write_picture(folder / f"{image_id}_da.png", difference_colours(d_a[0].numpy()))
    write_mask(folder / f"{image_id}.png", refine_seed(config, image_id, d_k, d_a, config.seed_integration()))
    save_differences(store_path(folder, image_id), d_k[0].numpy(), d_a[0].numpy(), "static SSDD")


def refine_seed(config: Config, image_id: str, d_k: torch.Tensor, d_a: torch.Tensor, how: Integration) -> np.ndarray:
    """The static SSDD seed of an image at its own size, H×W uint8: PSA and PSA+CRF integrated by upsampled maps."""
    size = image_size(config.voc_root, image_id)
    masks, present = [], torch.zeros(1, len(class_names(config.voc_root)))
    for kind in ("out_aff", "out_aff_crf"):
        seed = read_seed(config.labels_folder(kind), image_id, size)
        classes = torch.from_numpy(seed.classes)
        masks.append(classes[torch.from_numpy(seed.maps).argmax(dim=0)][None])
        present[0, classes] = 1
    d_k, d_a = (F.interpolate(d[None], size=size, mode="bilinear", align_corners=False) for d in (d_k, d_a))
    return integrated(*masks, d_k, d_a, present, how).refined[0].numpy().astype(np.uint8)
