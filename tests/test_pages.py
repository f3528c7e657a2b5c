"""The HTML pages: what they show, that no name can break out of them, and what a browser makes of them."""

import json
import os
import shutil
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.voc import read_ids, read_mask, read_present, write_mask
from engine import history
from engine.ledger import Finding, Row
from evaluation.expected import Expected
from evaluation.metrics import confusion
from models.ssdd.difference import integrate, missing_class_flags
from script import make_pages
from script.pages import masks
from script.pages.document import write_page
from script.pages.masks import scores as masks_scores
from settings.config import Config
from tests import browser
from tests.conftest import tiny

needs_browser = pytest.mark.skipif(browser.find() is None, reason="no Chromium here (apt install chromium)")


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])


@pytest.fixture(scope="module")
def run(finished_run, tiny_voc, tmp_path_factory) -> Config:
    """The finished run in a folder with an awkward name, with a second epoch of other pictures."""
    out = tmp_path_factory.mktemp("pages") / "a run #1 'with' <i>"
    shutil.copytree(finished_run, out, ignore=shutil.ignore_patterns("state.pth", "tensorboard", "script", "models"))
    for path in list(out.glob("logs/*/imgs/*_0001_*.png")):
        Image.open(path).rotate(180).save(path.with_name(path.name.replace("_0001_", "_0002_")))
    for path in list(out.glob("logs/*/imgs/*_0001_s?.npy")):
        shutil.copy(path, path.with_name(path.name.replace("_0001_", "_0002_")))
    for log in out.glob("logs/*/history.jsonl"):
        with open(log, "a", encoding="utf-8") as file:
            figures = {"epoch": 2, "seconds": 1.0, "images_per_second": 1.0, "memory_gib": 1.0}
            file.write(json.dumps(figures) + "\n")
    config = tiny(tiny_voc, out)
    known = Expected("demo", "mode 3", "mask", (25.0, 26.0), "measured <i>there</i>", "val")
    off = Row("mode 3", "mode 3, validation", "mask", "val", 3, 10.0, low=24.0, high=27.0, verdict="off by -14.0")
    off.expected, off.findings = [known], [Finding("crf", "left <b>out</b>", "python -m tools.eval_masks " + "x" * 200)]
    content = {"missing": "", "ledger": [asdict(Row("mode 2", "mode 2, dynamic SSDD")), asdict(off)]}
    (out / "ledger.json").write_text(json.dumps(content))
    make_pages.make_pages(config)
    return config


def test_linked_files_exist_and_lie_on_this_disk(run):
    folder = Path(run.out) / "script"
    for name in ("labels", "val"):
        data = data_of(folder / f"{name}.html")
        assert len(data["rows"]) == {"labels": 6, "val": 3}[name]
        for row in data["rows"]:
            assert row["missing"] == []
            for column in data["columns"]:
                link = unquote(column["before"] + row["id"] + column["after"])
                assert not Path(link).is_absolute() and (folder / link).is_file()
    for name, whats in (("sssdd", "k1 dk1 da1 a1 d1"), ("dssdd", "k1 dk1 da1 a1 d1 k2 dk2 da2 a2 d2")):
        data = data_of(folder / f"{name}.html")
        shown = {what for group in data["groups"] for what, _ in group["columns"]}
        assert shown == {"photo", "truth", *whats.split()} and data["epochs"] == [1, 2]
        for sample in data["samples"]:
            for what in whats.split():
                assert (folder / unquote(data["pictures"]) / f"{sample['id']}_0002_{what}.png").is_file()


def test_columns_show_what_their_titles_say(run):
    ends = {"image": "JPEGImages/ID.jpg", "true mask": "SegmentationClass/ID.png"}
    seeds = {title: f"labels/ID_{name}.png" for name, title in (("cam", "CAM"), ("psa", "PSA"), ("psa_crf", "PSA+CRF"))}
    masks = {"mask": "validation/ssdd/mask/ID.png", "mask after CRF": "validation/ssdd/crf/ID.png"}
    for name, own in (("labels", ends | seeds), ("val", ends | masks)):
        columns = data_of(Path(run.out) / "script" / f"{name}.html")["columns"]
        found = {column["title"]: unquote(column["before"] + "ID" + column["after"]) for column in columns}
        assert {title for title, end in own.items() if not f"/{found[title]}".endswith(f"/{end}")} == set()


