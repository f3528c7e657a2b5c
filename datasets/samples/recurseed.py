"""Samples for RecurSeed: images, the pixels that belong to them, and the classes that they have."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.transforms import as_tensor, colour_jitter, normalise, random_crop_or_pad, random_flip
from datasets.voc import read_present, read_reduced


class RecurSeedSamples(Dataset):
    """x 3×crop×crop float32 normalised, 0 outside the image; inside crop×crop bool, True in the image; present (C,).

    Args:
        root, ids: VOC folder and image ids.
        sides: random long side, pixels.
        crop: side of the crop; smaller images lie at a random place in it.
    """

    def __init__(self, root: str, ids: list[str], sides: tuple[int, int], crop: int):
        self.root, self.ids, self.sides, self.crop = root, ids, sides, crop

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id = self.ids[index]
        pixels, _ = read_reduced(self.root, image_id, self.sides[1])
        (image,) = random_flip([long_side_between(pixels, self.sides)])
        x = normalise(colour_jitter(image))
        x, inside = random_crop_or_pad([x, torch.ones_like(x[:1])], self.crop)
        present = torch.from_numpy(read_present(self.root, image_id))
        return {"id": image_id, "x": x, "inside": inside[0] > 0, "present": present}


def long_side_between(pixels: np.ndarray, sides: tuple[int, int]) -> Tensor:
    """H×W×3 uint8 → 3×h×w uint8 whose long side is a random integer in `sides`, by Pillow's bicubic (release)."""
    factor = int(torch.randint(sides[0], sides[1] + 1, ())) / max(pixels.shape[:2])
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return as_tensor(np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)))
