"""Every setting of every program here, with its unit and its source, and how the command line changes it.

A program's Config is: preset (`voc` or `demo`) → recipe (`paper` or `released`) → the flags given, by name.
"""

import argparse
import dataclasses
import math
import shlex
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from datasets.errors import InputError, fail
from models.crf import CrfKernel
from models.ssdd.difference.steps import Integration

PRESETS = ("voc", "demo")
RECIPES = ("paper", "released")
# What one stage is told but the next need not be.
_NOT_PASSED_ON = ("weights", "fresh", "epochs", "split", "seed_source", "submit")
SEED_SOURCES = ("", "psa", "crf", "ssdd", "truth")


def _f(default, text: str, choices: tuple[str, ...] | None = None):
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Config:
    # What and where
    preset: str = _f("voc", "sizes and schedule: as published on VOC, or small ones for the embedded data", PRESETS)
    recipe: str = _f("paper", "whose word counts where paper and released program differ", RECIPES)
    voc_root: str = _f("voc_root", "VOC 2012 folder: JPEGImages, Annotations, ImageSets, SegmentationClass")
    out: str = _f(".", "folder that receives logs/, precompute/, validation/ and prepare_labels/results/")
    modelid: str = _f("ssdd", "name of the run in those folders")
    train_split: str = _f("train_aug", "list of the training images")
    split: str = _f("val", "list that --mode=3 evaluates", ("val", "train", "test"))
    seed_source: str = _f(
        "", "seeds that --mode=4 trains on, whose network --mode=3 then evaluates; empty: that of mode 2", SEED_SOURCES
    )
    weights: str = _f("", "weights to start from (--mode=3: to evaluate); empty: what the previous stage left")
    submit: str = _f("", "with --mode=3 --split=test: pack the masks after CRF here for VOC's server, a .tgz")
    fresh: bool = _f(False, "start the stage over instead of going on where it stopped")
    checkpoint_every: float = _f(10.0, "minutes between two saves within an epoch of training")

    # Machine
    device: str = _f("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _f(
        "auto", "of the networks; auto: bfloat16 where the device computes in it", ("auto", "float32", "bfloat16")
    )
    compile: bool = _f(False, "compile the backbone in modes 0 to 4 (torch.compile); the first step takes minutes")
    seed: int = _f(0, "of initial weights, data order, augmentation and dropout")
    workers: int = _f(4, "processes a GPU that load data, and as many that run CRFs; no more than cores; 0: none")
    crf_workers: bool = _f(True, "run the training step's pydensecrf in worker processes while the network goes on")

    # Networks
    width: float = _f(1.0, "factor on all numbers of channels; 1 = published")
    dropout: float = _f(1.0, "factor on the backbone's and the classifier's dropout rates; 1 = published")
    backbone_dilation: int = _f(4, "cells, of blocks b6 and b7, b5 half of it; 4 = published")
    head_dilation: int = _f(12, "cells, of the segmentation head; 12 = published")

    # Sizes, pixels
    crop: int = _f(448, "side of a training crop, a multiple of 8 (released program)")
    static_side: tuple[int, int] = _f((448, 512), "random side before the crop, modes 0 and 4 (released program)")
    dynamic_side: tuple[int, int] = _f((512, 768), "random side before the crop, mode 2 (released program)")
    cls_side: tuple[int, int] = _f((256, 512), "random long side, classifier (PSA)")
    eval_size: int = _f(448, "side of the square that evaluation resizes to (released program)")
    eval_scales: tuple[float, ...] = _f((0.5, 0.75, 1.0, 1.25, 1.5), "relative to eval_size (released program)")
    cam_scales: tuple[float, ...] = _f((1.0, 0.5, 1.5, 2.0), "relative to the image (PSA)")

    # Schedules
    epochs: int | None = _f(None, "of the stage that runs, over its own value below")
    bn: int = _f(2, "batch size a device, modes 0-2 and 4 (released program)")
    static_epochs: int = _f(16, "modes 0 and 4 (released program)")
    dynamic_epochs: int = _f(41, "mode 2 (released program)")
    lr: float = _f(1e-3, "base learning rate, modes 0, 2 and 4; heads and DD-Net 10 times this (released program)")
    weight_decay: float = _f(2e-4, "modes 0, 2 and 4 (released program)")
    momentum: float = _f(0.0, "modes 0, 2 and 4; the released program's 0.9 never acts (difference 7)")
    checkpoint_epochs: int = _f(2, "epochs between numbered checkpoints (released program)")
    pictures: int = _f(8, "training images whose pictures are logged after every epoch (ours)")
    eval_batch: int = _f(4, "images a forward pass of modes 1 and 3 (ours)")
    cls_epochs: int = _f(15, "classifier (PSA)")
    cls_batch: int = _f(16, "classifier, a device (PSA)")
    cls_lr: float = _f(0.1, "classifier; fc8 10 times this (PSA)")
    cls_optimiser: str = _f("sgd", "classifier; sgd (PSA), or adamw to learn from scratch (ours)", ("sgd", "adamw"))
    aff_epochs: int = _f(8, "AffinityNet (PSA)")
    aff_batch: int = _f(8, "AffinityNet, a device (PSA)")
    aff_lr: float = _f(0.1, "AffinityNet; new layers 10 times this (PSA)")
    label_weight_decay: float = _f(5e-4, "classifier and AffinityNet (PSA)")
    label_power: float = _f(0.9, "of the poly schedule, classifier and AffinityNet (PSA)")

    # Seeds
    alpha_low: float = _f(4.0, "power of (1 - max cam) that says 'perhaps background' (PSA)")
    alpha_high: float = _f(32.0, "power of (1 - max cam) that says 'surely background' (PSA)")
    alpha_walk: float = _f(16.0, "power of (1 - max cam) that enters the random walk (PSA)")
    walk_power: float = _f(8.0, "elementwise power of the affinities (PSA)")
    walk_log_steps: int = _f(8, "the walk takes 2 to this many steps (PSA)")

    # Dense CRF
    crf: str = _f(
        "pydensecrf",
        "of the training step: pydensecrf (released program), or exact, on the device, meant for GPUs (ours)",
        ("pydensecrf", "exact"),
    )
    crf_train: int = _f(3, "iterations in the training step (released program)")
    crf_labels: int = _f(10, "iterations on seeds (PSA)")
    crf_eval: int = _f(10, "iterations at evaluation (released program)")
    crf_sxy: float = _f(80.0, "bilateral kernel, pixels")
    crf_srgb: float = _f(13.0, "bilateral kernel, colour steps")
    crf_bilateral_weight: float = _f(10.0, "bilateral kernel, compatibility")
    crf_gaussian_sxy: float = _f(3.0, "Gaussian kernel, pixels")
    crf_gaussian_weight: float = _f(3.0, "Gaussian kernel, compatibility")

    # SSDD, and the differences between paper and released program (docs/reproduction.md)
    alpha: float = _f(0.5, "weight of the seeds in seg_sub's loss (paper)")
    bias: float = _f(0.4, "of the integration in modes 0 and 2 (paper)")
    bg: float = _f(0.0, "background term of that integration (paper)")
    bias_favours: str = _f("advice", "difference 1: as paper and program, or as poster", ("advice", "knowledge"))
    flag_rule: str = _f("lost", "difference 2: ratio < 0.5, or > 0.5 as the poster prints it", ("lost", "kept"))
    swap_maps: bool = _f(False, "difference 3: mode 2 reads d_K as d_A and the reverse")
    precompute_augmented: bool = _f(False, "difference 4: mode 1 flips and jitters at random while storing")
    move_maps: bool = _f(True, "difference 5: mode 2 flips and crops stored maps with image and seeds")
    seed_target: str = _f("ssdd1", "difference 6: mask that d(m_ssdd1) is compared with", ("ssdd1", "ssdd2"))
    static_checkpoint: int = _f(0, "difference 8: epoch of mode 0 that mode 1 uses; 0 = the last")
    seed_bias: float = _f(0.4, "difference 9: of the integration that makes m_ssdd0")
    seed_bg: float = _f(0.0, "difference 9: background term of that integration")

    def stage(self, epochs: int) -> "Config":
        """This Config for a training stage whose own number of epochs is `epochs`."""
        return self if self.epochs else replace(self, epochs=epochs)

    def flags(self) -> str:
        """The flags, with a leading space, that the next stage of the same run needs."""
        own, flags = with_recipe(preset(self.preset), self.recipe), []
        for name in ("preset", "recipe"):
            if getattr(self, name) != getattr(Config, name):
                flags.append(f"--{name}={getattr(self, name)}")
        for entry in dataclasses.fields(self):
            name, value = entry.name.replace("_", "-"), getattr(self, entry.name)
            if value == getattr(own, entry.name) or entry.name in _NOT_PASSED_ON:
                continue
            if isinstance(value, bool):
                flags.append(f"--{'' if value else 'no-'}{name}")
            elif isinstance(value, tuple):
                flags += [f"--{name}", *map(str, value)]
            else:
                flags.append(shlex.quote(f"--{name}={value}"))
        return "".join(f" {flag}" for flag in flags)

    def crf_kernel(self) -> CrfKernel:
        return CrfKernel(
            self.crf_gaussian_sxy, self.crf_gaussian_weight, self.crf_sxy, self.crf_srgb, self.crf_bilateral_weight
        )

    def integration(self) -> Integration:
        """How modes 0 and 2 integrate."""
        return self._integration(self.bias, self.bg)

    def seed_integration(self) -> Integration:
        """How m_ssdd0 is made from the stored static difference maps."""
        return self._integration(self.seed_bias, self.seed_bg)

    def _integration(self, bias: float, bg: float) -> Integration:
        sign = 1 if self.bias_favours == "advice" else -1
        return Integration(sign * bias, bg, self.flag_rule == "kept")

    # Where things lie (method.md of the released program)
    def labels_folder(self, kind: str) -> Path:
        """kind: out_cam, out_la_crf, out_ha_crf, out_aff, out_aff_crf; cls, aff for the label networks."""
        return Path(self.out) / "prepare_labels" / "results" / kind

    def label_network(self, name: str) -> Path:
        """name: cls or aff."""
        return self.labels_folder(name) / "weights.pth"

    def run_folder(self, mode: int) -> Path:
        kind = {0: "sssdd", 2: "dssdd", 4: f"fixed_{self.seed_source}"}[mode]
        return Path(self.out) / "logs" / f"{kind}_{self.modelid}"

    def precompute_folder(self) -> Path:
        return Path(self.out) / "precompute" / self.modelid

    def validation_folder(self) -> Path:
        """Of the network of mode 2, or of the one that mode 4 trained on `seed_source`."""
        name = f"fixed_{self.seed_source}_{self.modelid}" if self.seed_source else self.modelid
        return Path(self.out) / "validation" / name


