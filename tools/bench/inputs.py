"""Images, batches and settings that the rows are measured with."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.demo import draw
from datasets.transforms import as_tensor, draw_jitter
from datasets.voc import CLASSES, IGNORE, mask_path, read_ids, read_image, read_mask
from settings.config import Config

VOC_SIZE = (375, 500)


def plain(config: Config) -> tuple[Config, torch.memory_format]:
    """Config and layout of the baselines."""
    return replace(config, precision="float32", compile=False), torch.contiguous_format


def case(config: Config, number: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image side×side×3, probabilities K×side×side of a blurred and disturbed true mask, and its K labels."""
    root, ids = config.voc_root, photographs_of(config)
    if ids:
        image_id = ids[number % len(ids)]
        image, mask = read_image(root, image_id), read_mask(mask_path(root, image_id))
    else:
        image, mask, _ = draw(config.seed, number + 1)
    image = cv2.resize(image, (side, side))
    mask = cv2.resize(np.where(mask == IGNORE, 0, mask).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
    labels = np.union1d(mask, [0]).astype(np.int64)
    rng = np.random.default_rng(number)
    disturbed = []
    for label in labels:
        smooth = cv2.GaussianBlur((mask == label).astype(np.float32), (0, 0), side / 20)
        noise = cv2.GaussianBlur(rng.normal(size=(side, side)).astype(np.float32), (0, 0), side / 22)
        disturbed.append(2 * np.log(smooth + 1e-3) + noise / noise.std())
    scores = np.exp(np.stack(disturbed) - np.max(disturbed, axis=0))
    return image, (scores / scores.sum(0)).astype(np.float32), labels


def photographs_of(config: Config) -> list[str]:
    """Ids of --split that have a true mask, if VOC's own images are in --voc-root."""
    root = Path(config.voc_root)
    if not (root / "JPEGImages").is_dir() or (root / "demo.json").exists():
        return []
    return [image_id for image_id in read_ids(root, config.split) if mask_path(root, image_id).exists()]


def training_batch(config: Config, device: torch.device) -> dict:
    """A batch of `config.bn` images as the loader makes it."""
    cases = [case(config, n, config.crop) for n in range(config.bn)]
    small = [case(config, n, config.crop // 4) for n in range(config.bn)]
    present = torch.zeros(config.bn, len(CLASSES))
    for n, (_, _, labels) in enumerate(small):
        present[n, labels] = 1
    masks = torch.stack([torch.from_numpy(labels[p.argmax(0)]) for _, p, labels in small])
    orders, factors = zip(*(draw_jitter() for _ in cases), strict=True)
    batch = {
        "factors": torch.stack(factors),
        "image": torch.stack([as_tensor(image) for image, _, _ in cases]),
        "present": present,
        "knowledge": masks,
        "advice": masks.roll(2, -1),
        "small": torch.from_numpy(np.stack([image for image, _, _ in small])),
    }
    return {"order": orders} | {key: value.to(device) for key, value in batch.items()}
