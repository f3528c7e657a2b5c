"""The training loop: rates, order, errors, and runs that go on where they stopped."""

import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from datasets.errors import InputError
from datasets.samples.image_labels import ImageLabelSamples
from datasets.voc import read_ids
from engine import checkpoint, distributed, stages
from engine.loading import Batches, EpochOrder, SeededSamples
from engine.training import Training, cosine_rate, poly_rate, sgd, train
from engine.workers import Workers
from modes.ssdd import networks, static
from settings.config import demo
from tests.conftest import tiny

CPU = torch.device("cpu")
PAIRS = [[(n, 0), (n + 1, 0)] for n in (0, 2, 4)]


@torch.no_grad()
def test_a_compiled_backbone_is_the_eager_one(tiny_config):
    config, results = replace(tiny_config, width=0.25), []
    x = torch.randn(2, 3, 48, 48)
    for own in (config, replace(config, compile=True)):
        torch.manual_seed(0)
        network, _ = networks.build(own, dynamic=False)
        results.append((network.eval().main_logits(x), *network.state_dict()))
    (eager, *keys), (compiled, *its_keys) = results
    assert keys == its_keys and network.encoder._compiled_call_impl is not None
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3 * float(eager.abs().max()))


def test_cosine_rate_by_hand():
    rate = cosine_rate(1e-3, 16)  # R = int(19.2) = 19
    assert rate(0) == pytest.approx(1e-3)
    assert rate(9.5) == pytest.approx(0.5e-3)
    assert rate(19 / 3) == pytest.approx(0.75e-3)
    assert rate(16) == pytest.approx(1e-3 * 0.5 * (1 + math.cos(16 * math.pi / 19)))
    assert cosine_rate(2.0, 41)(49 / 2) == pytest.approx(1.0)  # R = int(49.2)
    assert cosine_rate(2.0, 1)(0.5) == pytest.approx(1.0)


def test_warmup_rises_from_zero_and_then_is_the_cosine():
    rate, plain = cosine_rate(2.0, 10, 4), cosine_rate(2.0, 10)
    assert rate(0) == 0
    assert rate(1) == pytest.approx(plain(1) / 4)
    assert [rate(e) for e in (4, 7)] == [plain(4), plain(7)]


def test_poly_rate_by_hand():
    rate = poly_rate(0.1, 8, 0.9)
    assert rate(0) == pytest.approx(0.1)
    assert rate(4) == pytest.approx(0.1 * 0.5358867)
    assert rate(8) == 0
    assert poly_rate(3.0, 15, 2.0)(10) == pytest.approx(3 / 9)


@pytest.mark.parametrize("rate", [cosine_rate(1.0, 12), poly_rate(1.0, 12, 0.9)])
def test_rates_only_fall_and_stay_above_zero_while_training(rate):
    values = [rate(e / 7) for e in range(12 * 7)]
    assert all(a > b > 0 for a, b in pairwise(values))


