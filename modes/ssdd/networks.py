"""What the modes share: the networks built from a Config, optimisers, training samples and logged pictures."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from datasets.pictures import difference_colours, mask_colours, write_photo, write_picture
from datasets.samples.seeds import SeedSamples
from datasets.seed_store import store_path
from datasets.transforms import jittered, normalise
from datasets.voc import class_names, mask_path, read_mask, write_mask
from engine import checkpoint, distributed, runs
from engine.history import History
from engine.training import cosine_rate, sgd, train
from evaluation.metrics import confusion, mean_iou
from models.resnet38 import train_with_frozen_batchnorm
from models.ssdd.difference.ddnet import DDNet
from models.ssdd.difference.segmentation import SegmentationNetwork
from models.ssdd.difference.steps import StepResult
from settings.config import Config


def build(config: Config, dynamic: bool) -> tuple[SegmentationNetwork, DDNet]:
    """Fresh networks of a mode: one head and DD module, or two."""
    classes = len(class_names(config.voc_root))
    segmentation = SegmentationNetwork(
        classes, config.width, config.head_dilation, dynamic, config.dropout, config.backbone_dilation
    )
    if config.compile:
        segmentation.encoder.compile()
    return segmentation, DDNet(2 if dynamic else 1, classes, config.width)


def seed_samples(config: Config, ids: list[str], sides: tuple[int, int] | None, **options) -> SeedSamples:
    """Samples of PSA (knowledge) and PSA+CRF (advice), which must be there.

    Raises:
        InputError: the label chain has not run.
    """
    folders = [config.labels_folder(kind) for kind in ("out_aff", "out_aff_crf")]
    command = f"python -m prepare_labels.make_aff_labels{config.flags()}"
    for folder in folders:
        runs.need_maps([store_path(folder, image_id) for image_id in ids], command)
    return SeedSamples(config.voc_root, ids, *folders, config.crop, sides, **options)


def start_from_classifier(config: Config, segmentation: SegmentationNetwork) -> Path:
    """Backbone weights from the PSA classifier, whose fc8 is dropped; the file they came from."""
    command = f"python -m prepare_labels.train_cls{config.flags()}"
    weights = runs.weights_or(config, config.label_network("cls"), command)
    checkpoint.load_into(segmentation.encoder, weights, unused=("fc8.",))
    return weights


def train_ssdd(
    config: Config,
    mode: int,
    device: torch.device,
    step: nn.Module,
    samples: SeedSamples,
    losses: Callable[[dict], tuple[dict, dict]],
    result_of: Callable[[dict], StepResult],
) -> None:
    """Train segmentation network and DD-Net side by side, each on its own loss with its own optimiser.

    Args:
        step: holds `segmentation` and `ddnet`.
        losses: batch → (losses, other figures); see engine.training.train.
        result_of: batch → StepResult, for the pictures.
    """
    folder = config.run_folder(mode)
    optimisers = optimisers_of(step, config)
    shown = PictureSamples(config, samples)

    def after_epoch(epoch: int, history: History | None) -> None:
        step.eval()
        counts = {}
        with torch.no_grad(), distributed.autocast(device, config.precision):
            for batch in shown.batches(device):
                result = result_of(batch)
                if history is not None:
                    write_pictures(folder / "imgs", epoch, batch, result, history)
                    count_pixels(config.voc_root, batch, result, counts)
        if counts:
            history.epoch(epoch, {f"miou_{what}": mean_iou(total) for what, total in counts.items()})
        train_with_frozen_batchnorm(step)
        if distributed.rank() == 0 and (epoch % config.checkpoint_epochs == 0 or epoch == config.epochs):
            classes = class_names(config.voc_root)
            checkpoint.save_weights(runs.numbered(folder, "ssdd", epoch), step.ddnet, config, classes)
            checkpoint.save_weights(runs.numbered(folder, "seg", epoch), step.segmentation, config, classes)

    train(
        config,
        f"mode {mode}",
        folder,
        device,
        {"segmentation": step.segmentation, "ddnet": step.ddnet},
        optimisers,
        cosine_rate(config.lr, config.epochs),
        samples,
        config.bn,
        losses,
        after_epoch,
        "sssdd" if mode == 0 else "dssdd",
    )


def segmentation_optimiser(config: Config, segmentation: SegmentationNetwork) -> torch.optim.SGD:
    """Backbone at the base learning rate, heads at 10 times that."""
    backbone = list(segmentation.encoder.parameters())
    heads = [p for name, p in segmentation.named_parameters() if not name.startswith("encoder.")]
    return sgd([(backbone, 1.0), (heads, 10.0)], config.momentum, config.weight_decay)


def optimisers_of(step: nn.Module, config: Config) -> list[torch.optim.SGD]:
    """One for the segmentation network and one for the DD-Net, which learns 10 times as fast as the backbone."""
    ddnet = sgd([(list(step.ddnet.parameters()), 10.0)], config.momentum, config.weight_decay)
    return [segmentation_optimiser(config, step.segmentation), ddnet]


def freeze_for_ssdd(step: nn.Module, segmentation: SegmentationNetwork) -> None:
    """Training mode with every BatchNorm and conv1a fixed, as published."""
    train_with_frozen_batchnorm(step)
    segmentation.encoder.conv1a.requires_grad_(False)


def network_input(batch: dict, layout: torch.memory_format) -> torch.Tensor:
    """N×3×H×W of a batch, with colour jitter where its samples have one."""
    images = jittered(batch["image"], batch["order"], batch["factors"]) if "order" in batch else batch["image"]
    return normalise(images).contiguous(memory_format=layout)


class PictureSamples:
    """The same few whole images after every epoch, spread over the training list."""

    def __init__(self, config: Config, samples: SeedSamples):
        count = min(config.pictures, len(samples))
        self.places = np.linspace(0, len(samples) - 1, count).astype(int) if count else []
        self.size = config.bn
        self.samples = SeedSamples(
            samples.root,
            samples.ids,
            samples.knowledge,
            samples.advice,
            samples.crop,
            differences=samples.differences,
            swap_maps=samples.swap_maps,
        )

    def batches(self, device: torch.device):
        for start in range(0, len(self.places), self.size):
            batch = default_collate([self.samples[int(i)] for i in self.places[start : start + self.size]])
            yield {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def write_pictures(folder: Path, epoch: int, batch: dict, result: StepResult, history: History) -> None:
    """<id>_<epoch>_<what>.png for what = k1 a1 dk1 da1 d1, in mode 2 also k2 … d2; <id>.jpg once.

    k, a: knowledge and advice; dk, da: their difference maps; d: the integrated mask; 1, 2: the SSDD module.
    TensorBoard gets K, d_K, d_A, A and the integrated mask side by side, one row a module.
    """
    for n, image_id in enumerate(batch["id"]):
        photo = folder / f"{image_id}.jpg"
        if not photo.exists():
            write_photo(photo, batch["image"][n].movedim(0, -1).cpu().numpy())
        rows = []
        for number, module in enumerate(result.modules, 1):
            file = {what: folder / f"{image_id}_{epoch:04d}_{what}{number}.png" for what in ("k", "dk", "da", "a", "d")}
            masks = {"k": module.knowledge, "a": module.advice, "d": module.refined}
            masks = {what: mask[n].cpu().numpy() for what, mask in masks.items()}
            maps = {"dk": module.d_k, "da": module.d_a}
            maps = {what: difference_colours(d[n, 0].float().cpu().numpy()) for what, d in maps.items()}
            for what, mask in masks.items():
                write_mask(file[what], mask)
            for what, pixels in maps.items():
                write_picture(file[what], pixels)
            colours = maps | {what: mask_colours(mask) for what, mask in masks.items()}
            rows.append(np.concatenate([colours[what] for what in file], axis=1))
        history.picture(image_id, np.concatenate(rows), epoch)


def count_pixels(root: str, batch: dict, result: StepResult, counts: dict[str, np.ndarray]) -> None:
    """Add to `counts` the confusion of each mask of the logged pictures that have a true mask; for people only."""
    for n, image_id in enumerate(batch["id"]):
        if not mask_path(root, image_id).exists():
            continue
        classes = batch["present"].shape[1]
        truth = read_mask(mask_path(root, image_id), classes)
        for number, module in enumerate(result.modules, 1):
            for what, masks in {"k": module.knowledge, "a": module.advice, "d": module.refined}.items():
                mask = masks[n].cpu().numpy().astype(np.uint8)
                mask = cv2.resize(mask, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
                counts[f"{what}{number}"] = counts.get(f"{what}{number}", 0) + confusion(truth, mask, classes)


def module_figures(result: StepResult) -> dict[str, torch.Tensor]:
    """Of each module: the share of pixels with advice taken, among those where knowledge and advice differ, and the
    share of images with a missing-class flag."""
    shares = {}
    for number, module in enumerate(result.modules, 1):
        differs = module.knowledge != module.advice
        taken = differs & (module.refined == module.advice)
        shares[f"advice{number}"] = taken.sum() / differs.sum().clamp(min=1)
        shares[f"flagged{number}"] = module.flags.any(dim=1).float().mean()
    return shares
