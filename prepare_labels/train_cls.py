"""Step 1 of the label chain: train the CAM classifier on image-level labels (PSA).

    python -m prepare_labels.train_cls --weights imagenet.pth

With --weights (ImageNet, tools.convert_weights) BatchNorm and the first blocks are frozen, as published; without,
everything learns from scratch, BatchNorm included.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from datasets.errors import program
from datasets.samples.seeds import ImageLabelSamples
from datasets.voc import class_names, read_ids
from engine import checkpoint, distributed, runs
from engine.history import History
from engine.training import poly_rate, sgd, train, wrapped
from models.psa.classifier import Classifier
from models.resnet38 import train_with_frozen_batchnorm
from script.make_pages import refresh
from settings.config import Config, parse


def run(config: Config) -> None:
    config = config.stage(config.cls_epochs)
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    ids = read_ids(config.voc_root, config.train_split)
    path = config.label_network("cls")
    torch.manual_seed(config.seed)
    classes = len(class_names(config.voc_root)) - 1
    classifier = Classifier(classes, config.width, config.dropout, config.backbone_dilation)
    if config.weights:
        checkpoint.load_into(classifier, config.weights, new=("fc8.",))
    made_from = [Path(config.weights)] if config.weights else []
    runs.claim_folder(path.parent, config, "train_cls", [*made_from, *runs.training_data(config)])
    if path.exists():
        print(f"classifier: {path} is complete")
        return
    if config.weights:
        train_with_frozen_batchnorm(classifier)
        freeze_first_blocks(classifier)
    else:
        print("classifier: no --weights, learning from scratch with BatchNorm in training mode")
        classifier.train()
        average_statistics_anew(classifier)
    classifier.to(device, memory_format=layout)
    parameters = groups(classifier, ("fc8.",))
    if config.cls_optimiser == "adamw":
        same = [{"params": p, "factor": 1.0} for p, _ in parameters]
        optimiser = torch.optim.AdamW(same, weight_decay=config.label_weight_decay)
    else:
        optimiser = sgd(parameters, 0, config.label_weight_decay)
    network = wrapped(classifier, device)

    def losses(batch: dict) -> tuple[dict, dict]:
        with distributed.autocast(device, config.precision):
            logits = network(batch["x"].contiguous(memory_format=layout))
        return {"loss": F.multilabel_soft_margin_loss(logits.float(), batch["present"][:, 1:])}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if epoch == config.epochs - 1 and not config.weights:
            average_statistics_anew(classifier)
        if epoch == config.epochs and distributed.rank() == 0:
            checkpoint.save_weights(path, classifier)

    train(
        config,
        "classifier",
        path.parent,
        device,
        {"classifier": classifier},
        [optimiser],
        poly_rate(config.cls_lr, config.epochs, config.label_power),
        ImageLabelSamples(config.voc_root, ids, config.cls_side, config.crop),
        config.cls_batch,
        losses,
        after_epoch,
        "labels",
        "--cls-batch",
    )
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"classifier: wrote {path}; next: python -m prepare_labels.make_cam_labels{config.flags()}")


def freeze_first_blocks(network: torch.nn.Module) -> None:
    """Label networks with pretrained weights keep conv1a and b2* as they are (PSA)."""
    for block in (network.conv1a, network.b2, network.b2_1, network.b2_2):
        block.requires_grad_(False)


def average_statistics_anew(network: torch.nn.Module) -> None:
    """Let BatchNorm's running statistics be the plain mean over the steps from here on.

    Done before the last epoch, so that the statistics that everything later is frozen with fit the final weights,
    however few steps there were; a moving average would still hold its start values after a short training.
    """
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None


def groups(network: torch.nn.Module, new: tuple[str, ...]) -> list[tuple[list[torch.nn.Parameter], float]]:
    """Parameters with their factors on the learning rate: ×10 for new layers, ×2 for biases (PSA)."""
    chosen: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        factor = (10.0 if name.startswith(new) else 1.0) * (2.0 if name.endswith("bias") else 1.0)
        chosen.setdefault(factor, []).append(parameter)
    return [(parameters, factor) for factor, parameters in chosen.items()]


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__))
    distributed.stop()


if __name__ == "__main__":
    main()