def test_scores_and_pictures_of_errors_agree_with_the_masks(run, tiny_voc):
    folder = Path(run.out)
    for row in data_of(folder / "script" / "val.html")["rows"]:
        truth = read_mask(tiny_voc / "SegmentationClass" / f"{row['id']}.png")
        mask = read_mask(folder / "validation" / "ssdd" / "crf" / f"{row['id']}.png")
        known = truth != 255
        for c in set(truth[known].tolist()):
            iou = (known & (truth == c) & (mask == c)).sum() / (known & ((truth == c) | (mask == c))).sum()
            assert row["scores"]["crf"][str(c)] == pytest.approx(100 * iou, abs=0.051)
        kinds = np.array(Image.open(folder / "script" / "wrong" / "ssdd" / f"{row['id']}.png"))
        assert np.array_equal(kinds > 0, known & (truth != mask))
        assert np.array_equal(kinds == 1, known & (truth > 0) & (mask == 0))
        assert np.array_equal(kinds == 2, known & (truth == 0) & (mask > 0))


def test_grid_names_the_class_of_each_cell():
    mask = np.zeros((48, 96), np.uint8)
    mask[10:20, 40:44] = 7
    cells = [int(c) for run in masks.grid(mask).split(",") for c in [run.split("*")[0]] * int(run.split("*")[1])]
    assert np.array_equal(np.reshape(cells, (24, 24)), mask[1::2, 2::4])


def test_index_has_the_figures_that_were_logged(run, finished_run):
    data = data_of(Path(run.out) / "script" / "index.html")
    stored = json.loads((finished_run / "validation" / "ssdd" / "result_val.json").read_text())
    shown = {row["name"]: row["miou"] for row in data["results"][0]["rows"]}
    assert shown == {name: stored[name]["miou"] for name in ("mask", "mask after CRF")}
    lines = history.read(finished_run / "logs" / "dssdd_ssdd")
    losses = [line["loss_seg"] for line in lines if "loss_seg" in line]
    chart = next(c for c in data["curves"] if c["stage"].startswith("mode 2") and c["title"] == "loss")
    assert [y for _, y in chart["series"][0]["points"]] == pytest.approx(losses, rel=1e-4)
    assert {"advice1", "advice2", "flagged1", "flagged2", "learning_rate"} <= set().union(*lines)
    assert {"miou_k1", "miou_d2", "images_per_second", "memory_gib", "seconds"} <= set().union(*lines)
    assert all(stage["seconds"] > 0 and stage["memory"] > 0 for stage in data["stages"])


