"""Why a figure is not reached, stage by stage, in the order of likelihood: what people met, and the command that tells.

These are no findings: nothing of them has been seen in the run. What can be proven is in engine.ledger_checks.
"""

from engine import stages
from engine.ledger import EVALUATIONS, Entry, Finding, Run
from evaluation.expected import COCO

# Each with {root} of the data, {folder} of the stage, {out}, {modelid}, {command} of the stage.
LIST = (
    "list",
    "the wrong list: VOC's train_aug has 10,582 images, train 1,464, val 1,449",
    "wc -l {root}/ImageSets/*/*.txt",
)
BOUNDARY = (
    "boundary",
    "boundary pixels counted, or judged on other masks than SegmentationClass: the true masks must give 100.0",
    "python -m tools.eval_masks truth --split val --voc-root {root}",
)
WEIGHTS = (
    "weights",
    "weights not loaded, or of another network: see made_from",
    "grep -A9 made_from {folder}/config.json",
)
COLOUR = (
    "colour",
    "colour order or normalisation: networks take RGB with ImageNet's mean and deviation, ICD's RGB minus 127",
    "python -m pytest -q tests/test_transforms.py",
)
RESIZE = (
    "resize",
    "another filter: Pillow's bicubic for CAMs, OpenCV's bilinear for evaluation, align_corners=False in the networks",
    "python -m tools.check_parity tests/golden/labels_a.npz tests/golden/ssdd_a.npz",
)
CHANCE = (
    "chance",
    "chance: one run is one draw; another seed tells how far it carries",
    "python {command} --seed=1 --out other",
)
PRECISION = (
    "precision",
    "bfloat16 where the published runs had float32",
    "python {command} --fresh --precision=float32",
)


def batch(which: str, total: int) -> tuple[str, str, str]:
    return (
        "batch",
        f"the batch: {total} images in total, as --{which} counts them; other programs count those of one GPU",
        f"grep {which} {{folder}}/config.json",
    )


def left_out(before: str, after: str) -> tuple[str, str, str]:
    return (
        "crf",
        "the CRF left out, of other settings, or on another image than the masks'",
        f"python -m tools.eval_masks A={before} B={after} --compare A B --out {{out}} --voc-root {{root}}",
    )


BACKGROUND = (
    "threshold",
    "another background: the powers of 1 - max CAM decide how much of it there is",
    "python -m tools.eval_masks CAM=cam --out {out} --voc-root {root}",
)
NOTHING_TO_TELL = (
    "images",
    "the DD-Net has nothing to tell: the flags alone may give the same, as on the embedded images",
    "python -m tools.seed_rivals {out} --modelid {modelid}",
)
UNKNOWN = (
    "unknown",
    "unknown pixels counted as wrong: the authors leave them out; the ledger does so where it compares with them",
    "python -m tools.eval_masks ICD=icd --split train_aug --out {out} --voc-root {root}",
)
RELEASED = (
    "recipe",
    "paper and released program differ in nine points, each of which has a flag",
    "python main_ssdd.py --mode=1 --recipe=released --modelid=released",
)
SCORE = (
    "threshold",
    "the score from which a class counts as there: 0.34, in the release 0.5",
    "python {command} --score=0.5",
)
OURS = (
    "unpublished",
    "the authors' training program was never released: docs/recurseed.md lists what is ours",
    "python main_recurseed.py --help",
)
SUPERPIXELS = (
    "superpixels",
    "other superpixels than the authors', which they offer for download",
    "python -m prepare_labels.train_icd --superpixels FOLDER --fresh",
)
PAINTED = (
    "masks",
    "true masks painted otherwise: the smaller or the later instance on top, crowds in or out: that is points of mIoU",
    "cat {root}/masks.json",
)

LIKELY = {
    "train_cls": (WEIGHTS, batch("cls_batch", 16), LIST),
    "make_cam_labels": (WEIGHTS, batch("cls_batch", 16), LIST, RESIZE, COLOUR, BACKGROUND, CHANCE),
    "train_aff": (WEIGHTS, batch("aff_batch", 8), LIST),
    "make_aff_labels": (
        BACKGROUND,
        left_out("psa", "psa_crf"),
        WEIGHTS,
        batch("aff_batch", 8),
        LIST,
        COLOUR,
        RESIZE,
        CHANCE,
    ),
    "train_icd": (batch("icd_batch", 32), WEIGHTS, LIST, SUPERPIXELS),
    "make_icd_labels": (
        batch("icd_batch", 32),
        UNKNOWN,
        WEIGHTS,
        left_out("icd", "icd_crf"),
        SUPERPIXELS,
        COLOUR,
        CHANCE,
    ),
    "mode 0": (WEIGHTS, batch("bn", 16), LIST),
    "mode 1": (left_out("psa", "psa_crf"), NOTHING_TO_TELL, RELEASED, WEIGHTS, CHANCE),
    "mode 2": (WEIGHTS, batch("bn", 16), LIST),
    "mode 3": (
        BOUNDARY,
        left_out("{folder}/mask", "{folder}/crf"),
        WEIGHTS,
        batch("bn", 16),
        LIST,
        RESIZE,
        COLOUR,
        PRECISION,
        CHANCE,
    ),
    "mode 4": (WEIGHTS, batch("bn", 16), LIST),
    "recurseed train": (WEIGHTS, batch("recurseed_batch", 16), LIST),
    "recurseed labels": (WEIGHTS, left_out("recurseed", "recurseed_crf"), OURS, batch("recurseed_batch", 16), CHANCE),
    "recurseed evaluate": (
        OURS,
        WEIGHTS,
        batch("recurseed_batch", 16),
        SCORE,
        BOUNDARY,
        left_out("{folder}/mask", "{folder}/crf"),
        COLOUR,
        CHANCE,
    ),
}


def likely(run: Run, entry: Entry) -> list[Finding]:
    """The likely causes of a stage's figure, the likeliest first."""
    names = {"root": run.root, "folder": entry.folder, "out": run.out, "modelid": run.modelid}
    names["command"] = stages.STAGES[entry.stage].command
    painted = (PAINTED,) if run.data == COCO and entry.stage in EVALUATIONS else ()
    causes = (*painted, *LIKELY.get(entry.stage, (WEIGHTS, LIST)))
    return [Finding(cause, text, command.format(**names)) for cause, text, command in causes]
