"""The stages of all systems: one table, in the order in which they run.

What a stage's results depend on stands with the settings (settings.config.settings_of); what it computes, in the
program that its command names. A new stage is an entry here and that program.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from settings.config import Config, settings_of
from settings.flags import flags_of


@dataclass(frozen=True)
class Seeds:
    """Masks or maps that stand for an image's mask: a source that other stages can name."""

    name: str  # as --knowledge, --advice and --seed_source name it
    title: str  # for people
    folder: str  # below --out; {modelid} is the run's name
    ending: str = ".npz"  # of its files: stored maps, or masks (.png)


@dataclass(frozen=True)
class Stage:
    title: str
    command: str  # after `python`
    # Below --out, that it fills; the first one holds its history. {modelid} is the run's name, {fixed} names the seeds
    # of mode 4 and is empty for the network of mode 2.
    folders: tuple[str, ...]
    inputs: tuple[str, ...] = ()  # stages whose results it always reads; seed sources come on top
    epochs: str = ""  # the setting that says for how many it trains; empty: it passes over the images once
    page: str = "index"  # that shows it, of script/
    seeds: tuple[Seeds, ...] = ()  # that it writes


RESULTS = "prepare_labels/results"
CAM = Seeds("cam", "CAM", f"{RESULTS}/out_cam")
PSA_MAPS = Seeds("psa", "PSA", f"{RESULTS}/out_aff")
PSA_CRF = Seeds("psa_crf", "PSA+CRF", f"{RESULTS}/out_aff_crf")
ICD_SEEDS = Seeds("icd", "ICD", f"{RESULTS}/out_icd", ".png")
ICD_CRF = Seeds("icd_crf", "ICD+CRF", f"{RESULTS}/out_icd_crf", ".png")
ICD_SALIENCY = Seeds("icd_saliency", "ICD, saliency", f"{RESULTS}/out_icd_saliency", ".png")
RECURSEED_MAPS = Seeds("recurseed", "RecurSeed", "seeds/{modelid}/recurseed")
RECURSEED_CRF = Seeds("recurseed_crf", "RecurSeed+CRF", "seeds/{modelid}/recurseed_crf")
SEGMENTS_SEEDS = Seeds("segments", "segments", "seeds/{modelid}/segments", ".png")
STATIC_SSDD = Seeds("ssdd", "static SSDD", "precompute/{modelid}", ".png")
STAGES = {
    "train_cls": Stage("classifier", "-m prepare_labels.train_cls", (f"{RESULTS}/cls",), (), "cls_epochs", "labels"),
    "make_cam_labels": Stage(
        "CAM",
        "-m prepare_labels.make_cam_labels",
        (CAM.folder, f"{RESULTS}/out_la_crf", f"{RESULTS}/out_ha_crf"),
        ("train_cls",),
        page="labels",
        seeds=(CAM,),
    ),
    "train_aff": Stage(
        "AffinityNet",
        "-m prepare_labels.train_aff",
        (f"{RESULTS}/aff",),
        ("train_cls", "make_cam_labels"),
        "aff_epochs",
        "labels",
    ),
    "make_aff_labels": Stage(
        "PSA",
        "-m prepare_labels.make_aff_labels",
        (PSA_MAPS.folder, PSA_CRF.folder),
        ("train_aff", "make_cam_labels"),
        page="labels",
        seeds=(PSA_MAPS, PSA_CRF),
    ),
    "make_superpixels": Stage(
        "superpixels", "-m prepare_labels.make_superpixels", (f"{RESULTS}/superpixels",), page="labels"
    ),
    "train_icd": Stage("ICD, network", "-m prepare_labels.train_icd", (f"{RESULTS}/icd",), (), "icd_epochs", "labels"),
    "make_icd_labels": Stage(
        "ICD",
        "-m prepare_labels.make_icd_labels",
        (ICD_SEEDS.folder, ICD_CRF.folder),
        ("train_icd",),
        page="labels",
        seeds=(ICD_SEEDS, ICD_CRF),
    ),
    "make_icd_saliency_labels": Stage(
        "ICD, saliency",
        "-m prepare_labels.make_icd_labels --saliency FOLDER",
        (ICD_SALIENCY.folder,),
        ("train_icd",),
        page="labels",
        seeds=(ICD_SALIENCY,),
    ),
    "segments": Stage(
        "masks of segments", "main_ssdd.py --mode=0", (SEGMENTS_SEEDS.folder,), page="labels", seeds=(SEGMENTS_SEEDS,)
    ),
    "mode 0": Stage(
        "mode 0, static SSDD",
        "main_ssdd.py --mode=0",
        ("logs/sssdd_{modelid}",),
        ("train_cls",),
        "static_epochs",
        "sssdd",
    ),
    "mode 1": Stage(
        "mode 1, difference maps",
        "main_ssdd.py --mode=1",
        (STATIC_SSDD.folder,),
        ("mode 0",),
        seeds=(STATIC_SSDD,),
    ),
    "mode 2": Stage(
        "mode 2, dynamic SSDD",
        "main_ssdd.py --mode=2",
        ("logs/dssdd_{modelid}",),
        ("train_cls", "mode 1"),
        "dynamic_epochs",
        "dssdd",
    ),
    "mode 3": Stage(
        "mode 3, validation", "main_ssdd.py --mode=3", ("validation/{fixed}{modelid}",), ("mode 2",), page="val"
    ),
    "mode 4": Stage(
        "mode 4, fixed seeds", "main_ssdd.py --mode=4", ("logs/{fixed}{modelid}",), ("train_cls",), "static_epochs"
    ),
    "recurseed train": Stage(
        "RecurSeed, training",
        "main_recurseed.py --mode=train",
        ("logs/recurseed_{modelid}",),
        (),
        "recurseed_epochs",
        "recurseed",
    ),
    "recurseed labels": Stage(
        "RecurSeed, seeds",
        "main_recurseed.py --mode=labels",
        (RECURSEED_MAPS.folder, RECURSEED_CRF.folder),
        ("recurseed train",),
        page="labels",
        seeds=(RECURSEED_MAPS, RECURSEED_CRF),
    ),
    "recurseed evaluate": Stage(
        "RecurSeed, validation",
        "main_recurseed.py --mode=evaluate",
        ("validation/recurseed_{modelid}",),
        ("recurseed train",),
        page="recurseed_val",
    ),
}
PSA = ("train_cls", "make_cam_labels", "train_aff", "make_aff_labels")
ICD = ("make_superpixels", "train_icd", "make_icd_labels")
SSDD = ("mode 0", "mode 1", "mode 2", "mode 3")
RECURSEED = ("recurseed train", "recurseed labels", "recurseed evaluate")
# Beside what stages write: the true masks, as an upper bound, masks of any other origin, and, as an adviser only,
# regions that take their classes from the knowledge.
TRUTH, MASKS, SEGMENTS = "truth", "masks:", "segments:"


