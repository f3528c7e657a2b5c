"""Every forward pass with tensors of device "cuda" that have no content: what is left on the CPU, or asks for a value
and so would wait for the GPU, fails, without a GPU."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datasets import transforms
from models.crf import CrfKernel
from models.exact_crf import exact_masks
from models.inference import multiscale_probabilities
from models.psa import affinity
from models.psa.affinity import AffinityNet, affinity_loss, pair_affinities, pool_to_cells, random_walk, seed_maps
from models.psa.classifier import Classifier, multiscale_cam
from models.ssdd.ddnet import DDNet
from models.ssdd.difference import integrate, missing_class_flags
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import DynamicStep, Integration, StaticStep

empty = partial(torch.empty, device="cuda")
masks = partial(torch.empty, 2, 12, 12, dtype=torch.int64, device="cuda")


class NothingOnTheCpu(TorchDispatchMode):
    """An operation that gives a tensor on the CPU fails; single numbers may lie there, as torch allows."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert not isinstance(tensor, Tensor) or tensor.device.type == "cuda" or not tensor.ndim, function
        return result


@pytest.fixture
def fake():
    transforms._statistics.cache_clear()
    with FakeTensorMode():
        yield
    transforms._statistics.cache_clear()  # it would keep fake tensors


@pytest.fixture
def on_cuda(fake):
    with NothingOnTheCpu():
        yield


def devices(result) -> set[str]:
    return {tensor.device.type for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}


def built(network, *arguments):
    with torch.device("cuda"):
        return network(*arguments)


def test_a_tensor_left_on_the_cpu_or_looked_at_fails(on_cuda):
    with pytest.raises(AssertionError):
        torch.zeros(3)
    with pytest.raises(AssertionError):
        empty(3).cpu()
    with pytest.raises(Exception, match="_local_scalar_dense"):
        empty(()).item()
    with pytest.raises(Exception, match="nonzero"):
        empty(3).nonzero()


def test_a_mixture_of_devices_fails(fake):
    with pytest.raises(Exception, match="device"):
        empty(3) + torch.zeros(3)


def test_static_step(on_cuda):
    step = built(StaticStep, built(SegmentationNetwork, 21, 1 / 16, 2), built(DDNet, 1, 21, 1 / 16), Integration())
    result = step(empty(2, 3, 48, 48), empty(2, 21), masks(), masks())
    assert devices(result) == {"cuda"} and result.modules[0].refined.shape == (2, 12, 12)


@pytest.mark.parametrize("seed_target", ["ssdd1", "ssdd2"])
def test_dynamic_step_with_the_exact_crf(on_cuda, seed_target):
    segmentation, ddnet = built(SegmentationNetwork, 21, 1 / 16, 2, True), built(DDNet, 2, 21, 1 / 16)
    crf = partial(exact_masks, iterations=3, kernel=CrfKernel())
    step = DynamicStep(segmentation, ddnet, Integration(), 0.5, seed_target, crf)
    result = step(empty(2, 3, 48, 48), empty(2, 21), empty(2, 12, 12, 3, dtype=torch.uint8), masks())
    assert devices(result) == {"cuda"} and len(result.modules) == 2


def test_integration(on_cuda):
    flags = missing_class_flags(masks(), masks(), empty(2, 21))
    assert devices(integrate(masks(), masks(), empty(2, 1, 12, 12), empty(2, 1, 12, 12), flags)) == {"cuda"}


def test_classifier(on_cuda):
    assert devices(built(Classifier, 20, 1 / 16)(empty(2, 3, 48, 48))) == {"cuda"}


def test_class_activation_maps(fake):
    # The image comes from the CPU.
    image, classes = np.zeros((40, 48, 3), np.uint8), torch.tensor([1, 3])
    cam = multiscale_cam(built(Classifier, 20, 1 / 16), image, classes, (1, 0.5), transforms.normalise)
    assert devices(cam) == {"cuda"} and cam.shape == (2, 40, 48)


def test_affinities_and_their_loss(on_cuda):
    pairs = pair_affinities(built(AffinityNet, 1 / 16)(empty(2, 3, 96, 96)))
    assert devices(pairs) == devices(affinity_loss(pairs, masks())) == {"cuda"}
    assert devices(pool_to_cells(seed_maps(empty(2, 90, 95)))) == {"cuda"}


class Sparse:
    """A sparse matrix, which fake tensors cannot be: knows that its parts and what it meets lie on one device."""

    def __init__(self, indices: Tensor, values: Tensor, shape: tuple[int, int], **options):
        assert indices.shape == (2, len(values)) and indices.device == values.device
        self.parts, self.shape = (indices, values), shape

    def coalesce(self) -> "Sparse":
        return self

    def indices(self) -> Tensor:
        return self.parts[0]

    def values(self) -> Tensor:
        return self.parts[1]

    def to_sparse_csr(self) -> Tensor:
        return self.to_dense()

    def to_dense(self) -> Tensor:
        return self.parts[1].new_empty(self.shape)


def test_random_walk(on_cuda, monkeypatch):
    monkeypatch.setattr(affinity.torch, "sparse_coo_tensor", Sparse)
    monkeypatch.setattr(affinity.torch.sparse, "sum", lambda a, dim: Sparse(*a.parts, a.shape[:1]))
    walked = random_walk(empty(2, 34, 8, 4), empty(2, 3, 12, 12))
    assert devices(walked) == {"cuda"} and walked.shape == (2, 3, 12, 12)


def test_multiscale_probabilities(on_cuda):
    network = built(SegmentationNetwork, 21, 1 / 16, 2)
    assert devices(multiscale_probabilities(network, empty(2, 3, 48, 48), (0.5, 1))) == {"cuda"}


def test_jitter(fake, monkeypatch):
    # Pinning memory needs a driver. The list of images of each order comes from the CPU.
    real = torch.tensor
    monkeypatch.setattr(transforms.torch, "tensor", lambda content, pin_memory=False: real(content))
    images = empty(2, 3, 8, 8, dtype=torch.uint8)
    assert devices(transforms.jittered(images, ["bcsh", "scbh"], empty(2, 4))) == {"cuda"}


def test_normalise(fake):
    # Mean and standard deviation are made on the device from lists.
    assert devices(transforms.normalise(empty(2, 3, 8, 8, dtype=torch.uint8))) == {"cuda"}
