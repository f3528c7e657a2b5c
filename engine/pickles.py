"""A look at a pickle before anything reads it."""

import pickle
import pickletools
from typing import BinaryIO

# What no walk can get lost in: plain values, names, stored tensors, and what cannot be the key of a dictionary.
_HARMLESS = (
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8 INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE GLOBAL STACK_GLOBAL "
    "BINPERSID REDUCE EMPTY_TUPLE EMPTY_LIST LIST EMPTY_DICT DICT EMPTY_SET"
).split()
_MOST_SHARED = 16


def refuse_endless_keys(file: BinaryIO, pickles: int = 1) -> None:
    """Refuse pickles that would keep the reader busy for ever.

    A tuple of two references to one tuple, and so on sixty times, is 200 bytes long; as the key of a dictionary it
    takes 2^60 steps. Files of tensors or arrays hardly ever refer to a tuple again.

    Args:
        file: stands at the first pickle.
        pickles: how many follow each other.

    Raises:
        pickle.UnpicklingError: tuples are shared over and over, or this is no pickle.
    """
    shared = 0
    for _ in range(pickles):
        memo: dict[int, bool] = {}
        harmless = True
        try:
            for code, argument, _position in pickletools.genops(file):
                if code.name == "MEMOIZE":
                    memo[len(memo)] = harmless
                elif code.name.endswith("PUT"):
                    memo[argument] = harmless
                elif code.name != "FRAME":  # which may come between a value and its MEMOIZE
                    again = code.name.endswith("GET")
                    harmless = memo.get(argument, True) if again else code.name in _HARMLESS
                    shared += code.name == "DUP" or (again and not harmless)
                if shared > _MOST_SHARED:
                    raise pickle.UnpicklingError("its tuples are shared over and over")
        except ValueError as error:
            raise pickle.UnpicklingError(f"no pickle: {error}") from None
