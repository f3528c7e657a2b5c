"""The exact CRF on the device: against brute force, pydensecrf and the training step's other CRF."""

import time

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import main_ssdd
from engine import notes, stages
from engine.workers import Workers
from models.crf import CrfKernel, dense_crf, masks_after_crf
from models.exact_crf import BilateralFilter, exact_crf, exact_masks
from modes.ssdd import dynamic
from settings.config import demo, voc, with_recipe
from tests.conftest import as_flags
from tests.test_crf import brute_force_crf

# Weaker than published, so that marginals stay away from 0 and 1 and an error would show.
SOFT = CrfKernel(gaussian_sxy=2, gaussian_weight=0.3, bilateral_sxy=9, bilateral_srgb=20, bilateral_weight=0.6)


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Regions with shading, texture and soft edges, H×W×3 uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([90 + 60 * x, 110 - 40 * y, 100 + 30 * x * y], -1)
    for _ in range(6):
        cy, cx, ry, rx = rng.uniform(0.1, 0.9, 4) * (1, 1, 0.4, 0.4)
        inside = 0.5 - 0.5 * np.tanh(((y - cy) ** 2 / ry**2 + (x - cx) ** 2 / rx**2 - 1) * 4)
        image += inside[..., None] * (rng.uniform(0, 255, 3) - image)
    waves = np.sin(2 * np.pi * (x * rng.uniform(3, 9) + y * rng.uniform(3, 9)))
    return (image + 6 * waves[..., None] + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)


