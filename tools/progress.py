"""Progress bars: rate and time left, on the first process, where the output is a terminal."""

from tqdm import tqdm

from tools import distributed


def progress(title: str, todo: int, total: int | None = None, unit: str = "image") -> tqdm:
    """A bar over `todo` units; with `total` a line first says how much this is of."""
    main = distributed.rank() == 0
    if main and total is not None:
        print(f"{title}: {todo} images to do in this process, {total} in all", flush=True)
    return tqdm(total=todo, desc=title, unit=unit, disable=None if main else True, leave=False)
