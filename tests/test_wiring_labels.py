"""The four label steps as whole programs against a slow reference (tests.reference), and what eval_masks counts."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from datasets.samples.affinity_labels import AffinityLabelSamples
from datasets.samples.image_labels import ImageLabelSamples
from datasets.seed_store import load_maps, save_maps, store_path
from datasets.transforms import as_tensor, normalise
from datasets.voc import CLASSES, read_ids, read_image, read_mask, read_present, write_mask
from models.crf import CrfKernel, dense_crf
from models.psa.affinity import AffinityNet, affinity_loss, pair_affinities
from models.psa.classifier import Classifier
from prepare_labels import make_aff_labels, make_cam_labels, train_aff, train_cls
from tests import reference
from tests.conftest import as_flags, tiny
from tools import eval_masks

KERNEL = {"crf_sxy": 9.0, "crf_srgb": 21.0, "crf_bilateral_weight": 4.0, "crf_gaussian_sxy": 2.0}
KERNEL |= {"crf_gaussian_weight": 1.5}
CRF = CrfKernel(2, 1.5, 9, 21, 4)


@pytest.fixture
def config(tiny_voc, tmp_path):
    own = {
        "label_weight_decay": 0.2,
        "label_power": 0.6,
        "cls_lr": 1e-3,
        "aff_lr": 2e-3,
        "cls_batch": 4,
        "aff_batch": 5,
    }
    config = replace(tiny(tiny_voc, tmp_path / "out"), dropout=1.0, epochs=2, seed=3, crf_labels=4, **own, **KERNEL)
    return replace(config, alpha_low=2.0, alpha_high=9.0, alpha_walk=3.0, walk_power=6.0, walk_log_steps=3)


def folder_of(config, kind: str) -> Path:
    return Path(config.out) / "prepare_labels" / "results" / kind


def poly(config, base):
    return lambda e: base * (1 - e / config.epochs) ** config.label_power


def image_label_loss(network, batch):
    return F.multilabel_soft_margin_loss(network(batch["x"]), batch["present"][:, 1:])


def classifier_samples(config):
    ids = read_ids(config.voc_root, "train_aug")
    return ImageLabelSamples(config.voc_root, ids, config.cls_side, config.crop)


def test_pretrained_classifier_trains_as_the_reference(config, tmp_path):
    weights = reference.adopt_weights(config, tmp_path / "imagenet.pth")
    state = reference.weights_in(weights)
    del state["fc8.weight"]
    torch.save(state, weights)
    config = replace(config, cls_optimiser="sgd", weights=str(weights))
    train_cls.main(as_flags(config))
    torch.manual_seed(config.seed)
    network = Classifier(20, config.width, config.dropout, config.backbone_dilation)
    network.load_state_dict(state, strict=False)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    reference.frozen_statistics(network)
    factor = partial(reference.label_factor, new=("fc8",), pretrained=True)
    options = (config, [network], classifier_samples(config), 4, 2, poly(config, config.cls_lr), factor)
    reference.train(*options, partial(image_label_loss, network), weight_decay=config.label_weight_decay)
    frozen = ("conv1a", "b2.", "b2_1.", "b2_2.")
    path = folder_of(config, "cls") / "weights.pth"
    reference.assert_trained(path, network.state_dict(), start, frozen)
    trained = reference.weights_in(path)
    assert all(torch.equal(trained[k], v) for k, v in start.items() if "bn" in k or k.startswith(frozen))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_classifier_from_scratch_trains_as_the_reference(kind, config):
    """BatchNorm learns, and its statistics are the plain mean over the last epoch; AdamW has one rate for all."""
    config = replace(config, cls_optimiser=kind)
    train_cls.main(as_flags(config))
    torch.manual_seed(config.seed)
    network = Classifier(20, config.width, config.dropout, config.backbone_dilation).train()
    start = {k: v.clone() for k, v in network.state_dict().items()}

    def anew(epoch):
        for layer in reference.batchnorms(network) if epoch in (0, config.epochs - 1) else ():
            layer.reset_running_stats()
            layer.momentum = None

    factor = partial(reference.label_factor, new=("fc8",), pretrained=False) if kind == "sgd" else lambda name: 1
    rate, decay = poly(config, config.cls_lr), config.label_weight_decay
    make = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    options = (config, [network], classifier_samples(config), 4, 2, rate, factor, partial(image_label_loss, network))
    reference.train(*options, optimiser=make, every_epoch=anew, weight_decay=decay)
    reference.assert_trained(folder_of(config, "cls") / "weights.pth", network.state_dict(), start)


def assert_stored(path: Path, classes, maps, tmp_path) -> None:
    """A full-size store holds these maps, within a step of its 8 bits."""
    save_maps(tmp_path / "expected.npz", classes, maps, maps.shape[1:], "")
    expected, stored = load_maps(tmp_path / "expected.npz"), load_maps(path)
    assert stored.classes.tolist() == list(classes)
    apart = np.abs(stored.maps - expected.maps) / expected.maps.max() * 255
    assert apart.max() < 2.1 and apart.mean() < 0.05, (path, apart.max(), apart.mean())


def test_cams_and_their_crfs_are_those_of_the_reference(config, tmp_path):
    """One scale and one mirror at a time; two backgrounds, labels' own kernel and iterations."""
    config = replace(config, cam_scales=(0.5, 1.0))
    weights = reference.weights_in(reference.adopt_weights(config, folder_of(config, "cls") / "weights.pth"))
    make_cam_labels.main(as_flags(config))
    network = Classifier(20, config.width, 0, config.backbone_dilation).eval()
    network.load_state_dict(weights)
    for image_id in read_ids(config.voc_root, "train_aug"):
        image = read_image(config.voc_root, image_id)
        height, width = image.shape[:2]
        classes = np.flatnonzero(read_present(config.voc_root, image_id))
        total = 0
        for scale in config.cam_scales:
            small = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.BICUBIC)
            x = normalise(as_tensor(np.array(small))[None])
            with torch.no_grad():
                cams = network.cam(x) + network.cam(x.flip(-1)).flip(-1)
            total = total + F.interpolate(cams, (height, width), mode="bilinear")[0, classes[1:] - 1]
        cam = (total / (total.amax((1, 2), keepdim=True) + 1e-5)).numpy()
        assert_stored(store_path(folder_of(config, "out_cam"), image_id), classes[1:], cam, tmp_path)
        for kind, power in (("out_la_crf", config.alpha_low), ("out_ha_crf", config.alpha_high)):
            maps = np.stack([(1 - cam.max(0)) ** power, *cam])
            maps = dense_crf(image, maps, config.crf_labels, CRF)
            assert_stored(store_path(folder_of(config, kind), image_id), classes, maps, tmp_path)


