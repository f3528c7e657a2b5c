"""Exact mean-field inference of the dense CRF, for a whole batch on the device, through attention.

pydensecrf filters on a lattice, which approximates the same Gaussian kernels. Here nothing is approximated, and no n×n
matrix (n pixels) is kept. With features f, softmax over j of f_i·f_j − |f_j|²/2 is the row-normalised Gaussian filter,
so attention whose queries and keys are features and whose values are the marginals computes it. Torch's fused attention
kernels, on CPU and on CUDA, go through the pixels in tiles; they want queries, keys and values of one width, a multiple
of 8. For other shapes torch silently takes the plain kernel, which does keep the n×n matrix, hence the zeros that fill
up here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.crf import CrfKernel, present_probabilities


@torch.no_grad()
def exact_crf(
    images: Tensor,
    probabilities: Tensor,
    present: Tensor,
    iterations: int,
    kernel: CrfKernel,
    half: bool | None = None,
) -> Tensor:
    """Mean-field inference with unary −log(clip(p, 1e-5, 1)) and symmetrically normalised kernels, Potts.

    Args:
        images: N×h×w×3 uint8 RGB.
        probabilities: N×C×h×w; those of absent labels do not matter.
        present: N×C, the labels that each image may get.
        iterations: mean-field steps.
        half: attention in float16 (features split in two, so that exponents keep 1e-3); None: on CUDA, where it
            runs on the tensor cores.

    Returns:
        N×C×h×w float32 marginals, zero at absent labels.

    Reference:
        Krähenbühl and Koltun, NIPS 2011.
    """
    with torch.autocast(images.device.type, enabled=False):
        absent = present[:, :, None, None] == 0
        log_unary = probabilities.float().clamp(1e-5, 1).log().masked_fill(absent, -torch.inf)
        rows, columns = (_grid_kernel(n, kernel.gaussian_sxy, images.device) for n in images.shape[1:3])
        classes = probabilities.shape[1]
        bilateral = BilateralFilter(images, kernel, images.is_cuda if half is None else half, classes)
        q = torch.softmax(log_unary, dim=1)
        for _ in range(iterations):
            # Without colour the Gaussian is a product of one over rows and one over columns.
            message = kernel.gaussian_weight * (rows @ q @ columns) + kernel.bilateral_weight * bilateral(q)
            q = torch.softmax(log_unary + message, dim=1)
        return q


def exact_masks(
    images: Tensor, logits: Tensor, present: Tensor, iterations: int, kernel: CrfKernel
) -> Callable[[], Tensor]:
    """`models.crf.masks_after_crf` with the exact CRF on the device of `logits`, which the caller never waits for."""
    masks = exact_crf(images, present_probabilities(logits, present), present, iterations, kernel).argmax(dim=1)
    return lambda: masks


def _grid_kernel(length: int, sigma: float, device: torch.device) -> Tensor:
    """n×n symmetrically normalised Gaussian between the places 0 … n−1."""
    place = torch.arange(length, device=device, dtype=torch.float32)
    k = torch.exp(-((place[:, None] - place) ** 2) / (2 * sigma**2))
    return k / (k.sum(0) * k.sum(1)[:, None]).sqrt()


class BilateralFilter:
    """The symmetrically normalised kernel of position and colour of a batch of images, to be applied several times.

    With d_i = Σ_j exp(−|f_i − f_j|²/2) it is √d ⊙ attention(values = Q/√d).

    Args:
        classes: the C of what will be filtered.
    """

    def __init__(self, images: Tensor, kernel: CrfKernel, half: bool, classes: int):
        features = _features(images, kernel)
        norm = features.square().sum(-1, keepdim=True) / 2
        one = torch.ones_like(norm)
        # query·key = f_i·f_j − |f_i|²/2 − |f_j|²/2 = −|f_i − f_j|²/2
        if half:
            high, low = _split(features)
            norm_high, norm_low = _split(norm)
            one = one.half()
            query = [high, high, low, -norm_high, -norm_low, one, one]
            key = [high, low, high, one, one, -norm_high, -norm_low]
        else:
            query, key = [features, -norm, one], [features, one, -norm]
        query, key = torch.cat(query, -1), torch.cat(key, -1)
        self.width = max(query.shape[-1], classes)
        self.width += -self.width % 8
        self.query, self.key = (_widened(x, self.width).unsqueeze(1) for x in (query, key))
        self.root_degree = self._degree().sqrt()

    def _degree(self) -> Tensor:
        """d, N×n×1. One more key, all zero, has weight exp(0) = 1 beside a pixel's d, so its share is 1/(1 + d)."""
        key = F.pad(self.key, (0, 0, 0, 1))
        values = torch.zeros_like(key)
        # A share of 1/pixels would lose bits in float16.
        scale = 1024.0
        values[..., -1, 0] = scale
        share = F.scaled_dot_product_attention(self.query, key, values, scale=1)
        return (scale / share[:, 0, :, :1].float() - 1).clamp(min=1)

    def __call__(self, q: Tensor) -> Tensor:
        """N×C×h×w → N×C×h×w."""
        values = q.flatten(2).mT / self.root_degree
        values = _widened(values.to(self.key.dtype), self.width).unsqueeze(1)
        filtered = F.scaled_dot_product_attention(self.query, self.key, values, scale=1)
        filtered = filtered[:, 0, :, : q.shape[1]].float() * self.root_degree
        return filtered.mT.reshape(q.shape)


def _features(images: Tensor, kernel: CrfKernel) -> Tensor:
    """N×n×5: position/sxy and colour/srgb, centred, as the kernel sees differences only and small ones round less."""
    height, width = images.shape[1:3]
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, device=images.device, dtype=torch.float32).expand(height, width)
    position = torch.stack([x, y], -1).flatten(0, 1) / kernel.bilateral_sxy
    colour = images.flatten(1, 2).float() / kernel.bilateral_srgb
    features = torch.cat([position.expand(len(images), -1, -1), colour], -1)
    return features - features.mean(1, keepdim=True)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as the sum of two float16 tensors, which keep 22 of its 24 bits."""
    high = x.half()
    return high, (x - high.float()).half()


def _widened(x: Tensor, width: int) -> Tensor:
    """The last dimension filled with zeros to `width`."""
    return F.pad(x, (0, width - x.shape[-1]))
