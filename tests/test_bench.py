"""The benchmark: its sums by hand, and that every row is measured and kept."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from evaluation import bench_table
from evaluation.bench_systems import merged_by_search
from models.icd.superpixels import merged
from settings.config import voc
from tests.conftest import as_flags
from tools.bench import __main__ as bench
from tools.bench import parts, timing


def test_functions_take_turns_and_the_first_turn_does_not_count():
    calls = []
    times = timing.timed(torch.device("cpu"), 2, a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3
    assert {name: len(its) for name, its in times.items()} == {"a": 2, "b": 2}


def result(rows, **more):
    config = {"static_epochs": 3, "dynamic_epochs": 5}
    made = {"machine": "M", "device": "cpu", "torch": "2", "command": "c", "date": "d", "config": config, "rows": rows}
    return made | more


def cells(table, what):
    return [cell.strip() for line in table.splitlines() if line.startswith(f"| {what} |") for cell in line.split("|")]


def test_a_row_is_median_spread_and_gain_over_its_baseline():
    # 6 units in 2, 3 and 1 s: 3, 2 and 6 a second; the baseline in 12, 4 and 6 s: 0.5, 1.5 and 1.
    made = timing.row("thing", [2.0, 3.0, 1.0], 6, "images/s", ("slow", [12.0, 4.0, 6.0]), note="remark")
    table = bench_table.table(result([made]))
    assert cells(table, "thing") == ["", "thing", "3 images/s", "2 – 6", "slow: 1", "3", "remark", ""]


def test_arithmetic_is_compared_with_the_measured_convolution():
    peak = timing.row("measured peak, 3×3 convolution, bfloat16", [0.5], 2, "TFLOP/s")
    step = timing.row("step, arithmetic", [2.0], 2, "TFLOP/s", memory=1.5, tflop=2.0)
    noted = cells(bench_table.table(result([peak, step])), "step, arithmetic")[-2]
    assert noted == "2.00 TFLOP a step; peak memory 1.5 GB; 25 % of the measured convolution"


def test_projection_by_hand():
    # Mode 0 at 2 images/s, mode 1 at 4, mode 2 at 1: (3/2 + 1/4 + 5/1) passes over 10,582 images.
    rows = [
        timing.row(f"mode {mode}", [1.0], rate, "images/s", ("slow", [2.0]), step=mode)
        for mode, rate in {0: 2, 1: 4, 2: 1}.items()
    ]
    hours = 10_582 * 6.75 / 3600
    made = bench_table.projected(result(rows)["config"], rows)
    assert made["rates"] == [pytest.approx(hours)] and made["baseline_rates"] == [pytest.approx(2 * hours)]
    assert cells(bench_table.table(result(rows)), made["what"])[5] == "2"
    assert bench_table.projected(result(rows)["config"], rows[:2]) is None


def test_readme_gets_the_tables_of_the_stored_results(tmp_path):
    readme = tmp_path / "README.md"
    rows = [timing.row("thing", [0.5], 1, "images/s")]
    (tmp_path / "cpu.json").write_text(json.dumps(result(rows)))
    readme.write_text(f"before\n{bench_table.BEGIN}\nold\n{bench_table.END}\nafter\n")
    bench_table.update_readme(readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert cells(text, "thing")[2] == "2 images/s" and "On a GPU: not measured." in text
    bench_table.update_readme(readme)
    assert readme.read_text() == text
    (tmp_path / "gpu.json").write_text(json.dumps(result(rows, device="cuda")))
    bench_table.update_readme(readme)
    assert "not measured" not in readme.read_text()
    readme.write_text("no marks")
    with pytest.raises(InputError, match=re.escape(bench_table.BEGIN)):
        bench_table.update_readme(readme)


def test_every_row_is_measured_printed_and_kept(tiny_config, tmp_path, capsys, monkeypatch):
    image, cams = parts.scene()
    # The dense walk of a whole photograph takes most of a minute on one thread.
    monkeypatch.setattr(parts, "scene", lambda: (image[::4, ::4].copy(), cams[:, ::4, ::4].copy()))
    kept = tmp_path / "times.json"
    bench.main([*as_flags(tiny_config), "--repeats=1", f"--write={kept}"])
    stored = json.loads(kept.read_text())
    said = capsys.readouterr().out
    names = [
        "matrix",
        "mode 0",
        "mode 1, batch 1",
        "whole pass",
        "mode 2",
        "evaluation",
        "pydensecrf",
        "exact",
        "walk",
        "loader",
    ]
    for name in [
        *names,
        "deeplabv3plus",
        "ICD, superpixels",
        "ICD, training step",
        "ICD, seed",
        "RecurSeed, SCG + PAMR",
    ]:
        assert any(name in made["what"] for made in stored["rows"]), name
    assert all(rate > 0 for made in stored["rows"] for rate in [*made["rates"], *made.get("baseline_rates", [])])
    assert said.endswith(bench_table.table(stored) + "\n") and "projected" in said
    assert str(tmp_path) not in json.dumps(stored)


@pytest.mark.parametrize(("able", "base"), [(True, "float32"), (False, "float32, NCHW")])
def test_the_peak_is_measured_in_what_the_networks_compute_in(able, base, tiny_config, monkeypatch):
    kind = "bfloat16" if able else "float32"

    def without_calling(device, repeats, fast, plain):
        # Where bfloat16 is emulated, calling `fast` would take minutes.
        assert {t.dtype for t in fast.args[0]} == {getattr(torch, kind)}
        assert {t.dtype for t in plain.args[0]} == {torch.float32}
        return {"fast": [1.0], "plain": [1.0]}

    monkeypatch.setattr(parts.distributed, "computes_in_bfloat16", lambda *_: able)
    monkeypatch.setattr(parts, "timed", without_calling)
    rows = list(parts.peak_rows(tiny_config, torch.device("cpu"), 1))
    assert len(rows) == 2
    assert all(made["what"].endswith(f", {kind}") and made["baseline"] == base for made in rows)


def test_kernels_are_chosen_as_the_programs_choose_them(monkeypatch):
    asked, chosen = [], []
    monkeypatch.setattr(timing.distributed, "start", lambda device, batch=None: asked.append((device, batch)))
    monkeypatch.setattr(timing.distributed, "compute_deterministically", lambda: chosen.append(True))
    for name in ("step_rows", "final_rows", "labels_rows"):
        monkeypatch.setattr(bench, name, lambda config, device, repeats, mode=None: [])
    config = replace(voc(), device="cuda:1", deterministic=True)
    device = torch.device("cuda:1")
    list(bench.measure(config, device, 1, ["step0", "labels", "final"]))
    # Training tries every kernel, engine.distributed.start; what goes over the images does not.
    assert asked == [("cuda:1", ("--bn", config.bn)), ("cuda:1", None), ("cuda:1", ("--bn", config.bn))]
    assert chosen == [True, True]
    list(bench.measure(replace(config, deterministic=False), device, 1, ["step2"]))
    assert chosen == [True, True]


def test_merging_by_search_is_the_fast_merging():
    rng = np.random.default_rng(1)
    ids = np.arange(12, dtype=np.int32).repeat(20).reshape(12, 20)
    ids[3, :7], ids[8, 5:] = 9, 1
    means = rng.normal(size=(12, 6))
    for most in (11, 5, 1):
        assert np.array_equal(merged_by_search(ids, means, most), merged(ids, means, most))


def test_fewer_than_one_repeat_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--repeats=0"])
    assert "--repeats=0" in capsys.readouterr().err
