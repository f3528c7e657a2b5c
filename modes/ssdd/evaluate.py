"""Mode 3: multi-scale inference with seg_main, dense CRF, mIoU."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datasets.errors import InputError
from datasets.files import atomic_write
from datasets.samples.seeds import as_tensor
from datasets.voc import class_names, list_path, mask_path, read_ids, read_image, write_mask, write_submission
from engine import checkpoint, distributed, runs
from engine.history import note_pass
from engine.progress import progress
from engine.training import load_batches
from models.crf import CrfKernel, CrfWorkers, dense_crf
from models.ssdd.difference.segmentation import multiscale_probabilities, resize
from modes.ssdd.networks import build, network_input
from script.make_pages import refresh, refresh_now_and_then
from settings.config import Config
from tools.eval_masks import as_markdown, evaluate


class SquareImages(Dataset):
    """image 3×side×side uint8, the photograph resized with OpenCV."""

    def __init__(self, root: str, ids: list[str], side: int):
        self.root, self.ids, self.side = root, ids, side

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        image = cv2.resize(read_image(self.root, self.ids[index]), (self.side, self.side))
        return {"id": self.ids[index], "image": as_tensor(image)}


def run(config: Config) -> None:
    device = distributed.start(config.device)
    layout = distributed.memory_format(device, config.width)
    ids = read_ids(config.voc_root, config.split)
    folder = config.validation_folder()
    trained_by, source = (4, f" --seed_source={config.seed_source}") if config.seed_source else (2, "")
    command = f"python main_ssdd.py --mode={trained_by}{source}{config.flags()}"
    if config.weights:
        weights = runs.weights_or(config, Path(config.weights), command)
    else:
        weights = runs.finished(config.run_folder(trained_by), "seg", command, config)
    trained, classes = checkpoint.load_description(weights)[1], class_names(config.voc_root)
    if trained != classes:
        raise InputError(f"{weights} knows other classes ({' '.join(trained)}) than {config.voc_root} has")
    network, _ = build(config, dynamic=False)
    checkpoint.load_into(network, weights, unused=("seg_sub.",))
    network.to(device, memory_format=layout).eval()
    runs.claim_folder(folder, config, "mode 3", [weights])

    kinds = {"mask": folder / "mask", "mask after CRF": folder / "crf"}
    started = time.perf_counter()
    mine = [
        (place, 0)
        for place in distributed.shard(range(len(ids)))
        if not all((kind / f"{ids[place]}.png").exists() for kind in kinds.values())
    ]
    images = SquareImages(config.voc_root, ids, config.eval_size)
    batches = load_batches(config, images, config.eval_batch, mine, device)
    with (
        distributed.faults("--eval_batch", config.eval_batch),
        CrfWorkers(distributed.workers(config.workers)) as workers,
        progress("mode 3", len(mine), len(ids)) as bar,
    ):
        for batch in iter(lambda: next(batches), None):
            with distributed.autocast(device, config.precision):
                summed = multiscale_probabilities(network, network_input(batch, layout), config.eval_scales)
            for image_id, maps in zip(batch["id"], summed.cpu().numpy(), strict=True):
                outputs = [kind / f"{image_id}.png" for kind in kinds.values()]
                image = read_image(config.voc_root, image_id)
                workers.queue(write_masks, image, maps, outputs, config.crf_eval, config.crf_kernel())
            bar.update(len(batch["id"]))
            refresh_now_and_then(config, "val")
    distributed.barrier()
    if distributed.rank() == 0:
        note_pass(folder, len(mine), started)
        report(config, ids, kinds)
        if config.submit:
            write_submission(config.submit, folder / "crf", config.voc_root, ids)
            print(f"mode 3: packed {len(ids)} masks for VOC's evaluation server into {config.submit}")
        refresh(config, "val")
        print(f"next: python -m tools.predict PICTURES --weights {weights} --out masks")


def write_masks(image: np.ndarray, summed: np.ndarray, outputs: list[Path], iterations: int, kernel: CrfKernel) -> None:
    """Write the mask of one image without and with CRF, at the image's own size.

    Args:
        image: H×W×3 uint8.
        summed: C×s×s, the sum of softmaxes over scales and mirrors.
    """
    # The softmax of a sum of probabilities is flat; the published evaluation feeds just that to the CRF.
    probabilities = torch.softmax(resize(torch.from_numpy(summed)[None], image.shape[:2]), dim=1)[0].numpy()
    refined = dense_crf(image, probabilities, iterations, kernel)
    for path, maps in zip(outputs, (probabilities, refined), strict=True):
        write_mask(path, maps.argmax(axis=0).astype(np.uint8))


def report(config: Config, ids: list[str], kinds: dict[str, Path]) -> None:
    """Print and store IoU and mIoU where the split has true masks."""
    names = ", ".join(str(folder) for folder in kinds.values())
    if not any(mask_path(config.voc_root, image_id).exists() for image_id in ids):
        print(f"mode 3: masks of {len(ids)} images in {names}; no true masks for split '{config.split}', so no mIoU")
        return
    path = config.validation_folder() / f"result_{config.split}.json"
    results = figures_of_before(config, path, ids, kinds)
    if not results:
        results = {kind: evaluate(folder, config.voc_root, ids) for kind, folder in kinds.items()}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(results, f"{config.split}, {len(ids)} images"))
    print(f"mode 3: masks in {names}, figures in {path}")


def figures_of_before(config: Config, path: Path, ids: list[str], kinds: dict[str, Path]) -> dict[str, dict]:
    """The stored figures, if they are newer than the list and all masks that they were computed from; else none."""
    masks = [folder / f"{image_id}.png" for folder in kinds.values() for image_id in ids]
    sources = [list_path(config.voc_root, config.split), *masks, *(mask_path(config.voc_root, i) for i in ids)]
    try:
        made = path.stat().st_mtime_ns
        if all(source.stat().st_mtime_ns <= made for source in sources):
            stored = runs.read_config(path)
            if all(stored[kind]["images"] == len(ids) and "miou" in stored[kind] for kind in kinds):
                return stored
    except (OSError, InputError, KeyError, TypeError):
        pass  # they are computed anew
    return {}