def make_confident(config) -> None:
    """Stores out_la_crf and out_ha_crf that a CRF might have made."""
    rng = np.random.default_rng(7)
    for image_id in read_ids(config.voc_root, "train_aug"):
        classes = np.flatnonzero(read_present(config.voc_root, image_id))
        size = read_image(config.voc_root, image_id).shape[:2]
        maps = reference.blobs(rng, len(classes), size)
        for kind, weight in (("out_la_crf", 1.5), ("out_ha_crf", 0.9)):
            own = maps * np.array([weight] + [1] * (len(classes) - 1))[:, None, None]
            save_maps(store_path(folder_of(config, kind), image_id), classes, own.astype(np.float32), size, "")


def test_affinity_trains_as_the_reference(config):
    state = reference.weights_in(reference.adopt_weights(config, folder_of(config, "cls") / "weights.pth"))
    make_confident(config)
    train_aff.main(as_flags(config))
    torch.manual_seed(config.seed)
    network = AffinityNet(config.width, config.dropout, config.backbone_dilation)
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc8")}, strict=False)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    reference.frozen_statistics(network)
    low, high = folder_of(config, "out_la_crf"), folder_of(config, "out_ha_crf")
    samples = AffinityLabelSamples(config.voc_root, read_ids(config.voc_root, "train_aug"), low, high, config.crop)

    def loss(batch):
        return affinity_loss(pair_affinities(network(batch["x"])), batch["labels"])

    factor = partial(reference.label_factor, new=("f8", "f9"), pretrained=True)
    options = (config, [network], samples, 5, 2, poly(config, config.aff_lr), factor, loss)
    reference.train(*options, weight_decay=config.label_weight_decay)
    path, frozen = folder_of(config, "aff") / "weights.pth", ("conv1a", "b2.", "b2_1.", "b2_2.")
    reference.assert_trained(path, network.state_dict(), start, frozen)
    trained = reference.weights_in(path)
    assert all(torch.equal(trained[k], v) for k, v in start.items() if "bn" in k or k.startswith(frozen))


