"""How good are masks or stored maps? IoU of each class and mIoU against SegmentationClass.

    python -m tools.eval_masks PSA=prepare_labels/results/out_aff CRF=prepare_labels/results/out_aff_crf --split train

A source is a folder of mask PNGs or of stored maps, with or without a NAME= before it. For CAMs, which have no
background map, every threshold of the sweep is tried on the same images and the best is shown.
"""

import json
from pathlib import Path

import numpy as np

from datasets.errors import InputError, program
from datasets.files import atomic_write, refuse_overwrite
from datasets.labels import load_maps, store_path
from datasets.voc import CLASSES_FILE, class_names, list_path, mask_path, read_ids, read_mask
from tools.config import Parser
from tools.metrics import confusion, iou, mean_iou

THRESHOLDS = tuple(np.arange(0.05, 0.65, 0.05).round(2).tolist())


def evaluate(source: Path, root: str | Path, ids: list[str]) -> dict:
    """Figures of one folder of masks or stored maps.

    Returns:
        {"miou": float, "iou": {class: float or None}, "images": int}; for CAMs also "threshold" and "sweep".

    Raises:
        InputError: a mask is missing, damaged, or of another size than its true mask.
    """
    if not source.is_dir():
        raise InputError(f"{source} is no folder of masks or stored maps")
    names = class_names(root)
    counts: dict[float | None, np.ndarray] = {}
    for image_id in ids:
        truth = read_mask(mask_path(root, image_id), len(names))
        masks = masks_of(source, image_id, len(names))
        if counts and set(masks) != set(counts):
            raise InputError(f"{source} mixes masks with maps that have no background ({image_id}); keep them apart")
        for threshold, mask in masks.items():
            if mask.shape != truth.shape:
                raise InputError(f"{source}/{image_id}: the mask is {mask.shape}, its true mask {truth.shape}")
            counts[threshold] = counts.get(threshold, 0) + confusion(truth, mask, len(names))
    sweep = {threshold: mean_iou(total) for threshold, total in counts.items()}
    best = max(sweep, key=lambda threshold: sweep[threshold])
    per_class = iou(counts[best])
    figures = {
        "miou": sweep[best],
        "iou": {name: float(v) if np.isfinite(v) else None for name, v in zip(names, per_class, strict=True)},
        "images": len(ids),
    }
    if best is not None:
        figures |= {"threshold": best, "sweep": {f"{t:g}": value for t, value in sweep.items()}}
    return figures


def masks_of(source: Path, image_id: str, classes: int) -> dict[float | None, np.ndarray]:
    """The image's mask H×W by background threshold; a single one under None where maps have their background."""
    png = source / f"{image_id}.png"
    if png.exists():
        return {None: read_mask(png, classes)}
    if (source / f"{image_id}.npy").exists():
        raise InputError(
            f"{source} holds .npy files: bring them into a store with `python -m tools.import_labels` first"
        )
    seed = load_maps(store_path(source, image_id))
    if seed.classes.max() >= classes:
        raise InputError(f"{store_path(source, image_id)} holds maps of class {seed.classes.max()} of {classes}")
    if seed.classes[0] == 0:
        return {None: seed.classes[seed.maps.argmax(axis=0)]}
    best, winner = seed.maps.max(axis=0), seed.classes[seed.maps.argmax(axis=0)]
    return {threshold: np.where(best > threshold, winner, 0) for threshold in THRESHOLDS}


def as_markdown(results: dict[str, dict], title: str) -> str:
    """One row a source: mIoU and the IoU of each class that the true masks have, in percent."""
    names = next(iter(results.values()))["iou"]
    shown = [name for name in names if any(r["iou"][name] is not None for r in results.values())]
    lines = [f"| {title} | mIoU | {' | '.join(shown)} |", f"|---|{'---|' * (len(shown) + 1)}"]
    for name, figures in results.items():
        cells = ["–" if figures["iou"][c] is None else f"{100 * figures['iou'][c]:.1f}" for c in shown]
        note = f" (background below {figures['threshold']:g})" if "threshold" in figures else ""
        lines.append(f"| {name}{note} | **{100 * figures['miou']:.2f}** | {' | '.join(cells)} |")
    return "\n".join(lines)


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]FOLDER")
    parser.add_argument("--voc-root", default="voc_root", help="VOC folder with SegmentationClass (default: voc_root)")
    parser.add_argument("--split", default="train", help="list of the images (default: train)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    ids = read_ids(arguments.voc_root, arguments.split)
    if arguments.json:
        folders = [Path(source.rpartition("=")[2]) for source in arguments.sources]
        masks = [folder / f"{image_id}{end}" for folder in folders for image_id in ids for end in (".png", ".npz")]
        truths = [mask_path(arguments.voc_root, image_id) for image_id in ids]
        lists = [list_path(arguments.voc_root, arguments.split), Path(arguments.voc_root) / CLASSES_FILE]
        refuse_overwrite([arguments.json], [*masks, *truths, *lists])
    results = {}
    for source in arguments.sources:
        name, _, folder = source.rpartition("=")
        results[name or folder] = evaluate(Path(folder), arguments.voc_root, ids)
    print(as_markdown(results, f"{arguments.split}, {len(ids)} images"))
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
