"""HTML pages of a run, for a browser, without a server or network.

    python -m script.make_pages                                                   # of the run in this folder
    python -m script.make_pages --preset demo --out demo --voc-root demo/VOC2012  # of the demo

Writes script/*.html in the run's --out folder and prints the path to open. The programs of the run do the same at
their end and every few minutes. The pages link to the run's pictures, so they belong beside it.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from datasets.errors import InputError, program
from engine import distributed
from script.pages.document import write_page
from script.pages.index import index_page
from script.pages.labels import labels_page
from script.pages.ledger import ledger_page
from script.pages.training import training_page
from script.pages.validation import validation_page
from settings.config import Config
from settings.flags import parse

PAGES: dict[str, tuple[str, Callable[[Config, Path], dict]]] = {
    "index": ("The run", index_page),
    "labels": ("Seeds", labels_page),
    "sssdd": ("Static SSDD", lambda config, folder: training_page(config, "mode 0", folder)),
    "dssdd": ("Dynamic SSDD", lambda config, folder: training_page(config, "mode 2", folder)),
    "val": ("Validation", lambda config, folder: validation_page(config, "mode 3", folder)),
    "ledger": ("Ledger", ledger_page),
    "recurseed": ("RecurSeed", lambda config, folder: training_page(config, "recurseed train", folder)),
    "recurseed_val": (
        "RecurSeed, validation",
        lambda config, folder: validation_page(config, "recurseed evaluate", folder),
    ),
}
TITLES = {name: title for name, (title, _) in PAGES.items()}
SECONDS_BETWEEN = 300
# What a page meets in notes and arrays that are no longer what this program wrote.
DAMAGE = (LookupError, TypeError, ValueError, AttributeError, EOFError, FileNotFoundError)
_made_at = time.monotonic()
_beside: threading.Thread | None = None


def make_pages(config: Config, names: Iterable[str] = PAGES) -> Path:
    """Write the pages of a run; the path of its index.

    Args:
        names: of PAGES, which to make; the others stay as they are, and are made where they are missing.
    """
    folder = Path(config.out) / "script"
    write = partial(write_page, folder, titles=TITLES, config=config)
    for name, (_, make) in PAGES.items():
        if name in names:
            try:
                data = make(config, folder)
            except InputError as error:
                data = {"view": "nothing", "reason": str(error)}
            except DAMAGE as error:
                why = f"{type(error).__name__}: {error}"
                reason = f"{name}.html cannot be made, a file that it reads is damaged ({why})"
                print(reason, file=sys.stderr)
                data = {"view": "nothing", "reason": reason}
            write(name, data=data)
        elif not (folder / f"{name}.html").exists():
            write(name, data={"view": "nothing", "reason": "This part of the run has not started."})
    return folder / "index.html"


def refresh(config: Config, *names: str) -> None:
    """make_pages for a program that has better things to do: whatever fails is said in one line and forgotten."""
    if _beside is not None:
        _beside.join()
    _try(config, *names)


def _try(config: Config, *names: str) -> None:
    global _made_at
    _made_at = time.monotonic()
    try:
        print(f"pages: {make_pages(config, ('index', *names))}", flush=True)
    except Exception as error:
        print(f"pages not made ({type(error).__name__}: {error})", flush=True)


def _try_beside(config: Config, *names: str) -> None:
    with suppress(BrokenPipeError):  # nobody reads what is said: the stage itself will notice
        _try(config, *names)


def refresh_now_and_then(config: Config, *names: str) -> None:
    """refresh by the first process in a thread, unless the last time is less than a few minutes ago.

    Every stage ends with `refresh`, which waits for the thread, so that none is there when the next one forks loaders.
    """
    global _beside
    busy = _beside is not None and _beside.is_alive()
    if time.monotonic() - _made_at > SECONDS_BETWEEN and not busy and distributed.rank() == 0:
        _beside = threading.Thread(target=_try_beside, args=(config, *names))
        _beside.start()


@program
def main(argv: list[str] | None = None) -> None:
    print(f"open {make_pages(parse(argv, __doc__, 'psa', 'ssdd', 'recurseed')).absolute()}")


if __name__ == "__main__":
    main()
