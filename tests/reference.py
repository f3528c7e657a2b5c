"""What the wiring tests compare the programs with: the method, slowly, for a few steps, and made-up inputs.

Networks, samples, and the CRF have tests of their own and are taken as they are. Which of them is fed with what, in
which order, at which rate, and what is written where, is said here a second time, from the paper and the settings.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from datasets.seed_store import save_differences, save_maps, store_path
from datasets.transforms import as_tensor, normalise
from datasets.voc import CLASSES, read_ids, read_image, read_present
from models.psa.classifier import Classifier


def adopt_weights(config, path: Path) -> Path:
    """Weights of a classifier that has learned nothing, with BatchNorm statistics that fit the images."""
    torch.manual_seed(11)
    network = Classifier(len(CLASSES) - 1, config.width, 0, config.backbone_dilation)
    for layer in batchnorms(network):
        layer.momentum = None
        torch.nn.init.uniform_(layer.weight, 0.7, 1.3)
        torch.nn.init.normal_(layer.bias, 0, 0.1)
    images = [as_tensor(read_image(config.voc_root, i)) for i in read_ids(config.voc_root, config.train_split)]
    with torch.no_grad():
        network(torch.stack([F.interpolate(normalise(i)[None], (64, 64), mode="bilinear")[0] for i in images]))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def batchnorms(network: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def blobs(rng: np.random.Generator, classes: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth random maps in 0…1, classes×H×W, whose argmax has large regions."""
    coarse = torch.from_numpy(rng.uniform(0, 1, (1, classes, 4, 4)).astype(np.float32))
    return F.interpolate(coarse, size, mode="bicubic").clamp(0.01, 1)[0].numpy()


