"""The errors that a user can mend, and how a program ends on them."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import NoReturn

# Of the machine, not of this program or of a file's content: one line says enough.
MACHINE_FAULTS = tuple(
    getattr(errno, name)
    for name in "EACCES EAGAIN EDQUOT EFBIG EIO EMFILE ENFILE ENOMEM ENOSPC EPERM EROFS ESTALE".split()
)


class InputError(Exception):
    """Something the user gave cannot be used. The message names the file or flag and says how to mend it."""


class Stopped(Exception):
    """A signal asked the program to leave, and what was done is saved.

    Args:
        message: says how to go on.
        status: exit status of the program, 128 and the signal's number.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def program(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a program's `main`: an `InputError` or a fault of the machine becomes one line and exit status 2.

    Where nobody reads what it says any more (`| head`), it leaves without a word, with the status that SIGPIPE gives.
    """

    @functools.wraps(main)
    def run(*args, **kwargs) -> None:
        with suppress(AttributeError):  # there is no standard output, or another kind of it
            sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
        try:
            try:
                main(*args, **kwargs)
            finally:
                print(end="", flush=True)
        except BrokenPipeError:
            # What is left in the buffers would fail again when Python ends.
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            sys.exit(141)
        except InputError as error:
            fail(error)
        except Stopped as stopped:
            print(stopped, file=sys.stderr, flush=True)
            sys.exit(stopped.status)
        except KeyboardInterrupt:
            print("interrupted; give the same command again to go on", file=sys.stderr, flush=True)
            sys.exit(130)
        except BrokenProcessPool:
            fail(InputError("a CRF process died; what is done is kept. If memory ran out, give a smaller --workers"))
        except MemoryError:
            fail(InputError("memory ran out; what is done is kept. Smaller pictures, batches or --workers take less"))
        except UnicodeEncodeError as error:
            start = max(0, error.start - 100)
            fail(InputError(f"a name is not UTF-8: {error.object[start : error.end]!a}; rename the file or folder"))
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename is None:  # os.getcwd names none
                fail(InputError("the folder that this was started in is gone: start it in one that is there"))
            if error.errno not in MACHINE_FAULTS and error.filename is None:
                raise
            where = error.filename or f"a file that {_writer(error)} was writing or reading"
            fail(InputError(f"{where}: {error.strerror}; what is done is kept"))

    return run


def _writer(error: BaseException) -> str:
    """The innermost function that met the error, as write() names no file."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__')}.{trace.tb_frame.f_code.co_name}"


def fail(error: InputError) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    sys.exit(2)