class Processes:
    """Pretends to be one of several processes."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def be(self, rank, count):
        self.monkeypatch.setattr(distributed, "rank", lambda: rank)
        self.monkeypatch.setattr(distributed, "processes", lambda: count)


@pytest.fixture
def processes(monkeypatch):
    return Processes(monkeypatch)


def order_of(length, seed, epoch):
    order = EpochOrder(length, 5, seed)
    order.start(epoch, 0)
    return [key for batch in order for key in batch]


def test_an_epoch_is_a_permutation_that_epoch_and_seed_decide():
    orders = {(seed, epoch): order_of(50, seed, epoch) for seed in (0, 1, 2) for epoch in range(4)}
    for order in orders.values():
        assert sorted(index for index, _ in order) == list(range(50))
        assert len({seed for _, seed in order}) == 50
    assert len({tuple(index for index, _ in order) for order in orders.values()}) == 12
    assert len({tuple(seed for _, seed in order) for order in orders.values()}) == 12
    assert order_of(50, 1, 3) == orders[1, 3]


@pytest.mark.parametrize(("length", "count"), [(12, 1), (12, 2), (12, 3), (13, 4), (2, 4), (7, 8)])
def test_shards_are_disjoint_complete_and_of_one_length(length, count, processes):
    shards = []
    for rank in range(count):
        processes.be(rank, count)
        assert EpochOrder(length, 5, 0).samples == math.ceil(length / count)
        shards.append(order_of(length, 0, 2))
    assert {len(shard) for shard in shards} == {math.ceil(length / count)}
    dealt = [sample for shard in shards for sample in shard]
    processes.be(0, 1)
    assert set(dealt) == set(order_of(length, 0, 2))
    repeated = len(dealt) - len(set(dealt))
    assert repeated == (-length) % count


@pytest.mark.parametrize("count", [2, 3, 4])
def test_global_batches_are_the_same_whatever_the_number_of_processes(count, processes):
    length, batch = 48, 12
    processes.be(0, 1)
    whole = order_of(length, 5, 1)
    alone = [set(whole[start : start + batch]) for start in range(0, length, batch)]
    share, together = batch // count, [set() for _ in alone]
    for rank in range(count):
        processes.be(rank, count)
        part = order_of(length, 5, 1)
        for step, start in enumerate(range(0, len(part), share)):
            together[step] |= set(part[start : start + share])
    assert together == alone


@pytest.mark.parametrize("count", [1, 3, 5])
def test_shards_of_a_list_are_disjoint_and_complete(count, processes):
    parts = []
    for rank in range(count):
        processes.be(rank, count)
        parts += distributed.shard(list(range(11)))
    assert sorted(parts) == list(range(11))


def test_sgd_leaves_frozen_parameters_and_empty_groups_out():
    layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    layers[0].bias.requires_grad_(False)
    layers[2].requires_grad_(False)
    factors = zip(layers, (1.0, 10.0, 3.0), strict=True)
    optimiser = sgd([(list(layer.parameters()), factor) for layer, factor in factors], 0, 2e-4)
    assert [group["factor"] for group in optimiser.param_groups] == [1.0, 10.0]
    assert [[id(p) for p in group["params"]] for group in optimiser.param_groups] == [
        [id(layers[0].weight)],
        [id(layers[1].weight), id(layers[1].bias)],
    ]
    assert all(group["weight_decay"] == 2e-4 and group["momentum"] == 0 for group in optimiser.param_groups)


class Numbers(Dataset):
    """Sample i is the number i and some noise of its own."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"id": f"image{index}", "x": torch.full((4,), float(index)) / 10 + torch.randn(4)}


class Toy:
    """A network with dropout, trained on Numbers; notes what it does."""

    def __init__(self, folder, momentum=0.9, **fields):
        self.config = replace(demo(), **{"epochs": 3, "seed": 4, "workers": 0, "out": str(folder), **fields})
        torch.manual_seed(self.config.seed)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimiser = sgd([(list(self.network.parameters()), 2.0)], momentum, 1e-3)
        self.folder, self.steps, self.epochs, self.rates, self.moments = folder, [], [], [], []
        self.average = torch.optim.swa_utils.AveragedModel(self.network)

    def losses(self, batch, epoch):
        self.moments.append(epoch)
        self.steps.append(batch["id"])
        self.rates.append(self.optimiser.param_groups[0]["lr"])
        return {"loss": (self.network(batch["x"]) - 1).square().mean()}, {"mean": batch["x"].mean()}

    def run(self):
        run = Training(
            title="toy",
            folder=self.folder,
            networks={"network": self.network, "average": self.average},
            optimisers=[self.optimiser],
            rate=cosine_rate(0.01, self.config.epochs),
            samples=Numbers(),
            batch=4,
            batch_flag="--bn",
            losses=self.losses,
            after_epoch=lambda epoch, history: self.epochs.append(epoch),
            refresh=lambda: None,
            after_step=lambda step: self.average.update_parameters(self.network),
        )
        train(run, self.config, CPU)
        return self

    def state(self):
        both = (*self.network.parameters(), *self.average.module.parameters())
        return torch.cat([p.detach().flatten() for p in both])


def test_every_epoch_sees_every_sample_at_falling_rates_times_the_factor(tmp_path):
    toy = Toy(tmp_path).run()
    assert toy.epochs == [1, 2, 3]
    assert [len(ids) for ids in toy.steps] == [4, 4, 2] * 3
    for epoch in range(3):
        seen = [image for ids in toy.steps[3 * epoch : 3 * epoch + 3] for image in ids]
        assert sorted(seen) == [f"image{i}" for i in range(10)]
    rate = cosine_rate(0.01, 3)
    assert toy.moments == pytest.approx([step / 3 for step in range(9)])
    assert toy.rates == pytest.approx([2 * rate(step / 3) for step in range(9)])
    assert checkpoint.load(tmp_path / "state.pth")["epoch"] == 3


