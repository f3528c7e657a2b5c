"""Step 1 of the label chain: train the CAM classifier on image-level labels (PSA).

    python -m prepare_labels.train_cls --weights imagenet.pth

With --weights (ImageNet, tools.convert_weights) BatchNorm and the first blocks are frozen, as published; without,
everything learns from scratch, BatchNorm included.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from datasets.errors import program
from datasets.samples.image_labels import ImageLabelSamples
from datasets.voc import class_names
from engine import checkpoint, distributed, runs, stages
from engine.history import History
from engine.training import Losses, Training, poly_rate, sgd, train
from models.psa.classifier import Classifier
from models.psa.rates import parameter_groups
from models.resnet38 import average_statistics_anew, freeze_first_blocks, train_with_frozen_batchnorm
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from settings.flags import parse

STAGE = "train_cls"


def run(config: Config) -> None:
    config = config.stage(config.cls_epochs)
    device = distributed.start(config.device, ("--cls_batch", config.cls_batch), config.precision)
    layout = distributed.memory_format(device, config.width, config.precision)
    ids = runs.image_ids(config, config.train_split)
    path = stages.label_network(config, STAGE)
    torch.manual_seed(config.seed)
    classes = class_names(config.voc_root)
    classifier = Classifier(len(classes) - 1, config.width, config.dropout, config.backbone_dilation)
    if config.weights:
        checkpoint.load_into(classifier, config.weights, new=("fc8.",))
    made_from = [Path(config.weights)] if config.weights else []
    runs.claim(config, STAGE, [*made_from, *runs.training_data(config)])
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
    network = distributed.data_parallel(classifier, device)

    def losses(batch: dict, _epoch: float) -> Losses:
        with distributed.autocast(device, config.precision):
            logits = network(batch["x"].contiguous(memory_format=layout))
        return {"loss": F.multilabel_soft_margin_loss(logits.float(), batch["present"][:, 1:])}, {}

    def after_epoch(epoch: int, history: History | None) -> None:
        if epoch == config.epochs - 1 and not config.weights:
            average_statistics_anew(classifier)
        if epoch == config.epochs and distributed.rank() == 0:
            checkpoint.save_weights(path, classifier, config, classes)

    training = Training(
        title="classifier",
        folder=path.parent,
        networks={"classifier": classifier},
        optimisers=[optimiser_of(config, classifier)],
        rate=poly_rate(config.cls_lr, config.epochs, config.label_power),
        samples=ImageLabelSamples(config.voc_root, ids, config.cls_side, config.crop),
        batch=config.cls_batch,
        batch_flag="--cls_batch",
        losses=losses,
        after_epoch=after_epoch,
        refresh=partial(refresh_now_and_then, config, "labels"),
    )
    train(training, config, device)
    if distributed.rank() == 0:
        refresh(config, "labels")
        print(f"classifier: wrote {path}; next: {stages.command(config, 'make_cam_labels')}")


def optimiser_of(config: Config, classifier: Classifier) -> torch.optim.Optimizer:
    groups = parameter_groups(classifier, ("fc8.",))
    if config.cls_optimiser == "sgd":
        return sgd(groups, 0, config.label_weight_decay)
    same = [{"params": parameters, "factor": 1.0} for parameters, _ in groups]
    return torch.optim.AdamW(same, weight_decay=config.label_weight_decay)


@program
def main(argv: list[str] | None = None) -> None:
    run(parse(argv, __doc__, "psa"))
    distributed.stop()


if __name__ == "__main__":
    main()