def preset(name: str) -> Config:
    return demo() if name == "demo" else voc()


def voc() -> Config:
    """The published setting."""
    return Config()


def demo() -> Config:
    """The embedded data set on a CPU, in minutes."""
    return Config(
        preset="demo",
        voc_root="demo/VOC2012",
        out="demo",
        workers=0,
        crf_workers=False,
        width=0.125,
        backbone_dilation=1,
        head_dilation=3,
        crop=128,
        static_side=(128, 144),
        dynamic_side=(128, 176),
        cls_side=(112, 176),
        eval_size=128,
        bn=4,
        static_epochs=3,
        dynamic_epochs=18,
        lr=5e-3,
        eval_batch=20,
        eval_scales=(0.75, 1.0, 1.25),
        cam_scales=(1.0, 1.25),
        walk_log_steps=5,
        alpha_low=1.0,
        alpha_high=8.0,
        alpha_walk=8.0,
        dropout=0.0,
        cls_epochs=20,
        cls_batch=8,
        cls_lr=1e-3,
        cls_optimiser="adamw",
        aff_epochs=3,
    )


def with_recipe(config: Config, recipe: str) -> Config:
    """The differences between paper and released program, decided one way or the other."""
    if recipe == "paper":
        return replace(config, recipe=recipe)
    return replace(
        config,
        recipe=recipe,
        crf="pydensecrf",
        swap_maps=True,
        precompute_augmented=True,
        move_maps=False,
        seed_target="ssdd2",
        static_checkpoint=10 if config.preset == "voc" else 0,
        seed_bias=0.1,
        seed_bg=0.1,
    )