def test_a_name_cannot_break_out_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script><!--&\u2028"
    write_page(tmp_path, "val", make_pages.TITLES, replace(Config(), modelid=evil), {"view": "nothing", "reason": evil})
    text = (tmp_path / "val.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2 and "<script>alert" not in text and "<!--" not in text
    assert data_of(tmp_path / "val.html")["reason"] == evil


def test_figures_that_are_none_are_null(tmp_path, tiny_voc):
    data = {"view": "nothing", "reason": "x", "figures": [float("nan"), float("inf"), 1.5]}
    write_page(tmp_path, "index", make_pages.TITLES, tiny(tiny_voc, tmp_path), data)
    assert data_of(tmp_path / "index.html")["figures"] == [None, None, 1.5]
    assert "NaN" not in (tmp_path / "index.html").read_text().split('<script id="data"')[1].split("</script>")[0]


def test_a_run_that_has_not_started_says_what_to_do(tmp_path, tiny_voc):
    config = tiny(tiny_voc, tmp_path / "out")
    make_pages.make_pages(config)
    for name, command in (
        ("labels", "make_cam_labels"),
        ("sssdd", "--mode=0"),
        ("dssdd", "--mode=2"),
        ("val", "--mode=3"),
    ):
        assert command in data_of(tmp_path / "out" / "script" / f"{name}.html")["reason"]


def test_failing_pages_stop_no_training(tmp_path, tiny_voc, capsys):
    (tmp_path / "out").write_text("a file where a folder is needed")
    make_pages.refresh(tiny(tiny_voc, tmp_path / "out"), "val")
    assert "pages not made" in capsys.readouterr().out


def test_pages_are_made_beside_a_stage_that_goes_on_and_its_end_waits_for_them(tmp_path, tiny_voc, monkeypatch):
    config, let_go, made = tiny(tiny_voc, tmp_path), threading.Event(), []

    def slowly(_config, names):
        assert let_go.wait(60)
        made.append(tuple(names))

    monkeypatch.setattr(make_pages, "make_pages", slowly)
    monkeypatch.setattr(make_pages, "_made_at", make_pages.time.monotonic())
    make_pages.refresh_now_and_then(config, "labels")  # too early
    monkeypatch.setattr(make_pages, "SECONDS_BETWEEN", -1)
    for name in ("sssdd", "dssdd"):  # the second time the first is still under way
        make_pages.refresh_now_and_then(config, name)
    assert not made
    let_go.set()
    make_pages.refresh(config, "val")
    assert made == [("index", "sssdd"), ("index", "val")]
    monkeypatch.setattr(make_pages.distributed, "rank", lambda: 1)
    make_pages.refresh_now_and_then(config, "dssdd")
    make_pages.refresh(config, "val")
    assert ("index", "dssdd") not in made


def test_a_page_made_while_an_epoch_writes_its_pictures_ends_with_the_one_before(run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run.out, out)
    config, page = replace(run, out=str(out)), out / "script" / "sssdd.html"
    image_id = data_of(page)["samples"][0]["id"]
    for ending in ("s1.npy", "k1.png"):
        (path,) = out.glob(f"logs/sssdd_*/imgs/{image_id}_0002_{ending}")
        kept = path.read_bytes()
        path.unlink()
        make_pages.make_pages(config, ("sssdd",))
        assert data_of(page)["epochs"] == [1] and "1 of" in data_of(page)["note"]
        path.write_bytes(kept)
        make_pages.make_pages(config, ("sssdd",))
        assert data_of(page)["epochs"] == [1, 2]


def test_history_of_epochs_that_are_trained_again_is_dropped(tmp_path):
    first = history.History(tmp_path, 0, 10)
    for epoch in (1, 2):
        first.step(10 * epoch - 1, {"loss": epoch})
        first.epoch(epoch, {"seconds": 1.0})
    first.close()
    with open(tmp_path / history.FILE, "a") as file:
        file.write('{"epoch": 2.5, "lo')
    history.History(tmp_path, 1, 10).close()
    assert history.read(tmp_path) == [{"step": 9, "epoch": 1.0, "loss": 1}, {"epoch": 1, "seconds": 1.0}]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    tab = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture
def clean_tab(tab):
    """The tab; at the end it must have logged no error and asked nobody but this disk."""
    tab.errors.clear()
    tab.requests.clear()
    tab.look(1200, 900)
    yield tab
    tab.run("new Promise((done) => setTimeout(done, 100))")  # for messages that are under way
    assert tab.errors == []
    assert tab.requests and all(url.startswith(("file://", "data:")) for url in tab.requests)


def sources(tab, key: str, images: str = "img:not(.under)") -> list[str]:
    """What the visible figures of a column show, once it is loaded."""
    tab.run(f"Promise.all([...document.querySelectorAll('figure[data-key={key}] {images}')]"
            ".map((i) => { i.loading = 'eager'; return i.decode(); }))")  # fmt: skip
    shown = tab.run(f"[...document.querySelectorAll('figure[data-key={key}] {images}')].map((i) => i.src)")
    return [Path(unquote(address)).name for address in shown]


@needs_browser
@pytest.mark.parametrize("name", ["sssdd", "dssdd"])
def test_training_pages_step_through_epochs_and_samples(run, clean_tab, name):
    tab, ids = clean_tab, sorted(s["id"] for s in data_of(Path(run.out) / "script" / f"{name}.html")["samples"])
    tab.open((Path(run.out) / "script" / f"{name}.html").as_uri())
    last = "d1" if name == "sssdd" else "d2"
    every = ["k1", "dk1", "da1", "a1", "d1"] + (["k2", "dk2", "da2", "a2", "d2"] if name == "dssdd" else [])

    def all_show(epoch: int, shown: list[str]) -> None:
        for what in every:
            expected = [f"{i}_{epoch:04d}_{what}.png" for i in shown]
            found = sources(tab, what)
            assert found == [name for name in expected for _ in range(len(found) // len(expected))]
        assert sources(tab, "photo") == [f"{i}.jpg" for i in shown]
        assert sources(tab, "truth") == [f"{i}.png" for i in shown]

    all_show(2, ids)
    steps = "click:#epoch-before=1 key:ArrowLeft=1 key:ArrowRight=2 slide:0=1 click:#epoch-after=2 key:ArrowRight=2"
    for step in steps.split():
        kind, what, epoch = *step.split("=")[0].split(":"), int(step[-1])
        {"click": tab.click, "key": tab.key, "slide": lambda v: tab.choose("#epoch-slider", v)}[kind](what)
        assert sources(tab, last)[0] == f"{ids[0]}_{epoch:04d}_{last}.png", step
    tab.choose("#size", "1")
    all_show(2, ids[:1])
    for step, place in (
        ("click:#sample-after", 1),
        ("key:ArrowUp", 0),
        ("key:ArrowDown", 1),
        ("click:#sample-before", 0),
    ):
        kind, what = step.split(":")
        {"click": tab.click, "key": tab.key}[kind](what)
        all_show(2, ids[place : place + 1])
    tab.key("ArrowDown")
    tab.key("ArrowLeft")
    tab.load(lambda: tab.call("Page.reload"))
    all_show(1, ids[1:])
    classes = data_of(Path(run.out) / "script" / f"{name}.html")["samples"]
    chosen = classes[0]["classes"][0]
    tab.choose("#class", str(chosen))
    expected = [s["id"] for s in classes if chosen in s["classes"]]
    assert tab.run("document.getElementById('sample-count').textContent").endswith(f"of {len(expected)}")


@needs_browser
def test_the_page_integrates_as_the_model_does(run, finished_run, clean_tab, tiny_voc):
    """After every move: bias, background term, without maps, without flags, without both."""
    data = data_of(Path(run.out) / "script" / "sssdd.html")
    assert data["rule"] == {"bias": run.bias, "bg": run.bg}
    clean_tab.open((Path(run.out) / "script" / "sssdd.html").as_uri())
    imgs = finished_run / "logs" / "sssdd_ssdd" / "imgs"
    shown = clean_tab.run("[...document.querySelectorAll('article b')].map((b) => b.textContent)")
    moves = [{}, {"bias": -0.05}, {"bg": 0.3}, {"maps": False}, {"bias": 0.0}, {"flags": False}, {"maps": True}]
    rule = {"bias": run.bias, "bg": run.bg, "maps": True, "flags": True}
    seen = set()
    for move in moves:
        for name, value in move.items():
            clean_tab.click(f"#{name}") if isinstance(value, bool) else clean_tab.choose(f"#{name}", str(value))
        rule |= move
        for n, image_id in enumerate(shown):
            # The fixture's second epoch shows the pictures turned by 180°, the maps as they are.
            k, a = (np.array(Image.open(imgs / f"{image_id}_0001_{what}.png").rotate(180)) for what in ("k1", "a1"))
            score = np.load(imgs / f"{image_id}_0001_s1.npy") / 32767
            pair = [torch.from_numpy(mask.astype(np.int64))[None] for mask in (k, a)]
            present = torch.from_numpy(read_present(tiny_voc, image_id))[None]
            flags = missing_class_flags(*pair, present) * rule["flags"]
            # σ(logit) − σ(0) = the score, whatever its sign.
            d_k = torch.logit(torch.from_numpy(score * rule["maps"] / 2 + 0.5))[None, None]
            masks = integrate(*pair, d_k, -d_k, flags, rule["bias"], rule["bg"])
            text = clean_tab.run(f"document.querySelectorAll('figure[data-key=own] canvas')[{n}].dataset.mask")
            assert np.array_equal(np.array(text.split(","), int), masks.flatten().numpy()), (move, image_id)
            seen.add(text)
        captions = clean_tab.run(
            "[...document.querySelectorAll('figure[data-key=own] strong')].map((s) => s.textContent)"
        )
    assert len(seen) > len(shown)
    truth = np.array(Image.open(tiny_voc / "SegmentationClass" / f"{shown[-1]}.png"))
    places = zip(k.shape, truth.shape, strict=True)
    cells = truth[np.ix_(*(((np.arange(n) + 0.5) * side / n).astype(int) for n, side in places))]
    own = masks_scores(confusion(cells, masks[0].numpy().astype(np.uint8), 21))
    assert captions[-1] == f"{own['all']:.1f} %"
    clean_tab.load(lambda: clean_tab.call("Page.reload"))
    assert clean_tab.run("document.getElementById('flags').checked") is False


@needs_browser
def test_pointer_names_the_class(run, clean_tab, tiny_voc):
    clean_tab.open((Path(run.out) / "script" / "val.html").as_uri())
    first = clean_tab.run("document.querySelector('article b').textContent")
    truth = read_mask(tiny_voc / "SegmentationClass" / f"{first}.png")
    names = clean_tab.run("data.classes.map((c) => c.name)")
    for row in (2, 12, 20):
        for column in (3, 11):
            clean_tab.move_to("article figure[data-key=truth] a", (column + 0.5) / 24, (row + 0.5) / 24)
            value = truth[int((row + 0.5) * truth.shape[0] / 24), int((column + 0.5) * truth.shape[1] / 24)]
            hint = clean_tab.run("document.getElementById('hint').textContent")
            assert hint.splitlines()[-1] == f"true mask: {'unknown' if value == 255 else names[value]}"


@needs_browser
@pytest.mark.parametrize("name", ["labels", "val"])
def test_row_pages_sort_filter_and_turn_over(run, clean_tab, name):
    tab = clean_tab
    tab.open((Path(run.out) / "script" / f"{name}.html").as_uri())
    data = data_of(Path(run.out) / "script" / f"{name}.html")
    shown = lambda: tab.run("[...document.querySelectorAll('article b')].map((b) => b.textContent)")  # noqa: E731
    assert sorted(shown()) == sorted(row["id"] for row in data["rows"])
    for column in data["columns"]:
        before, after = unquote(column["before"]).split("/")[-1], unquote(column["after"])
        assert sources(tab, column["key"]) == [before + image_id + after for image_id in shown()]
    for key in data["scores"]:
        score = {row["id"]: row["scores"][key]["all"] for row in data["rows"]}
        tab.choose("#sort", f"{key} up")
        assert [score[i] for i in shown()] == sorted(score.values())
        tab.choose("#sort", f"{key} down")
        assert [score[i] for i in shown()] == sorted(score.values(), reverse=True)
    tab.choose("#sort", "")
    assert shown() == [row["id"] for row in data["rows"]]
    chosen = data["rows"][0]["classes"][0]
    tab.choose("#class", str(chosen))
    assert shown() == [row["id"] for row in data["rows"] if chosen in row["classes"]]
    tab.choose("#class", "")
    # Pages of 2 rows, which the list does not offer, as the set is so small.
    tab.run("remember({ size: 2, from: 0 })")
    tab.load(lambda: tab.call("Page.reload"))
    ids = [row["id"] for row in data["rows"]]
    assert shown() == ids[:2]
    for step, part in (("click:#page-after", ids[2:4]), ("key:ArrowLeft", ids[:2]), ("key:ArrowRight", ids[2:4]),
                       ("click:#page-before", ids[:2])):  # fmt: skip
        kind, what = step.split(":")
        {"click": tab.click, "key": tab.key}[kind](what)
        assert shown() == part, step
    for name, title in make_pages.TITLES.items():
        tab.load(lambda name=name: tab.click(f"nav a[href='{name}.html']"))
        assert tab.run("document.querySelector('h1').textContent") == title


@needs_browser
def test_index_draws_its_curves_and_tables(run, clean_tab):
    clean_tab.open((Path(run.out) / "script" / "index.html").as_uri())
    data = data_of(Path(run.out) / "script" / "index.html")
    assert clean_tab.run("document.querySelectorAll('.charts > article').length") == len(data["curves"]) > 6
    drawn = clean_tab.run("[...document.querySelectorAll('.charts svg[role] path')].map((p) => p.getAttribute('d'))")
    assert len(drawn) == sum(len(chart["series"]) for chart in data["curves"])
    assert all(line.startswith("M") and "NaN" not in line for line in drawn)
    assert clean_tab.run("document.querySelector('table').textContent").startswith("mIoU, %background")
    clean_tab.move_to(".charts svg", 0.5, 0.5)
    assert "epoch" in clean_tab.run("document.getElementById('hint').textContent")
    clean_tab.click("summary")
    assert clean_tab.run("document.querySelectorAll('details tr').length") > 50


@needs_browser
def test_ledger_shows_figures_and_causes(run, clean_tab):
    clean_tab.open((Path(run.out) / "script" / "ledger.html").as_uri())
    cells = "[...document.querySelectorAll('tbody tr:last-child td')].map((cell) => cell.textContent)"
    known = "25, 26: measured <i>there</i>"
    expected = ["mode 3, validation", "mask", "10.0", "24.0 – 27.0", known, "val, 3", "–", "–", "off by -14.0"]
    assert clean_tab.run(cells) == expected
    assert clean_tab.run("document.querySelector('tbody tr').textContent").endswith("done")
    assert clean_tab.run("document.querySelector('ol').textContent").startswith("crf: left <b>out</b> python -m tools")


@needs_browser
@pytest.mark.parametrize("name", list(make_pages.PAGES))
@pytest.mark.parametrize("screen", [(360, 740, True), (1400, 900, False)])
def test_nothing_runs_out_of_the_screen(run, clean_tab, name, screen):
    width, height, phone = screen
    clean_tab.look(width, height, dark=phone, phone=phone)
    clean_tab.open((Path(run.out) / "script" / f"{name}.html").as_uri())
    assert clean_tab.run("document.documentElement.scrollWidth") <= width


@needs_browser
def test_validation_page_of_1449_images_is_quick(tmp_path, tiny_voc, clean_tab):
    voc, masks = tmp_path / "VOC2012", tmp_path / "validation" / "ssdd"
    ids = [f"2007_{n:06d}" for n in range(1449)]
    sources = read_ids(tiny_voc, "val")
    for folder in (
        masks / "mask",
        masks / "crf",
        *(voc / f for f in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")),
    ):
        folder.mkdir(parents=True)
    for place, source in enumerate(sources):
        truth = read_mask(tiny_voc / "SegmentationClass" / f"{source}.png")
        write_mask(tmp_path / f"{place}.png", np.where(truth == 255, 0, truth))
    for n, image_id in enumerate(ids):
        source = sources[n % len(sources)]
        os.link(tiny_voc / "JPEGImages" / f"{source}.jpg", voc / "JPEGImages" / f"{image_id}.jpg")
        os.link(tiny_voc / "SegmentationClass" / f"{source}.png", voc / "SegmentationClass" / f"{image_id}.png")
        for kind in ("mask", "crf"):
            os.link(tmp_path / f"{n % len(sources)}.png", masks / kind / f"{image_id}.png")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(ids))
    started = time.process_time()  # whatever else this machine does
    make_pages.make_pages(replace(Config(), out=str(tmp_path), voc_root=str(voc)))
    assert time.process_time() - started < 30
    assert clean_tab.open((tmp_path / "script" / "val.html").as_uri()) < 2
    assert clean_tab.run("document.querySelectorAll('article').length") == 20
    assert clean_tab.call("Runtime.getHeapUsage")["usedSize"] < 100 * 2**20