def folder(config: Config, stage: str, which: int = 0) -> Path:
    """The folder that a stage of this run fills; which: of its folders."""
    template = STAGES[stage].folders[which]
    return Path(config.out) / filled(template, config.modelid, config.seed_source, config.network)


def filled(template: str, modelid: str, source: str = "", network: str = "resnet38") -> str:
    """A folder of the table with the names of a run in it."""
    fixed = f"fixed_{re.sub(r'[:/]', '_', source)}_" if source else ""  # a seed folder's name may hold both
    fixed += f"{network}_" if source and network != "resnet38" else ""
    return template.format(modelid=modelid, fixed=fixed)


def arguments(config: Config, stage: str) -> list[str]:
    """What follows `python` on the command line that runs a stage of this run."""
    own = config.seed_source and "seed_source" in settings_of(stage)
    source = [f"--seed_source={config.seed_source}"] if own else []
    return [*STAGES[stage].command.split(), *source, *flags_of(config)]


def command(config: Config, stage: str) -> str:
    """The same as one types it."""
    return f"python {shlex.join(arguments(config, stage))}"


def label_network(config: Config, stage: str) -> Path:
    """The weights that train_cls, train_aff or train_icd leaves."""
    return folder(config, stage) / "weights.pth"


def checkpoint_path(run: Path, network: str, epoch: int) -> Path:
    """The checkpoint of a training run after `epoch` epochs; network: seg, ssdd, icd or recurseed."""
    return run / "models" / f"{network}_{epoch:04d}.pth"


def sources() -> dict[str, tuple[str, Seeds]]:
    """The stage that writes each seed source, and the source."""
    return {seeds.name: (name, seeds) for name, stage in STAGES.items() for seeds in stage.seeds}