def test_runs_repeat_and_differ_by_seed(tmp_path):
    first, again, other = (Toy(tmp_path / name, seed=seed).run() for name, seed in zip("abc", (4, 4, 5), strict=True))
    assert torch.equal(first.state(), again.state())
    assert not torch.equal(first.state(), other.state())


class Stop(Exception):
    pass


def stop_at_step(toy, step):
    losses = toy.losses

    def stopping(batch, epoch):
        if len(toy.steps) == step:
            raise Stop
        return losses(batch, epoch)

    toy.losses = stopping


def stop_after_epoch(toy, epoch):
    def stopping(done):
        if done == epoch:
            raise Stop

    toy.epochs = type("Epochs", (), {"append": staticmethod(stopping)})()


STOPS = {
    "in epoch 2": (stop_at_step, 4, 1),
    "in epoch 3": (stop_at_step, 8, 2),
    "between last step and state": (stop_after_epoch, 2, 1),
    "before the first state": (stop_at_step, 2, 0),
}


@pytest.mark.parametrize("kind", STOPS)
@pytest.mark.parametrize(("workers", "momentum"), [(0, 0), (0, 0.9), (1, 0.9)])
def test_interrupted_run_ends_bit_by_bit_where_the_whole_one_does(kind, workers, momentum, tmp_path):
    stop, place, done = STOPS[kind]
    whole = Toy(tmp_path / "whole", momentum, workers=workers).run()
    stopped = Toy(tmp_path / "run", momentum, workers=workers)
    stop(stopped, place)
    with pytest.raises(Stop):
        stopped.run()
    state = tmp_path / "run" / "state.pth"
    assert (checkpoint.load(state)["epoch"] if state.exists() else 0) == done
    continued = Toy(tmp_path / "run", momentum, workers=workers).run()
    assert continued.epochs == [1, 2, 3][done:]
    assert continued.steps == whole.steps[3 * done :]
    assert torch.equal(continued.state(), whole.state())


def test_number_of_workers_changes_nothing(tmp_path):
    alone, helped = (Toy(tmp_path / str(workers), workers=workers).run() for workers in (0, 2))
    assert torch.equal(alone.state(), helped.state())


def test_finished_run_trains_no_further(tmp_path):
    first = Toy(tmp_path).run()
    again = Toy(tmp_path).run()
    assert again.steps == [] and again.epochs == [3]  # its weights are gone, or nobody would train
    assert torch.equal(first.state(), again.state())


BAD_STATES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "empty": lambda path: path.write_bytes(b""),
    "other network": lambda path: checkpoint.save(path, checkpoint.load(path) | {"networks": {"network": {}}}),
    "no network": lambda path: checkpoint.save(path, checkpoint.load(path) | {"networks": {}}),
    "no optimiser": lambda path: checkpoint.save(path, checkpoint.load(path) | {"optimisers": []}),
    "no epoch": lambda path: checkpoint.save(path, {k: v for k, v in checkpoint.load(path).items() if k != "epoch"}),
    "a list": lambda path: checkpoint.save(path, [1, 2]),
    "epoch of text": lambda path: checkpoint.save(path, checkpoint.load(path) | {"epoch": "two"}),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_state_that_does_not_fit_is_refused_by_name(kind, tmp_path):
    Toy(tmp_path).run()
    BAD_STATES[kind](tmp_path / "state.pth")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "state.pth"))):
        Toy(tmp_path).run()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "other figure"])
def test_loss_that_is_not_finite_stops_with_step_and_images_and_keeps_the_last_state(value, where, tmp_path):
    toy = Toy(tmp_path)
    losses = toy.losses

    def breaking(batch, epoch):
        minimised, others = losses(batch, epoch)
        if len(toy.steps) == 5:
            (minimised if where == "loss" else others)["bad"] = minimised["loss"] * value
        else:
            (minimised if where == "loss" else others)["bad"] = minimised["loss"].detach() * 0
        return minimised, others

    toy.losses = breaking
    with pytest.raises(InputError) as error:
        toy.run()
    said = str(error.value)
    assert "toy: loss not finite at step 4 on images " + " ".join(toy.steps[4]) in said
    assert f"bad {value:g}".removeprefix("bad -") in said and "last checkpoint is kept" in said
    state = checkpoint.load(tmp_path / "state.pth")
    assert state["epoch"] == 1 and toy.epochs == [1]
    assert all(torch.isfinite(tensor).all() for tensor in state["networks"]["network"].values())
    assert Toy(tmp_path).run().epochs == [2, 3]


