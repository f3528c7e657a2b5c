"""What labels cost at VOC's size (375×500, two classes): random walk, store, and each stage of making them.

    python -m tools.bench_labels

Prints medians as Markdown, what is compared in one and the same run, and whether the figures that this project wants to
reach are reached (exit status 1 if not). The image is drawn and the networks have learned nothing, which changes no
time. --width=0.125 makes the networks narrow, for a quick look at the rest.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.errors import program
from datasets.seed_store import load_maps, save_maps
from datasets.transforms import as_tensor, normalise
from engine import distributed
from engine.workers import at_most_cores
from evaluation.baselines import HEIGHT, SIZE, WIDTH, dense_walk, growth, scene, walk_inputs
from models.crf import dense_crf
from models.psa.affinity import (
    AffinityNet,
    pad_to_cells,
    pair_affinities,
    pool_to_cells,
    random_walk,
    seed_maps,
    unpool_from_cells,
)
from models.psa.classifier import Classifier, multiscale_cam
from settings.config import Config
from settings.flags import Parser

CLASSES = np.array([0, 8, 15])


def medians(functions: list[Callable[[], object]], repeats: int) -> list[tuple[float, float]]:
    """Of each the median time and the median time of all its CPUs, both in seconds.

    They take turns, so that whatever else the machine does hits all of them; CPU time hardly feels it.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, its_times in zip(functions, times, strict=True):
            began, cpu_began = time.perf_counter(), time.process_time()
            function()
            its_times.append((time.perf_counter() - began, time.process_time() - cpu_began))
    return [tuple(statistics.median(one) for one in zip(*its_times, strict=True)) for its_times in times]


def walk_figures(image: np.ndarray, cams: np.ndarray) -> tuple[Tensor, list[tuple[str, str, bool]]]:
    """The random walk on affinities of colour: its result K×h×w and rows (what, figure, reached)."""
    pairs, maps = walk_inputs(image, cams)
    sparse_memory = growth(lambda: random_walk(pairs, maps))
    dense_memory = growth(lambda: dense_walk(pairs, maps))
    (sparse, _), (dense, _) = medians([lambda: random_walk(pairs, maps), lambda: dense_walk(pairs, maps)], 5)
    walked, expected = random_walk(pairs, maps), dense_walk(pairs, maps)
    error = ((walked - expected).abs().max() / expected.abs().max()).item()
    rows = [
        ("walk, sparse steps", f"{1000 * sparse:.0f} ms, {sparse_memory:.0f} MB", sparse_memory < 100),
        ("walk, dense power", f"{1000 * dense:.0f} ms, {dense_memory:.0f} MB", True),
        ("walk, faster by", f"{dense / sparse:.1f} times (wanted: 10)", dense >= 10 * sparse),
        ("walk, largest difference", f"{error:.1e} of the maximum (wanted: 1e-4)", error < 1e-4),
    ]
    return walked[0], rows


def store_figures(image: np.ndarray, low: Tensor, crf: np.ndarray) -> list[tuple[str, str, bool]]:
    """Rows (what, figure, reached) on PSA (on the feature grid) and PSA+CRF (full size) in the store."""
    full = unpool_from_cells(low, SIZE).numpy()
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "JPEG", quality=90)
    with tempfile.TemporaryDirectory() as folder:
        psa, refined = (Path(folder) / name for name in ("psa.npz", "crf.npz"))
        save_maps(psa, CLASSES, low.numpy(), SIZE, "PSA")
        save_maps(refined, CLASSES, crf, SIZE, "PSA+CRF")
        size = psa.stat().st_size + refined.stat().st_size
        (reading, _), (decoding, _) = medians(
            [
                lambda: (load_maps(psa), load_maps(refined)),
                lambda: np.array(Image.open(encoded).convert("RGB")),
            ],
            51,
        )
        pairs = [(maps, load_maps(path).maps) for maps, path in ((full, psa), (crf, refined))]
    same = min((maps.argmax(axis=0) == back.argmax(axis=0)).mean() for maps, back in pairs)
    error = max(float(np.abs(maps - back).max() / maps.max()) for maps, back in pairs)
    arrays = 2 * full.nbytes
    return [
        ("store, PSA and PSA+CRF", f"{size / 1000:.1f} kB; as float32 {arrays / 1e6:.1f} MB", size <= 120_000),
        ("store, same argmax", f"{100 * same:.3f} % of the pixels (wanted: 99.9)", same >= 0.999),
        ("store, largest error", f"{255 * error:.2f}/255 of the maximum (wanted: 1)", error <= 1 / 255),
        (
            "store, reading both",
            f"{1000 * reading:.1f} ms; the JPEG {1000 * decoding:.1f} ms (wanted: 10 more at most)",
            reading < decoding + 0.010,
        ),
    ]


