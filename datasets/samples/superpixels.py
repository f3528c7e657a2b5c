"""Samples for ICD: crops of images with their superpixels."""

from pathlib import Path

import torch
from torch.utils.data import Dataset

from datasets.superpixels import random_scaled_crop, read_superpixels, superpixel_path
from datasets.transforms import as_tensor
from datasets.voc import read_image, read_present


class SuperpixelSamples(Dataset):
    """image 3×crop×crop uint8, superpixels crop×crop int64 from 0, present (C,) without objects marked difficult.

    Args:
        folder: of the superpixels, ID.png.
        scales: one is drawn before the crop.
        most: superpixels that an image may have; a crop can have one more, the padding.
    """

    def __init__(self, root: str, ids: list[str], folder: Path, crop: int, scales: tuple[float, ...], most: int):
        self.root, self.ids, self.folder = root, ids, folder
        self.crop, self.scales, self.most = crop, scales, most

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id = self.ids[index]
        image = as_tensor(read_image(self.root, image_id))
        ids = read_superpixels(superpixel_path(self.folder, image_id), image.shape[1:], self.most)
        image, superpixels = random_scaled_crop(image, torch.from_numpy(ids), self.crop, self.scales)
        present = torch.from_numpy(read_present(self.root, image_id, difficult=False))
        return {"id": image_id, "image": image, "superpixels": superpixels, "present": present}
