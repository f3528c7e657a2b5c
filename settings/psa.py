"""Settings of PSA, the label chain (Ahn and Kwak, CVPR 2018)."""

from dataclasses import dataclass

from settings.crf import ITERATIONS
from settings.field import COUNT, LABEL_MAKING, LABEL_TRAINING, NONE, RATE, RUN, setting

CLS, CAM, AFF, WALK = ("train_cls",), ("make_cam_labels",), ("train_aff",), ("make_aff_labels",)
POWER = (1e-3, 1e3)
OPTIMISERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Psa:
    """PSA: classifier, CAM, AffinityNet, random walk (Ahn and Kwak)"""

    cls_side: tuple[int, int] = setting((256, 512), RUN, (8, 8192), CLS, "pixels, random long side, classifier (PSA)")
    cls_epochs: int = setting(15, RUN, COUNT, NONE, "classifier (PSA)")
    cls_batch: int = setting(16, RUN, COUNT, CLS, "classifier, images a step (PSA)")
    cls_lr: float = setting(0.1, RUN, RATE, CLS, "classifier; fc8 10 times this (PSA)")
    cls_optimiser: str = setting("sgd", RUN, OPTIMISERS, CLS, "classifier; sgd (PSA), adamw from scratch (ours)")
    aff_epochs: int = setting(8, RUN, COUNT, NONE, "AffinityNet (PSA)")
    aff_batch: int = setting(8, RUN, COUNT, AFF, "AffinityNet, images a step (PSA)")
    aff_lr: float = setting(0.1, RUN, RATE, AFF, "AffinityNet; new layers 10 times this (PSA)")
    label_weight_decay: float = setting(5e-4, RUN, (0, 10), LABEL_TRAINING, "classifier and AffinityNet (PSA)")
    label_power: float = setting(0.9, RUN, POWER, LABEL_TRAINING, "of the poly schedule of both (PSA)")
    cam_scales: tuple[float, ...] = setting((1.0, 0.5, 1.5, 2.0), RUN, (0.01, 8), CAM, "relative to the image (PSA)")
    alpha_low: float = setting(4.0, RUN, POWER, CAM, "power of (1 - max cam) that says 'perhaps background' (PSA)")
    alpha_high: float = setting(32.0, RUN, POWER, CAM, "power of (1 - max cam) that says 'surely background' (PSA)")
    alpha_walk: float = setting(16.0, RUN, POWER, WALK, "power of (1 - max cam) that enters the random walk (PSA)")
    walk_power: float = setting(8.0, RUN, POWER, WALK, "elementwise power of the affinities (PSA)")
    walk_log_steps: int = setting(8, RUN, (0, 16), WALK, "the walk takes 2 to this many steps (PSA)")
    crf_labels: int = setting(ITERATIONS, RUN, (1, 1000), LABEL_MAKING, "iterations of the CRF on seeds (PSA)")
