"""Settings of ICD (Fan, Zhang, Song and Tan, CVPR 2020); "program" is the authors' released program."""

from dataclasses import dataclass

from settings.crf import ITERATIONS
from settings.field import COUNT, NONE, RATE, RUN, STAGE, SWITCH, TEXT, setting

SUPERPIXELS, TRAIN, MAKE = ("make_superpixels",), ("train_icd",), ("make_icd_labels",)
SALIENT = ("make_icd_saliency_labels",)
NETWORK = (*TRAIN, *MAKE, *SALIENT)
FEATURES = ("imagenet", "colour")


@dataclass(frozen=True)
class Icd:
    """ICD: superpixels, network, seeds (Fan et al.)"""

    superpixels: str = setting(
        "", RUN, TEXT, TRAIN, "folder of ID.png, such as the authors' files; empty: those of make_superpixels"
    )
    superpixel_features: str = setting(
        "imagenet",
        RUN,
        FEATURES,
        SUPERPIXELS,
        "what says how alike two are: the VGG16 of --weights (program), or colour histograms, without weights (ours)",
    )
    superpixel_threshold: float = setting(75.0, RUN, (0, 1e6), SUPERPIXELS, "of Felzenszwalb's method (program)")
    superpixel_least: int = setting(75, RUN, COUNT, SUPERPIXELS, "pixels of one before they are merged (program)")
    superpixel_most: int = setting(64, RUN, (1, 512), (*SUPERPIXELS, *TRAIN), "of an image, after merging (program)")
    icd_width: float = setting(1.0, RUN, (1 / 64, 2), NETWORK, "factor on VGG16's numbers of channels; 1 = published")
    icd_batchnorm: bool = setting(
        False, RUN, SWITCH, NETWORK, "after every convolution, to learn from scratch (ours); no published weights fit"
    )
    icd_crop: int = setting(
        321, RUN, (17, 4096), TRAIN, "pixels, side of a crop; best a multiple of 8, plus 1 (program)"
    )
    icd_scales: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5), RUN, (0.01, 8), TRAIN, "one is drawn before the crop (program)"
    )
    icd_side: int = setting(
        513, RUN, (17, 4096), (*SUPERPIXELS, *MAKE, *SALIENT), "pixels, square that images are padded to (program)"
    )
    icd_epochs: int = setting(20, RUN, COUNT, NONE, "the rest of an epoch, less than a batch, is dropped (program)")
    icd_batch: int = setting(32, RUN, COUNT, TRAIN, "images a step (program); at least 16 (ours)")
    icd_lr: float = setting(1e-3, RUN, RATE, TRAIN, "fc8 and conv_ft 10 times this (program)")
    icd_power: float = setting(0.9, RUN, (1e-3, 1e3), TRAIN, "of the poly schedule, constant in an epoch (program)")
    icd_momentum: float = setting(0.9, RUN, (0, 0.9999), TRAIN, "with the rate inside its buffer (program)")
    icd_weight_decay: float = setting(5e-4, RUN, (0, 10), TRAIN, "on weights, not on biases and betas (program)")
    icd_checkpoints: int = setting(5, RUN, COUNT, NONE, "epochs whose weights are kept, the last ones (program)")
    crf_icd: int = setting(ITERATIONS, RUN, (1, 1000), MAKE, "iterations of the CRF on ICD's seeds (program)")
    saliency: str = setting(
        "", STAGE, TEXT, SALIENT, "folder of grey ID.png that the seeds' background comes from; no CRF then (program)"
    )
