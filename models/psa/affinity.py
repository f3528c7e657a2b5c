"""AffinityNet, pairwise affinities and the random walk of PSA (Ahn and Kwak, CVPR 2018)."""

import math
import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.global_batch import per_process_share
from models.inference import resize
from models.resnet38 import ResNet38, he_initialise, scaled
from settings.common import CELL

RADIUS = 5  # affinity is known between cells strictly closer than this


class AffinityNet(ResNet38):
    """Backbone with three side outputs joined into the features whose differences are affinities.

    Args:
        width, dropout, dilation: see ResNet38.

    Shape:
        N×3×H×W → N×448×H/8×W/8 (`forward`), float32.
    """

    def __init__(self, width: float = 1.0, dropout: float = 1.0, dilation: int = 4):
        super().__init__(width, dropout, dilation)
        side3, side4, side5 = (scaled(c, width) for c in (64, 128, 256))
        self.f8_3 = nn.Conv2d(scaled(512, width), side3, 1, bias=False)
        self.f8_4 = nn.Conv2d(scaled(1024, width), side4, 1, bias=False)
        self.f8_5 = nn.Conv2d(scaled(4096, width), side5, 1, bias=False)
        joined = side3 + side4 + side5
        self.f9 = nn.Conv2d(joined, joined, 1, bias=False)
        he_initialise(self)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        # Affinities are raised to the 8th power and walked 256 steps: their features need float32.
        with torch.autocast(x.device.type, enabled=False):
            side3 = F.elu(self.f8_3(F.relu(self.b5.bn_branch2a(features.conv4.float()))))
            side4 = F.elu(self.f8_4(F.relu(self.b6.bn_branch2a(features.conv5.float()))))
            side5 = F.elu(self.f8_5(features.conv6.float()))
            return F.elu(self.f9(torch.cat([side3, side4, side5], dim=1)))


@lru_cache
def pair_offsets() -> tuple[tuple[int, int], ...]:
    """The half of the neighbourhood that lies right of or below a cell, (y, x): 34 offsets for radius 5."""
    right = [(0, x) for x in range(1, RADIUS)]
    below = [(y, x) for y in range(1, RADIUS) for x in range(-RADIUS + 1, RADIUS) if x * x + y * y < RADIUS * RADIUS]
    return tuple(right + below)


def source_cells(x: Tensor) -> Tensor:
    """Crop ...×h×w to the cells for which every offset stays inside the map."""
    margin = RADIUS - 1
    height, width = x.shape[-2:]
    return x[..., : max(0, height - margin), min(margin, width) : max(margin, width - margin)]


def target_cells(x: Tensor, offset: tuple[int, int]) -> Tensor:
    """Crop ...×h×w to the partners of `source_cells(x)` at `offset`."""
    margin = RADIUS - 1
    y, dx = offset
    height, width = x.shape[-2:]
    rows, columns = max(0, height - margin), max(0, width - 2 * margin)
    return x[..., y : y + rows, margin + dx : margin + dx + columns]


def pair_affinities(features: Tensor) -> Tensor:
    """exp(−mean over channels of |f_i − f_j|) for all pairs.

    Args:
        features: N×C×h×w.

    Returns:
        N×34×(h−4)×(w−8), empty where the map is too small for any source cell.
    """
    source = source_cells(features)
    distances = [(source - target_cells(features, offset)).abs().mean(dim=1) for offset in pair_offsets()]
    return torch.exp(-torch.stack(distances, dim=1))


def affinity_matrix(pairs: Tensor, size: tuple[int, int], power: float = 1) -> Tensor:
    """The symmetric matrix of all cells with 1 on its diagonal and 0 where no pair is, elementwise to `power`.

    Args:
        pairs: N×34×(h−4)×(w−8) from `pair_affinities`.
        size: (h, w).

    Returns:
        N·h·w × N·h·w sparse COO, one block an image: at most 69 entries a column.
    """
    height, width = size
    cells = torch.arange(len(pairs) * height * width, device=pairs.device)
    grid = cells.view(len(pairs), height, width)
    source = source_cells(grid)[:, None].expand_as(pairs).flatten()
    target = torch.stack([target_cells(grid, offset) for offset in pair_offsets()], dim=1).flatten()
    values = pairs.flatten() ** power
    indices = torch.stack([torch.cat([source, target, cells]), torch.cat([target, source, cells])])
    values = torch.cat([values, values, torch.ones_like(cells, dtype=values.dtype)])
    return torch.sparse_coo_tensor(indices, values, (len(cells), len(cells)), check_invariants=False).coalesce()


