"""Training samples, one class a stage. Each sample is a dict with the image's `id`; randomness is torch's own."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from datasets.errors import InputError
from datasets.seed_store import SeedMaps, load_differences, load_maps, store_path
from datasets.transforms import (
    colour_jitter,
    draw_jitter,
    normalise,
    random_crop_or_pad,
    random_flip,
    random_long_side,
    random_square,
    resize_square,
)
from datasets.voc import IGNORE, class_names, read_image, read_mask, read_present, read_reduced

CELL = 8


def as_tensor(image: np.ndarray) -> Tensor:
    """H×W×3 → 3×H×W."""
    return torch.from_numpy(image).movedim(-1, 0)


class ImageLabelSamples(Dataset):
    """For the classifier: x 3×crop×crop float32 normalised, present (21,).

    Args:
        root, ids: VOC folder and image ids.
        sides: random long side, pixels.
        crop: side of the crop; smaller images lie in zeros.
    """

    def __init__(self, root: str, ids: list[str], sides: tuple[int, int], crop: int):
        self.root, self.ids, self.sides, self.crop = root, ids, sides, crop

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id = self.ids[index]
        pixels, _ = read_reduced(self.root, image_id, self.sides[1])
        image = random_long_side(as_tensor(pixels), self.sides)
        x = normalise(colour_jitter(*random_flip([image])))
        (x,) = random_crop_or_pad([x], self.crop)
        return {"id": image_id, "x": x, "present": torch.from_numpy(read_present(self.root, image_id))}


class AffinityLabelSamples(Dataset):
    """For AffinityNet: x 3×crop×crop float32 normalised, labels crop/8×crop/8 int64 (255 = unknown).

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
    low, high = (torch.nn.functional.avg_pool2d(maps, CELL) for maps in (low, high))
    label_low, label_high = classes[low.argmax(dim=0)], classes[high.argmax(dim=0)]
    labels = torch.where(label_low == 0, IGNORE, label_low)
    labels[label_high == 0] = 0
    labels[(low.amax(dim=0) < 1e-5) | (high.amax(dim=0) < 1e-5)] = IGNORE
    return labels


