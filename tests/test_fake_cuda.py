"""Every forward pass with tensors of device "cuda" that have no content: what is left on the CPU, or asks for a value
and so would wait for the GPU, fails, without a GPU."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datasets import transforms
from models.crf import CrfKernel
from models.deeplab import DeepLabV2, DeepLabV3Plus
from models.exact_crf import exact_masks
from models.icd.network import IcdNetwork
from models.icd.seeds import class_maps, icd_seed
from models.icd.step import IcdStep
from models.icd.superpixels import superpixel_features
from models.inference import multiscale_probabilities
from models.psa import affinity
from models.psa.affinity import AffinityNet, affinity_loss, pair_affinities, pool_to_cells, random_walk, seed_maps
from models.psa.classifier import Classifier, multiscale_cam
from models.recurseed import inference, steps
from models.recurseed.cam import Chosen
from models.recurseed.network import RecurSeedNetwork
from models.ssdd.ddnet import DDNet
from models.ssdd.difference import cross_entropy, integrate, missing_class_flags
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import DynamicStep, Integration, StaticStep, integrated_in_turn
from models.vgg16 import Vgg16, subtract_mean
from modes.ssdd.networks import mixed_batch
from modes.ssdd.pictures import module_figures
from settings.config import Config

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
def on_cuda(fake, monkeypatch):
    # As distributed.autocast does on a GPU, whose list of operations in bfloat16 is not that of CPUs.
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with NothingOnTheCpu():
            yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name().removeprefix("aten::").split(".")[0])
        return function(*args, **(kwargs or {}))


@pytest.fixture
def repeatable():
    """As distributed.compute_deterministically."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


# What torch.use_deterministic_algorithms says has no deterministic kernel on CUDA, forward or backward.
WITHOUT_A_KERNEL = (
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "avg_pool3d",
    "bincount",
    "ctc_loss",
    "embedding_bag",
    "fractional_max_pool",
    "grid_sampler",
    "histc",
    "kthvalue",
    "max_unpool",
    "median",
    "nll_loss",
    "put",
    "reflection_pad",
    "scatter_reduce",
    "upsample_bicubic",
    "upsample_bilinear",
    "upsample_linear",
    "upsample_trilinear",
)


def cannot_repeat(operations: Operations) -> set[str]:
    return {name for name in operations.names if name.lstrip("_").startswith(WITHOUT_A_KERNEL)}


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


def test_networks_run_in_bfloat16(on_cuda):
    weight = empty(4, 3, 3, 3)
    assert F.conv2d(empty(2, 3, 8, 8), weight).dtype == torch.bfloat16
    with torch.autocast("cuda", enabled=False), pytest.raises(Exception, match="bfloat16"):
        F.conv2d(empty(2, 3, 8, 8).bfloat16(), weight)


def test_a_mixture_of_devices_fails(fake):
    with pytest.raises(Exception, match="device"):
        empty(3) + torch.zeros(3)


def test_static_step(on_cuda, repeatable):
    step = built(StaticStep, built(SegmentationNetwork, 21, 1 / 16, 2), built(DDNet, 1, 21, 1 / 16), Integration())
    with Operations() as operations:
        result = step(empty(2, 3, 48, 48), empty(2, 21), masks(), masks())
    assert devices(result) == {"cuda"} and result.modules[0].refined.shape == (2, 12, 12)
    assert devices(module_figures(result, empty(2, 21))) == {"cuda"}
    assert cannot_repeat(operations) == {"reflection_pad2d", "nll_loss2d_forward"}  # docs/benchmarks/README.md


@pytest.mark.parametrize("seed_target", ["ssdd1", "ssdd2"])
def test_dynamic_step_with_the_exact_crf(on_cuda, repeatable, seed_target):
    segmentation, ddnet = built(SegmentationNetwork, 21, 1 / 16, 2, True), built(DDNet, 2, 21, 1 / 16)
    crf = partial(exact_masks, iterations=3, kernel=CrfKernel())
    step = DynamicStep(segmentation, ddnet, Integration(), 0.5, seed_target, crf)
    with Operations() as operations:
        result = step(empty(2, 3, 48, 48), empty(2, 21), empty(2, 12, 12, 3, dtype=torch.uint8), masks())
    assert devices(result) == {"cuda"} and len(result.modules) == 2
    assert cannot_repeat(operations) == {"reflection_pad2d", "nll_loss2d_forward"}


def test_integration(on_cuda):
    flags = missing_class_flags(masks(), masks(), empty(2, 21))
    assert devices(integrate(masks(), masks(), empty(2, 1, 12, 12), empty(2, 1, 12, 12), flags)) == {"cuda"}
    maps = empty(2, 2, 12, 12), empty(2, 2, 12, 12)
    assert devices(integrated_in_turn(masks(), [masks(), masks()], *maps, empty(2, 21), Integration())) == {"cuda"}