def random_walk(pairs: Tensor, maps: Tensor, power: float = 8, log_steps: int = 8) -> Tensor:
    """Spread maps by the learned affinities: V·T^(2^log_steps), with T the column-normalised A^power.

    Only products of the sparse T with the few maps are taken, in float64, and the dense n×n power is never formed.

    Args:
        pairs: N×34×(h−4)×(w−8) from `pair_affinities`.
        maps: N×K×h×w on the feature grid; images with fewer than K classes have zeros in the rest, which stay zeros.

    Returns:
        N×K×h×w.
    """
    # Work this small gains nothing from a second thread, and loses much by waiting for it where the cores are busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _walk(pairs, maps, power, 2**log_steps)
    finally:
        torch.set_num_threads(threads)


def _walk(pairs: Tensor, maps: Tensor, power: float, steps: int) -> Tensor:
    affinity = affinity_matrix(pairs.double(), maps.shape[-2:], power)
    degree = torch.sparse.sum(affinity, dim=1).to_dense()
    # T's columns sum to one and A is symmetric, so V·T transposed is (A/degree as rows)·Vᵀ.
    rows, _ = affinity.indices()
    step = torch.sparse_coo_tensor(
        affinity.indices(), affinity.values() / degree[rows], affinity.shape, is_coalesced=True, check_invariants=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        step = step.to_sparse_csr()
    start = maps.double().movedim(1, -1).flatten(0, 2).contiguous()
    # T's eigenvalues lie in −1…1, where Chebyshev polynomials stay in −1…1: T^256 takes 84 products instead of 256.
    weights = chebyshev_weights(steps)
    before, now = start, step @ start
    walked = weights[0] * before + weights[1] * now
    for weight in weights[2:]:
        before, now = now, 2 * (step @ now) - before
        walked += weight * now
    images, classes, height, width = maps.shape
    return walked.view(images, height, width, classes).movedim(-1, 1).to(maps.dtype)


@lru_cache
def chebyshev_weights(power: int) -> tuple[float, ...]:
    """Weights w with x^power = Σ w[j]·T_j(x) on −1…1 but for 1e-7 at most; they are positive and sum to one.

    w[j] is the probability that a walk of `power` steps ±1 ends at j or −j (x = cos t gives cos^power t as the sum over
    its ends of cos jt), so that terms beyond a few times √power do not count.
    """
    j, share = power % 2, math.comb(power, power // 2) / 2**power
    weights, rest = [], 1.0
    while rest > 1e-7:
        weights += [0.0] * (j - len(weights)) + [share if j == 0 else 2 * share]
        rest -= weights[-1]
        share *= (power - j) / (power + j + 2)
        j += 2
    return tuple(weights + [0.0] * (2 - len(weights)))


def seed_maps(cam: Tensor, alpha: float = 16) -> Tensor:
    """Background (1 − max_c cam)^alpha before the class maps: K×H×W → (K+1)×H×W."""
    background = (1 - cam.amax(dim=0, keepdim=True)) ** alpha
    return torch.cat([background, cam])


def pool_to_cells(maps: Tensor) -> Tensor:
    """...×H×W, padded with zeros below and right to a multiple of 8, averaged 8×8 to the feature grid."""
    return F.avg_pool2d(pad_to_cells(maps), CELL)


def pad_to_cells(x: Tensor) -> Tensor:
    """...×H×W zero-padded below and right to a multiple of 8."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % CELL, 0, -height % CELL))


def unpool_from_cells(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """K×h×w on the feature grid → K×H×W: bilinear to the padded image's size, then cropped to `size`."""
    height, width = maps.shape[-2:]
    return resize(maps[None], (CELL * height, CELL * width))[0, :, : size[0], : size[1]]


def affinity_loss(pairs: Tensor, labels: Tensor) -> Tensor:
    """¼ background pairs + ¼ same-class foreground pairs + ½ different-class pairs, each a mean of −log.

    Args:
        pairs: N×34×(h−4)×(w−8).
        labels: N×h×w int64 on the feature grid, 255 = unknown; pairs with an unknown end do not count.
    """
    source = source_cells(labels)[:, None]
    target = torch.stack([target_cells(labels, offset) for offset in pair_offsets()], dim=1)
    known = (source != 255) & (target != 255)
    same = known & (source == target)
    attract = -torch.log(pairs + 1e-5)
    repel = -torch.log(1 + 1e-5 - pairs)
    background = _masked_mean(attract, same & (source == 0))
    foreground = _masked_mean(attract, same & (source > 0))
    different = _masked_mean(repel, known & (source != target))
    return background / 4 + foreground / 4 + different / 2


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (per_process_share(mask.sum()) + 1e-5)
