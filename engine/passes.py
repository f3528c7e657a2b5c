"""Stages that go over the images once: what is done is kept, the rest is shared out, its files are written beside."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import distributed
from engine.history import note_pass
from engine.loading import Key
from engine.notes import MADE_FROM, WITHDRAWN, add_notes, notes_of, picture_digest
from engine.progress import progress
from engine.workers import Workers, at_most_cores
from settings.config import Config


@dataclass(frozen=True)
class Pass:
    """What is left to do for this process.

    Attributes:
        batches: places of images in the list; a batch is there whole if one of its images is to do, so that what an
            image gives is a function of the list and not of where a run was cut.
        to_do: the ids of those images, with the digest of what each is made from.
        refresh: of the pages, every few minutes.
    """

    batches: list[list[int]]
    to_do: dict[str, str]
    notes: Path
    workers: Workers
    bar: Any
    refresh: Callable[[], None]

    def keys(self, seeds: Callable[[int], int] = lambda place: 0) -> list[list[Key]]:
        """The batches for engine.loading.Batches; `seeds`: of what is random in a sample, by its place."""
        return [[(place, seeds(place)) for place in batch] for batch in self.batches]

    def read_ahead(self, read: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
        """Each image to do with `read` of its id; the next one is read in a thread, beside the caller's network."""
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for image_id in [*self.to_do, None]:
                given, ahead = ahead, image_id and (image_id, reader.submit(read, image_id))
                if given:
                    yield given[0], given[1].result()

    def write(self, image_id: str, function: Callable, *arguments) -> None:
        """Let a worker make an image's files, unless they are there; all arguments must be picklable."""
        if image_id in self.to_do:
            note = {image_id: self.to_do[image_id]}
            self.workers.queue(write_and_note, self.notes, note, function, *arguments)
            self.bar.update()
            self.refresh()


def write_and_note(notes: Path, note: dict[str, str], function: Callable, *arguments) -> None:
    """Make an image's files, then say what they are made from."""
    function(*arguments)
    add_notes(notes, note)


def made_from(root: str, image_id: str, how: str) -> str:
    """What an image's files are made from, 16 hexadecimal digits."""
    picture = picture_digest(root, image_id)
    return hashlib.sha256(f"{picture} {how}".encode()).hexdigest()[:16] if how else picture


@contextmanager
def image_pass(
    config: Config,
    title: str,
    folder: Path,
    ids: Sequence[str],
    is_done: Callable[[str], bool],
    refresh: Callable[[], None],
    batch: tuple[str, int] = ("--eval_batch", 1),
    how: str = "",
) -> Iterator[Pass]:
    """Run the body over what is not done, then wait for its files and for the other processes.

    Args:
        folder: receives the history, and what each image was made from.
        is_done: whether an image's files are there.
        refresh: of the pages, every few minutes.
        batch: images a forward pass, after the flag that sets it.
        how: what else an image's files depend on, where a folder may hold several kinds.

    Raises:
        InputError: memory ran out, or a process was lost.
    """
    size, started = batch[1], time.perf_counter()
    whole = [list(range(first, min(first + size, len(ids)))) for first in range(0, len(ids), size)]
    mine = distributed.shard(whole)
    notes = folder / MADE_FROM
    now = {ids[place]: made_from(config.voc_root, ids[place], how) for places in mine for place in places}
    # A folder that an older version filled has no notes, and is believed.
    older = not notes.exists()
    before = {i: now[i] for i in now if is_done(i)} if older else notes_of(notes)
    distributed.barrier()
    to_do = {i: made for i, made in now.items() if not is_done(i) or before.get(i) != made}
    add_notes(notes, before if older else {i: WITHDRAWN for i in to_do if i in before})
    mine = [places for places in mine if any(ids[place] in to_do for place in places)]
    with (
        distributed.faults(*batch),
        Workers(at_most_cores(config.workers)) as workers,
        progress(title, len(to_do), len(ids)) as bar,
    ):
        yield Pass(mine, to_do, notes, workers, bar, refresh)
    distributed.barrier()
    if distributed.rank() == 0:
        note_pass(folder, len(to_do), started)
