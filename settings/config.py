"""Every setting of every program: one flat Config, composed of the systems' settings.

A program's Config is: preset (`voc`, `coco` or `demo`) → recipe (`paper` or `released`) → the values of --network →
those of --crf_setting → the flags given, by name.
"""

import dataclasses
import math
import reprlib
import typing
from dataclasses import dataclass, replace

from settings.common import CELL, Backbone, DenseCrf, Machine, Run
from settings.crf import values_of
from settings.final import Final, values_for
from settings.icd import Icd
from settings.psa import Psa
from settings.recurseed import DEMO as RECURSEED_DEMO
from settings.recurseed import RecurSeed, check_recurseed
from settings.ssdd import Differences, Evaluation, Keeping, Ssdd

MOST_ADVISERS = 8
# The settings of each system, as `--help` groups them; those of "common" belong to every program.
GROUPS = {
    "common": (Run, Machine, Backbone, DenseCrf),
    "psa": (Psa,),
    "ssdd": (Ssdd, Keeping, Differences, Evaluation, Final),
    "icd": (Icd,),
    "recurseed": (RecurSeed,),
}


@dataclass(frozen=True)
class Config(RecurSeed, Icd, Final, Evaluation, Differences, Keeping, Ssdd, Psa, DenseCrf, Backbone, Machine, Run):
    """All settings; a run is a function of them, the data and the seed."""

    def stage(self, epochs: int) -> "Config":
        """This Config for a training stage whose own number of epochs is `epochs`."""
        return self if self.epochs else replace(self, epochs=epochs)


FIELDS = {entry.name: entry for entry in dataclasses.fields(Config)}
TYPES = typing.get_type_hints(Config)


def settings_of(stage: str) -> tuple[str, ...]:
    """The settings that the results of a stage depend on; the rest may differ from one start to the next."""
    return tuple(name for name, entry in FIELDS.items() if stage in entry.metadata["stages"])


def from_stored(stored: dict) -> Config:
    """The Config that a JSON or weights file holds; settings that are newer than the file have their defaults.

    Raises:
        TypeError, ValueError: a value is of another kind than its setting, or cannot work.
    """
    given = {name: tuple(v) if isinstance(v := stored[name], list) else v for name in FIELDS if name in stored}
    strange = next((name for name, value in given.items() if not _fits(value, FIELDS[name].default)), None)
    if strange:
        raise ValueError(f"{strange} cannot be {reprlib.repr(given[strange])}")
    config = Config(**given)
    check(config)
    return config


def _fits(value, default) -> bool:
    """Whether a value is of the kind of a field's default."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) > 0 and all(_fits(part, default[0]) for part in value)
    kinds = {float: (float, int), int: int, type(None): (int, type(None))}
    return isinstance(value, kinds.get(type(default), type(default)))


def preset(name: str) -> Config:
    return {"coco": coco, "demo": demo}.get(name, voc)()


def voc() -> Config:
    """The published setting."""
    return Config()


def coco() -> Config:
    """COCO 2014 as tools.coco prepares it. The settings are VOC's: nobody published others for these programs."""
    return Config(preset="coco", voc_root="coco_root")


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
        **RECURSEED_DEMO,
        bn=4,
        static_epochs=3,
        dynamic_epochs=18,
        warmup_epochs=1.0,
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
        # No ImageNet network: a narrow VGG16 learns from scratch, which needs BatchNorm and a higher rate, and
        # superpixels are as alike as their colours, as nothing that learned is there when they are made.
        superpixel_features="colour",
        icd_batchnorm=True,
        icd_width=0.25,
        icd_crop=97,
        icd_scales=(0.75, 1.0, 1.25),
        icd_side=145,
        icd_epochs=80,
        icd_batch=16,
        icd_lr=1e-2,
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
        static_checkpoint=11 if config.preset != "demo" else 0,
        seed_bias=0.1,
        seed_bg=0.1,
    )


def with_network(config: Config, name: str) -> Config:
    """The settings that are published for a final network."""
    return replace(config, network=name, **values_for(name, config.preset))


def with_crf(config: Config, name: str) -> Config:
    """The CRF's settings that a name stands for; without one, each system's own."""
    return replace(config, crf_setting=name, **values_of(name)) if name else config


def shown(value) -> str:
    """A value as a flag takes it."""
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return "none" if value in ("", None) else str(value)


def check(config: Config) -> None:
    """Refuse values that cannot work.

    Raises:
        ValueError: names the flag and what it may be.
    """
    for name, entry in FIELDS.items():
        value = getattr(config, name)
        if value is not None:
            _check_bounds(name, value, entry.metadata["bounds"])
    _check_sizes(config)
    check_recurseed(config)
    if config.compile and 64 * config.width < 16:
        raise ValueError("--compile: needs a --width of 0.25 or more; narrower, torch's compiled code crashes on CPUs")
    if "/" in config.modelid or config.modelid in ("", ".", ".."):
        raise ValueError(f"--modelid={config.modelid!r}: must be a plain name, it becomes a folder")
    _check_advisers(config)


def _check_advisers(config: Config) -> None:
    """One seed source or several; where two names mean one folder, engine.seeds.pair sees it."""
    advisers = config.advisers
    if config.knowledge in advisers:
        raise ValueError(f"--advice={config.advice}: is the knowledge too; two different seed sources are needed")
    twice = next((name for n, name in enumerate(advisers) if name in advisers[:n]), None)
    if twice is not None:
        raise ValueError(f"--advice={config.advice}: names {twice!r} twice; each adviser is asked once")
    if len(advisers) > MOST_ADVISERS:
        raise ValueError(f"--advice={config.advice[:60]}: names {len(advisers)} advisers, at most {MOST_ADVISERS}")


def _check_bounds(name: str, value, bounds: tuple | int) -> None:
    """One setting, by the bounds that stand with it."""
    if isinstance(value, str):
        if isinstance(bounds, tuple) and value not in bounds:
            raise ValueError(f"--{name}={value[:60]}: must be one of {', '.join(bounds)}")
        if isinstance(bounds, int) and (len(value) > bounds or not value.isprintable()):
            raise ValueError(f"--{name}={value[:60]!a}: must be a text of at most {bounds} printable characters")
    elif not isinstance(value, bool):
        values = value if isinstance(value, tuple) else (value,)
        low, high = bounds
        if len(values) > 32 or not all(math.isfinite(v) and low <= v <= high for v in values):
            raise ValueError(f"--{name}={shown(value)[:60]}: must lie between {low:g} and {high:g}")


def _check_sizes(config: Config) -> None:
    """Sizes that must go together."""
    for name in ("crop", "eval_size"):
        side = getattr(config, name)
        if side % CELL or side // CELL <= config.head_dilation:
            least = CELL * config.head_dilation
            raise ValueError(f"--{name}={side}: must be a multiple of 8 and exceed 8 × head_dilation = {least}")
    smallest, largest = (int(config.eval_size * scale(config.eval_scales)) for scale in (min, max))
    if -(-smallest // CELL) <= config.head_dilation:
        least = CELL * config.head_dilation
        raise ValueError(f"--eval_scales: the smallest input would be {smallest} pixels, must exceed {least}")
    if largest > 4096:
        raise ValueError(f"--eval_scales: the largest input would be {largest} pixels, at most 4096 make sense")
    for name in ("static_side", "dynamic_side", "cls_side"):
        low, high = getattr(config, name)
        least = CELL if name == "cls_side" else config.crop
        if not least <= low <= high:
            raise ValueError(f"--{name} {low} {high}: needs {least} <= low <= high")
