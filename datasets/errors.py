"""The one kind of error that a user can mend, and how a program ends on it."""

import functools
import sys
from collections.abc import Callable
from typing import NoReturn


class InputError(Exception):
    """Something the user gave cannot be used. The message names the file or flag and says how to mend it."""


def program(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a program's `main`: an `InputError` becomes one line on stderr and exit status 2."""

    @functools.wraps(main)
    def run(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except InputError as error:
            fail(error)

    return run


def fail(error: InputError) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
