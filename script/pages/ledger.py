"""ledger.html: what tools.ledger left in the run's folder, each figure beside the known ones."""

from pathlib import Path

from datasets.errors import InputError
from script.pages.document import read_json
from settings.config import Config

SHOWN = ("title", "what", "split", "images", "here", "background", "crf", "low", "high", "verdict")


def ledger_page(config: Config, folder: Path) -> dict:
    """Raises an InputError, which the page shows, where the run has no ledger yet."""
    stored = read_json(Path(config.out) / "ledger.json")
    rows = stored.get("ledger")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"There is no ledger yet: python -m tools.ledger {config.out} --modelid {config.modelid}")
    return {
        "view": "ledger",
        "note": "Each figure beside the known ones, percent mIoU. Good is what lies in their range, widened a little.",
        "rows": [{name: row.get(name) for name in SHOWN} | {"known": known(row)} for row in rows],
        "findings": rows[-1].get("findings", []),
        "missing": stored.get("missing", ""),
    }


def known(row: dict) -> list[str]:
    """The known figures of a line, each with whose it is."""
    return [f"{', '.join(f'{f:g}' for f in e['figures'])}: {e['source']}" for e in row.get("expected", [])]
