"""The superpixels that ICD refines its scores with: Felzenszwalb's, then the most similar ones merged to at most 64.

`ids` is H×W int32, 0 to K − 1. Everything here is NumPy on one core, but for the network that gives the features.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from skimage.segmentation import felzenszwalb as scikit_felzenszwalb
from torch import Tensor

from models.vgg16 import SIDE, Vgg16, padded

SIGMA = 0.8
THRESHOLD = 75
LEAST_PIXELS = 75
MOST = 64


def felzenszwalb(image: np.ndarray, threshold: float = THRESHOLD, least: int = LEAST_PIXELS) -> np.ndarray:
    """Felzenszwalb and Huttenlocher's segmentation, as published.

    scikit-image smooths with other borders and divides both colours and threshold by 255: it is handed the smoothed
    image, and the threshold so that the division undoes itself.

    Args:
        image: H×W×3 uint8 RGB.
        threshold: k; a component of n pixels whose largest inner edge is w joins over edges up to w + k/n.
        least: pixels; smaller components are joined afterwards, in the order of edge weight.

    Reference:
        Felzenszwalb and Huttenlocher, IJCV 2004.
    """
    smooth = image.astype(np.float64)
    for axis in (0, 1):
        smooth = gaussian_filter1d(smooth, SIGMA, axis, mode="nearest", radius=int(np.ceil(4 * SIGMA)))
    return scikit_felzenszwalb(smooth, scale=255 * threshold, sigma=0, min_size=least).astype(np.int32)


@torch.no_grad()
def superpixel_features(network: Vgg16, image: Tensor, side: int = SIDE) -> Tensor:
    """conv5_3 after ReLU of an image in its own size, padded to a square: 512×h×w float32.

    Args:
        network: with ImageNet's weights, in evaluation mode.
        image: 3×H×W uint8 RGB, on the network's device.
        side: of the square, see models.vgg16.padded.
    """
    # As published: *without* the mean subtracted, unlike everywhere else.
    return network.features(padded(image, side)[None].float()).conv5_3[0]


def region_means(features: np.ndarray, ids: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Mean feature of each superpixel, of the map upsampled bilinearly with align_corners=True, without making it.

    Args:
        features: C×h×w of the padded square.
        ids: H×W, of the image in the square's top left corner.
        side: of the square.

    Returns:
        K×C float64.
    """
    channels, height, width = features.shape
    regions = int(ids.max()) + 1
    rows, row_weights = _neighbours(ids.shape[0], side, height)
    columns, column_weights = _neighbours(ids.shape[1], side, width)
    # How much of every cell each superpixel has: K×(h·w).
    shares = np.zeros(regions * height * width)
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            places = (ids * height + row[:, None]) * width + column
            weights = row_weight[:, None] * column_weight
            shares += np.bincount(places.ravel(), weights.ravel(), minlength=shares.size)
    sums = shares.reshape(regions, -1) @ features.reshape(channels, -1).T.astype(np.float64)
    return sums / np.bincount(ids.ravel(), minlength=regions)[:, None]


def colour_histograms(image: np.ndarray, ids: np.ndarray, bins: int = 8) -> np.ndarray:
    """Histogram of each channel of each superpixel, features for where there is no network: the cosine of two is how
    far their colours are the same, which that of two mean colours is not, as it leaves out how bright they are.

    Args:
        image: H×W×3 uint8.
        ids: H×W.

    Returns:
        K×(3·bins) float64, shares of the pixels.
    """
    regions = int(ids.max()) + 1
    channels = [ids * bins + (image[..., channel].astype(np.int64) * bins >> 8) for channel in range(3)]
    counts = [np.bincount(places.ravel(), minlength=regions * bins).reshape(regions, bins) for places in channels]
    return np.concatenate(counts, axis=1) / np.bincount(ids.ravel(), minlength=regions)[:, None]


def _neighbours(pixels: int, side: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For the first pixels of a square's side the two cells between which each lies, and their weights: 2×pixels."""
    steps = max(side - 1, 1)
    place = np.arange(pixels) * (cells - 1)
    before, share = place // steps, (place % steps) / steps
    return np.stack([before, np.minimum(before + 1, cells - 1)]), np.stack([1 - share, share])


def merged(ids: np.ndarray, means: np.ndarray, most: int = MOST) -> np.ndarray:
    """Join the two most similar superpixels, adjacent or not, until at most `most` are left.

    Similarity is the cosine of the mean features + 1 − the two's share of the image. Of equal pairs the one with the
    lowest ids is joined.

    Args:
        ids: H×W int32, 0 to K − 1, each there.
        means: K×C mean features.

    Returns:
        H×W int32, 0 to at most `most` − 1; a joined one stands where its lower id stood.
    """
    means = means.astype(np.float64)
    sizes = np.bincount(ids.ravel()).astype(np.float64)
    number = len(sizes)
    joined_into = np.arange(number)
    units = means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
    similarity = units @ units.T + 1 - (sizes[:, None] + sizes) / ids.size
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, -np.inf)
    best = similarity.max(axis=1)
    for _ in range(number - most):
        low = int(best.argmax())
        high = int(similarity[low].argmax())
        joined_into[joined_into == high] = low
        means[low] = (sizes[low] * means[low] + sizes[high] * means[high]) / (sizes[low] + sizes[high])
        sizes[low] += sizes[high]
        units[low] = means[low] / max(np.linalg.norm(means[low]), 1e-12)
        # Whose most similar one was one of the two has to look for another.
        stale = np.isfinite(best) & ((similarity[:, low] == best) | (similarity[:, high] == best))
        row = units @ units[low] + 1 - (sizes + sizes[low]) / ids.size
        row[(joined_into != np.arange(number)) | (np.arange(number) == low)] = -np.inf
        similarity[low], similarity[:, low] = row, row
        similarity[high], similarity[:, high] = -np.inf, -np.inf
        best = np.maximum(best, row)
        best[stale] = similarity[stale].max(axis=1)
    return np.unique(joined_into, return_inverse=True)[1].astype(np.int32)[ids]
