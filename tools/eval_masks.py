"""How good are masks or stored maps? IoU of each class and mIoU against SegmentationClass.

    python -m tools.eval_masks PSA=psa CRF=psa_crf SSDD=ssdd --split train        # seed sources of the run in --out
    python -m tools.eval_masks mask=validation/ssdd/mask my/masks --split val      # folders of mask PNGs or stored maps

A source may have a NAME= before it. For CAMs, which have no background map, every threshold of the sweep is tried on
the same images and the best is shown. --compare takes the names of two of the sources and says, class by class and
image by image, where the second is better and where it is worse:

    python -m tools.eval_masks PSA=psa CRF=psa_crf --compare PSA CRF

--json also keeps the CRF that made a source, where the stage that wrote it noted one, and the comparison by image.
"""

import json
from dataclasses import replace
from pathlib import Path

from datasets.errors import InputError, program
from datasets.files import atomic_write, refuse_among_others, refuse_overwrite
from datasets.voc import CLASSES_FILE, list_path, mask_path, read_ids
from engine import notes, runs, seeds, stages
from evaluation import comparison
from evaluation.masks import as_markdown, evaluate
from settings import crf
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
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"), help="names of two of the sources")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args(argv)
    ids = read_ids(arguments.voc_root, arguments.split)
    config = replace(Config(), out=arguments.out, modelid=arguments.modelid, voc_root=arguments.voc_root)
    folders = {}
    for given in arguments.sources:
        name, _, source = given.rpartition("=")
        if (name or source) in folders:
            raise InputError(f"{given}: {name or source} is named twice; give one of them another NAME=")
        folders[name or source] = Path(source) if Path(source).is_dir() else seeds.source(config, source).folder
    unknown = [name for name in arguments.compare or () if name not in folders]
    if unknown or len(set(arguments.compare or "ab")) < 2:
        raise InputError(f"--compare {' '.join(arguments.compare)}: needs two of the sources {', '.join(folders)}")
    if arguments.json:
        masks = [folder / f"{i}{end}" for folder in folders.values() for i in ids for end in (".png", ".npz")]
        truths = [mask_path(arguments.voc_root, image_id) for image_id in ids]
        lists = [list_path(arguments.voc_root, arguments.split), Path(arguments.voc_root) / CLASSES_FILE]
        refuse_among_others(arguments.json)
        refuse_overwrite([arguments.json], [*masks, *truths, *lists])
    results = {name: evaluate(folder, arguments.voc_root, ids) for name, folder in folders.items()}
    print(as_markdown(results, f"{arguments.split}, {len(ids)} images"))
    about: dict = {name: figures | {"crf": crf_of(folders[name])} for name, figures in results.items()}
    if arguments.compare:
        before, after = arguments.compare
        found = comparison.compare(folders[before], folders[after], arguments.voc_root, ids)
        print("\n" + comparison.as_markdown(found, before, after))
        about["comparison"] = {"before": before, "after": after} | found
    if arguments.json:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def crf_of(folder: Path) -> dict | None:
    """The CRF that a source of masks went through, as the stage that wrote it noted it; None if none is known."""
    stage = runs.stage_folder(folder)
    if stage is None:
        return None
    stored = notes.read_config(stage / "config.json")
    name = str(stored.get("stage"))
    # A stage with a CRF also writes what it was given: the first of several folders, or mask/ beside crf/.
    written = stages.STAGES[name].folders if name in stages.STAGES else ()
    after = folder.name == "crf" or (len(written) > 1 and folder.name != Path(written[0]).name)
    return crf.used_by(name, stored) if after else None


if __name__ == "__main__":
    main()
