"""What a server keeps in memory between two requests: under names that cannot be guessed, for a
while, up to a number and a size.
"""

import collections
import secrets
import time
from collections.abc import Callable
from typing import Protocol, TypeVar


class Kept(Protocol):
    """A photo, or a job with its results."""

    @property
    def key(self) -> str:
        """From `new_key`."""

    @property
    def size(self) -> int:
        """Bytes; may grow while it is kept."""

    @property
    def busy(self) -> bool:
        """Whether it is being worked on, and must stay."""


K = TypeVar("K", bound=Kept)


def new_key() -> str:
    """128 random bits: who knows the key may see the photo."""
    return secrets.token_urlsafe(16)


class Store:
    """Used by one thread alone.

    A cache of the library cachetools would count a job with the size that it had when it was put
    in, and would not let what is busy stay.

    Args:
        seconds: that something stays after its last use.
        max_bytes, max_items: of all that is kept; what was not used for the longest time makes
            room.
        clock: in seconds.
    """

    def __init__(self, seconds: float, max_bytes: int, max_items: int, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.max_bytes, self.max_items, self.clock = seconds, max_bytes, max_items, clock
        self._kept: collections.OrderedDict[str, tuple[Kept, float]] = (
            collections.OrderedDict()
        )  # with its last use, the longest unused first

    def put(self, item: Kept) -> None:
        self._kept[item.key] = item, self.clock()
        self._kept.move_to_end(item.key)
        self.sweep()

    def get(self, key: str, kind: type[K]) -> K | None:
        """What was put under the key, if it is still there and of that kind."""
        self.sweep()
        item, _ = self._kept.get(key, (None, 0.0))
        if not isinstance(item, kind):
            return None
        self._kept[key] = item, self.clock()
        self._kept.move_to_end(key)
        return item

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)

    def sweep(self) -> None:
        """Drops what was not used for too long, and then what there is no room for; the last used
        thing stays whatever its size.
        """
        old = self.clock() - self.seconds
        number, total = len(self._kept), sum(item.size for item, _ in self._kept.values())
        last = next(reversed(self._kept), None)
        leaving = []
        for key, (item, used) in self._kept.items():
            full = key != last and (number > self.max_items or total > self.max_bytes)
            if used > old and not full:
                break  # what follows was used later
            if not item.busy:
                number, total = number - 1, total - item.size
                leaving.append(key)
        for key in leaving:
            self.drop(key)
