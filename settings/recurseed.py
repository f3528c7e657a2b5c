"""Settings of RecurSeed and CertainMix (Jo, Yu and Kim, arXiv 2204.06754); docs/recurseed.md says what is whose.

"release": the authors' published network, operators and helpers. "run": the names of their published runs. "later": the
inference and training programs of the same paper's later version. "ours": nobody published it.
"""

from dataclasses import dataclass

from settings.crf import ITERATIONS, KERNELS
from settings.field import COUNT, NONE, RATE, RECURSEED, RECURSEED_MAKING, RUN, SWITCH, setting

TRAIN = ("recurseed train",)
SHARE = (0, 1)
OPTIMISERS = ("sgd", "adamw")
MAPS = ("decoder", "cam", "scg")
_CRF = KERNELS["recurseed"]


@dataclass(frozen=True)
class RecurSeed:
    """RecurSeed and CertainMix (Jo, Yu and Kim)"""

    recurseed_width: float = setting(
        1.0, RUN, (1 / 64, 2), RECURSEED, "factor on all channels of the network; 1 = published"
    )
    recurseed_epochs: int = setting(100, RUN, COUNT, NONE, "training (later)")
    recurseed_batch: int = setting(16, RUN, COUNT, TRAIN, "images a step (later)")
    recurseed_lr: float = setting(1e-3, RUN, RATE, TRAIN, "backbone; new layers 10 times this (later)")
    recurseed_optimiser: str = setting(
        "sgd", RUN, OPTIMISERS, TRAIN, "sgd (later); adamw, one rate for all, to learn from scratch (ours)"
    )
    recurseed_momentum: float = setting(0.9, RUN, (0, 0.9999), TRAIN, "of SGD (later)")
    recurseed_weight_decay: float = setting(4e-5, RUN, (0, 10), TRAIN, "(later) of weights; biases have none (ours)")
    recurseed_power: float = setting(0.9, RUN, (1e-3, 1e3), TRAIN, "of the poly schedule (release)")
    average_decay: float = setting(0.999, RUN, (0, 0.999999), TRAIN, "of the moving average (later; release: 0.9999)")
    recurseed_side: tuple[int, int] = setting((320, 640), RUN, (8, 8192), TRAIN, "pixels, random long side (ours)")
    recurseed_crop: int = setting(512, RUN, (32, 4096), TRAIN, "pixels, side of a crop (release)")
    recurseed_from: int = setting(5, RUN, COUNT, TRAIN, "first epoch that learns from own seeds, from 1 (run)")
    mix_from: int = setting(15, RUN, COUNT, TRAIN, "first epoch with CertainMix, never before RecurSeed (run)")
    certain: float = setting(0.55, RUN, SHARE, TRAIN, "CertainFilter: least value of certain foreground (run)")
    unsure: float = setting(0.10, RUN, SHARE, TRAIN, "CertainFilter: highest value of certain background (run)")
    scg_stride: int = setting(16, RUN, (4, 64), TRAIN, "pixels a cell of SCG; 8: 16 times its memory (ours)")
    scg_foreground: float = setting(0.30, RUN, SHARE, TRAIN, "SCG: least CAM of sure cells (later)")
    scg_background: float = setting(0.05, RUN, SHARE, TRAIN, "SCG: highest CAM of cells without the class (later)")
    pamr_stride: int = setting(2, RUN, (1, 16), TRAIN, "PAMR works at the crop's side over this (ours: memory)")
    pamr_iterations: int = setting(10, RUN, (1, 1000), TRAIN, "of PAMR (1-stage-wseg; release: 1)")
    seeds_eval_mode: bool = setting(False, RUN, SWITCH, TRAIN, "seeds by a forward of their own, no dropout (ours)")
    recurseed_maps: str = setting(
        "decoder", RUN, MAPS, RECURSEED_MAKING, "what makes masks and seeds; cam, scg: without RecurSeed (release)"
    )
    recurseed_scales: tuple[float, ...] = setting(
        (1.0, 0.5, 1.5, 2.0), RUN, (0.01, 8), RECURSEED_MAKING, "of inference, relative to the image (release)"
    )
    score: float = setting(
        0.34, RUN, SHARE, ("recurseed evaluate",), "least score of a class in an image (later; release: 0.5)"
    )
    recurseed_crf: int = setting(ITERATIONS, RUN, (1, 1000), RECURSEED_MAKING, "iterations of RecurSeed's CRF (later)")
    recurseed_crf_sxy: float = setting(
        _CRF.bilateral_sxy, RUN, (0.5, 1e4), RECURSEED_MAKING, "bilateral kernel, pixels (later)"
    )
    recurseed_crf_srgb: float = setting(
        _CRF.bilateral_srgb, RUN, (0.5, 1e4), RECURSEED_MAKING, "bilateral kernel, colours (later)"
    )
    recurseed_crf_bilateral_weight: float = setting(
        _CRF.bilateral_weight, RUN, (0, 1e4), RECURSEED_MAKING, "bilateral kernel (later)"
    )
    recurseed_crf_gaussian_sxy: float = setting(
        _CRF.gaussian_sxy, RUN, (0.5, 1e4), RECURSEED_MAKING, "Gaussian, pixels (later)"
    )
    recurseed_crf_gaussian_weight: float = setting(
        _CRF.gaussian_weight, RUN, (0, 1e4), RECURSEED_MAKING, "Gaussian kernel (later)"
    )


# The embedded data on a CPU: a few epochs from scratch, which SGD does not learn the classes in. Images are enlarged a
# little, as a cell of the network is 16 pixels.
DEMO = {
    "recurseed_width": 0.25,
    "recurseed_epochs": 24,
    "recurseed_batch": 8,
    "recurseed_lr": 1e-3,
    "recurseed_optimiser": "adamw",
    "recurseed_weight_decay": 1e-4,
    "recurseed_side": (160, 224),
    "recurseed_crop": 192,
    "recurseed_from": 18,
    "mix_from": 22,
    "recurseed_scales": (1.0, 1.25, 1.5),
}


def check_recurseed(config: RecurSeed) -> None:
    """Refuse values that do not go together; raises a ValueError that names the flag."""
    for low, high in (("unsure", "certain"), ("scg_background", "scg_foreground")):
        if not getattr(config, low) < getattr(config, high):
            raise ValueError(f"--{low}={getattr(config, low)}: must be below --{high}={getattr(config, high)}")
    low, high = config.recurseed_side
    if low > high:
        raise ValueError(f"--recurseed_side {low} {high}: needs low <= high")
