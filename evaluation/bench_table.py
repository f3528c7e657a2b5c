"""The tables of tools.bench: Markdown of its result files, and its place in a README."""

import json
import statistics
from pathlib import Path

from datasets.errors import InputError
from datasets.files import atomic_write

VOC_IMAGES = 10_582
BEGIN, END = "<!-- tables of tools.bench -->", "<!-- end of tables -->"


def projected(config: dict, rows: list[dict]) -> dict | None:
    """Hours of modes 0, 1 and 2 on VOC's 10,582 images from the measured rates, one device; None if one is missing."""
    rates = {r["step"]: statistics.median(r["rates"]) for r in rows if "step" in r}
    bases = {r["step"]: statistics.median(r["baseline_rates"]) for r in rows if "step" in r}
    if set(rates) != {0, 1, 2}:
        return None
    passes = {0: config["static_epochs"], 1: 1, 2: config["dynamic_epochs"]}
    hours, plain = (sum(VOC_IMAGES * passes[m] / r[m] / 3600 for m in passes) for r in (rates, bases))
    what = f"projected, modes 0 + 1 + 2 on {VOC_IMAGES:,} images"
    return {"what": what, "unit": "hours", "rates": [hours], "baseline": "float32, NCHW", "baseline_rates": [plain]}


def table(result: dict) -> str:
    """One result file as Markdown."""
    lines = [f"*{result['machine']}, torch {result['torch']}; `{result['command']}`, {result['date']}*", ""]
    lines += [
        "| what | median | lowest to highest | baseline in the same run | times | notes |",
        "|---|---|---|---|---|---|",
    ]
    rows = result["rows"] + [r for r in [projected(result["config"], result["rows"])] if r]
    peak = measured_peak(rows)
    for r in rows:
        median = statistics.median(r["rates"])
        spread = " – ".join(figure(rate) for rate in sorted({min(r["rates"]), max(r["rates"])}))
        base = factor = "–"
        if "baseline" in r:
            plain = statistics.median(r["baseline_rates"])
            base = f"{r['baseline']}: {figure(plain)}"
            factor = f"{plain / median if r['unit'] == 'hours' else median / plain:.3g}"
        notes = [r["note"]] if "note" in r else []
        if r.get("memory") is not None:
            notes.append(f"{r['tflop']:.2f} TFLOP a step; peak memory {r['memory']:.1f} GB")
        if r["what"].endswith("arithmetic") and peak:
            notes.append(f"{100 * median / peak:.0f} % of the measured convolution")
        lines.append(
            f"| {r['what']} | {figure(median)} {r['unit']} | {spread} | {base} | {factor} | {'; '.join(notes)} |"
        )
    return "\n".join(lines)


def measured_peak(rows: list[dict]) -> float | None:
    """TFLOP/s of the one large convolution, with which the steps' arithmetic is compared; None if not measured."""
    return next((statistics.median(r["rates"]) for r in rows if "3×3 convolution" in r["what"]), None)


def figure(x: float) -> str:
    """Three digits, without an exponent for large numbers."""
    return f"{x:.3g}" if x < 1000 else f"{x:,.0f}"


def update_readme(readme: Path) -> None:
    """Replace what stands between the two marks in the README by the tables of the results stored beside it."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise InputError(f"{readme} lacks the lines {BEGIN} and {END}, between which the tables go")
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(readme.parent.glob("*.json"))]
    tables = [table(result) for result in results]
    if not any(result["device"] == "cuda" for result in results):
        tables.append("On a GPU: not measured.")
    head, tail = text.split(BEGIN)[0], text.split(END, 1)[1]
    with atomic_write(readme) as temporary:
        temporary.write_text("".join([head, BEGIN, "\n", "\n\n".join(tables), "\n", END, tail]), encoding="utf-8")
