"""Mode 1: store the static difference maps d_K, d_A of every training image, and the masks they give."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.errors import InputError
from datasets.pictures import difference_colours, write_picture
from datasets.samples.seeds import SeedSamples
from datasets.seed_store import read_seed, save_differences, store_path
from datasets.voc import class_names, image_size, read_present, write_mask
from engine import checkpoint, distributed, runs, stages
from engine.loading import Batches, epoch_seed
from engine.passes import image_pass
from models.inference import resize
from models.ssdd.steps import Integration, StaticStep, integrated_in_turn
from modes.ssdd.networks import build, integration, masks_of, network_input, pair_samples, seed_integration
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config

STAGE = "mode 1"


def run(config: Config) -> None:
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width, config.precision)
    ids = runs.image_ids(config, config.train_split)
    folder = stages.folder(config, STAGE)
    weights, dd_weights = static_weights(config)
    samples = pair_samples(config, ids, None, jitter_and_flip=config.precompute_augmented)
    if not config.weights:
        runs.need_same_seeds(config, stages.folder(config, "mode 0"), list(samples.seeds.values()))
    segmentation, ddnet = build(config, dynamic=False)
    checkpoint.load_into(segmentation, weights)
    checkpoint.load_into(ddnet, dd_weights)
    made_from = [weights, dd_weights, *samples.seeds.values(), *runs.training_data(config)]
    runs.claim(config, STAGE, made_from)
    step = StaticStep(segmentation, ddnet, integration(config)).to(device, memory_format=layout).eval()
    write_maps(config, step, samples, folder, device, partial(refresh_now_and_then, config))
    if distributed.rank() == 0:
        refresh(config)
        print(f"mode 1: {folder} is complete; next: {stages.command(config, 'mode 2')}")


def write_maps(
    config: Config,
    step: StaticStep,
    samples: SeedSamples,
    folder: Path,
    device: torch.device,
    refresh_pages: Callable[[], None],
) -> None:
    """Go over the images: the network on the device, reading and writing in processes beside it.

    Args:
        step: in evaluation mode.
        folder: receives the files of each image that has none yet.
        refresh_pages: called after each image.
    """
    layout = distributed.memory_format(device, config.width, config.precision)

    def is_done(image_id: str) -> bool:
        names = (f"{image_id}{end}" for end in (".npz", ".png", "_dk.png", "_da.png"))
        return all((folder / name).exists() for name in names)

    how, pair = seed_integration(config), tuple(samples.seeds.values())
    with (
        image_pass(
            config, STAGE, folder, samples.ids, is_done, refresh_pages, ("--eval_batch", config.eval_batch)
        ) as left,
        torch.inference_mode(),
    ):
        for batch in Batches(config, samples, left.keys(partial(epoch_seed, config.seed)), device):
            with distributed.autocast(device, config.precision):
                _, modules = step.predict(network_input(batch, layout), batch["present"], *masks_of(batch))
            maps = [torch.cat(one, dim=1).cpu().numpy() for one in ([m.d_k for m in modules], [m.d_a for m in modules])]
            for image_id, d_k, d_a in zip(batch["id"], *maps, strict=True):
                left.write(image_id, store, config.voc_root, folder, image_id, pair, (d_k, d_a), how)


def static_weights(config: Config) -> tuple[Path, Path]:
    """Checkpoints of the segmentation network and of the DD-Net: what mode 0 left, or --weights=…/seg_X.pth and the
    ssdd_X.pth beside it."""
    if config.weights:
        weights = Path(config.weights)
        pair = weights, weights.with_name(weights.name.replace("seg_", "ssdd_", 1))
        if pair[0] == pair[1] or not all(path.is_file() for path in pair):
            raise InputError(f"--weights={weights}: mode 1 needs seg_X.pth and, beside it, ssdd_X.pth")
        return pair
    return tuple(runs.last_checkpoint(config, "mode 0", name, config.static_checkpoint) for name in ("seg", "ssdd"))


def store(
    root: str,
    folder: Path,
    image_id: str,
    pair: tuple[Path, ...],
    differences: tuple[np.ndarray, np.ndarray],
    how: Integration,
) -> None:
    """Write one image's pictures, its static SSDD mask at full size, and last the maps, which mark it as done.

    Args:
        pair: folders of the knowledge and of A advisers.
        differences: logits (d_K, d_A), A×h×w each; of a single adviser h×w is stored.
    """
    for name, maps in zip(("dk", "da"), differences, strict=True):
        for number, d in enumerate(maps, 1):
            write_picture(folder / f"{image_id}_{name}{number if number > 1 else ''}.png", difference_colours(d))
    write_mask(folder / f"{image_id}.png", refined_seed(root, image_id, pair, differences, how))
    stored = [maps[0] if len(maps) == 1 else maps for maps in differences]
    save_differences(store_path(folder, image_id), *stored, "static SSDD")


def refined_seed(
    root: str, image_id: str, pair: tuple[Path, ...], differences: tuple[np.ndarray, np.ndarray], how: Integration
) -> np.ndarray:
    """The static SSDD seed of an image at its own size, H×W uint8: all integrated in turn by upsampled maps."""
    size, classes = image_size(root, image_id), len(class_names(root))
    seeds = [read_seed(folder, image_id, size, None, classes) for folder in pair]
    knowledge, *advices = [torch.from_numpy(seed.mask())[None] for seed in seeds]
    present = torch.from_numpy(read_present(root, image_id))[None]
    d_k, d_a = (resize(torch.from_numpy(maps)[None], size) for maps in differences)
    results = integrated_in_turn(knowledge, advices, d_k, d_a, present, how)
    return results[-1].refined[0].numpy().astype(np.uint8)
