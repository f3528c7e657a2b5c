"""PSA's golden arrays (labels_*.npz), recomputed with the functions that the label steps call."""

from collections.abc import Iterator

import numpy as np
import torch

from datasets.transforms import normalise
from evaluation.parity.run import CRF, VALUES, Row, Run, fill, numpy
from models.crf import dense_crf
from models.psa.affinity import (
    AffinityNet,
    affinity_matrix,
    pad_to_cells,
    pair_affinities,
    pool_to_cells,
    random_walk,
    seed_maps,
    unpool_from_cells,
)
from models.psa.classifier import Classifier, multiscale_cam

INPUTS = frozenset({"img", "label", "walk_cam"})
CAM_SCALES = (1, 0.5, 1.5, 2)


def rows(run: Run) -> Iterator[Row]:
    image = run.golden["img"]
    size = image.shape[:2]
    x = normalise(torch.from_numpy(image).movedim(-1, 0)[None].to(run.device))
    classes = torch.from_numpy(np.flatnonzero(run.golden["label"])).to(run.device)
    classifier = fill(Classifier()).to(run.device)
    with torch.no_grad(), run.autocast():
        yield Row("cls_logits", numpy(classifier(x).float()), VALUES)
        yield Row("cam", numpy(multiscale_cam(classifier, image, classes, CAM_SCALES, normalise)), VALUES)
    affinity_net = fill(AffinityNet()).to(run.device)
    with torch.no_grad():
        with run.autocast():
            features = affinity_net(pad_to_cells(x))
        pairs = pair_affinities(features)
        yield Row("aff_dense", numpy(affinity_matrix(pairs, tuple(features.shape[-2:])).to_dense()), VALUES)
        low = random_walk(pairs, pool_to_cells(seed_maps(run.tensor("walk_cam")))[None])[0]
        yield Row("walk_low", numpy(low), VALUES)
        full = unpool_from_cells(low, size)
    yield Row("aff", numpy(full), VALUES)
    yield Row("aff_crf", dense_crf(image, numpy(full), 10), CRF)