class SeedSamples(Dataset):
    """For modes 0 to 2.

    Each sample: image 3×crop×crop uint8; where it is to be jittered, order and factors of that, which is left to the
    device (datasets.transforms.jittered); small crop/4×crop/4×3 uint8, the image without jitter, for the CRF;
    present (21,); knowledge and advice crop/4×crop/4 int64, the argmax of the moved *probabilities*; with
    `differences` also d_k and d_a 1×crop/4×crop/4, the stored static logits.

    Args:
        knowledge, advice: folders of PSA and PSA+CRF maps.
        crop: side of the sample, pixels.
        sides: random square side before the crop; None: the whole image resized to crop×crop.
        jitter_and_flip: for samples without `sides`, do what the released program did while storing (difference 4).
        differences: folder of the static difference maps, or None.
        move_maps: geometry acts on the difference maps too (difference 5).
        swap_maps: read d_A as d_K and the reverse (difference 3).
    """

    def __init__(
        self,
        root: str,
        ids: list[str],
        knowledge: Path,
        advice: Path,
        crop: int,
        sides: tuple[int, int] | None = None,
        jitter_and_flip: bool = False,
        differences: Path | None = None,
        move_maps: bool = True,
        swap_maps: bool = False,
    ):
        self.root, self.ids, self.knowledge, self.advice = root, ids, knowledge, advice
        self.crop, self.sides, self.jitter_and_flip = crop, sides, jitter_and_flip
        self.differences, self.move_maps, self.swap_maps = differences, move_maps, swap_maps

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id = self.ids[index]
        pixels, size = read_reduced(self.root, image_id, self.sides[1] if self.sides else self.crop)
        present = read_present(self.root, image_id)
        seeds = [read_seed(folder, image_id, size, present) for folder in (self.knowledge, self.advice)]
        tensors = [as_tensor(pixels), *(torch.from_numpy(seed.maps) for seed in seeds)]
        if self.differences is not None:
            maps = self._read_differences(image_id)
            tensors.append(maps)
        if self.sides is not None:
            tensors = random_square(tensors, self.sides, self.crop)
        else:
            tensors = resize_square(random_flip(tensors) if self.jitter_and_flip else tensors, self.crop)
        small = resize_square(tensors, self.crop // 4)
        sample = {
            "id": image_id,
            "image": tensors[0],
            "small": small[0].movedim(0, -1),
            "present": torch.from_numpy(present),
            "knowledge": torch.from_numpy(seeds[0].classes)[small[1].argmax(dim=0)],
            "advice": torch.from_numpy(seeds[1].classes)[small[2].argmax(dim=0)],
        }
        if self.sides is not None or self.jitter_and_flip:
            sample["order"], sample["factors"] = draw_jitter()
        if self.differences is not None:
            d = small[3] if self.move_maps else F.resize(maps, [self.crop // 4] * 2, antialias=False)
            sample["d_k"], sample["d_a"] = d[:1], d[1:]
        return sample

    def _read_differences(self, image_id: str) -> Tensor:
        path = store_path(self.differences, image_id)
        d_k, d_a = load_differences(path)
        if d_k.shape != (self.crop // 4, self.crop // 4):
            raise InputError(
                f"{path}: difference maps are {d_k.shape}, needed {(self.crop // 4,) * 2} for --crop={self.crop}; "
                "run --mode=1 again"
            )
        return torch.from_numpy(np.stack([d_a, d_k] if self.swap_maps else [d_k, d_a]))


class FixedSeedSamples(Dataset):
    """For mode 4: image 3×crop×crop uint8, order and factors of its colour jitter, seed crop/4×crop/4 int64
    (255 = unknown).

    Geometry acts on probabilities or one-hot masks as in SeedSamples, with the same random numbers.

    Args:
        seeds: folder of stored maps with their background, or of mask PNGs.
        crop, sides: see SeedSamples.
    """

    def __init__(self, root: str, ids: list[str], seeds: Path, crop: int, sides: tuple[int, int]):
        self.root, self.ids, self.seeds, self.crop, self.sides = root, ids, seeds, crop, sides

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image_id = self.ids[index]
        pixels, size = read_reduced(self.root, image_id, self.sides[1])
        classes, maps = self._read(image_id, size)
        image, maps = random_square([as_tensor(pixels), torch.from_numpy(maps)], self.sides, self.crop)
        (small,) = resize_square([maps], self.crop // 4)
        seed = torch.from_numpy(classes)[small.argmax(dim=0)]
        order, factors = draw_jitter()
        return {"id": image_id, "image": image, "order": order, "factors": factors, "seed": seed}

    def _read(self, image_id: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Class indices (K,) int64 and their maps K×H×W float32."""
        path = self.seeds / f"{image_id}.png"
        if not path.exists():
            seed = read_seed(self.seeds, image_id, size, read_present(self.root, image_id))
            return seed.classes, seed.maps
        mask = read_mask(path, len(class_names(self.root)))
        if mask.shape != tuple(size):
            raise InputError(f"{path}: the mask is {mask.shape}, the image {tuple(size)}; make it again")
        classes = np.unique(mask).astype(np.int64)
        return classes, (mask == classes[:, None, None]).astype(np.float32)


def read_seed(folder: Path, image_id: str, size: tuple[int, int], present: np.ndarray | None = None) -> SeedMaps:
    """Stored maps of an image, checked against its size and its labels.

    Raises:
        InputError: missing, damaged, of another size, or of other classes than the annotation names.
    """
    path = store_path(folder, image_id)
    seed = load_maps(path)
    if seed.maps.shape[1:] != tuple(size):
        raise InputError(
            f"{path}: maps are {seed.maps.shape[1:]}, the image is {tuple(size)}; delete the file and make it again"
        )
    if present is not None and not np.array_equal(seed.classes, np.flatnonzero(present)):
        raise InputError(
            f"{path}: maps of classes {seed.classes.tolist()}, but the annotation says "
            f"{np.flatnonzero(present).tolist()}; delete the file and make it again"
        )
    return seed