class Parser(argparse.ArgumentParser):
    """Reports a bad flag in one line, as every other bad input; the usage of all flags would hide it."""

    def __init__(self, description: str):
        super().__init__(
            usage="%(prog)s [flags]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        fail(InputError(f"{message}; see --help"))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a field; what is not given is absent from the parsed arguments."""
    group = parser.add_argument_group("settings (defaults of the voc preset; sources in brackets)")
    types_of = typing.get_type_hints(Config)
    for entry in dataclasses.fields(Config):
        default = entry.default
        names = [f"--{entry.name}"] + ([f"--{entry.name.replace('_', '-')}"] if "_" in entry.name else [])
        options = {"dest": entry.name, "default": argparse.SUPPRESS}
        options["help"] = f"{entry.metadata['help'].replace('%', '%%')} (default: {_shown(default)})"
        kind = types_of[entry.name]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, tuple):
            options |= {"nargs": 2 if kind == tuple[int, int] else "+", "type": typing.get_args(kind)[0]}
        else:
            options["type"] = typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind
            if entry.metadata["choices"]:
                options["choices"] = entry.metadata["choices"]
            else:
                options["metavar"] = options["type"].__name__.upper()
        group.add_argument(*names, **options)
    group.add_argument("--resume", dest="fresh", action="store_false", default=argparse.SUPPRESS, help="the default")


