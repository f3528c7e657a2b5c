"""SSDD's golden arrays (ssdd_*.npz), recomputed with the functions that the modes call."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.parity.run import CRF, GRADIENTS, MASK, VALUES, Row, Run, fill, numpy, sampled
from models.crf import CrfKernel, dense_crf, masks_after_crf
from models.inference import multiscale_probabilities
from models.resnet38 import ResNet38
from models.ssdd.ddnet import DDNet
from models.ssdd.difference import integrate, missing_class_flags
from models.ssdd.segmentation import SegmentationNetwork, masked_prediction, masked_probabilities, upsample_twice
from models.ssdd.steps import DynamicStep, Integration, StaticStep

INPUTS = frozenset("x present mask_k mask_a mask_seed img seg2_gain seg2_bias fn_d0 fn_d1 crf_p ev_x".split())
EVALUATION_SCALES = (0.5, 0.75, 1, 1.25, 1.5)


def rows(run: Run) -> Iterator[Row]:
    if run.has("x"):
        yield from backbone_rows(run)
        yield from static_rows(run)
        yield from dynamic_rows(run)
    if run.has("fn_d0"):
        yield from integration_rows(run)
    if run.has("crf_p"):
        for iterations in (3, 10):
            marginals = dense_crf(run.golden["img"][0], run.golden["crf_p"], iterations)
            yield Row(f"crf_q{iterations}", marginals, CRF)
    if run.has("ev_x"):
        network = fill(SegmentationNetwork(with_sub=True)).to(run.device)
        with run.autocast():
            total = multiscale_probabilities(network, run.tensor("ev_x"), EVALUATION_SCALES)[0]
        yield Row("ev_seg", sampled(total, 2049), VALUES)
        yield Row("ev_mask", numpy(total.argmax(dim=0)), MASK)


def backbone_rows(run: Run) -> Iterator[Row]:
    if not run.has("bb_conv6"):
        return
    backbone = fill(ResNet38()).to(run.device)
    with torch.no_grad(), run.autocast():
        features = backbone(run.tensor("x"))
    for name, value in features._asdict().items():
        yield Row(f"bb_{name}", sampled(value), VALUES)
        yield Row(f"bb_{name}_shape", np.array(value.shape), MASK)


def static_rows(run: Run) -> Iterator[Row]:
    present = labels_with_background(run.tensor("present"))
    step = StaticStep(fill(SegmentationNetwork(with_sub=True)), fill(DDNet(2)), Integration()).to(run.device)
    with run.autocast():
        result = step(run.tensor("x"), present, run.tensor("mask_k"), run.tensor("mask_a"))
    (result.loss_seg + result.loss_dd).backward()
    (logits,), (module,) = result.logits, result.modules
    yield Row("st_seg", numpy(logits), VALUES)
    yield Row("st_prob", numpy(masked_probabilities(logits, present)), VALUES)
    yield Row("st_mask", numpy(masked_prediction(logits, present)), MASK)
    with torch.no_grad(), run.autocast():
        segmentation = step.segmentation
        head = upsample_twice(segmentation.seg_main(segmentation.encoder(run.tensor("x")).conv6))
    yield Row("st_head", sampled(head.features), VALUES)
    yield Row("st_ddk", numpy(module.d_k), VALUES)
    yield Row("st_dda", numpy(module.d_a), VALUES)
    yield Row("st_flags", numpy(module.flags), MASK)
    yield Row("st_refined", numpy(module.refined), MASK)
    yield Row("st_loss_seg", numpy(result.loss_seg), VALUES)
    yield Row("st_loss_dd", numpy(result.loss_dd), VALUES)
    keys = (
        "seg_main.seg2.weight",
        "encoder.b7.conv_branch2b2.weight",
        "encoder.b2.conv_branch2a.weight",
        "dd0.pred_abc.weight",
        "dd_head0.conv1ab.conv1.weight",
    )
    yield Row("st_grad", gradient_norms(step, keys), GRADIENTS)


def dynamic_rows(run: Run) -> Iterator[Row]:
    present = labels_with_background(run.tensor("present"))
    segmentation = fill(SegmentationNetwork(with_sub=True))
    if run.has("seg2_gain"):
        with torch.no_grad():
            segmentation.seg_main.seg2.weight *= torch.from_numpy(run.golden["seg2_gain"]).view(-1, 1, 1, 1)
            segmentation.seg_main.seg2.bias.copy_(torch.from_numpy(run.golden["seg2_bias"]))
    ddnet = fill(DDNet(2))
    inputs = (run.tensor("x"), present, torch.from_numpy(run.golden["img"]), run.tensor("mask_seed"))
    crf = partial(masks_after_crf, iterations=3, kernel=CrfKernel())
    step = DynamicStep(segmentation, ddnet, Integration(), 0.5, "ssdd2", crf).to(run.device)
    with run.autocast():
        result = step(*inputs)
    (result.loss_seg + result.loss_dd).backward()
    step.seed_target = "ssdd1"
    with run.autocast(), torch.no_grad():
        loss_dd_paper = step(*inputs).loss_dd
    first, second = result.modules
    main, sub = result.logits
    yield Row("dy_crf_mask", numpy(first.advice), MASK)
    yield Row("dy_mask_main", numpy(masked_prediction(main, present)), MASK)
    yield Row("dy_mask_sub", numpy(masked_prediction(sub, present)), MASK)
    yield Row("dy_seg_sub", numpy(sub), VALUES)
    for index, module in enumerate((first, second)):
        yield Row(f"dy_ddk{index}", numpy(module.d_k), VALUES)
        yield Row(f"dy_dda{index}", numpy(module.d_a), VALUES)
        yield Row(f"dy_flags{index}", numpy(module.flags), MASK)
        yield Row(f"dy_refined{index}", numpy(module.refined), MASK)
    yield Row("dy_loss_seg", numpy(result.loss_seg), VALUES)
    yield Row("dy_loss_dd", numpy(result.loss_dd), VALUES)
    yield Row("dy_loss_dd_paper", numpy(loss_dd_paper), VALUES)
    keys = (
        "seg_main.seg2.weight",
        "seg_sub.seg2.weight",
        "encoder.b7.conv_branch2b2.weight",
        "dd0.pred_abc.weight",
        "dd1.pred_abc.weight",
        "dd_head1.conv1ab.conv1.weight",
    )
    yield Row("dy_grad", gradient_norms(step, keys), GRADIENTS)


def integration_rows(run: Run) -> Iterator[Row]:
    knowledge, advice = run.tensor("mask_k"), run.tensor("mask_a")
    present = labels_with_background(run.tensor("present"))
    flags = missing_class_flags(knowledge, advice, present)
    yield Row("fn_flags", numpy(flags), MASK)
    for key in run.golden:
        if key.startswith("fn_refined_"):
            bias, bg = map(float, key.split("_")[2:])
            refined = integrate(knowledge, advice, run.tensor("fn_d0"), run.tensor("fn_d1"), flags, bias, bg)
            yield Row(key, numpy(refined), MASK)


def gradient_norms(step: nn.Module, keys: tuple[str, ...]) -> np.ndarray:
    parameters = dict(step.segmentation.named_parameters()) | dict(step.ddnet.named_parameters())
    gradients = [parameters[key].grad for key in keys]
    return np.array([0.0 if g is None else g.double().norm().item() for g in gradients])


def labels_with_background(foreground: Tensor) -> Tensor:
    return torch.nn.functional.pad(foreground.float(), (1, 0), value=1.0)
