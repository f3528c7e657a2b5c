"""The progress bar of the steps that go over images."""

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from tools import distributed


def over_images(title: str, todo: Sequence[str], total: int) -> Iterator[str]:
    """The ids of `todo` under a bar with rate and time left; says what was done before."""
    if distributed.rank() == 0:
        print(f"{title}: {len(todo)} images to do in this process, {total} in all", flush=True)
    return iter(tqdm(todo, desc=title, unit="image", disable=None if distributed.rank() == 0 else True, leave=False))