def test_real_run_interrupted_in_its_pictures_ends_bit_by_bit_the_same(finished_run, tiny_voc, tmp_path, monkeypatch):
    configs = []
    for name in ("whole", "stopped"):
        shutil.copytree(finished_run / "prepare_labels", tmp_path / name / "prepare_labels")
        configs.append(replace(tiny(tiny_voc, tmp_path / name), epochs=3, dropout=1.0, lr=1e-5, checkpoint_epochs=1))
    static.run(configs[0])
    write = networks.write_pictures

    def stopping(folder, epoch, *what):
        if epoch == 2:
            raise Stop
        write(folder, epoch, *what)

    with monkeypatch.context() as patch:
        patch.setattr(networks, "write_pictures", stopping)
        with pytest.raises(Stop):
            static.run(configs[1])
    static.run(configs[1])
    for epoch in (1, 2, 3):
        for kind in ("seg", "ssdd"):
            folders = [stages.folder(config, "mode 0") for config in configs]
            one, other = (checkpoint.load_state(stages.checkpoint_path(f, kind, epoch)) for f in folders)
            assert all(torch.equal(one[key], other[key]) for key in one), (kind, epoch)
    start, last = (checkpoint.load_state(stages.checkpoint_path(folders[0], "seg", n)) for n in (1, 3))
    assert torch.equal(start["encoder.conv1a.weight"], last["encoder.conv1a.weight"])
    assert not torch.equal(start["seg_main.seg2.weight"], last["seg_main.seg2.weight"])


def error_of_next(batches):
    """Without its traceback, which would keep the loader's worker until the garbage is collected, 5 s."""
    try:
        next(batches)
    except Exception as error:
        return error.with_traceback(None)
    pytest.fail("no error")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_arrives_as_one_error_with_its_name(workers, own_voc):
    ids = read_ids(own_voc, "train")
    path = Path(own_voc) / "JPEGImages" / f"{ids[3]}.jpg"
    path.write_bytes(path.read_bytes()[:300])
    samples = ImageLabelSamples(str(own_voc), ids, (64, 80), 64)
    batches = iter(Batches(replace(demo(), workers=workers), samples, PAIRS, CPU))
    assert next(batches)["id"] == ids[:2]
    error = error_of_next(batches)
    assert type(error) is InputError
    assert str(error).startswith(f"{path} cannot be read as a picture")


class Broken(Numbers):
    def __getitem__(self, index):
        raise ZeroDivisionError("a bug")


def test_other_errors_in_a_worker_are_not_swallowed():
    batches = iter(Batches(replace(demo(), workers=1), Broken(), PAIRS, CPU))
    error = error_of_next(batches)
    assert type(error) is ZeroDivisionError and "a bug" in str(error)


class Threads(Numbers):
    def __getitem__(self, index):
        return {"id": "", "x": torch.tensor(cv2.getNumThreads())}


def test_opencv_takes_one_thread_in_every_process_beside_the_network():
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        loaded = next(iter(Batches(replace(demo(), workers=1), Threads(), PAIRS, CPU)))["x"]
    finally:
        cv2.setNumThreads(before)
    assert loaded.unique().tolist() == [1]
    with Workers(1) as workers:
        assert [workers.submit(number).result() for number in (cv2.getNumThreads, torch.get_num_threads)] == [1, 1]


def test_sample_is_a_function_of_its_seed_alone():
    def values(seeds, workers):
        torch.manual_seed(len(seeds) + workers)
        config, order = replace(demo(), workers=workers), [[(3, seed) for seed in seeds[:2]]]
        return next(iter(Batches(config, Numbers(), order, CPU)))["x"]

    first = values([11, 12], 0)
    assert torch.equal(values([12, 11, 5], 0).flip(0), first)
    assert torch.equal(values([11, 12], 1), first)
    assert not torch.equal(first[0], first[1])


def test_sample_leaves_the_global_randomness_alone():
    samples = SeededSamples(Numbers())
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert not torch.equal(samples[2, 7]["x"], samples[2, 8]["x"])
    assert torch.equal(torch.random.get_rng_state(), before)
