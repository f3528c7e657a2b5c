"""Stages that go over the images once: what is done is kept, the rest is shared out, its files are written beside."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine import distributed
from engine.history import note_pass
from engine.loading import Key
from engine.progress import progress
from engine.workers import Workers, at_most_cores
from settings.config import Config


class Pass:
    """What is left to do for this process.

    Args:
        batches: places of images in the list; a batch is there whole if one of its images is to do, so that what an
            image gives is a function of the list and not of where a run was cut.
        to_do: the ids of those images.
        refresh: of the pages, every few minutes.
    """

    def __init__(
        self, batches: list[list[int]], to_do: dict[str, None], workers: Workers, bar, refresh: Callable[[], None]
    ):
        self.batches, self.to_do, self._workers, self._bar, self._refresh = batches, to_do, workers, bar, refresh

    @property
    def ids(self) -> list[str]:
        """What is to do, one by one, in the order of the list."""
        return list(self.to_do)

    def keys(self, seeds: Callable[[int], int] = lambda place: 0) -> list[list[Key]]:
        """The batches for engine.loading.Batches; `seeds`: of what is random in a sample, by its place."""
        return [[(place, seeds(place)) for place in batch] for batch in self.batches]

    def write(self, image_id: str, function: Callable, *arguments) -> None:
        """Let a worker make an image's files, unless they are there; all arguments must be picklable."""
        if image_id in self.to_do:
            self._workers.queue(function, *arguments)
            self._bar.update()
            self._refresh()


@contextmanager
def image_pass(
    config: Config,
    title: str,
    folder: Path,
    ids: Sequence[str],
    is_done: Callable[[str], bool],
    refresh: Callable[[], None],
    batch: tuple[str, int] = ("--eval_batch", 1),
) -> Iterator[Pass]:
    """Run the body over what is not done, then wait for its files and for the other processes.

    Args:
        folder: receives the history.
        refresh: of the pages, every few minutes.
        batch: images a forward pass, after the flag that sets it.

    Raises:
        InputError: memory ran out, or a process was lost.
    """
    size, started = batch[1], time.perf_counter()
    whole = [list(range(first, min(first + size, len(ids)))) for first in range(0, len(ids), size)]
    mine = distributed.shard(whole)
    to_do = {ids[place]: None for places in mine for place in places if not is_done(ids[place])}
    mine = [places for places in mine if any(ids[place] in to_do for place in places)]
    with (
        distributed.faults(*batch),
        Workers(at_most_cores(config.workers)) as workers,
        progress(title, len(to_do), len(ids)) as bar,
    ):
        yield Pass(mine, to_do, workers, bar, refresh)
    distributed.barrier()
    if distributed.rank() == 0:
        note_pass(folder, len(to_do), started)
