"""Pictures that people look at: photographs, masks in VOC's colours, difference maps as a colour scale."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.files import atomic_write


def write_photo(path: str | Path, image: np.ndarray) -> None:
    """Write H×W×3 uint8 RGB as a JPEG."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=90)


def write_difference(path: str | Path, d: np.ndarray) -> None:
    """Write difference logits h×w as the viridis-coloured sigmoid: dark = unchanged, yellow = changed."""
    probability = (1 + np.tanh(d.astype(np.float64) / 2)) / 2
    bgr = cv2.applyColorMap((255 * probability).round().astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    with atomic_write(path) as temporary:
        Image.fromarray(bgr[..., ::-1]).save(temporary, format="PNG")
