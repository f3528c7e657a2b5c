"""Recompute the arrays of golden files, recorded from the authors' programs, with this project's own functions.

    python -m tools.check_parity tests/golden/ssdd_a.npz tests/golden/labels_a.npz

One line an array; exit status 1 if one is outside its tolerance or a key of a file was not checked.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datasets.errors import InputError, program
from datasets.transforms import normalise
from models.affinity import (
    AffinityNet,
    affinity_matrix,
    pad_to_cells,
    pair_affinities,
    pool_to_cells,
    random_walk,
    seed_maps,
    unpool_from_cells,
)
from models.classifier import Classifier, multiscale_cam
from models.crf import CrfKernel, CrfWorkers, dense_crf, masks_after_crf
from models.ddnet import DDNet
from models.resnet38 import ResNet38
from models.segmentation import (
    SegmentationNetwork,
    masked_prediction,
    masked_probabilities,
    multiscale_probabilities,
    upsample_twice,
)
from models.ssdd import integrate, missing_class_flags
from models.steps import DynamicStep, Integration, StaticStep

VALUES, CRF, GRADIENTS, MASK = "values", "crf", "gradients", "mask"
# bfloat16 keeps 8 bits of a number; what it costs is measured here, not promised.
TOLERANCE = {
    torch.float32: {VALUES: 1e-4, CRF: 1e-3, GRADIENTS: 1e-3, MASK: 0.998},
    torch.bfloat16: {VALUES: 5e-2, CRF: 5e-2, GRADIENTS: 1e-1, MASK: 0.95},
}
INPUTS = {
    "ssdd": {"x", "present", "mask_k", "mask_a", "mask_seed", "img", "seg2_gain", "seg2_bias"}
    | {"fn_d0", "fn_d1", "crf_p", "ev_x"},
    "labels": {"img", "label", "walk_cam"},
}
EVALUATION_SCALES = (0.5, 0.75, 1, 1.25, 1.5)
CAM_SCALES = (1, 0.5, 1.5, 2)


class Row(NamedTuple):
    key: str
    value: np.ndarray
    kind: str


class Run(NamedTuple):
    golden: dict[str, np.ndarray]
    device: torch.device
    dtype: torch.dtype

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.golden[key]).to(self.device)

    def has(self, *keys: str) -> bool:
        return any(key in self.golden for key in keys)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def fill(network: nn.Module) -> nn.Module:
    """Give every tensor the made-up values that its state-dict key determines (the golden files' rule)."""
    state = network.state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(tensor.shape)).astype(np.float32)
        if x.ndim == 4:
            x = x * 0.7 * np.sqrt(2 / np.prod(x.shape[1:]))
        elif key.endswith("running_var"):
            x = 1 + 0.1 * np.abs(x)
        elif key.endswith(".weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        state[key] = torch.from_numpy(x.astype(np.float32))
    network.load_state_dict(state)
    return network.eval()


def sampled(x: Tensor, count: int = 257) -> np.ndarray:
    """[mean, std, max |.|] and `count` values spread over the flattened array."""
    flat = x.double().flatten().cpu()
    places = np.linspace(0, len(flat) - 1, count).astype(np.int64)
    summary = torch.stack([flat.mean(), flat.std(correction=0), flat.abs().max()])
    return torch.cat([summary, flat[torch.from_numpy(places)]]).numpy()


def numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def gradient_norms(step: nn.Module, keys: tuple[str, ...]) -> np.ndarray:
    parameters = dict(step.segmentation.named_parameters()) | dict(step.ddnet.named_parameters())
    gradients = [parameters[key].grad for key in keys]
    return np.array([0.0 if g is None else g.double().norm().item() for g in gradients])


def labels_with_background(foreground: Tensor) -> Tensor:
    return torch.nn.functional.pad(foreground.float(), (1, 0), value=1.0)


def ssdd_rows(run: Run) -> Iterator[Row]:
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
    with CrfWorkers(0) as workers:
        crf = partial(masks_after_crf, iterations=3, kernel=CrfKernel(), workers=workers)
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


def labels_rows(run: Run) -> Iterator[Row]:
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


def compare(row: Row, golden: np.ndarray, tolerance: float) -> tuple[str, bool]:
    """A line of figures for one array, and whether it is within tolerance."""
    if row.value.shape != golden.shape:
        return f"shape {row.value.shape}, golden {golden.shape}", False
    if row.kind == MASK:
        share = float((row.value == golden).mean())
        return f"equal {share:8.4%}   at least {tolerance:.1%}", share >= tolerance
    error = np.abs(row.value.astype(np.float64) - golden)
    if row.kind == GRADIENTS:
        relative = float((error / np.maximum(np.abs(golden), 1e-12)).max())
    else:
        relative = float(error.max() / max(np.abs(golden).max(), 1e-12))
    return f"max abs {error.max():.2e}  relative {relative:.2e}  tolerance {tolerance:.0e}", relative <= tolerance


def check_file(path: Path, device: torch.device, dtype: torch.dtype) -> bool:
    """Print a line an array of one golden file; True if all are within tolerance and none was left unchecked."""
    kind = path.name.split("_")[0]
    if kind not in INPUTS:
        raise InputError(f"{path}: not a golden file of a kind known here (name must start with ssdd_ or labels_)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            golden = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a golden .npz file ({error})") from error
    print(f"{path}  ({device.type}, {str(dtype).removeprefix('torch.')})")
    unchecked = set(golden) - INPUTS[kind]
    good = True
    rows = ssdd_rows if kind == "ssdd" else labels_rows
    try:
        for row in rows(Run(golden, device, dtype)):
            if row.key in golden:
                line, ok = compare(row, golden[row.key], TOLERANCE[dtype][row.kind])
                print(f"  {row.key:20s} {line}  {'ok' if ok else 'FAIL'}", flush=True)
                good &= ok
                unchecked.discard(row.key)
    except KeyError as error:
        raise InputError(f"{path}: the input {error} is missing, so its arrays cannot be recomputed") from None
    for key in sorted(unchecked):
        print(f"  {key:20s} not checked  FAIL")
    return good and not unchecked


@program
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="autocast type")
    arguments = parser.parse_args(argv)
    try:
        device = torch.device(arguments.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {arguments.device}: not usable here ({str(error).splitlines()[0]})") from error
    # TensorFloat-32 keeps 10 bits of the mantissa, too few for 1e-4.
    torch.backends.cudnn.allow_tf32 = False
    results = [check_file(path, device, getattr(torch, arguments.dtype)) for path in arguments.files]
    if not all(results):
        sys.exit(1)
    print(f"all arrays of {len(results)} file{'s' * (len(results) > 1)} within tolerance")


if __name__ == "__main__":
    main()