@pytest.mark.parametrize("network", [DeepLabV2, DeepLabV3Plus])
def test_final_networks(on_cuda, network):
    made = built(network, 21, 1 / 16)
    logits = made(empty(2, 3, 65, 65))
    assert devices(cross_entropy(logits, torch.empty_like(logits[:, 0], dtype=torch.int64))) == {"cuda"}
    assert devices(multiscale_probabilities(made.eval(), empty(1, 3, 65, 65), (1,))) == {"cuda"}


def test_mixed_images(on_cuda):
    batch = {"image": empty(2, 3, 48, 48), "present": empty(2, 21), "small": empty(2, 12, 12, 3, dtype=torch.uint8)}
    mixed = mixed_batch(replace(Config(), certain_mix=0.5), batch, masks(), masks() == 0)
    assert devices(mixed) == {"cuda"} and mixed["seed"].shape == (2, 12, 12)


def test_icd(on_cuda):
    network = built(IcdNetwork, 20, 1 / 16)
    x = subtract_mean(empty(2, 3, 33, 33, dtype=torch.uint8))
    result = IcdStep(network)(x, empty(2, 21), empty(2, 33, 33, dtype=torch.int64), 0.5)
    assert devices(result) == devices(result.loss) == {"cuda"}
    image, classes = empty(3, 33, 40, dtype=torch.uint8), torch.empty(2, dtype=torch.int64, device="cuda")
    seed = icd_seed(*class_maps(network.eval(), image, classes, 41), classes, empty(33, 40))
    assert devices(seed) == {"cuda"} and seed.shape == (33, 40)


def test_superpixel_features(on_cuda):
    assert devices(superpixel_features(built(Vgg16, 1 / 16), empty(3, 33, 40, dtype=torch.uint8), 41)) == {"cuda"}


def test_recurseed_step(on_cuda, monkeypatch):
    # How many classes an image has at most is the one value that it waits for.
    two = Chosen(torch.empty(2, 2, dtype=torch.int64, device="cuda"), empty(2, 2, dtype=torch.bool))
    monkeypatch.setattr(steps, "chosen_classes", lambda present: two)
    step = steps.RecurSeedStep(
        built(RecurSeedNetwork, 21, 1 / 16), steps.SeedSettings(pamr_iterations=1, eval_mode=True)
    )
    given = empty(2, 3, 64, 64), empty(2, 21), empty(2, 64, 64, dtype=torch.bool)
    for result in (step(*given, False, False), step(*given, True, True)):
        assert devices(result) == {"cuda"}


def test_recurseed_inference(on_cuda):
    network = built(RecurSeedNetwork, 21, 1 / 16).eval()
    prediction = inference.multiscale_prediction(network, empty(1, 3, 48, 64), (1, 0.5))
    assert devices(prediction) == {"cuda"}
    for labels in (None, empty(1, 21)):
        assert devices(inference.class_maps(prediction, labels)) == {"cuda"}
    assert devices(inference.multiscale_cam(network, empty(1, 3, 48, 64), (1, 0.5))) == {"cuda"}
    for correlated in (False, True):
        prediction = inference.maps_without_decoder(network, empty(1, 3, 48, 64), (1, 0.5), correlated)
        assert devices(prediction) == {"cuda"}


def test_classifier(on_cuda, repeatable):
    with Operations() as operations:
        logits = built(Classifier, 20, 1 / 16)(empty(2, 3, 48, 48))
        assert devices(F.multilabel_soft_margin_loss(logits.float(), empty(2, 20))) == {"cuda"}
    assert not cannot_repeat(operations)


def test_class_activation_maps(fake):
    # The image comes from the CPU.
    image, classes = np.zeros((40, 48, 3), np.uint8), torch.tensor([1, 3])
    cam = multiscale_cam(built(Classifier, 20, 1 / 16), image, classes, (1, 0.5), transforms.normalise)
    assert devices(cam) == {"cuda"} and cam.shape == (2, 40, 48)


def test_affinities_and_their_loss(on_cuda, repeatable):
    with Operations() as operations:
        pairs = pair_affinities(built(AffinityNet, 1 / 16)(empty(2, 3, 96, 96)))
        assert devices(pairs) == devices(affinity_loss(pairs, masks())) == {"cuda"}
    assert not cannot_repeat(operations)
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


def test_crf_images(fake):
    assert devices(inference.crf_images(empty(1, 3, 8, 8), transforms.MEAN, transforms.STD)) == {"cuda"}


def test_normalise(fake):
    # Mean and standard deviation are made on the device from lists.
    assert devices(transforms.normalise(empty(2, 3, 8, 8, dtype=torch.uint8))) == {"cuda"}
