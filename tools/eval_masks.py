"""How good are masks or stored maps? IoU of each class and mIoU against SegmentationClass.

    python -m tools.eval_masks PSA=prepare_labels/results/out_aff CRF=prepare_labels/results/out_aff_crf --split train

A source is a folder of mask PNGs or of stored maps, with or without a NAME= before it. For CAMs, which have no
background map, every threshold of the sweep is tried on the same images and the best is shown.
"""

import json
from pathlib import Path

from datasets.errors import program
from datasets.files import atomic_write, refuse_overwrite
from datasets.voc import CLASSES_FILE, list_path, mask_path, read_ids
from evaluation.masks import as_markdown, evaluate
from settings.flags import Parser


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
