"""Samples for the segmentation networks: images and their seeds, moved together.

Each sample is a dict with the image's `id`; randomness is torch's own.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.errors import InputError
from datasets.seed_store import load_differences, read_seed, store_path
from datasets.transforms import Square, as_tensor, cut, cut_maps, draw_jitter, planes, random_square, resize_square
from datasets.voc import class_names, read_present, read_reduced


@dataclass(frozen=True)
class StoredDifferences:
    """The static difference maps that mode 1 stored, for mode 2."""

    folder: Path
    move: bool = True  # flip and crop them with the image (difference 5)
    swap: bool = False  # read d_A as d_K and the reverse (difference 3)


class SeedSamples(Dataset):
    """Images with the masks of one or more seed sources.

    Each sample: image 3×crop×crop uint8; where it is to be jittered, order and factors of that, which is left to the
    device (datasets.transforms.jittered); small crop/4×crop/4×3 uint8, the image without jitter, for the CRF;
    present (C,); of each source its mask crop/4×crop/4 int64, the argmax of the moved *maps*, 255 = unknown; with
    `differences` also d_k and d_a A×crop/4×crop/4, the stored static logits of each of A advisers.

    Args:
        seeds: folder of each source, by the name that its mask gets in a sample; with `differences` the knowledge's
            and the advisers'.
        crop: side of the sample, pixels.
        sides: random square side before the crop; None: the whole image resized to crop×crop.
        jitter_and_flip: for samples without `sides`, do what the released program did while storing (difference 4).
    """

    def __init__(
        self,
        root: str,
        ids: list[str],
        seeds: dict[str, Path],
        crop: int,
        sides: tuple[int, int] | None = None,
        jitter_and_flip: bool = False,
        differences: StoredDifferences | None = None,
    ):
        self.root, self.ids, self.seeds, self.crop = root, ids, seeds, crop
        self.sides, self.jitter_and_flip, self.differences = sides, jitter_and_flip, differences

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id, classes = self.ids[index], len(class_names(self.root))
        pixels, size = read_reduced(self.root, image_id, self.sides[1] if self.sides else self.crop)
        present = read_present(self.root, image_id)
        seeds = [read_seed(folder, image_id, size, present, classes) for folder in self.seeds.values()]
        if self.sides is not None:
            square = random_square(self.sides, self.crop)
        else:
            square = Square(self.crop, flip=self.jitter_and_flip and bool(torch.rand(()) < 0.5))
        picture, side = cut(pixels, square, self.crop), self.crop // 4
        sample = {
            "id": image_id,
            "image": planes(picture),
            "small": resize_square(as_tensor(picture), side).movedim(0, -1),
            "present": torch.from_numpy(present),
        }
        for name, seed in zip(self.seeds, seeds, strict=True):
            maps = cut_maps(seed.stored, square, self.crop, side, seed.grid_of)
            sample[name] = torch.from_numpy(seed.classes[maps.numpy().argmax(axis=0)])
        if self.sides is not None or self.jitter_and_flip:
            sample["order"], sample["factors"] = draw_jitter()
        if self.differences is not None:
            d = self._read_differences(image_id)
            # Not moved they keep their size, as they are made for this crop.
            d = cut_maps(d, square, self.crop, side) if self.differences.move else torch.from_numpy(d)
            sample["d_k"], sample["d_a"] = d.chunk(2)
        return sample

    def _read_differences(self, image_id: str) -> np.ndarray:
        path = store_path(self.differences.folder, image_id)
        stored = load_differences(path)
        d_k, d_a = (d.reshape(-1, *d.shape[-2:]) for d in stored)  # of a single adviser h×w is stored
        side, advisers = self.crop // 4, len(self.seeds) - 1
        if d_k.shape != (advisers, side, side):
            raise InputError(
                f"{path}: difference maps are {stored[0].shape}, needed {(side, side)} for --crop={self.crop} "
                f"and each of {advisers} advisers; run --mode=1 again"
            )
        return np.concatenate([d_a, d_k] if self.differences.swap else [d_k, d_a])