def test_psa_and_its_crf_are_those_of_the_reference(config, tmp_path):
    """The walk as a product of dense matrices; PSA on the feature grid, its CRF at full size."""
    torch.manual_seed(2)
    network = AffinityNet(config.width, 0, config.backbone_dilation).eval()
    torch.nn.init.normal_(network.f9.weight, 0, 0.3)
    backbone = reference.weights_in(reference.adopt_weights(config, tmp_path / "cls.pth"))
    network.load_state_dict({k: v for k, v in backbone.items() if not k.startswith("fc8")}, strict=False)
    path = folder_of(config, "aff") / "weights.pth"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    rng = np.random.default_rng(9)
    ids = read_ids(config.voc_root, "train_aug")
    for image_id in ids:
        classes = np.flatnonzero(read_present(config.voc_root, image_id))[1:]
        size = read_image(config.voc_root, image_id).shape[:2]
        cam = reference.blobs(rng, len(classes), size)
        save_maps(store_path(folder_of(config, "out_cam"), image_id), classes, cam, size, "")
    make_aff_labels.main(as_flags(config))
    for image_id in ids:
        image = read_image(config.voc_root, image_id)
        size = height, width = image.shape[:2]
        cam = load_maps(store_path(folder_of(config, "out_cam"), image_id))
        padding = (0, -width % 8, 0, -height % 8)
        x = F.pad(normalise(as_tensor(image)[None]), padding)
        with torch.no_grad():
            features = network(x)[0].double()
        maps = torch.from_numpy(np.stack([(1 - cam.maps.max(0)) ** config.alpha_walk, *cam.maps]))
        start = F.avg_pool2d(F.pad(maps, padding), 8).double()
        walked = walk(features, start, config.walk_power, config.walk_log_steps).float()
        classes = [0, *cam.classes]
        stored = load_maps(store_path(folder_of(config, "out_aff"), image_id))
        whole = F.interpolate(walked[None], x.shape[-2:], mode="bilinear")[0, :, :height, :width].numpy()
        assert stored.classes.tolist() == classes
        np.testing.assert_allclose(stored.maps, whole, rtol=1e-3, atol=1e-5)
        refined = dense_crf(image, whole, config.crf_labels, CRF)
        assert_stored(store_path(folder_of(config, "out_aff_crf"), image_id), np.array(classes), refined, tmp_path)
        assert load_maps(store_path(folder_of(config, "out_aff_crf"), image_id)).maps.shape[1:] == size


def walk(features, start, power: float, log_steps: int):
    """V·T^(2^log_steps) by squaring the dense matrix."""
    _, height, width = features.shape
    cells = height * width
    affinity = torch.eye(cells, dtype=torch.float64)
    for y in range(height - 4):
        for x in range(4, width - 4):
            for dy in range(5):
                for dx in range(-4, 5):
                    if dx * dx + dy * dy < 25 and (dy > 0 or dx > 0):
                        a = torch.exp(-(features[:, y, x] - features[:, y + dy, x + dx]).abs().mean())
                        one, other = y * width + x, (y + dy) * width + x + dx
                        affinity[one, other] = affinity[other, one] = a
    step = affinity**power
    step = step / step.sum(0)
    for _ in range(log_steps):
        step = step @ step
    return (start.flatten(1) @ step).view(-1, height, width)


def test_eval_masks_counts_as_one_does_by_hand(tiny_voc, tmp_path):
    """Of two folders on the list that is named: intersection and union over all images together, 255 left out."""
    rng, counts = np.random.default_rng(1), {"one": {}, "two": {}}
    ids = read_ids(tiny_voc, "val")
    for image_id in ids:
        truth = read_mask(Path(tiny_voc) / "SegmentationClass" / f"{image_id}.png")
        for name, share in (("one", 0.3), ("two", 0.6)):
            mask = np.where(rng.random(truth.shape) < share, rng.choice([0, 3, *np.unique(truth[truth < 255])]), truth)
            mask[mask == 255] = 0
            write_mask(tmp_path / name / f"{image_id}.png", mask)
            for c in range(len(CLASSES)):
                both = counts[name].setdefault(c, [0, 0, 0])
                known = truth != 255
                both[0] += int((known & (mask == c) & (truth == c)).sum())
                both[1] += int((known & ((mask == c) | (truth == c))).sum())
                both[2] += int((truth == c).sum())
    flags = ["--voc-root", str(tiny_voc), "--split=val", "--json", str(tmp_path / "figures.json")]
    eval_masks.main([f"{name}={tmp_path / name}" for name in counts] + flags)
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name, own in counts.items():
        expected = {CLASSES[c]: hit / union if there else None for c, (hit, union, there) in own.items()}
        assert figures[name]["iou"] == pytest.approx(expected) and figures[name]["images"] == len(ids)
        known = [value for value in expected.values() if value is not None]
        assert figures[name]["miou"] == pytest.approx(sum(known) / len(known))
