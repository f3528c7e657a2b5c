"""Modes 0 to 4 as whole programs against a slow reference of a few steps, written from the paper (tests.reference).

So that a head at another rate, seeds from another folder or a missing jitter cannot pass: what is trained, stored and
written must be what the reference makes of the same inputs.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

import main_ssdd
from datasets.samples.seeds import SeedSamples, StoredDifferences
from datasets.seed_store import load_differences, load_maps, store_path
from datasets.transforms import as_tensor, jittered, normalise
from datasets.voc import CLASSES, read_ids, read_image, read_mask, read_present
from models.crf import CrfKernel, dense_crf
from models.ssdd.ddnet import DDNet
from models.ssdd.segmentation import SegmentationNetwork
from models.ssdd.steps import DynamicStep
from tests import reference
from tests.conftest import as_flags, tiny

KERNEL = {"crf_sxy": 9.0, "crf_srgb": 21.0, "crf_bilateral_weight": 4.0, "crf_gaussian_sxy": 2.0}
KERNEL |= {"crf_gaussian_weight": 1.5}
CRF = CrfKernel(2, 1.5, 9, 21, 4)


@pytest.fixture(scope="session")
def inputs(tiny_voc, tmp_path_factory):
    """An out folder with a classifier, PSA, PSA+CRF and difference maps that nobody trained; not to be changed."""
    config = tiny(tiny_voc, tmp_path_factory.mktemp("inputs"))
    results = Path(config.out) / "prepare_labels" / "results"
    reference.adopt_weights(config, results / "cls" / "weights.pth")
    reference.make_seeds(config, results)
    reference.make_differences(config, Path(config.out) / "precompute" / "ssdd")
    return Path(config.out)


@pytest.fixture
def config(inputs, tiny_voc, tmp_path):
    """Settings whose every part shows in the weights after a few steps, and links to the inputs."""
    out = tmp_path / "out"
    for name in ("prepare_labels/results/cls", "prepare_labels/results/out_aff", "prepare_labels/results/out_aff_crf"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).mkdir()
        for path in (inputs / name).iterdir():
            (out / name / path.name).symlink_to(path)
    own = {"lr": 2e-4, "weight_decay": 0.3, "dropout": 1.0, "epochs": 2, "checkpoint_epochs": 1, "seed": 3}
    return replace(tiny(tiny_voc, out), bn=4, **own, **KERNEL)


def link_differences(config, inputs) -> None:
    folder = Path(config.out) / "precompute" / "ssdd"
    folder.mkdir(parents=True)
    for path in (inputs / "precompute" / "ssdd").iterdir():
        (folder / path.name).symlink_to(path)


def run(mode, config, *more) -> None:
    main_ssdd.main([f"--mode={mode}", *as_flags(config), *more])


def results(config) -> Path:
    return Path(config.out) / "prepare_labels" / "results"


def networks(config, dynamic):
    """Fresh networks by the run's seed; the backbone is the classifier's, of which nothing may be missing."""
    torch.manual_seed(config.seed)
    sizes = (len(CLASSES), config.width, config.head_dilation, dynamic, config.dropout, config.backbone_dilation)
    segmentation, ddnet = SegmentationNetwork(*sizes), DDNet(1 + dynamic, len(CLASSES), config.width)
    classifier = reference.weights_in(results(config) / "cls" / "weights.pth")
    assert len(classifier) > 100
    segmentation.encoder.load_state_dict({k: v for k, v in classifier.items() if not k.startswith("fc8")})
    return segmentation, ddnet


def copies(*parts):
    return [{k: v.clone() for k, v in network.state_dict().items()} for network in parts]


def pair_of(config):
    """Folders of knowledge and advice, by the names that their masks have in a sample."""
    return {"knowledge": results(config) / "out_aff", "advice": results(config) / "out_aff_crf"}


def x_of(batch):
    return normalise(jittered(batch["image"], batch["order"], batch["factors"]))


def static_loss(segmentation, ddnet, precision, batch):
    k, a, present = batch["knowledge"], batch["advice"], batch["present"]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        output = segmentation(x_of(batch))
        d_k, d_a = ddnet.differences(0, ddnet.features(0, output.main.features, output.conv2), k, a)
    return F.cross_entropy(output.main.logits, k) + reference.pair_loss(d_k, d_a, k, a, present)


def train_reference(config, parts, samples, loss):
    reference.frozen_statistics(*parts)
    rate = reference.cosine(config.lr, config.epochs)
    kinds = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    return reference.train(config, parts, samples, config.bn, config.epochs, rate, reference.ssdd_factor, loss, **kinds)


def history_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("momentum", "precision"), [(0.0, "float32"), (0.9, "float32"), (0.0, "bfloat16")])
def test_mode_0_trains_as_the_reference(momentum, precision, config):
    config = replace(config, momentum=momentum, precision=precision)
    run(0, config)
    ids = read_ids(config.voc_root, "train_aug")
    samples = SeedSamples(config.voc_root, ids, pair_of(config), config.crop, config.static_side)
    parts = networks(config, dynamic=False)
    start = copies(*parts)
    steps = train_reference(config, parts, samples, partial(static_loss, *parts, precision))
    noted = [line for line in history_of(Path(config.out) / "logs" / "sssdd_ssdd") if "step" in line]
    assert [(line["step"], line["epoch"]) for line in noted] == [(1, 1), (3, 2)]
    for line, (one, two) in zip(noted, (steps[:2], steps[2:]), strict=True):
        assert line["loss_seg"] + line["loss_dd"] == pytest.approx((one[1] + two[1]) / 2, rel=1e-4)
        assert line["learning_rate"] == pytest.approx(two[0])
    models = Path(config.out) / "logs" / "sssdd_ssdd" / "models"
    for name, network, before in zip(("seg", "ssdd"), parts, start, strict=True):
        path = models / f"{name}_0002.pth"
        reference.assert_trained(path, network.state_dict(), before, ("encoder.conv1a",))
    assert sorted(p.name for p in models.iterdir()) == [f"{n}_000{e}.pth" for n in ("seg", "ssdd") for e in (1, 2)]
    kept = torch.load(models / "seg_0002.pth", weights_only=True)
    assert kept["classes"] == list(CLASSES)
    assert kept["config"]["width"] == config.width and kept["config"]["epochs"] == 2 and kept["config"]["seed"] == 3
    assert not kept["config"].keys() & {"voc_root", "out", "device", "workers", "weights", "fresh"}


def test_mode_0_keeps_every_second_checkpoint_and_the_last(config):
    run(0, replace(config, epochs=3, checkpoint_epochs=2, pictures=0, bn=6))
    models = Path(config.out) / "logs" / "sssdd_ssdd" / "models"
    assert sorted(p.name for p in models.iterdir()) == [f"{n}_000{e}.pth" for n in ("seg", "ssdd") for e in (2, 3)]


def test_mode_0_keeps_the_checkpoint_that_mode_1_takes(config):
    run(0, replace(config, epochs=2, checkpoint_epochs=9, static_checkpoint=1, pictures=0, bn=6))
    models = Path(config.out) / "logs" / "sssdd_ssdd" / "models"
    assert sorted(p.name for p in models.glob("seg*")) == ["seg_0001.pth", "seg_0002.pth"]


def test_pictures_of_mode_0_are_what_its_network_makes_of_whole_images(config):
    """Knowledge, advice and integrated mask of the first, a middle and the last image; and the figures of all."""
    config = replace(config, epochs=1, pictures=3, bias=-0.05, bg=0.1, seed_bias=0.3)
    run(0, config)
    folder = Path(config.out) / "logs" / "sssdd_ssdd"
    segmentation, ddnet = networks(config, dynamic=False)
    segmentation.load_state_dict(reference.weights_in(folder / "models" / "seg_0001.pth"))
    ddnet.load_state_dict(reference.weights_in(folder / "models" / "ssdd_0001.pth"))
    segmentation.eval(), ddnet.eval()
    ids = read_ids(config.voc_root, "train_aug")
    samples = SeedSamples(config.voc_root, ids, pair_of(config), config.crop)
    assert {p.name for p in (folder / "imgs").glob("*.jpg")} == {f"{ids[n]}.jpg" for n in (0, 2, 5)}
    told = json.loads((folder / "pictures.json").read_text())
    assert told["ids"] == [ids[n] for n in (0, 2, 5)] and told["masks"] == ["k1", "a1", "d1"]
    assert list(told["rows"].values()) == [
        {"photo": "image", "k1": "seed", "d1": "integrated", "truth": "true mask"},
        {"k1": "K: PSA", "dk1": "d_K", "da1": "d_A", "a1": "A: PSA+CRF", "d1": "integrated"},
    ]
    for n in (0, 2, 5):
        batch = default_collate([samples[n]])
        with torch.no_grad():
            output = segmentation(normalise(batch["image"]))
            features = ddnet.features(0, output.main.features, output.conv2)
            d_k, d_a = ddnet.differences(0, features, batch["knowledge"], batch["advice"])
        refined = reference.integrate(batch["knowledge"], batch["advice"], d_k, d_a, batch["present"], -0.05, 0.1)
        for what, mask in (("k1", batch["knowledge"]), ("a1", batch["advice"]), ("d1", refined)):
            assert np.array_equal(read_mask(folder / "imgs" / f"{ids[n]}_0001_{what}.png"), mask[0].numpy()), what


@pytest.mark.parametrize(
    ("checkpoint", "augmented", "recipe"), [(0, False, "paper"), (1, False, "paper"), (0, True, "released")]
)
def test_mode_1_stores_what_the_reference_predicts(checkpoint, augmented, recipe, config):
    """Of the checkpoint that is asked for, without augmentation (but for the released recipe), PSA the knowledge."""
    config = replace(config, recipe=recipe, static_checkpoint=checkpoint, seed_bias=0.05, seed_bg=0.3, eval_batch=2)
    config = replace(config, precompute_augmented=augmented)
    run(0, config)
    run(1, config)
    parts = networks(config, dynamic=False)
    models = Path(config.out) / "logs" / "sssdd_ssdd" / "models"
    for name, network in zip(("seg", "ssdd"), parts, strict=True):
        network.load_state_dict(reference.weights_in(models / f"{name}_000{checkpoint or 2}.pth"))
        network.eval()
    segmentation, ddnet = parts
    folders = pair_of(config)
    ids = read_ids(config.voc_root, "train_aug")
    samples = SeedSamples(config.voc_root, ids, folders, config.crop, None, augmented)
    made = Path(config.out) / "precompute" / "ssdd"
    for place, image_id in enumerate(ids):
        batch = default_collate([reference.sample(samples, place, reference.epoch_seed(config.seed, place))])
        with torch.no_grad():
            output = segmentation(x_of(batch) if augmented else normalise(batch["image"]))
            features = ddnet.features(0, output.main.features, output.conv2)
            d_k, d_a = ddnet.differences(0, features, batch["knowledge"], batch["advice"])
        stored_k, stored_a = (torch.from_numpy(d) for d in load_differences(store_path(made, image_id)))
        torch.testing.assert_close(stored_k, d_k[0, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stored_a, d_a[0, 0], rtol=1e-4, atol=1e-5)
        assert (stored_k - stored_a).abs().max() > 1e-3
        size = read_image(config.voc_root, image_id).shape[:2]
        seeds = [load_maps(store_path(folder, image_id)) for folder in folders.values()]
        k, a = (torch.from_numpy(seed.classes[seed.maps.argmax(0)])[None] for seed in seeds)
        large = [F.interpolate(d[None, None], size, mode="bilinear") for d in (stored_k, stored_a)]
        present = torch.from_numpy(read_present(config.voc_root, image_id))[None]
        expected = reference.integrate(k, a, *large, present, 0.05, 0.3)[0].numpy()
        assert np.array_equal(read_mask(made / f"{image_id}.png"), expected)


def test_mode_1_takes_the_pair_that_weights_names(config):
    run(0, config)
    made = Path(config.out) / "precompute" / "ssdd"
    run(1, config, "--static-checkpoint=1")
    expected = {path.name: load_differences(path) for path in made.glob("*.npz")}
    run(1, config, "--fresh", f"--weights={config.out}/logs/sssdd_ssdd/models/seg_0001.pth")
    assert len(expected) == 6
    for name, maps in expected.items():
        assert np.array_equal(load_differences(made / name), maps)


def dynamic_loss(segmentation, ddnet, config, batch):
    """Section 4 of the paper, with PSA and PSA+CRF integrated by the stored maps as m_ssdd0."""
    present = batch["present"]
    own = config.seed_bias, config.seed_bg
    seed = reference.integrate(batch["knowledge"], batch["advice"], batch["d_k"], batch["d_a"], present, *own)
    output = segmentation(x_of(batch))
    main, sub = output.main.logits, output.sub.logits
    masks = [(torch.softmax(o.detach(), 1) * present[:, :, None, None] + 1e-4 * present[:, :, None, None]).argmax(1)
             for o in (main, sub)]  # fmt: skip
    m_seg, m_sub = masks
    refined = []
    for image, logits, row in zip(batch["small"].numpy(), main.detach(), present, strict=True):
        classes = row.nonzero()[:, 0]
        probabilities = torch.softmax(logits[classes], 0).numpy()
        refined.append(classes[torch.from_numpy(dense_crf(image, probabilities, config.crf_train, CRF)).argmax(0)])
    m_crf = torch.stack(refined)
    d1_k, d1_a = ddnet.differences(0, ddnet.features(0, output.main.features, output.conv2), m_seg, m_crf)
    m_ssdd1 = reference.integrate(m_seg, m_crf, d1_k, d1_a, present, config.bias, config.bg)
    d2_k, d2_a = ddnet.differences(1, ddnet.features(1, output.sub.features, output.conv2), seed, m_ssdd1)
    m_ssdd2 = reference.integrate(seed, m_ssdd1, d2_k, d2_a, present, config.bias, config.bg)
    target = m_ssdd2 if config.seed_target == "ssdd2" else m_ssdd1
    loss_dd = 2 * reference.pair_loss(d1_k, d1_a, m_seg, m_crf, present)
    loss_dd = loss_dd + reference.balanced(d2_k[:, 0], seed != m_sub) + reference.balanced(d2_a[:, 0], target != m_sub)
    ce = F.cross_entropy
    loss_sub = config.alpha * ce(sub, seed) + (1 - config.alpha) * ce(sub, m_ssdd2)
    return ce(main, m_ssdd2) + loss_sub + loss_dd / 4


RELEASED = {"recipe": "released", "swap_maps": True, "move_maps": False, "seed_target": "ssdd2"}


@pytest.mark.parametrize("fields", [{}, RELEASED], ids=["paper", "released"])
def test_mode_2_trains_as_the_reference(fields, config, inputs):
    config = replace(config, alpha=0.3, bias=0.1, bg=0.05, seed_bias=-0.05, seed_bg=0.2, **fields)
    config = replace(config, static_checkpoint=0, precompute_augmented=bool(fields), crf_train=2)
    link_differences(config, inputs)
    run(2, config)
    stored = StoredDifferences(Path(config.out) / "precompute" / "ssdd", move=not fields, swap=bool(fields))
    ids = read_ids(config.voc_root, "train_aug")
    samples = SeedSamples(config.voc_root, ids, pair_of(config), config.crop, config.dynamic_side, differences=stored)
    parts = networks(config, dynamic=True)
    start = copies(*parts)
    train_reference(config, parts, samples, partial(dynamic_loss, *parts, config))
    models = Path(config.out) / "logs" / "dssdd_ssdd" / "models"
    told = json.loads((models.parent / "pictures.json").read_text())
    assert told["masks"] == ["k1", "a1", "d1", "k2", "a2", "d2"]
    assert told["rows"][""] == {"photo": "image", "k2": "seed", "d2": "integrated", "truth": "true mask"}
    for name, network, before in zip(("seg", "ssdd"), parts, start, strict=True):
        reference.assert_trained(models / f"{name}_0002.pth", network.state_dict(), before, ("encoder.conv1a",))


def test_mode_2_starts_from_mode_0_with_both_heads_and_lets_the_seed_teach_first(config, inputs, monkeypatch):
    link_differences(config, inputs)
    run(0, replace(config, epochs=1, pictures=0))
    taught = []
    forward = DynamicStep.forward

    def noted(step, *batch):
        taught.append(batch[-1])
        return forward(step, *batch)

    monkeypatch.setattr(DynamicStep, "forward", noted)
    # The rate is next to nothing until the third epoch, so that the weights stay those of mode 0.
    own = {"dynamic_start": "static", "seed_epochs": 1.0, "warmup_epochs": 1e6, "pictures": 0}
    run(2, replace(config, lr=1e-9, bn=6, crf_train=1, **own))
    assert taught == [True, False]
    logs = Path(config.out) / "logs"
    static = torch.load(logs / "sssdd_ssdd" / "models" / "seg_0001.pth", weights_only=True)["state_dict"]
    dynamic = torch.load(logs / "dssdd_ssdd" / "models" / "seg_0002.pth", weights_only=True)["state_dict"]
    for key, value in dynamic.items():
        torch.testing.assert_close(value, static[key.replace("seg_sub.", "seg_main.")], rtol=0, atol=1e-6)
    assert any("seg_sub." in key for key in dynamic)


def test_recipe_released_swaps_aims_and_starts_as_the_program_did(config, inputs, capsys):
    """The flag alone sets all rows of the table of differences."""
    link_differences(config, inputs)
    flags = [f"--mode=2 --preset=demo --recipe=released --voc-root={config.voc_root} --out={config.out}"]
    flags += ["--device=cpu --precision=float32 --width=0.0625 --head_dilation=1 --crop=64 --epochs=1 --bn=6"]
    main_ssdd.main([*" ".join(flags).split(), "--dynamic_side", "64", "64", "--pictures=0"])
    said = capsys.readouterr().out
    for setting in ("swap_maps=True", "move_maps=False", "seed_target='ssdd2'", "seed_bias=0.1", "seed_bg=0.1"):
        assert setting in said
    assert (
        "precompute_augmented=True" in said and "bias=0.4" in said and "bg=0.0" in said and "crf='pydensecrf'" in said
    )


@pytest.mark.parametrize("source", ["psa", "crf", "ssdd", "truth"])
def test_mode_4_trains_as_the_reference(source, config, inputs):
    config = replace(config, seed_source=source, epochs=1 if source != "truth" else 2)
    root = Path(config.voc_root)
    folder = {"psa": results(config) / "out_aff", "crf": results(config) / "out_aff_crf"}.get(source)
    if source == "truth":
        folder = root / "SegmentationClass"
    if source == "ssdd":
        folder = Path(config.out) / "precompute" / "ssdd"
        folder.mkdir(parents=True)
        for image_id in read_ids(root, "train_aug"):
            classes = np.flatnonzero(read_present(root, image_id))
            size = read_image(root, image_id).shape[:2]
            mask = classes[reference.blobs(np.random.default_rng(8), len(classes), size).argmax(0)]
            cv2.imwrite(str(folder / f"{image_id}.png"), mask.astype(np.uint8))
    run(4, config)
    ids = read_ids(root, "train_aug")
    samples = SeedSamples(str(root), ids, {"seed": folder}, config.crop, config.static_side)
    parts = networks(config, dynamic=False)[:1]
    start = copies(*parts)

    def loss(batch):
        return F.cross_entropy(parts[0](x_of(batch)).main.logits, batch["seed"], ignore_index=255)

    train_reference(config, parts, samples, loss)
    path = Path(config.out) / "logs" / f"fixed_{source}_ssdd" / "models" / f"seg_000{config.epochs}.pth"
    reference.assert_trained(path, parts[0].state_dict(), start[0], ("encoder.conv1a",))


def decided_network(config, images):
    """A network with two heads whose outputs are neither flat nor saturated, so that CRF and softmax matter."""
    segmentation, _ = networks(config, dynamic=True)
    segmentation.eval()
    with torch.no_grad():
        logits = torch.cat([segmentation.main_logits(x) for x in images])
        scale = 2 / logits.std(dim=(0, 2, 3))
        segmentation.seg_main.seg2.bias.sub_(logits.mean(dim=(0, 2, 3)))
        for parameter in (segmentation.seg_main.seg2.weight, segmentation.seg_main.seg2.bias):
            parameter.mul_(scale.view(-1, *[1] * (parameter.dim() - 1)))
    return segmentation


def slow_evaluation(config, network, image, twice=True):
    """Masks without and with CRF of one photograph, one scale and one mirror at a time."""
    side = config.eval_size
    small = cv2.resize(image, (side, side))
    total = torch.zeros(1, len(CLASSES), side, side)
    for scale in config.eval_scales:
        x = normalise(as_tensor(small)[None])
        x = F.interpolate(x, (int(side * scale),) * 2, mode="bilinear")
        for mirrored in (False, True):
            with torch.no_grad():
                logits = network.main_logits(x.flip(-1) if mirrored else x)
            large = F.interpolate(logits, scale_factor=8, mode="bilinear")
            out = F.interpolate(torch.softmax(large, 1), (side, side), mode="bilinear")
            total += out.flip(-1) if mirrored else out
    maps = F.interpolate(total, image.shape[:2], mode="bilinear")[0]
    maps = (torch.softmax(maps, 0) if twice else maps).numpy()
    return maps.argmax(0), dense_crf(image, maps, config.crf_eval, CRF).argmax(0)


@pytest.mark.parametrize("by_flag", [True, False], ids=["--weights", "of mode 2"])
def test_mode_3_writes_the_masks_of_the_reference(by_flag, config, inputs):
    config = replace(config, eval_scales=(0.5, 1.0, 1.5), crf_eval=3, eval_batch=2, eval_size=72)
    ids = read_ids(config.voc_root, "val")
    photos = [read_image(config.voc_root, image_id) for image_id in ids]
    network = decided_network(config, [normalise(as_tensor(cv2.resize(p, (72, 72)))[None]) for p in photos])
    if by_flag:
        path = Path(config.out) / "own.pth"
        torch.save(network.state_dict(), path)
        run(3, config, f"--weights={path}")
    else:
        link_differences(config, inputs)
        run(2, replace(config, lr=1e-9, epochs=2, pictures=0))
        models = Path(config.out) / "logs" / "dssdd_ssdd" / "models"
        for number in (1, 2):
            content = torch.load(models / f"seg_000{number}.pth", weights_only=True)
            torch.save(content | {"state_dict": network.state_dict()}, models / f"seg_000{number}.pth")
            if number == 1:  # the last counts
                content["state_dict"]["seg_main.seg2.bias"] += 99
                torch.save(content, models / "seg_0001.pth")
        run(3, config)
    made = Path(config.out) / "validation" / "ssdd"
    told_apart = 0
    for image_id, photo in zip(ids, photos, strict=True):
        expected = slow_evaluation(config, network, photo)
        for kind, mask in zip(("mask", "crf"), expected, strict=True):
            wrong = (read_mask(made / kind / f"{image_id}.png") != mask).mean()
            assert wrong < 1e-3, (kind, wrong)
        told_apart += (expected[1] != slow_evaluation(config, network, photo, twice=False)[1]).mean()
    assert told_apart > 0.02  # the second softmax shows on these images


def test_mode_all_runs_the_four_in_turn_and_weights_start_the_training_only(config, inputs, tmp_path):
    start = reference.weights_in(results(config) / "cls" / "weights.pth")
    other = {k: v + (0.5 if k == "conv1a.weight" else 0) for k, v in start.items()}
    torch.save(other, tmp_path / "other.pth")
    config = replace(config, epochs=None, static_epochs=1, dynamic_epochs=2, lr=1e-6, pictures=0)
    run("all", replace(config, weights=str(tmp_path / "other.pth")))
    out = Path(config.out)
    for kind, epochs in (("sssdd", 1), ("dssdd", 2)):
        models = out / "logs" / f"{kind}_ssdd" / "models"
        assert max(p.name for p in models.glob("seg_*")) == f"seg_000{epochs}.pth"
        trained = reference.weights_in(models / f"seg_000{epochs}.pth")
        assert torch.equal(trained["encoder.conv1a.weight"], other["conv1a.weight"])
    assert len(list((out / "precompute" / "ssdd").glob("*.npz"))) == 6
    assert len(list((out / "validation" / "ssdd" / "crf").glob("*.png"))) == 3
    assert (out / "validation" / "ssdd" / "result_val.json").exists()
