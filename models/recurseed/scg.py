"""Self-correlation map generation (SCG): a CAM carried to all cells whose features resemble those where it is sure.

With n cells an image, what is alive at a time is a handful of n×n float32 matrices for each image under way: 4 MiB each
at n = 1,024 (512×512 at stride 16), 64 MiB at stride 8. `AT_ONCE` limits how many images are under way.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-10
AT_ONCE = 1 << 24  # entries of the n×n matrices of all images under way, unless one image alone has more


def correlations(features: Tensor, cells: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """First- and second-order self-correlation of a feature map.

    SC1 = S / column sums, S the cosine similarities of the cells, 0 where under 0.5. SC2 = T·T / column sums, T being S
    without its diagonal / column sums; 0 where under 0.1/n.

    Args:
        features: N×D×h×w float32.
        cells: N×n bool, those that belong to the image; the others correlate with nothing. None: all.

    Returns:
        SC1 and SC2, N×n×n.

    Reference:
        Pan et al., CVPR 2021, section 3.3; constants as in the release.
    """
    rows = features.flatten(2).transpose(1, 2)
    rows = rows / (rows.norm(dim=2, keepdim=True) + EPSILON)
    if cells is not None:
        rows = rows * cells[:, :, None]
    similar = rows @ rows.transpose(1, 2)
    similar.masked_fill_(similar < 0.5, 0)
    others = similar.clone()
    others.diagonal(dim1=1, dim2=2).zero_()
    step = _over_column_sums(others)
    second = _over_column_sums(step @ step)
    n = features.shape[2] * features.shape[3] if cells is None else cells.sum(dim=1).clamp(min=1)[:, None, None]
    second.masked_fill_(second < 0.1 / n, 0)
    return _over_column_sums(similar), second


def self_correlation(features: Sequence[Tensor], cells: Tensor | None = None) -> Tensor:
    """H: the larger of SC1 and SC2, / column sums, summed over feature maps N×D×h×w of one size; N×n×n float32."""
    total = None
    for one in features:
        first, second = correlations(one, cells)
        joined = _over_column_sums(torch.maximum(first, second, out=first))
        total = joined if total is None else total.add_(joined)
    return total


def _over_column_sums(matrix: Tensor) -> Tensor:
    return matrix.div_(matrix.sum(dim=1, keepdim=True) + EPSILON)


def _min_max(values: Tensor, cells: Tensor | None) -> Tensor:
    """N×K×n → the same from 0 to 1 over the cells of the image, 0 elsewhere."""
    if cells is None:
        least, most = values.aminmax(dim=2, keepdim=True)
        return (values - least) / (most - least + EPSILON)
    least = values.masked_fill(~cells[:, None], torch.inf).amin(dim=2, keepdim=True)
    most = values.masked_fill(~cells[:, None], -torch.inf).amax(dim=2, keepdim=True)
    return torch.where(cells[:, None], (values - least) / (most - least + EPSILON), 0)


def _evidence(correlation: Tensor, sources: Tensor, cells: Tensor | None) -> Tensor:
    """Sum of the columns of `correlation` (N×n×n) at the source cells (N×K×n of 0 and 1), from 0 to 1: N×K×n."""
    return _min_max(sources @ correlation.transpose(1, 2), cells)


@torch.no_grad()
def self_correlation_maps(
    cams: Tensor,
    features: Sequence[Tensor],
    cells: Tensor | None = None,
    foreground: float = 0.30,
    background: float = 0.05,
) -> Tensor:
    """SCM = min-max(ReLU(F − B)): F what correlates with a class's sure cells, B with the cells that surely lack it.

    Args:
        cams: N×K×h×w normalised CAMs; K can be all classes or the chosen ones of each image.
        features: N×D×h×w each, of the CAMs' size.
        cells: N×h×w bool, those that belong to the image, padding not; None: all. The result is that of SCG on these
            cells alone.
        foreground, background: cells with a CAM of at least the first, or at most the second, are sure.

    Returns:
        N×K×h×w float32 (float64 if `cams` are) in 0…1; 0 for a CAM of zeros.

    Reference:
        Pan et al., CVPR 2021, section 3.4; thresholds of RecurSeed and EdgePredictMix.
    """
    n = cams.shape[2] * cams.shape[3]
    images = max(1, AT_ONCE // n**2)
    exact = torch.promote_types(cams.dtype, torch.float32)
    with torch.autocast(cams.device.type, enabled=False):
        parts = []
        for start in range(0, len(cams), images):
            here = slice(start, start + images)
            inside = None if cells is None else cells[here].flatten(1)
            correlation = self_correlation([one[here].to(exact) for one in features], inside)
            parts.append(_maps(cams[here].to(exact).flatten(2), correlation, inside, foreground, background))
    return torch.cat(parts).view(cams.shape)


def _maps(cams: Tensor, correlation: Tensor, cells: Tensor | None, foreground: float, background: float) -> Tensor:
    # One column of `correlation` is what one cell has to say, so it is brought to 0…1 over the rows.
    if cells is None:
        least = correlation.amin(dim=1, keepdim=True)
    else:
        least = correlation.masked_fill(~cells[:, :, None], torch.inf).amin(dim=1, keepdim=True)
    reach = correlation.amax(dim=1, keepdim=True) - least + EPSILON
    correlation = correlation.sub_(least).div_(reach)
    sure, lacking = (cams >= foreground).to(cams.dtype), (cams <= background).to(cams.dtype)
    if cells is not None:
        sure, lacking = sure * cells[:, None], lacking * cells[:, None]
    difference = F.relu(_evidence(correlation, sure, cells) - _evidence(correlation, lacking, cells))
    return _min_max(difference, cells)
