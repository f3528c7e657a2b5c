"""Pictures that people have or look at: photographs, masks in VOC's colours, difference maps as a colour scale."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from datasets.files import atomic_write
from datasets.voc import PALETTE, decode, rgb

# Not all that Pillow knows: one of the others runs Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def read_photo(path: Path) -> np.ndarray:
    """A picture as people see it, turned as its EXIF entry says; H×W×3 uint8 RGB."""
    return decode(path, lambda image: rgb(ImageOps.exif_transpose(image)), FORMATS)


def write_photo(path: str | Path, image: np.ndarray) -> None:
    """Write H×W×3 uint8 RGB as a JPEG."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=90)


def write_picture(path: str | Path, pixels: np.ndarray) -> None:
    """Write H×W×3 uint8 RGB as a PNG."""
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def difference_colours(d: np.ndarray) -> np.ndarray:
    """Difference logits h×w as the viridis-coloured sigmoid, h×w×3 uint8: dark = unchanged, yellow = changed."""
    return scale_colours((1 + np.tanh(d.astype(np.float64) / 2)) / 2)


def scale_colours(share: np.ndarray) -> np.ndarray:
    """h×w of 0…1 in viridis, h×w×3 uint8 RGB."""
    bgr = cv2.applyColorMap((255 * share).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(bgr[..., ::-1])


def mask_colours(mask: np.ndarray) -> np.ndarray:
    """Class indices h×w in VOC's colours, h×w×3 uint8 RGB."""
    return PALETTE[mask]
