"""How good are masks or stored maps? IoU of each class and mIoU against SegmentationClass.

    python -m tools.eval_masks PSA=psa CRF=psa_crf SSDD=ssdd --split train        # seed sources of the run in --out
    python -m tools.eval_masks mask=validation/ssdd/mask my/masks --split val      # folders of mask PNGs or stored maps

A source may have a NAME= before it. For CAMs, which have no background map, every threshold of the sweep is tried on
the same images and the best is shown.
"""

import json
from dataclasses import replace
from pathlib import Path

from datasets.errors import program
from datasets.files import atomic_write, refuse_overwrite
from datasets.voc import CLASSES_FILE, list_path, mask_path, read_ids
from engine import seeds
from evaluation.masks import as_markdown, evaluate
from settings.config import Config
from settings.flags import Parser


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]SOURCE")
    parser.add_argument("--out", default=".", help="folder of the run whose seed sources are named (default: this one)")
    parser.add_argument("--modelid", default="ssdd", help="name of that run (default: ssdd)")
    parser.add_argument("--voc-root", default="voc_root", help="VOC folder with SegmentationClass (default: voc_root)")
    parser.add_argument("--split", default="train", help="list of the images (default: train)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    ids = read_ids(arguments.voc_root, arguments.split)
    config = replace(Config(), out=arguments.out, modelid=arguments.modelid, voc_root=arguments.voc_root)
    folders = {}
    for given in arguments.sources:
        name, _, source = given.rpartition("=")
        folders[name or source] = Path(source) if Path(source).is_dir() else seeds.source(config, source).folder
    if arguments.json:
        masks = [folder / f"{i}{end}" for folder in folders.values() for i in ids for end in (".png", ".npz")]
        truths = [mask_path(arguments.voc_root, image_id) for image_id in ids]
        lists = [list_path(arguments.voc_root, arguments.split), Path(arguments.voc_root) / CLASSES_FILE]
        refuse_overwrite([arguments.json], [*masks, *truths, *lists])
    results = {name: evaluate(folder, arguments.voc_root, ids) for name, folder in folders.items()}
    print(as_markdown(results, f"{arguments.split}, {len(ids)} images"))
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
