"""What the modes share: the networks built from a Config, optimisers, training samples and logged pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from datasets.labels import store_path
from datasets.pictures import write_difference, write_photo
from datasets.training_sets import SeedSamples
from datasets.transforms import normalise
from datasets.voc import CLASSES, write_mask
from models.ddnet import DDNet
from models.resnet38 import train_with_frozen_batchnorm
from models.segmentation import SegmentationNetwork
from models.steps import StepResult
from tools import checkpoint, distributed, runs
from tools.config import Config
from tools.training import cosine_rate, sgd, train


def build(config: Config, dynamic: bool) -> tuple[SegmentationNetwork, DDNet]:
    """Fresh networks of a mode: one head and DD module, or two."""
    segmentation = SegmentationNetwork(
        len(CLASSES), config.width, config.head_dilation, dynamic, config.dropout, config.backbone_dilation
    )
    return segmentation, DDNet(2 if dynamic else 1, len(CLASSES), config.width)


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
        losses: batch → (losses, other figures); see tools.training.train.
        result_of: batch → StepResult, for the pictures.
    """
    folder = config.run_folder(mode)
    optimisers = optimisers_of(step, config)
    shown = PictureSamples(config, samples)

    def after_epoch(epoch: int) -> None:
        step.eval()
        with torch.no_grad(), distributed.autocast(device, config.precision):
            for batch in shown.batches(device):
                result = result_of(batch)
                if distributed.rank() == 0:
                    write_pictures(folder / "imgs", epoch, batch, result)
        train_with_frozen_batchnorm(step)
        if distributed.rank() == 0 and (epoch % config.checkpoint_epochs == 0 or epoch == config.epochs):
            checkpoint.save_weights(runs.numbered(folder, "ssdd", epoch), step.ddnet)
            checkpoint.save_weights(runs.numbered(folder, "seg", epoch), step.segmentation)

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
    )


def optimisers_of(step: nn.Module, config: Config) -> list[torch.optim.SGD]:
    """One for the segmentation network, its heads learning 10 times as fast, and one for the DD-Net."""
    backbone = step.segmentation.encoder
    heads = [p for name, p in step.segmentation.named_parameters() if not name.startswith("encoder.")]
    return [
        sgd([(list(backbone.parameters()), 1.0), (heads, 10.0)], config.momentum, config.weight_decay),
        sgd([(list(step.ddnet.parameters()), 10.0)], config.momentum, config.weight_decay),
    ]


def freeze_for_ssdd(step: nn.Module) -> None:
    """Training mode with every BatchNorm and conv1a fixed, as published."""
    train_with_frozen_batchnorm(step)
    step.segmentation.encoder.conv1a.requires_grad_(False)


def network_input(batch: dict, layout: torch.memory_format) -> torch.Tensor:
    return normalise(batch["image"]).contiguous(memory_format=layout)


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


def write_pictures(folder: Path, epoch: int, batch: dict, result: StepResult) -> None:
    """<id>_<epoch>_<what>.png for what = k1 a1 dk1 da1 d1, in mode 2 also k2 … d2; <id>.jpg once.

    k, a: knowledge and advice; dk, da: their difference maps; d: the integrated mask; 1, 2: the SSDD module.
    """
    for n, image_id in enumerate(batch["id"]):
        photo = folder / f"{image_id}.jpg"
        if not photo.exists():
            write_photo(photo, batch["image"][n].movedim(0, -1).cpu().numpy())
        for number, module in enumerate(result.modules, 1):
            masks = {"k": module.knowledge, "a": module.advice, "d": module.refined}
            for what, mask in masks.items():
                write_mask(folder / f"{image_id}_{epoch:04d}_{what}{number}.png", mask[n].cpu().numpy())
            for what, d in {"dk": module.d_k, "da": module.d_a}.items():
                write_difference(folder / f"{image_id}_{epoch:04d}_{what}{number}.png", d[n, 0].float().cpu().numpy())


def advice_share(result: StepResult) -> dict[str, torch.Tensor]:
    """Of the pixels where knowledge and advice differ, the share at which each module took the advice."""
    shares = {}
    for number, module in enumerate(result.modules, 1):
        differs = module.knowledge != module.advice
        taken = differs & (module.refined == module.advice)
        shares[f"advice{number}"] = taken.sum() / differs.sum().clamp(min=1)
    return shares