def _shown(value) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "none" if value in ("", None) else str(value)


def config_from(arguments: argparse.Namespace) -> Config:
    """The Config that parsed flags ask for.

    Raises:
        InputError: a value cannot work; the message names the flag.
    """
    names = {entry.name for entry in dataclasses.fields(Config)}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name in names
    }
    config = with_recipe(preset(given.get("preset", "voc")), given.get("recipe", "paper"))
    config = replace(config, **given)
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse values that cannot work, by the flag's name."""
    if config.compile and 64 * config.width < 16:
        raise InputError("--compile: needs a --width of 0.25 or more; narrower, torch's compiled code crashes on CPUs")
    positive = "bn epochs static_epochs dynamic_epochs cls_epochs cls_batch aff_epochs aff_batch checkpoint_epochs "
    positive += "checkpoint_every "
    positive += "eval_batch width backbone_dilation head_dilation lr cls_lr aff_lr crop eval_size eval_scales "
    positive += "cam_scales "
    positive += "crf_train crf_labels crf_eval crf_sxy crf_srgb crf_gaussian_sxy "
    positive += "alpha_low alpha_high alpha_walk walk_power label_power"
    not_negative = "alpha workers pictures seed weight_decay label_weight_decay static_checkpoint walk_log_steps"
    for name, value in vars(config).items():
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in values):
            raise InputError(f"--{name}={_shown(value)}: must be finite")
        if name in positive.split() and value is not None and not all(v > 0 for v in values):
            raise InputError(f"--{name}={_shown(value)}: must be greater than 0")
        if name in not_negative.split() and value < 0:
            raise InputError(f"--{name}={value}: must be 0 or more")
    if config.seed >= 1 << 63:
        raise InputError(f"--seed={config.seed}: must be less than 2 to the 63")
    if not 0 <= config.dropout < 2:
        raise InputError(f"--dropout={config.dropout}: must lie in [0, 2), as the highest published rate is 0.5")
    if config.walk_log_steps > 16 or config.alpha > 1 or max(config.eval_scales + config.cam_scales) > 8:
        raise InputError("--walk_log_steps above 16, --alpha above 1 or scales above 8 make no sense")
    # A weights file brings its Config along, so absurd sizes are a stranger's.
    sizes = {"width": 8, "crop": 4096, "eval_size": 4096, "dynamic_side": 8192, "backbone_dilation": 64}
    for name, most in sizes.items():
        value = getattr(config, name)
        if max(value if isinstance(value, tuple) else (value,)) > most:
            raise InputError(f"--{name}={_shown(value)}: must be at most {most}")
    if len(config.eval_scales) > 32 or max(config.crf_train, config.crf_labels, config.crf_eval) > 1000:
        raise InputError("over 32 --eval_scales or 1000 iterations of a CRF make no sense")
    if not 0 <= config.momentum < 1:
        raise InputError(f"--momentum={config.momentum}: must lie in [0, 1)")
    for name in ("crop", "eval_size"):
        side = getattr(config, name)
        if side % 8 or side // 8 <= config.head_dilation:
            raise InputError(
                f"--{name}={side}: must be a multiple of 8 and exceed 8 × head_dilation = {8 * config.head_dilation}"
            )
    smallest = int(config.eval_size * min(config.eval_scales))
    if -(-smallest // 8) <= config.head_dilation:
        raise InputError(
            f"--eval_scales: the smallest input would be {smallest} pixels, must exceed {8 * config.head_dilation}"
        )
    for name in ("static_side", "dynamic_side", "cls_side"):
        low, high = getattr(config, name)
        least = 8 if name == "cls_side" else config.crop
        if not least <= low <= high:
            raise InputError(f"--{name} {low} {high}: needs {least} <= low <= high")
    if "/" in config.modelid or config.modelid in ("", ".", ".."):
        raise InputError(f"--modelid={config.modelid!r}: must be a plain name, it becomes a folder")


def parse(argv: list[str] | None, description: str) -> Config:
    """The Config of a program that has no other arguments."""
    parser = Parser(description)
    add_flags(parser)
    return config_from(parser.parse_args(argv))
