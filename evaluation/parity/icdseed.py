"""ICD's golden seeds (icdseed_*.npz), recomputed with the functions that write the seeds."""

from collections.abc import Iterator

import torch

from evaluation.parity.run import EXACT, MASK, Row, Run, numpy
from models.icd.seeds import icd_seed, seed_after_crf, upsampled

IMAGES = "one two three nopos noneg clash nocam tie".split()
INPUTS = frozenset(
    ["infer_size"]
    + [f"{name}_{part}" for name in IMAGES for part in ("image", "classes", "icd", "cam", "sal_lots", "sal_few")]
)


def rows(run: Run) -> Iterator[Row]:
    side = int(run.golden["infer_size"])
    for name in IMAGES:
        if not run.has(f"{name}_image"):
            continue
        image = run.golden[f"{name}_image"]
        t, cam = (upsampled(run.tensor(f"{name}_{part}"), side, image.shape[:2]) for part in ("icd", "cam"))
        classes = run.tensor(f"{name}_classes") + 1
        seed = numpy(icd_seed(t, cam, classes))
        yield Row(f"{name}_seed", seed, EXACT)
        yield Row(f"{name}_seed_crf", seed_after_crf(image, seed), MASK)
        for part in ("lots", "few"):
            if run.has(f"{name}_sal_{part}"):
                saliency = run.tensor(f"{name}_sal_{part}").to(torch.float32) / 255
                yield Row(f"{name}_seed_sal_{part}", numpy(icd_seed(t, cam, classes, saliency)), EXACT)
