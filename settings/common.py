"""Settings that all systems share."""

from dataclasses import dataclass

from settings.crf import KERNELS
from settings.field import (
    BACKBONE,
    COUNT,
    LABEL_MAKING,
    LEARNING,
    MACHINE,
    NONE,
    PASSES,
    RUN,
    SEGMENTING,
    STAGE,
    START,
    SWITCH,
    TEXT,
    setting,
)

CELL = 8  # pixels a side of a cell of the networks' feature maps; crops and stored grids are made of whole cells
MOST_PIXELS = 1 << 22  # of a photograph; VOC's have 250,000
LARGEST_INPUT = 1 << 24  # pixels that a network is given at once: such a photograph at twice its size
PRESETS = ("voc", "coco", "demo")
RECIPES = ("paper", "released")
PRECISIONS = ("auto", "float32", "bfloat16")
CRF = (*LABEL_MAKING, "make_icd_labels", "mode 2", "mode 3")
_SSDD = KERNELS["ssdd"]
TRAINED = (*LEARNING, "train_icd", "recurseed train")


@dataclass(frozen=True)
class Run:
    """what and where"""

    preset: str = setting("voc", RUN, PRESETS, NONE, "sizes and schedule: published, or small for the embedded data")
    recipe: str = setting("paper", RUN, RECIPES, NONE, "whose word counts where paper and released program differ")
    voc_root: str = setting("voc_root", MACHINE, TEXT, NONE, "folder of JPEGImages, Annotations, SegmentationClass …")
    out: str = setting(".", MACHINE, TEXT, NONE, "folder for logs/, precompute/, validation/, prepare_labels/results/")
    modelid: str = setting("ssdd", RUN, 100, NONE, "name of the run in those folders")
    most_pixels: int = setting(MOST_PIXELS, MACHINE, (1, 1 << 25), NONE, "of a photograph; larger ones are refused")
    train_split: str = setting("train_aug", RUN, 100, NONE, "list of the training images")
    weights: str = setting("", START, TEXT, NONE, "to start from (--mode=3: to evaluate); empty: the stage before")
    fresh: bool = setting(False, START, SWITCH, NONE, "start the stage over; what is there is moved aside")
    checkpoint_every: float = setting(10.0, MACHINE, (1e-9, 1e6), NONE, "minutes between two saves within an epoch")
    epochs: int | None = setting(None, STAGE, COUNT, TRAINED, "of the stage that runs, over its own value below")
    seed: int = setting(0, RUN, (0, (1 << 63) - 1), TRAINED, "of first weights, order, augmentation and dropout")


@dataclass(frozen=True)
class Machine:
    """machine"""

    device: str = setting("auto", MACHINE, 20, NONE, "auto, cpu, cuda or cuda:N")
    precision: str = setting("auto", RUN, PRECISIONS, PASSES, "auto: bfloat16 where the device computes in it")
    deterministic: bool = setting(False, MACHINE, SWITCH, NONE, "CUDA: training repeats itself, where torch can")
    compile: bool = setting(False, MACHINE, SWITCH, NONE, "the backbone of modes 0 to 4; the first step takes minutes")
    workers: int = setting(
        64, MACHINE, (0, 1024), NONE, "that run CRFs, and 16 that load data; at most a process' share of cores"
    )
    crf_workers: bool = setting(True, MACHINE, SWITCH, NONE, "run the training step's pydensecrf in worker processes")
    eval_batch: int = setting(4, RUN, (1, 4096), ("mode 1", "mode 3"), "images a forward pass of modes 1 and 3 (ours)")
    pictures: int = setting(8, RUN, (0, 10_000), NONE, "training images whose pictures are logged each epoch (ours)")


@dataclass(frozen=True)
class Backbone:
    """networks, and the crop that they learn from"""

    width: float = setting(1.0, RUN, (1 / 64, 1), BACKBONE, "factor on all channels; 1 = published")
    dropout: float = setting(1.0, RUN, (0, 1.999), TRAINED, "factor on the published dropout rates, at most 0.5")
    backbone_dilation: int = setting(4, RUN, (1, 64), BACKBONE, "cells, of b6 and b7, b5 half of it; 4 = published")
    head_dilation: int = setting(12, RUN, (1, 64), SEGMENTING, "cells, of the segmentation head; 12 = published")
    crop: int = setting(448, RUN, (CELL, 4096), (*LEARNING, "mode 1"), "pixels, side of a crop (released program)")


@dataclass(frozen=True)
class DenseCrf:
    """dense CRF"""

    crf_setting: str = setting(
        "", RUN, ("", *KERNELS), NONE, "sets all kernels below and RecurSeed's by name (settings/crf.py)"
    )
    crf_sxy: float = setting(_SSDD.bilateral_sxy, RUN, (0.5, 1e4), CRF, "bilateral kernel, pixels")
    crf_srgb: float = setting(_SSDD.bilateral_srgb, RUN, (0.5, 1e4), CRF, "bilateral kernel, colour steps")
    crf_bilateral_weight: float = setting(_SSDD.bilateral_weight, RUN, (0, 1e4), CRF, "bilateral kernel, compatibility")
    crf_gaussian_sxy: float = setting(_SSDD.gaussian_sxy, RUN, (0.5, 1e4), CRF, "Gaussian kernel, pixels")
    crf_gaussian_weight: float = setting(_SSDD.gaussian_weight, RUN, (0, 1e4), CRF, "Gaussian kernel, compatibility")
