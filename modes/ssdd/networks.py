"""What the modes share: networks, integration, optimisers and samples of a Config; the training of modes 0 and 2."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from datasets.errors import InputError
from datasets.samples.seeds import SeedSamples, StoredDifferences
from datasets.transforms import jittered, normalise
from datasets.voc import class_names
from engine import checkpoint, distributed, runs, seeds, stages
from engine.history import History
from engine.training import Losses, Training, cosine_rate, sgd, train
from evaluation.metrics import mean_iou
from models import deeplab
from models.deeplab import FINAL, DeepLabV2, DeepLabV3Plus
from models.recurseed.certain import certain_mix, draw_partners
from models.resnet38 import train_with_frozen_batchnorm
from models.ssdd.ddnet import DDNet
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import Integration, StepResult
from modes.ssdd.pictures import PictureSamples, count_pixels, write_pictures
from script.make_pages import refresh_now_and_then
from settings.config import Config


def build(config: Config, dynamic: bool) -> tuple[SegmentationNetwork, DDNet]:
    """Fresh networks of a mode: one head and a DD module for each adviser, or two of both."""
    classes = len(class_names(config.voc_root))
    segmentation = SegmentationNetwork(
        classes, config.width, config.head_dilation, dynamic, config.dropout, config.backbone_dilation
    )
    if config.compile:
        segmentation.encoder.compile()
    return segmentation, DDNet(2 if dynamic else len(config.advisers), classes, config.width)


def final_network(config: Config, classes: int) -> DeepLabV2 | DeepLabV3Plus:
    """A fresh DeepLab, as --network names it."""
    network = FINAL[config.network](classes, config.width)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p *= config.dropout
    if config.compile:
        network.encoder.compile()
    return network


def network_to_evaluate(config: Config) -> nn.Module:
    """The network that modes 2 and 4 leave, for weights to be loaded into."""
    if config.network == "resnet38":
        return build(config, dynamic=False)[0]
    return final_network(config, len(class_names(config.voc_root)))


def integration(config: Config) -> Integration:
    """How modes 0 and 2 integrate."""
    return _integration(config, config.bias, config.bg)


def seed_integration(config: Config) -> Integration:
    """How m_ssdd0 is made from the stored static difference maps."""
    return _integration(config, config.seed_bias, config.seed_bg)


def _integration(config: Config, bias: float, bg: float) -> Integration:
    sign = 1 if config.bias_favours == "advice" else -1
    poster = config.flag_rule == "poster"
    return Integration(sign * bias, bg, poster, config.map_weight, config.integration, config.reading)


def pair_samples(
    config: Config,
    ids: list[str],
    sides: tuple[int, int] | None,
    jitter_and_flip: bool = False,
    differences: StoredDifferences | None = None,
) -> SeedSamples:
    """Samples of knowledge and advice, which must be there.

    Raises:
        InputError: a source is unknown, not complete, or the same as another one.
    """
    folders = {name: source.folder for name, source in seeds.need_pair(config, ids).items()}
    return SeedSamples(config.voc_root, ids, folders, config.crop, sides, jitter_and_flip, differences)


def masks_of(batch: dict) -> list[torch.Tensor]:
    """Knowledge and advices of a batch, in their order."""
    return [batch[name] for name in batch if name.startswith(("knowledge", "advice"))]


def start_from_classifier(config: Config, segmentation: SegmentationNetwork) -> Path:
    """Backbone weights from the PSA classifier, whose fc8 is dropped; the file they came from."""
    weights = runs.start_weights(config, "train_cls")
    checkpoint.load_into(segmentation.encoder, weights, unused=("fc8.",))
    return weights


def start_from_imagenet(config: Config, network: DeepLabV2 | DeepLabV3Plus) -> list[Path]:
    """Backbone weights from the ImageNet file that --weights names; the files that were read.

    Raises:
        InputError: they are not torchvision's ResNet-101, of another width, or not finite.
    """
    path = runs.given_weights(config)
    if path is None:
        print(f"{config.network}: no --weights (torchvision's ResNet-101 on ImageNet), learning from scratch")
        return []
    try:
        deeplab.start_from_imagenet(network, checkpoint.load_state(path))
    except ValueError as error:
        raise InputError(f"--weights={path}: {error}; {config.network} starts from torchvision's ResNet-101") from None
    if not all(torch.isfinite(value).all() for value in network.encoder.state_dict().values()):
        raise InputError(f"--weights={path}: holds values that are not finite")
    return [path]


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


def need_partners(config: Config) -> None:
    """Refuse CertainMix, which mixes the images of one process, where each has a single one.

    Raises:
        InputError: see above.
    """
    if config.certain_mix and config.bn <= distributed.processes():
        raise InputError(
            f"--certain_mix={config.certain_mix}: there is nothing to paste, as with --bn={config.bn} each of "
            f"{distributed.processes()} processes has one image a step; give a larger --bn"
        )


def mixed_batch(config: Config, batch: dict, labels: torch.Tensor, certain: torch.Tensor | None = None) -> dict:
    """CertainMix in a share of a step's images: a batch whose image, small and present are mixed, with the mixed labels
    as `seed`.

    What is pasted is coloured by the jitter of the image that it comes to.

    Args:
        labels: N×h×w of the seeds, of the size of `small`; their known foreground is pasted.
        certain: N×h×w bool, the part of it that is; None: all.

    Reference:
        Jo, Yu and Kim, arXiv 2204.06754; that SSDD's seeds are mixed is ours.
    """
    images, device = len(labels), labels.device
    chosen = torch.rand(images, device=device) < config.certain_mix
    partners = torch.where(chosen, draw_partners(images, device), torch.arange(images, device=device))
    mixed = certain_mix(batch["image"], labels, batch["present"], partners, certain)
    small = torch.where(mixed.pasted[..., None], batch["small"][partners], batch["small"])
    return batch | {"image": mixed.x, "small": small, "present": mixed.present, "seed": mixed.labels}


def keeps_checkpoint(config: Config, epoch: int) -> bool:
    """Whether the weights after `epoch` epochs stay: every few epochs, those that mode 1 takes, and the last."""
    return epoch % config.checkpoint_epochs == 0 or epoch in (config.static_checkpoint, config.epochs)


def train_ssdd(
    config: Config,
    stage: str,
    device: torch.device,
    step: nn.Module,
    samples: SeedSamples,
    losses: Callable[[dict, float], Losses],
    result_of: Callable[[dict], StepResult],
    write_columns: Callable[[], None],
) -> None:
    """Train segmentation network and DD-Net side by side, each on its own loss with its own optimiser.

    Args:
        stage: mode 0 or mode 2.
        step: holds `segmentation` and `ddnet`.
        losses: see engine.training.Training.
        result_of: batch → StepResult, for the pictures.
        write_columns: says how they stand on their page.
    """
    folder = stages.folder(config, stage)
    pictures = PictureSamples(samples, config.pictures, distributed.share(config.bn))

    def after_epoch(epoch: int, history: History | None) -> None:
        step.eval()
        counts = {}
        with torch.no_grad(), distributed.autocast(device, config.precision):
            for batch in pictures.batches(device):
                result = result_of(batch)
                if history is not None:
                    write_pictures(folder / "imgs", epoch, batch, result, history)
                    count_pixels(config.voc_root, batch, result, counts)
        if history is not None:
            write_columns()
        if counts:
            history.epoch(epoch, {f"miou_{what}": mean_iou(total) for what, total in counts.items()})
        train_with_frozen_batchnorm(step)
        if distributed.rank() == 0 and keeps_checkpoint(config, epoch):
            classes = class_names(config.voc_root)
            for name, network in (("ssdd", step.ddnet), ("seg", step.segmentation)):
                checkpoint.save_weights(stages.checkpoint_path(folder, name, epoch), network, config, classes)

    run = Training(
        title=stage,
        folder=folder,
        networks={"segmentation": step.segmentation, "ddnet": step.ddnet},
        optimisers=optimisers_of(step, config),
        rate=cosine_rate(config.lr, config.epochs, config.warmup_epochs if stage == "mode 2" else 0),
        samples=samples,
        batch=config.bn,
        batch_flag="--bn",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config, stages.STAGES[stage].page),
    )
    train(run, config, device)
