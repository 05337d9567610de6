"""Keys of dictionaries in a pickle: those that take long to hash or to compare are refused."""

from collections.abc import Iterable
from typing import Any

from stitchgrid.datasets.pickle_values import Dict, Name, RefusedPickleError

LONGEST_KEY = 4096  # characters
MOST_ITEMS = 8  # of a tuple that is a key
SMALL = 2**20  # whole numbers up to here never collide in a dictionary
MOST_NUMBERS = 10_000  # that are keys, once one is not small; they may all collide


class KeyCheck:
    """Checks the keys of all dictionaries of one file; none is hashed or compared."""

    def __init__(self) -> None:
        self._num_colliding = 0

    def check(self, keys: Iterable[Any], into: Dict) -> None:
        """Refuse keys of a dictionary that take long to hash or to compare, or may all collide.

        Raises:
            RefusedPickleError: If they do.
        """
        for key in keys:
            if isinstance(key, tuple):
                if len(key) > MOST_ITEMS or any(isinstance(item, tuple) for item in key):
                    raise RefusedPickleError("has a tuple of more than a few names as a key, which may take for ever")
                self.check(key, into)
                self._count(into, may_collide=any(isinstance(item, int | float) for item in key))
            elif isinstance(key, str):
                if len(key) > LONGEST_KEY:
                    raise RefusedPickleError(
                        f"has a key of {len(key):,} characters; none has more than {LONGEST_KEY:,}"
                    )
            elif isinstance(key, int | float) and not isinstance(key, bool):
                self._count(into, may_collide=isinstance(key, float) or not 0 <= key < SMALL)
            elif not (key is None or isinstance(key, bool | Name)):
                raise RefusedPickleError("has keys that are neither texts nor numbers")

    def _count(self, into: Dict, *, may_collide: bool) -> None:
        into.num_numbers += 1
        into.may_collide |= may_collide
        self._num_colliding += may_collide
        if max(self._num_colliding, into.num_numbers if into.may_collide else 0) > MOST_NUMBERS:
            raise RefusedPickleError(f"has more than {MOST_NUMBERS:,} numbers as keys, which may take for ever to hash")
