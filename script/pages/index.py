"""index.html: results, stages with their time and memory, curves, Config."""

import json
from pathlib import Path

import numpy as np

from engine import history, stages
from script.pages.document import read_json
from script.pages.training import progress_of
from settings.config import FIELDS, Config
from settings.config import shown as shown_value

POINTS = 400  # of a curve


def index_page(config: Config, folder: Path) -> dict:
    shown = {name: stages.folder(config, name) for name in stages.STAGES}
    shown = {name: path for name, path in shown.items() if name in stages.PSA + stages.SSDD or path.exists()}
    rows, curves, running = [], [], False
    for name, path in shown.items():
        title = stages.STAGES[name].title
        lines = history.read(path)
        timed = [line for line in lines if "seconds" in line]
        done, epochs = progress_of(path) if any("epoch" in line for line in lines) else (0, 0)
        state = f"epoch {done} of {epochs}" if epochs else "done" if timed else "–"
        if not lines and (path / "config.json").exists():
            state = "started"
        running = done < epochs or state == "started" or (state == "–" and running)
        rows.append({
            "stage": title,
            "state": state,
            "seconds": sum(line["seconds"] for line in timed),
            "rate": timed[-1]["images_per_second"] if timed else None,
            "memory": max((line["memory_gib"] for line in timed), default=None),
        })  # fmt: skip
        curves += curves_of(title, lines)
    stored = next((s for f in reversed(shown.values()) if (s := read_json(f / "config.json"))), {})
    settings = [
        {"name": name, "value": shown_value(stored[name]), "help": entry.metadata["help"],
         "changed": stored[name] != json.loads(json.dumps(entry.default))}
        for name, entry in FIELDS.items() if name in stored
    ]  # fmt: skip
    return {
        "view": "index",
        "note": f"Run {config.modelid} in {Path(config.out).absolute()}",
        "running": running,
        "stages": rows,
        "curves": curves,
        "results": results(config),
        "settings": settings,
    }


def curves_of(title: str, lines: list[dict]) -> list[dict]:
    """Figures of a training run against epochs: losses, learning rate, what the modules did, mIoU, speed."""
    charts = {
        "loss": lambda name: name.startswith("loss"),
        "share of pixels with advice taken, of images flagged": lambda name: name.startswith(("advice", "flagged")),
        "share of the labelled classes that the network's own mask shows": lambda name: name == "shown",
        "share of ignored, foreground and background pixels, of images mixed": lambda name: name.startswith("share"),
        "mIoU of the logged pictures, %": lambda name: name.startswith("miou"),
        "learning rate": lambda name: name == "learning_rate",
    }
    names = dict.fromkeys(name for line in lines for name in line)
    result = []
    for chart, belongs in charts.items():
        series = []
        for name in filter(belongs, names):
            points = [(line["epoch"], line[name]) for line in lines if name in line and "epoch" in line]
            factor = 100 if name.startswith("miou") else 1
            series.append({"name": name, "points": [(x, float(f"{factor * y:.5g}")) for x, y in thinned(points)]})
        if series:
            result.append({"stage": title, "title": chart, "series": series})
    return result


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of its neighbours."""
    groups = np.array_split(np.array(points, np.float64), min(len(points), POINTS))
    return [(round(float(x), 3), float(y)) for x, y in (group.mean(axis=0) for group in groups)]


def results(config: Config) -> list[dict]:
    """Tables that tools.eval_masks and the evaluations left in the run's folders."""
    found = sorted(Path(config.out).glob("*.json"))
    for stage in ("mode 3", "recurseed evaluate"):
        found += sorted(stages.folder(config, stage).glob("result_*.json"))
    tables = []
    for path in found:
        content = read_json(path)
        rows = {name: value for name, value in content.items() if isinstance(value, dict)}
        rows = {name: value for name, value in rows.items() if isinstance(value.get("iou"), dict)}
        if rows:
            names = next(iter(rows.values()))["iou"]
            shown = [c for c in names if any(row["iou"].get(c) is not None for row in rows.values())]
            lines = [{"name": n, "miou": r["miou"], "iou": [r["iou"].get(c) for c in shown]} for n, r in rows.items()]
            images = next(iter(rows.values())).get("images")
            tables.append({"file": path.name, "images": images, "classes": shown, "rows": lines})
    return tables