def stage_times(image: np.ndarray, low: Tensor, cams: np.ndarray, width: float) -> dict[str, tuple[float, float]]:
    """What each stage of one image takes: seconds, CPU seconds."""
    config, device = Config(width=width), torch.device("cpu")
    layout = distributed.memory_format(device, width, config.precision)
    classifier, affinity_net = (
        network.to(memory_format=layout).eval() for network in (Classifier(width=width), AffinityNet(width))
    )
    foreground = torch.from_numpy(CLASSES[1:] - 1)
    maps = pool_to_cells(seed_maps(torch.from_numpy(cams)))[None]
    x = pad_to_cells(normalise(as_tensor(image)[None])).contiguous(memory_format=layout)

    def cam() -> Tensor:
        with distributed.autocast(device, config.precision):
            return multiscale_cam(classifier, image, foreground, config.cam_scales, normalise)

    def affinities() -> Tensor:
        with distributed.autocast(device, config.precision):
            return pair_affinities(affinity_net(x))

    def cam_crfs() -> None:
        for alpha in (config.alpha_low, config.alpha_high):
            dense_crf(image, seed_maps(torch.from_numpy(cams), alpha).numpy(), config.crf_labels)

    def psa_crf() -> None:
        dense_crf(image, unpool_from_cells(low, image.shape[:2]).numpy(), config.crf_labels)

    with torch.inference_mode():
        pairs = affinities()
        stages = {
            "CAM, 4 scales, each with its mirror": cam,
            "affinity features and pairs": affinities,
            "random walk": lambda: random_walk(pairs, maps),
            "CRF of the two CAMs with background": cam_crfs,
            "CRF of PSA": psa_crf,
        }
        return dict(zip(stages, medians(list(stages.values()), 3), strict=True))


def processor() -> str:
    cores = at_most_cores(1 << 20)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {cores} cores, {torch.get_num_threads()} threads, PyTorch {torch.__version__.partition('+')[0]}"


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="of the networks whose time is taken (%(default)s)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    image, cams = scene()
    low, rows = walk_figures(image, cams)
    crf = dense_crf(image, unpool_from_cells(low, SIZE).numpy(), Config().crf_labels)
    rows += store_figures(image, low, crf)
    print(f"{processor()}\n\n| {HEIGHT}×{WIDTH}, 2 classes | | |\n|---|---|---|")
    for what, figure, reached in rows:
        print(f"| {what} | {figure} | {'reached' if reached else 'MISSED'} |", flush=True)
    stages = stage_times(image, low, cams, arguments.width)
    total = tuple(map(sum, zip(*stages.values(), strict=True)))
    print(f"\n| making the labels of one image, width {arguments.width:g} | s | CPU s | share |\n|---|---|---|---|")
    for what, (wall, cpu) in {**stages, "together": total}.items():
        print(f"| {what} | {wall:.2f} | {cpu:.2f} | {100 * cpu / total[1]:.0f} % |")
    if not all(reached for *_, reached in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
