"""Progress on the first process: a bar with rate and time left on a terminal, a plain line a minute elsewhere."""

import sys
import time

from tqdm import tqdm

from engine import distributed

SECONDS_BETWEEN_LINES = 60


def progress(title: str, todo: int, total: int | None = None, unit: str = "image"):
    """Something with update(), set_postfix() and close() over `todo` units; a context manager.

    With `total` a line first says how much this is of.
    """
    main = distributed.rank() == 0
    if main and total is not None:
        print(f"{title}: {todo} images to do in this process, {total} in all", flush=True)
    if main and not (sys.stderr and sys.stderr.isatty()):
        return Lines(title, todo, unit)
    return tqdm(total=todo, desc=title, unit=unit, disable=not main, leave=False)


class Lines:
    """What tqdm's bar says, as lines for a log file."""

    def __init__(self, title: str, todo: int, unit: str):
        self.title, self.todo, self.unit, self.done, self.figures = title, todo, unit, 0, ""
        self.started = self.said = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def set_postfix(self, figures: dict[str, str], refresh: bool = True) -> None:
        self.figures = "".join(f"  {name} {value}" for name, value in figures.items())

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_LINES and self.done < self.todo:
            self.said = now
            rate = self.done / (now - self.started)
            left = tqdm.format_interval((self.todo - self.done) / rate)
            done = f"{self.done}/{self.todo} {self.unit}s"
            print(f"{self.title}  {done}  {rate:.2f}/s  {left} left{self.figures}", flush=True)

    def close(self) -> None:
        pass
