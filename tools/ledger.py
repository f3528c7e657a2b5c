"""Where does a run leave the published figures, and why? Its stages in order, each figure beside the expected one.

    python -m tools.ledger .                                 # the run in this folder, against the published figures
    python -m tools.ledger demo                              # the demo, against what this project measured
    python -m tools.ledger mine --against theirs other       # against finished runs of your own, on any data

RUN is the --out folder. Figures are computed anew from masks and stored maps. A figure is as expected inside the range
of the known ones, widened by two percent points (published) or four (embedded data). At the first stage that is
outside, or whose list, CRF, weights or settings are not those of the figures, it stops and names causes: first what is
proven, then what is likely, each with the command that tells. Exit status 0: all as expected, 1: it stopped.

Writes ledger.json into RUN and its page, script/ledger.html.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from datasets.errors import InputError, program
from datasets.files import atomic_write
from engine import ledger, ledger_causes, ledger_checks
from engine.ledger import Known, Row, Run
from script.make_pages import make_pages
from settings.flags import Parser


def walk(run: Run, known: Known) -> Iterator[Row]:
    """The lines of a run up to the first that is wrong, with what is wrong there."""
    for number, entry in enumerate(run.entries):
        findings = ledger_checks.findings_of(run, number, known)
        try:
            rows = ledger.measure(run, entry, known.figures)
        except InputError:
            if not findings:
                raise
            rows = [Row(entry.stage, entry.title)]  # of another list, say: the finding tells more
        stop = next((row for row in rows if row.stops), rows[-1] if findings else None)
        if stop is not None:
            stop.findings = [*findings, *ledger_causes.likely(run, entry)]
        if findings and not stop.verdict.startswith("off"):
            stop.verdict = "not comparable"
        for row in rows:
            yield row
            if row is stop:
                return


def line(row: Row) -> str:
    """A row of the Markdown table."""
    here = "–" if row.here is None else f"{row.here:.1f}"
    figures = [
        f"{'/'.join(f'{f:g}' for f in e.figures)} ({e.source}{'' if e.judged else '; shown only'})"
        for e in row.expected
    ]
    count = sum(len(e.figures) for e in row.expected if e.judged)
    spread = "–" if row.low is None else f"{row.low:.1f} to {row.high:.1f}"
    where = f"{row.split}, {row.images} images" if row.images else "–"
    cells = (row.title, row.what or "–", here, "; ".join(figures) or "–", where, row.background or "–", row.crf or "–")
    return f"| {' | '.join([*cells, str(count or '–'), spread, row.verdict])} |"


HEAD = "| stage | what | mIoU here | known | on | background | CRF | runs | good from, to | verdict |"


def said_of(row: Row) -> list[str]:
    """The causes of a row that stops."""
    lines = [f"Stops at {row.title}{f', {row.what}' if row.what else ''}: {row.verdict}. Causes, the likeliest first:"]
    for number, finding in enumerate(row.findings, 1):
        lines += [f"{number:2d}. {finding.cause}: {finding.text}", f"    {finding.command}"]
    return lines


@program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="--out folder of the run")
    parser.add_argument("--modelid", default="ssdd", help="name of the run in it (default: ssdd)")
    parser.add_argument("--voc-root", help="folder of the data (default: as the run noted it)")
    parser.add_argument("--against", nargs="+", type=Path, metavar="OUT", help="--out folders of runs to compare with")
    arguments = parser.parse_args(argv)
    run = ledger.open_run(arguments.run, arguments.modelid, arguments.voc_root)
    if arguments.against:
        others = [ledger.open_run(out, arguments.modelid, arguments.voc_root) for out in arguments.against]
        known = ledger.measured(others)
    else:
        known = ledger.published(run)
    print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
    rows = []
    for row in walk(run, known):
        rows.append(row)
        print(line(row), flush=True)
    stopped = rows[-1] if rows and rows[-1].findings else None
    write(run, rows, "" if stopped or not run.missing else run.missing[0])
    if stopped:
        print("\n" + "\n".join(said_of(stopped)))
        sys.exit(1)
    if run.missing:
        raise InputError(run.missing[0])
    print("\nEvery stage is as expected, as far as there is a figure for it.")


def write(run: Run, rows: list[Row], missing: str) -> None:
    """Keep the ledger in the run's folder, and make its page."""
    with atomic_write(run.out / "ledger.json") as temporary:
        content = {"missing": missing, "ledger": [asdict(row) for row in rows]}
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    make_pages(replace(run.config, out=str(run.out), modelid=run.modelid), ["ledger"])


if __name__ == "__main__":
    main()
