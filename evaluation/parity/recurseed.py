"""RecurSeed's golden arrays (recurseed_*.npz), recomputed with the functions that training and inference call."""

from collections.abc import Iterator

import numpy as np
import torch

from evaluation.parity.run import MASK, VALUES, Row, Run, fill, numpy, sampled
from models.recurseed.cam import normalised_cam
from models.recurseed.inference import (
    SCALES,
    image_probabilities,
    multiscale_cam,
    multiscale_prediction,
    scaled_outputs,
)
from models.recurseed.network import RecurSeedNetwork
from models.recurseed.pamr import pamr
from models.recurseed.scg import correlations, self_correlation, self_correlation_maps

INPUTS = frozenset("x scg_f0 scg_f1 scg_cams cam_raw camlist_raw pamr_img pamr_mask ms_x".split())


def rows(run: Run) -> Iterator[Row]:
    if run.has("cam_raw"):
        yield Row("cam_norm", numpy(normalised_cam([run.tensor("cam_raw")])), VALUES)
    if run.has("camlist_raw"):
        yield Row("camlist_norm", numpy(normalised_cam(run.tensor("camlist_raw"))), VALUES)
    if run.has("scg_f0"):
        features = [run.tensor("scg_f0"), run.tensor("scg_f1")]
        first, second = correlations(features[0])
        yield Row("scg_sc1", numpy(first), VALUES)
        yield Row("scg_sc2", numpy(second), VALUES)
        yield Row("scg_hsc", numpy(self_correlation(features)), VALUES)
        yield Row("scg_scm", numpy(self_correlation_maps(run.tensor("scg_cams"), features)), VALUES)
    if run.has("pamr_img"):
        yield Row("pamr_out", numpy(pamr(run.tensor("pamr_img"), run.tensor("pamr_mask"))), VALUES)
    if run.has("x", "ms_x"):
        network = fill(RecurSeedNetwork()).to(run.device)
        if run.has("x"):
            yield from network_rows(run, network)
        if run.has("ms_x"):
            yield from multiscale_rows(run, network)


def network_rows(run: Run, network: RecurSeedNetwork) -> Iterator[Row]:
    with torch.no_grad(), run.autocast():
        output = network(run.tensor("x"))
        d1 = network.aspp(output.features.c5)
        d2 = network.decoder.joined(d1, output.features.c2)
    for name, value in [*output.features._asdict().items(), ("d1", d1), ("d2", d2)]:
        yield Row(f"net_{name.upper()}", sampled(value), VALUES)
        yield Row(f"net_{name.upper()}_shape", np.array(value.shape), MASK)
    yield Row("net_cam", numpy(output.cam.float()), VALUES)
    yield Row("net_cls", numpy(output.scores.float()), VALUES)
    yield Row("net_seg", numpy(output.seg.float()), VALUES)


def multiscale_rows(run: Run, network: RecurSeedNetwork) -> Iterator[Row]:
    x = run.tensor("ms_x")
    with run.autocast():
        prediction = multiscale_prediction(network, x)
        cam, features, _ = multiscale_cam(network, x)
        for scale, (size, output) in zip(SCALES, scaled_outputs(network, x, SCALES), strict=True):
            probabilities = image_probabilities(output.seg, size, tuple(x.shape[-2:]))
            yield Row(f"ms_prob_{scale:g}", sampled(probabilities), VALUES)
    yield Row("ms_prob", sampled(prediction.probabilities), VALUES)
    yield Row("ms_prob_shape", np.array(prediction.probabilities.shape), MASK)
    yield Row("ms_mask", numpy(prediction.probabilities[0].argmax(dim=0)), MASK)
    yield Row("ms_cls", numpy(prediction.scores), VALUES)
    yield Row("ms_cam", numpy(cam), VALUES)
    yield Row("ms_scm", numpy(self_correlation_maps(cam, features)), VALUES)
