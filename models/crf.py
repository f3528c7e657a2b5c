"""Dense CRF (Krähenbühl and Koltun, NIPS 2011) through pydensecrf."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy as np
import pydensecrf.densecrf as densecrf
import torch
from torch import Tensor

from settings.crf import CrfKernel

PUBLISHED = CrfKernel()


def dense_crf(
    image: np.ndarray, probabilities: np.ndarray, iterations: int, kernel: CrfKernel = PUBLISHED
) -> np.ndarray:
    """Mean-field inference with unary −log(clip(p, 1e-5, 1)); p need not sum to one.

    Args:
        image: H×W×3 uint8 RGB.
        probabilities: K×H×W float32, one map a label.
        iterations: mean-field steps; 3 while training, 10 otherwise.

    Returns:
        K×H×W float32 marginals.
    """
    labels, height, width = probabilities.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"CRF image is {image.dtype} {image.shape}, needed: uint8 {(height, width, 3)}")
    if labels == 1:
        return np.ones_like(probabilities, dtype=np.float32)
    crf = densecrf.DenseCRF2D(width, height, labels)
    unary = -np.log(np.clip(probabilities, 1e-5, 1.0)).reshape(labels, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=kernel.gaussian_sxy, compat=kernel.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=kernel.bilateral_sxy,
        srgb=kernel.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=kernel.bilateral_weight,
    )
    return np.array(crf.inference(iterations), dtype=np.float32).reshape(labels, height, width)


def masks_after_crf(
    images: Tensor,
    logits: Tensor,
    present: Tensor,
    iterations: int,
    kernel: CrfKernel,
    submit: Callable[..., Future] | None = None,
) -> Callable[[], Tensor]:
    """Start the CRFs that give the advice of the first dynamic module: of the softmax over the present classes only.

    Args:
        images: N×h×w×3 uint8 RGB.
        logits: N×C×h×w.
        present: N×C image-level labels.
        submit: starts a function with its arguments elsewhere; None: the CRFs run here and now.

    Returns:
        A function that waits for the masks: N×h×w int64 on the device of `logits`, without gradient. Meanwhile the
        caller can go on with what does not need them.
    """
    probabilities = present_probabilities(logits, present).cpu().numpy()
    classes = [np.flatnonzero(row) for row in present.cpu().numpy()]
    jobs = [
        (image, p[c], c, iterations, kernel)
        for image, p, c in zip(images.cpu().numpy(), probabilities, classes, strict=True)
    ]
    if submit is None:
        masks = [mask_after_crf(*job) for job in jobs]
        return lambda: torch.from_numpy(np.stack(masks)).to(logits.device)
    futures = [submit(mask_after_crf, *job) for job in jobs]
    return lambda: torch.from_numpy(np.stack([future.result() for future in futures])).to(logits.device)


def present_probabilities(logits: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present classes only, N×C×h×w float32 without gradient, 0 elsewhere."""
    masked = logits.detach().float().masked_fill(present[:, :, None, None] == 0, -torch.inf)
    return torch.softmax(masked, dim=1)


def mask_after_crf(
    image: np.ndarray, probabilities: np.ndarray, classes: Iterable[int], iterations: int, kernel: CrfKernel
) -> np.ndarray:
    """The mask h×w int64 after `dense_crf` of maps K×h×w whose classes are `classes`."""
    return np.asarray(classes)[dense_crf(image, probabilities, iterations, kernel).argmax(axis=0)].astype(np.int64)
