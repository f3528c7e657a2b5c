"""The GPU itself, the authors' recorded numbers on it, and the exact CRF."""

import re
import time
from collections.abc import Iterator

import cv2
import numpy as np
import torch

from datasets.demo import draw
from datasets.voc import CLASSES, IGNORE
from engine import distributed
from models.crf import CrfKernel, masks_after_crf
from models.exact_crf import exact_crf, exact_masks
from tools.check_gpu.trial import FAILS, IMPOSSIBLE, ROOT, WORKS, Place, Verdict, run

# Golden files that a CPU recomputes in seconds; `make test` takes all of them.
ON_CPU = ("icdseed_a.npz", "icdseed_c.npz")
# Labels that the exact CRF and pydensecrf, which approximates, give alike; on a CPU it was 99.6 % of drawn images.
LEAST_ALIKE, LEAST_ALIKE_IN_HALVES = 0.98, 0.999


def gpu_verdicts(place: Place) -> Iterator[Verdict]:
    if not place.on_gpu:
        yield Verdict(
            "GPU", IMPOSSIBLE, f"torch {torch.__version__} sees none, or --device=cpu; the rest is on the CPU"
        )
        return
    for number in range(torch.cuda.device_count()):
        given = torch.cuda.get_device_properties(number)
        why = f"{given.name}, {given.total_memory / 2**30:.0f} GiB, capability {given.major}.{given.minor}"
        yield Verdict(f"GPU {number}", WORKS, why)
    able = distributed.computes_in_bfloat16(place.device, "auto")
    yield Verdict("bfloat16", WORKS if able else IMPOSSIBLE, f"the GPU has {'' if able else 'no '}units for it")
    if torch.distributed.is_nccl_available():
        yield Verdict("NCCL", WORKS, "version " + ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield Verdict("NCCL", FAILS, "this torch was built without it")


def parity_verdicts(place: Place) -> Iterator[Verdict]:
    """The authors' recorded arrays, recomputed on the device."""
    files = sorted((ROOT / "tests" / "golden").glob("*_[ac].npz"))
    for file in files if place.on_gpu else [file for file in files if file.name in ON_CPU]:
        for kind in ("float32", "bfloat16"):
            name = f"parity {file.stem} {kind}"
            if kind == "bfloat16" and place.on_gpu and not distributed.computes_in_bfloat16(place.device, "auto"):
                yield Verdict(name, IMPOSSIBLE, "the GPU has no units for it")
                continue
            arguments = ["-m", "tools.check_parity", str(file), "--device", str(place.device), "--dtype", kind]
            made = run(place, name, arguments)
            bad = re.findall(r"^  (\S+) .*FAIL$", place.raw(name).read_text(encoding="utf-8"), re.M)
            yield made._replace(verdict=FAILS, why=f"outside their tolerance: {' '.join(bad)}") if bad else made


def crf_verdicts(place: Place) -> Iterator[Verdict]:
    """The exact CRF on the device, against pydensecrf, and in float16 against float32."""
    side, count = (112, 8) if place.on_gpu else (32, 2)
    images, logits, present = (t.to(place.device) for t in crf_inputs(side, count))
    options = {"iterations": 3, "kernel": CrfKernel()}
    exact_masks(images, logits, present, **options)()  # the first call chooses kernels
    began = time.perf_counter()
    exact = exact_masks(images, logits, present, **options)().cpu()
    between = time.perf_counter()
    other = masks_after_crf(images, logits, present, **options)().cpu()
    seconds = between - began, time.perf_counter() - between
    alike = (exact == other).float().mean((1, 2))
    why = f"{100 * alike.mean():.2f} % of labels alike, worst image {100 * alike.min():.2f} %; "
    why += f"{count} images of {side}×{side} in {1e3 * seconds[0]:.0f} ms, in pydensecrf {1e3 * seconds[1]:.0f} ms"
    yield Verdict("exact CRF against pydensecrf", WORKS if alike.mean() >= LEAST_ALIKE else FAILS, why)
    inputs = images, torch.softmax(logits, 1), present
    halves, whole = (exact_crf(*inputs, **options, half=half).argmax(1) for half in (True, False))
    share = float((halves == whole).float().mean())
    verdict = WORKS if share >= LEAST_ALIKE_IN_HALVES else FAILS
    yield Verdict("exact CRF, float16 against float32", verdict, f"{100 * share:.3f} % of labels alike")


def crf_inputs(side: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Drawn images N×h×w×3, logits N×C×h×w of blurred true masks with noise, and labels N×C."""
    images, present = [], torch.zeros(count, len(CLASSES))
    logits = torch.full((count, len(CLASSES), side, side), -20.0)
    for n in range(count):
        image, mask, _ = draw(0, n + 1)
        images.append(cv2.resize(image, (side, side)))
        mask = np.where(mask == IGNORE, 0, mask).astype(np.uint8)
        mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST)
        noise = np.random.default_rng(n)
        for label in np.union1d(mask, [0]):
            smooth = cv2.GaussianBlur((mask == label).astype(np.float32), (0, 0), side / 20)
            grain = cv2.GaussianBlur(noise.normal(size=mask.shape).astype(np.float32), (0, 0), side / 22)
            logits[n, label] = torch.from_numpy(2 * np.log(smooth + 1e-3) + grain / grain.std())
            present[n, label] = 1
    return torch.from_numpy(np.stack(images)), logits, present
