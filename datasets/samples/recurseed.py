"""Samples for RecurSeed: images, the pixels that belong to them, and the classes that they have."""

import torch
from torch.utils.data import Dataset

from datasets.transforms import colour_jitter, normalise, random_crop_or_pad, random_flip, random_long_side
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
        (image,) = random_flip([random_long_side(pixels, self.sides)])
        x = normalise(colour_jitter(image))
        x, inside = random_crop_or_pad([x, torch.ones_like(x[:1])], self.crop)
        present = torch.from_numpy(read_present(self.root, image_id))
        return {"id": image_id, "x": x, "inside": inside[0] > 0, "present": present}
