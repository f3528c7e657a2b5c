"""How a setting is declared: once, and with all that the programs must know of it."""

from dataclasses import field
from typing import Any

# How far a setting reaches.
RUN = "run"  # the whole run: the next stage needs its flag, and weights files keep it
STAGE = "stage"  # one stage: weights files keep it, the next stage has its own
MACHINE = "machine"  # where and on what a run works: the next stage needs it, but it says nothing about a network
START = "start"  # one start of a program

# Stages that share settings; the names are those of engine.stages.
NONE = ()  # no result depends on it
LABEL_TRAINING = ("train_cls", "train_aff")
LABEL_MAKING = ("make_cam_labels", "make_aff_labels")
TRAINING = ("mode 0", "mode 2", "mode 4")
LEARNING = (*LABEL_TRAINING, *TRAINING)
SEGMENTING = (*TRAINING, "mode 1", "mode 3")
RECURSEED_MAKING = ("recurseed labels", "recurseed evaluate")
RECURSEED = ("recurseed train", *RECURSEED_MAKING)
PASSES = (  # over the images, which keep what is done
    *("make_superpixels", *LABEL_MAKING, "make_icd_labels", "make_icd_saliency_labels"),
    *("mode 1", "mode 3", *RECURSEED_MAKING),
)
BACKBONE = (*LABEL_TRAINING, *LABEL_MAKING, *SEGMENTING)

TEXT = 4096  # characters: the bounds of paths and names
SWITCH = ()  # the bounds of what is on or off
COUNT = (1, 1_000_000)
RATE = (1e-12, 1e3)


def setting(default, reach: str, bounds: tuple | int, stages: tuple[str, ...], text: str) -> Any:
    """A field of Config. Nothing here has a default, so that nothing can be forgotten.

    Args:
        reach: RUN, STAGE, MACHINE or START.
        bounds: the lowest and the highest number that can work; or the words to choose from; or the most characters of
            a text.
        stages: whose results depend on it: they refuse a folder that was filled with another value.
        text: what it is, with unit and source; `--help` shows it.
    """
    return field(default=default, metadata={"reach": reach, "bounds": bounds, "stages": stages, "help": text})