def make_seeds(config, results: Path) -> None:
    """Stores out_aff and out_aff_crf of made-up maps, which differ in places; an advice may lose a class."""
    rng = np.random.default_rng(5)
    for number, image_id in enumerate(read_ids(config.voc_root, config.train_split)):
        classes = np.flatnonzero(read_present(config.voc_root, image_id))
        size = read_image(config.voc_root, image_id).shape[:2]
        psa = blobs(rng, len(classes), (-(-size[0] // 8), -(-size[1] // 8)))
        whole = F.interpolate(torch.from_numpy(psa)[None], size, mode="bilinear")[0].numpy()
        crf = np.maximum(whole + 0.5 * (blobs(rng, len(classes), size) - 0.5), 0)
        if number % 3 == 0:
            crf[-1] *= 0.2
        save_maps(store_path(results / "out_aff", image_id), classes, psa, size, "test")
        save_maps(store_path(results / "out_aff_crf", image_id), classes, crf, size, "test")


def make_differences(config, folder: Path) -> None:
    """A store of made-up static difference logits."""
    rng = np.random.default_rng(6)
    side = (config.crop // 4, config.crop // 4)
    for image_id in read_ids(config.voc_root, config.train_split):
        d_k, d_a = 4 * blobs(rng, 2, side) - 2
        save_differences(store_path(folder, image_id), d_k, d_a, "test")


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("state_dict", content)


def sample(samples, index: int, seed: int) -> dict:
    torch.manual_seed(seed)
    return samples[index]


def epoch_seed(seed: int, epoch: int) -> int:
    return (1_000_003 * seed + epoch) % 2**31


def batches_of(samples, batch: int, epoch: int, seed: int):
    """The batches of one epoch: order and seeds of samples by run and epoch, dropout by run, epoch and step."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    order = torch.randperm(len(samples), generator=generator).tolist()
    seeds = torch.randint(2**31, (len(samples),), generator=generator).tolist()
    starts = range(0, len(samples), batch)
    for step, start in enumerate(starts):
        made = [sample(samples, *pair) for pair in zip(order[start : start + batch], seeds[start:], strict=False)]
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {epoch} {step} 0".encode()).digest()[:4], "big"))
        yield step / len(starts), default_collate(made)


def train(
    config, networks, samples, batch, epochs, rate, factor, loss, optimiser=torch.optim.SGD, every_epoch=None, **options
):
    """Train by the book: each parameter has its own group and its own rate, factor(name)·rate(fractional epoch).

    Args:
        factor: name of a parameter → its factor; 0 for those that stay as they are.
        loss: batch → what is minimised.
        every_epoch: called before each epoch with its number.

    Returns:
        (learning rate, loss) of each step.
    """
    named = [(name, p) for network in networks for name, p in network.named_parameters()]
    groups = [{"params": [p], "factor": factor(name)} for name, p in named if factor(name)]
    if optimiser is torch.optim.SGD:
        options |= {"fused": True}  # as the programs do it, so that no rounding turns a pixel
    stepper, steps = optimiser(groups, lr=0, **options), []
    for epoch in range(epochs):
        if every_epoch:
            every_epoch(epoch)
        for part, content in batches_of(samples, batch, epoch, config.seed):
            for group in stepper.param_groups:
                group["lr"] = group["factor"] * rate(epoch + part)
            for _, parameter in named:
                parameter.grad = None
            minimised = loss(content)
            minimised.backward()
            stepper.step()
            steps.append((rate(epoch + part), float(minimised.detach())))
    return steps


def cosine(base: float, epochs: int):
    return lambda e: base / 2 * (1 + math.cos(math.pi * e / math.floor(1.2 * epochs)))


def ssdd_factor(name: str) -> float:
    """Factors of modes 0, 2 and 4: BatchNorm and conv1a are frozen, all but the backbone learns ten times as fast."""
    if "bn" in name or name.startswith("encoder.conv1a"):
        return 0
    return 1 if name.startswith("encoder.") else 10


def label_factor(name: str, new: tuple[str, ...], pretrained: bool) -> float:
    """Factors of the label networks; with pretrained weights BatchNorm and the first blocks are frozen."""
    if pretrained and ("bn" in name or name.split(".")[0] in ("conv1a", "b2", "b2_1", "b2_2")):
        return 0
    return (10 if name.startswith(new) else 1) * (2 if name.endswith("bias") else 1)


def frozen_statistics(*networks) -> None:
    for network in networks:
        network.train()
        for layer in batchnorms(network):
            layer.eval()


def flags_of(knowledge, advice, present):
    """1 for a labelled foreground class that the advice lost, N×C."""
    flags = torch.zeros_like(present)
    for n, row in enumerate(present.tolist()):
        for c in range(1, len(row)):
            ratio = int((advice[n] == c).sum()) / max(int((knowledge[n] == c).sum()), 1)
            flags[n, c] = float(row[c] and ratio < 0.5)
    return flags


def integrate(knowledge, advice, d_k, d_a, present, bias, bg):
    flags = flags_of(knowledge, advice, present)
    w = (torch.sigmoid(d_k) - torch.sigmoid(d_a)).detach()[:, 0] + bias
    w = w - bg * (knowledge == 0).float() + bg * (advice == 0).float()
    for n in range(len(w)):
        for c in range(flags.shape[1]):
            w[n] += flags[n, c] * ((advice[n] == c).float() - (knowledge[n] == c).float())
    return torch.where(w >= 0, advice, knowledge)


def balanced(d, changed):
    """Balanced cross entropy of logits against a bool map of one shape; an empty side counts as 0."""
    loss = F.binary_cross_entropy_with_logits(d, changed.float(), reduction="none")
    return sum(loss[side].mean() for side in (changed, ~changed) if side.any()) / 2


def pair_loss(d_k, d_a, knowledge, advice, present):
    """The K/A difference loss: images that lost a class are skipped."""
    used = [n for n, flags in enumerate(flags_of(knowledge, advice, present)) if not flags.any()]
    if not used:
        return 0 * d_k.sum()
    changed = knowledge != advice
    return sum(balanced(d[n, 0], changed[n]) for n in used for d in (d_k, d_a)) / (2 * len(used))


def assert_trained(path: Path, expected: dict, start: dict, frozen=(), tolerance: float = 1e-3) -> None:
    """Weights on disk are the expected ones, far closer than training moved them, and all but the frozen moved."""
    found = weights_in(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not value.is_floating_point():
            assert found[name] == value, name
            continue
        moved = float((value - start[name]).abs().max())
        apart = float((found[name] - value).abs().max())
        assert apart <= 1e-7 + tolerance * moved, f"{name}: {apart:.2g} from the reference, which moved it {moved:.2g}"
    trained = [name for name in expected if "bn" not in name and not name.startswith(frozen)]
    assert all(float((expected[name] - start[name]).abs().max()) > 1e-5 for name in trained)
