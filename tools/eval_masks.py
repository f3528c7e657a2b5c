"""How good are masks or stored maps? IoU of each class and mIoU against SegmentationClass.

    python -m tools.eval_masks PSA=prepare_labels/results/out_aff CRF=prepare_labels/results/out_aff_crf --split train

A source is a folder of mask PNGs or of stored maps, with or without a NAME= before it. For CAMs, which have no
background map, every threshold of the sweep is tried on the same images and the best is shown.
"""

import argparse
import json
from pathlib import Path

from datasets.errors import program
from datasets.files import atomic_write
from datasets.voc import read_ids
from evaluation.masks import as_markdown, evaluate


@program
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]FOLDER")
    parser.add_argument("--voc-root", default="voc_root", help="VOC folder with SegmentationClass (default: voc_root)")
    parser.add_argument("--split", default="train", help="list of the images (default: train)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    ids = read_ids(arguments.voc_root, arguments.split)
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