def guess(labels: int, height: int, width: int, seed: int) -> np.ndarray:
    """Smooth random probabilities, K×H×W float32."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    scores = [3 * np.sin(rng.uniform(2, 7) * x + rng.uniform(2, 7) * y + rng.uniform(0, 6)) for _ in range(labels)]
    scores = np.stack(scores) + rng.normal(0, 0.5, (labels, height, width))
    return (np.exp(scores) / np.exp(scores).sum(0)).astype(np.float32)


def batch_of(cases: list[tuple[np.ndarray, np.ndarray, list[int]]], classes: int = 21):
    """Images N×h×w×3, probabilities N×C×h×w and present N×C; absent labels carry rubbish."""
    images = torch.from_numpy(np.stack([image for image, _, _ in cases]))
    probabilities = torch.full((len(cases), classes, *images.shape[1:3]), 0.7)
    present = torch.zeros(len(cases), classes)
    for n, (_, p, labels) in enumerate(cases):
        probabilities[n, labels] = torch.from_numpy(p)
        present[n, labels] = 1
    return images, probabilities, present


@pytest.mark.parametrize("kernel", [CrfKernel(), SOFT], ids=["published", "soft"])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_marginals_equal_brute_force(iterations, kernel):
    labels = [[0, 4], [0, 2, 20], [0]]
    cases = [(photo(19, 26, n), guess(len(k), 19, 26, n), k) for n, k in enumerate(labels)]
    images, probabilities, present = batch_of(cases)
    q = exact_crf(images, probabilities, present, iterations, kernel)
    in_half = exact_crf(images, probabilities, present, iterations, kernel, half=True)
    assert q.dtype == in_half.dtype == torch.float32
    for n, (image, p, k) in enumerate(cases):
        expected = brute_force_crf(image, p, iterations, kernel)
        assert np.abs(q[n, k].numpy() - expected).max() < 1e-4
        assert np.abs(in_half[n, k].numpy() - expected).max() < 5e-3
        absent = [c for c in range(21) if c not in k]
        assert (q[n, absent] == 0).all()
    if kernel == SOFT:
        assert q[1, [0, 2, 20]].amax(0).lt(0.95).float().mean() > 0.1  # not all certain


def test_half_precision_keeps_the_exponent():
    # Black and white pixels have the largest features and so the largest products.
    image = np.zeros((1, 24, 24, 3), np.uint8)
    image[:, :, 12:] = 255
    image += np.random.default_rng(0).integers(0, 9, image.shape, dtype=np.uint8) * (image == 0)
    full, half = (BilateralFilter(torch.from_numpy(image), CrfKernel(), how, 21) for how in (False, True))
    exponents = [(f.query.double() @ f.key.double().mT) for f in (full, half)]
    near = exponents[0] > -15
    assert (exponents[0] - exponents[1])[near].abs().max() < 1e-3
    degrees = torch.exp(exponents[0]).sum(-1).mT.float()
    for f in (full, half):
        assert torch.allclose(f.root_degree**2, degrees, rtol=5e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("classes", [2, 21, 61])
def test_no_matrix_of_pixels_by_pixels_is_kept(classes, half):
    # Without the plain kernel torch refuses shapes that the fused ones do not take.
    image, p = photo(16, 24, 0), guess(2, 16, 24, 0)
    batch = batch_of([(image, p, [0, classes - 1])], classes)
    plain = exact_crf(*batch, 3, SOFT, half)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]), Largest() as largest:
        fused = exact_crf(*batch, 3, SOFT, half)
    assert torch.equal(fused, plain)
    assert largest.elements < 384 * 384


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


def test_labels_agree_with_pydensecrf():
    # What it approximates is the same filter; the two differ along some edges.
    shares = []
    for seed in range(3):
        image, p = photo(56, 56, seed), guess(3, 56, 56, seed)
        exact = exact_crf(*batch_of([(image, p, [0, 1, 2])], 3), 3, CrfKernel())[0].argmax(0).numpy()
        approximate = dense_crf(image, p, 3).argmax(0)
        shares.append((exact == approximate).mean())
        assert (exact != p.argmax(0)).mean() > 0.02  # the CRF did something
    assert min(shares) > 0.97


def test_the_training_step_gets_masks_of_present_classes():
    images, _, present = batch_of([(photo(28, 28, n), guess(2, 28, 28, n), [0, 5 + n]) for n in range(2)])
    logits = torch.from_numpy(np.log(np.stack([guess(21, 28, 28, n) for n in range(2)]))).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        masks = exact_masks(images, logits, present, 3, CrfKernel())()
    assert masks.dtype == torch.int64 and not masks.requires_grad
    for n in range(2):
        assert set(masks[n].unique().tolist()) <= {0, 5 + n}
    with Workers(0) as workers:
        other = masks_after_crf(images, logits, present, 3, CrfKernel(), workers.submit)()
    assert (masks == other).float().mean() > 0.97


def test_config_chooses(own_run, monkeypatch):
    assert with_recipe(voc(), "released").crf == with_recipe(demo(), "released").crf == "pydensecrf"
    shapes = []

    def recorded(images, logits, *arguments, **options):
        shapes.append(tuple(images.shape))
        return exact_masks(images, logits, *arguments, **options)

    monkeypatch.setattr("modes.ssdd.dynamic.exact_masks", recorded)
    flags = [*as_flags(own_run), "--fresh"]
    main_ssdd.main(["--mode=2", *flags])
    assert not shapes
    main_ssdd.main(["--mode=2", *flags, "--crf=exact"])
    assert shapes[0] == (3, 16, 16, 3)
    with pytest.raises(SystemExit):  # the choice belongs to what the folder was made with
        main_ssdd.main(["--mode=2", *as_flags(own_run)])


def test_auto_takes_the_faster_and_goes_on_with_what_was_taken(own_run, monkeypatch, capsys):
    flags = ["--mode=2", *as_flags(own_run), "--crf=auto"]
    config = stages.folder(own_run, "mode 2") / "config.json"
    main_ssdd.main([*flags, "--fresh"])
    assert notes.read_config(config)["crf"] == "pydensecrf"  # on a CPU nothing is measured
    assert "mode 2: CRFs of a batch" not in capsys.readouterr().out
    monkeypatch.setattr(dynamic, "exact_is_faster", lambda config, device: True)
    main_ssdd.main(flags)
    assert "takes pydensecrf" in capsys.readouterr().out  # as the run before
    main_ssdd.main([*flags, "--fresh"])
    assert notes.read_config(config)["crf"] == "exact"
    monkeypatch.setattr(dynamic, "exact_is_faster", lambda config, device: False)
    main_ssdd.main(flags)
    assert notes.read_config(config)["crf"] == "exact"


def test_the_faster_one_is_measured_with_the_steps_own_crfs(own_run, monkeypatch):
    slow = []

    def crf(config, workers):
        def masks(images, logits, present):
            assert images.shape == (3, 16, 16, 3) and logits.shape == (3, 21, 16, 16) and present.sum(1).eq(3).all()
            time.sleep(0.05 * (config.crf in slow))
            return lambda: logits.argmax(1)

        return masks

    device = torch.device("cpu")
    assert not dynamic.exact_is_faster(own_run, device)
    monkeypatch.setattr(dynamic, "training_crf", crf)
    real = torch.randint, torch.randn, torch.arange
    for name, function in zip(("randint", "randn", "arange"), real, strict=True):
        on_cpu = lambda *a, function=function, device=None, **o: function(*a, **o)  # noqa: E731
        monkeypatch.setattr(torch, name, on_cpu)
    for name, faster in (("pydensecrf", True), ("exact", False)):
        slow[:] = [name]
        assert dynamic.exact_is_faster(own_run, torch.device("cuda")) == faster
