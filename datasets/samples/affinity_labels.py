"""Samples for AffinityNet: images and the confident labels of their cells."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset

from datasets.seed_store import read_seed
from datasets.transforms import as_tensor, colour_jitter, normalise, random_crop_or_pad, random_flip
from datasets.voc import IGNORE, read_image, read_present
from settings.common import CELL


class AffinityLabelSamples(Dataset):
    """x 3×crop×crop float32 normalised, labels crop/8×crop/8 int64 (255 = unknown).

    Args:
        low, high: folders of the CRF'd CAMs with 'perhaps' and 'surely' background.
    """

    def __init__(self, root: str, ids: list[str], low: Path, high: Path, crop: int):
        self.root, self.ids, self.low, self.high, self.crop = root, ids, low, high, crop

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id = self.ids[index]
        image = as_tensor(read_image(self.root, image_id))
        present = read_present(self.root, image_id)
        low, high = (read_seed(folder, image_id, image.shape[1:], present) for folder in (self.low, self.high))
        x = normalise(colour_jitter(image))
        tensors = random_flip([x, torch.from_numpy(low.maps), torch.from_numpy(high.maps)])
        x, low_maps, high_maps = random_crop_or_pad(tensors, self.crop)
        labels = affinity_labels(low_maps, high_maps, torch.from_numpy(low.classes))
        return {"id": image_id, "x": x, "labels": labels}


def affinity_labels(low: Tensor, high: Tensor, classes: Tensor) -> Tensor:
    """Confident labels on the feature grid: background where `high` says so, unknown where only `low` does.

    Args:
        low, high: K×H×W CRF probabilities with background (1 − max cam) to the low and the high power; zero = padding.
        classes: K class indices, 0 first.

    Returns:
        H/8×W/8 int64, 255 = unknown.
    """
    low, high = (avg_pool2d(maps, CELL) for maps in (low, high))
    label_low, label_high = classes[low.argmax(dim=0)], classes[high.argmax(dim=0)]
    labels = torch.where(label_low == 0, IGNORE, label_low)
    labels[label_high == 0] = 0
    labels[(low.amax(dim=0) < 1e-5) | (high.amax(dim=0) < 1e-5)] = IGNORE
    return labels
