"""Settings of SSDD (Shimoda and Yanai, ICCV 2019); "program" is the authors' released program."""

from dataclasses import dataclass

from settings.field import COUNT, NONE, RATE, RUN, STAGE, START, SWITCH, TEXT, TRAINING, setting

PAIR = ("mode 0", "mode 1", "mode 2")
STATIC_SIDE, DYNAMIC, EVALUATION = ("mode 0", "mode 4"), ("mode 2",), ("mode 3",)
MAKE, SEEDS = ("mode 1",), ("mode 1", "mode 2")
ON_FIXED, MIXING = ("mode 3", "mode 4"), ("mode 2", "mode 4")
SIDE, TERM = (8, 8192), (-10, 10)
STARTS = ("classifier", "static")
PARTS = ("both", "maps", "flags", "knowledge", "advice")
READINGS = ("published", "logits", "calibrated", "apart")
CRFS = ("pydensecrf", "exact", "auto")
# Settings of the integration that modes 0 and 2 train with.
INTEGRATION = ("bias", "bg", "integration", "map_weight", "reading", "bias_favours", "flag_rule")


@dataclass(frozen=True)
class Ssdd:
    """SSDD: seeds, schedules, integration (Shimoda and Yanai)"""

    knowledge: str = setting("psa", RUN, TEXT, PAIR, "seed source: the mask before the refinement (paper)")
    advice: str = setting("psa_crf", RUN, TEXT, PAIR, "seed source: the mask after it (paper); A,B: several, in turn")
    seed_source: str = setting(
        "", STAGE, TEXT, ON_FIXED, "that mode 4 learns from, and mode 3 evaluates; empty: mode 2"
    )
    bn: int = setting(2, RUN, COUNT, TRAINING, "images a step, modes 0, 2 and 4; 2 a GPU (program)")
    static_side: tuple[int, int] = setting(
        (448, 512), RUN, SIDE, STATIC_SIDE, "pixels before the crop, modes 0, 4 (program)"
    )
    dynamic_side: tuple[int, int] = setting((512, 768), RUN, SIDE, DYNAMIC, "pixels before the crop, mode 2 (program)")
    static_epochs: int = setting(16, RUN, COUNT, NONE, "modes 0 and 4 (program)")
    dynamic_epochs: int = setting(41, RUN, COUNT, NONE, "mode 2 (program)")
    checkpoint_epochs: int = setting(2, RUN, (1, 1 << 20), NONE, "epochs between numbered checkpoints (program)")
    lr: float = setting(1e-3, RUN, RATE, TRAINING, "base learning rate; heads and DD-Net 10 times this (program)")
    weight_decay: float = setting(2e-4, RUN, (0, 10), TRAINING, "modes 0, 2 and 4 (program)")
    alpha: float = setting(0.5, RUN, (0, 1), DYNAMIC, "weight of the seeds in seg_sub's loss (paper)")
    bias: float = setting(0.4, RUN, TERM, DYNAMIC, "of the integration in modes 0 and 2 (paper)")
    bg: float = setting(0.0, RUN, TERM, DYNAMIC, "background term of that integration (paper)")
    integration: str = setting("both", RUN, PARTS, SEEDS, "what chooses: difference maps and flags (paper), or less")
    map_weight: float = setting(1.0, RUN, (0, 1e4), SEEDS, "factor on σ(d_K) − σ(d_A); paper: 1")
    reading: str = setting("published", RUN, READINGS, SEEDS, "of the maps: σ(d_K) − σ(d_A) (paper), or another (ours)")
    crf: str = setting(
        "pydensecrf", RUN, CRFS, DYNAMIC, "of mode 2: pydensecrf (program); exact; auto: the faster (ours)"
    )
    crf_train: int = setting(3, RUN, (1, 1000), DYNAMIC, "iterations in the training step (program)")

    certain_mix: float = setting(
        0.0, RUN, (0, 1), MIXING, "share of a step's images that get certain objects of another (CertainMix); 0: off"
    )

    @property
    def advisers(self) -> list[str]:
        """The seed sources of --advice, in the order in which they are integrated."""
        return self.advice.split(",")


@dataclass(frozen=True)
class Keeping:
    """mode 2, so that it loses no class (ours, off; docs/reproduction.md)"""

    dynamic_start: str = setting("classifier", RUN, STARTS, DYNAMIC, "network to start from: as published, or mode 0's")
    seed_epochs: float = setting(0.0, RUN, (0, 1e6), DYNAMIC, "epochs in which the seed teaches in place of the result")
    warmup_epochs: float = setting(0.0, RUN, (0, 1e6), DYNAMIC, "epochs in which the learning rate rises from 0")


@dataclass(frozen=True)
class Differences:
    """where paper and released program differ (docs/reproduction.md)"""

    bias_favours: str = setting("advice", RUN, ("advice", "knowledge"), SEEDS, "1: as paper and program, or as poster")
    flag_rule: str = setting("lost", RUN, ("lost", "poster"), SEEDS, "2: of labelled classes, or of background too")
    swap_maps: bool = setting(False, RUN, SWITCH, DYNAMIC, "3: mode 2 reads d_K as d_A and the reverse")
    precompute_augmented: bool = setting(False, RUN, SWITCH, MAKE, "4: mode 1 flips and jitters while storing")
    move_maps: bool = setting(True, RUN, SWITCH, DYNAMIC, "5: mode 2 flips and crops stored maps with image and seeds")
    seed_target: str = setting("ssdd1", RUN, ("ssdd1", "ssdd2"), DYNAMIC, "6: what d(m_ssdd1) is compared with")
    momentum: float = setting(0.0, RUN, (0, 0.9999), TRAINING, "7: the released program's 0.9 never acts")
    static_checkpoint: int = setting(0, RUN, (0, 1_000_000), NONE, "8: epochs of mode 0 that mode 1 takes; 0: all")
    seed_bias: float = setting(0.4, RUN, TERM, SEEDS, "9: of the integration that makes m_ssdd0")
    seed_bg: float = setting(0.0, RUN, TERM, SEEDS, "9: background term of that integration")


@dataclass(frozen=True)
class Evaluation:
    """evaluation, mode 3"""

    split: str = setting("val", STAGE, ("val", "train", "test"), NONE, "list that mode 3 evaluates")
    eval_size: int = setting(448, RUN, (8, 2048), EVALUATION, "pixels, side of the square that images become (program)")
    eval_scales: tuple[float, ...] = setting(
        (0.5, 0.75, 1.0, 1.25, 1.5), RUN, (0.01, 8), EVALUATION, "relative to eval_size (program)"
    )
    crf_eval: int = setting(10, RUN, (1, 1000), EVALUATION, "iterations of the CRF (program)")
    submit: str = setting("", START, TEXT, NONE, "with --split=test: pack the masks after CRF for VOC's server, a .tgz")
