"""Mode 1: store the static difference maps d_K, d_A of every training image, and the masks they give."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from datasets.labels import save_differences, store_path
from datasets.pictures import write_difference
from datasets.training_sets import read_seed
from datasets.voc import image_size, read_ids, write_mask
from models.steps import Integration, StaticStep, integrated
from modes.networks import build, network_input, seed_samples
from tools import checkpoint, distributed
from tools.config import Config
from tools.training import epoch_seed, load_batches


def run(config: Config) -> None:
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    ids = read_ids(config.voc_root, config.train_split)
    trained, folder = config.run_folder(0), config.precompute_folder()
    command = f"python main_ssdd.py --mode=0{config.flags()}"
    dd_weights = checkpoint.finished(trained, "ssdd", command, config.static_checkpoint)
    weights = Path(config.weights or checkpoint.finished(trained, "seg", command, config.static_checkpoint))
    samples = seed_samples(config, ids, None, jitter_and_flip=config.precompute_augmented)
    segmentation, ddnet = build(config, dynamic=False)
    checkpoint.load_into(segmentation, weights)
    checkpoint.load_into(ddnet, dd_weights)
    fields = ("crop", "head_dilation", "backbone_dilation", "precompute_augmented", "seed")
    fields += ("seed_bias", "seed_bg", "bias_favours", "flag_rule")
    checkpoint.claim_folder(folder, config, fields, weights, dd_weights)
    step = StaticStep(segmentation, ddnet, config.integration()).to(device, memory_format=layout).eval()

    todo = [place for place, image_id in enumerate(ids) if not store_path(folder, image_id).exists()]
    mine = [(place, epoch_seed(config.seed, place)) for place in distributed.shard(todo)]
    batches = load_batches(config, samples, config.eval_batch, mine, device)
    with tqdm(total=len(mine), desc="mode 1", unit="image", disable=None, leave=False) as bar, torch.inference_mode():
        for batch in iter(lambda: next(batches), None):
            with distributed.autocast(device, config.precision):
                result = step(network_input(batch, layout), batch["present"], batch["knowledge"], batch["advice"])
            (module,) = result.modules
            for image_id, d_k, d_a in zip(batch["id"], module.d_k.cpu(), module.d_a.cpu(), strict=True):
                store(config, folder, image_id, d_k, d_a)
            bar.update(len(batch["id"]))
    distributed.barrier()
    if distributed.rank() == 0:
        print(f"mode 1: {folder} is complete; next: python main_ssdd.py --mode=2{config.flags()}")


def store(config: Config, folder: Path, image_id: str, d_k: torch.Tensor, d_a: torch.Tensor) -> None:
    """Write one image's pictures, its static SSDD mask at full size, and last the maps, which mark it as done.

    Args:
        d_k, d_a: 1×h×w logits.
    """
    write_difference(folder / f"{image_id}_dk.png", d_k[0].numpy())
    write_difference(folder / f"{image_id}_da.png", d_a[0].numpy())
    write_mask(folder / f"{image_id}.png", refine_seed(config, image_id, d_k, d_a, config.seed_integration()))
    save_differences(store_path(folder, image_id), d_k[0].numpy(), d_a[0].numpy(), "static SSDD")


def refine_seed(
    config: Config, image_id: str, d_k: torch.Tensor, d_a: torch.Tensor, how: Integration
) -> np.ndarray:
    """The static SSDD seed of an image at its own size, H×W uint8: PSA and PSA+CRF integrated by upsampled maps."""
    size = image_size(config.voc_root, image_id)
    masks, present = [], torch.zeros(1, 21)
    for kind in ("out_aff", "out_aff_crf"):
        seed = read_seed(config.labels_folder(kind), image_id, size)
        classes = torch.from_numpy(seed.classes)
        masks.append(classes[torch.from_numpy(seed.maps).argmax(dim=0)][None])
        present[0, classes] = 1
    d_k, d_a = (F.interpolate(d[None], size=size, mode="bilinear", align_corners=False) for d in (d_k, d_a))
    return integrated(*masks, d_k, d_a, present, how).refined[0].numpy().astype(np.uint8)
