"""Settings of SSDD (Shimoda and Yanai, ICCV 2019)."""

from dataclasses import dataclass

from settings.field import NONE, RUN, SSDD_TRAINING, STAGE, START, SWITCH, TEXT, setting

STATIC, DYNAMIC, FIXED = ("mode 0", "mode 1"), ("mode 2",), ("mode 4",)
PAIR = (*STATIC, *DYNAMIC)
SEEDS = ("mode 1", "mode 2")  # make or use the static SSDD mask


@dataclass(frozen=True)
class Ssdd:
    """SSDD: seeds, schedules, integration"""

    knowledge: str = setting("psa", RUN, TEXT, PAIR, "seed source: the mask before the refinement (paper)")
    advice: str = setting("psa_crf", RUN, TEXT, PAIR, "seed source: the mask after it (paper)")
    seed_source: str = setting(
        "",
        STAGE,
        TEXT,
        ("mode 4", "mode 3"),
        "seed source that --mode=4 trains on and whose network --mode=3 evaluates; empty: mode 2's",
    )
    bn: int = setting(
        2, RUN, (1, 1 << 16), SSDD_TRAINING, "images a step and device, modes 0, 2 and 4 (released program)"
    )
    static_side: tuple[int, int] = setting(
        (448, 512),
        RUN,
        (8, 8192),
        ("mode 0", "mode 4"),
        "pixels, random side before the crop, modes 0 and 4 (released program)",
    )
    dynamic_side: tuple[int, int] = setting(
        (512, 768), RUN, (8, 8192), DYNAMIC, "pixels, random side before the crop, mode 2 (released program)"
    )
    static_epochs: int = setting(16, RUN, (1, 1_000_000), NONE, "modes 0 and 4 (released program)")
    dynamic_epochs: int = setting(41, RUN, (1, 1_000_000), NONE, "mode 2 (released program)")
    checkpoint_epochs: int = setting(
        2, RUN, (1, 1 << 20), NONE, "epochs between numbered checkpoints (released program)"
    )
    lr: float = setting(
        1e-3, RUN, (1e-12, 1e3), SSDD_TRAINING, "base learning rate; heads and DD-Net 10 times this (released program)"
    )
    weight_decay: float = setting(2e-4, RUN, (0, 10), SSDD_TRAINING, "modes 0, 2 and 4 (released program)")
    momentum: float = setting(
        0.0, RUN, (0, 0.9999), SSDD_TRAINING, "difference 7: modes 0, 2 and 4; the released program's 0.9 never acts"
    )
    alpha: float = setting(0.5, RUN, (0, 1), DYNAMIC, "weight of the seeds in seg_sub's loss (paper)")
    bias: float = setting(0.4, RUN, (-10, 10), DYNAMIC, "of the integration in modes 0 and 2 (paper)")
    bg: float = setting(0.0, RUN, (-10, 10), DYNAMIC, "background term of that integration (paper)")
    crf: str = setting(
        "pydensecrf",
        RUN,
        ("pydensecrf", "exact"),
        DYNAMIC,
        "of mode 2: pydensecrf (released program), or exact, on the device (ours)",
    )
    crf_train: int = setting(3, RUN, (1, 1000), DYNAMIC, "iterations in the training step (released program)")


@dataclass(frozen=True)
class Differences:
    """where paper and released program differ (docs/reproduction.md)"""

    bias_favours: str = setting(
        "advice", RUN, ("advice", "knowledge"), SEEDS, "difference 1: as paper and program, or as poster"
    )
    flag_rule: str = setting(
        "lost", RUN, ("lost", "kept"), SEEDS, "difference 2: ratio < 0.5, or > 0.5 as the poster prints it"
    )
    swap_maps: bool = setting(False, RUN, SWITCH, DYNAMIC, "difference 3: mode 2 reads d_K as d_A and the reverse")
    precompute_augmented: bool = setting(
        False, RUN, SWITCH, ("mode 1",), "difference 4: mode 1 flips and jitters at random while storing"
    )
    move_maps: bool = setting(
        True, RUN, SWITCH, DYNAMIC, "difference 5: mode 2 flips and crops stored maps with image and seeds"
    )
    seed_target: str = setting(
        "ssdd1", RUN, ("ssdd1", "ssdd2"), DYNAMIC, "difference 6: mask that d(m_ssdd1) is compared with"
    )
    static_checkpoint: int = setting(
        0, RUN, (0, 1_000_000), NONE, "difference 8: epoch of mode 0 that mode 1 uses; 0 = the last"
    )
    seed_bias: float = setting(0.4, RUN, (-10, 10), SEEDS, "difference 9: of the integration that makes m_ssdd0")
    seed_bg: float = setting(0.0, RUN, (-10, 10), SEEDS, "difference 9: background term of that integration")


@dataclass(frozen=True)
class Evaluation:
    """evaluation, mode 3"""

    split: str = setting("val", STAGE, ("val", "train", "test"), NONE, "list that --mode=3 evaluates")
    eval_size: int = setting(
        448, RUN, (8, 2048), ("mode 3",), "pixels, side of the square that images become (released program)"
    )
    eval_scales: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5), RUN, (0.01, 8), ("mode 3",), "relative to eval_size (released program)"
    )
    crf_eval: int = setting(10, RUN, (1, 1000), ("mode 3",), "iterations of the CRF (released program)")
    submit: str = setting(
        "", START, TEXT, NONE, "with --mode=3 --split=test: pack the masks after CRF here for VOC's server, a .tgz"
    )
