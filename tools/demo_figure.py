"""The README's picture: what the network of `make demo` sees in the first validation images.

    python -m tools.demo_figure --out demo --figure docs/demo.png

Photograph, true mask, mask of the network, the same after CRF.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from datasets.errors import program
from datasets.files import atomic_write, refuse_overwrite
from datasets.voc import PALETTE, class_names, mask_path, read_ids, read_image, read_mask
from settings.flags import Parser

SIDE, GAP, TITLE = 128, 4, 16
COLUMNS = ("image", "true mask", "SSDD", "SSDD + CRF")


def figure(out: Path, pairs_of_rows: int) -> Image.Image:
    """Two blocks of `pairs_of_rows` rows: image, true mask, mask without and with CRF."""
    root, validation = out / "VOC2012", out / "validation" / "ssdd"
    ids = read_ids(root, "val")[: 2 * pairs_of_rows]
    step, block = SIDE + GAP, len(COLUMNS) * (SIDE + GAP) + 2 * GAP
    canvas = Image.new("RGB", (2 * block - 3 * GAP, TITLE + pairs_of_rows * step - GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for place, image_id in enumerate(ids):
        masks = [mask_path(root, image_id), *(validation / kind / f"{image_id}.png" for kind in ("mask", "crf"))]
        tiles = [read_image(root, image_id), *(PALETTE[read_mask(path, len(class_names(root)))] for path in masks)]
        for column, tile in enumerate(tiles):
            x = place // pairs_of_rows * block + column * step
            how = cv2.INTER_NEAREST if column else cv2.INTER_AREA
            square = cv2.resize(np.ascontiguousarray(tile), (SIDE, SIDE), interpolation=how)
            canvas.paste(Image.fromarray(square), (x, TITLE + place % pairs_of_rows * step))
            draw.text((x + 2, 2), COLUMNS[column], fill="black")
    return canvas


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder that `make demo` filled")
    parser.add_argument("--figure", type=Path, default=Path("docs/demo.png"))
    arguments = parser.parse_args(argv)
    root, validation = arguments.out / "VOC2012", arguments.out / "validation" / "ssdd"
    folders = (root / "JPEGImages", root / "SegmentationClass", validation / "mask", validation / "crf")
    refuse_overwrite([arguments.figure.parent], folders)
    with atomic_write(arguments.figure) as temporary:
        figure(arguments.out, 5).save(temporary, format="PNG")
    print(f"wrote {arguments.figure}")


if __name__ == "__main__":
    main()
