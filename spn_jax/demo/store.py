"""Keeps items between requests under unguessable keys, limited in time, number and size."""

import collections
import secrets
import time
from collections.abc import Callable
from typing import Protocol, TypeVar


class Kept(Protocol):
    """A photo, or a job with its results."""

    @property
    def key(self) -> str:
        """The result of `new_key`."""

    @property
    def size(self) -> int:
        """Size in bytes; it may grow while the item is kept."""

    @property
    def busy(self) -> bool:
        """Whether it is in use and must stay."""


K = TypeVar("K", bound=Kept)


def new_key() -> str:
    """Returns 128 random bits. Whoever knows the key may see the photo."""
    return secrets.token_urlsafe(16)


class Store:
    """A store for one thread alone.

    A cache of the library cachetools would fix a job's size when it is put in, and could not keep
    busy items.

    Args:
        seconds: time that an item stays after its last use.
        max_bytes, max_items: limits of all that is kept; the least recently used items are dropped
            first.
        clock: returns seconds.
    """

    def __init__(self, seconds: float, max_bytes: int, max_items: int, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.max_bytes, self.max_items, self.clock = seconds, max_bytes, max_items, clock
        self._kept: collections.OrderedDict[str, tuple[Kept, float]] = (
            collections.OrderedDict()
        )  # {key: (item, its last use)}, the least recently used first

    def put(self, item: Kept) -> None:
        self._kept[item.key] = item, self.clock()
        self._kept.move_to_end(item.key)
        self.sweep()

    def get(self, key: str, kind: type[K]) -> K | None:
        """Returns the item of the key, if it is still there and of that kind."""
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
        """Drops expired items, and then the least recently used ones beyond the limits; the last
        used one stays whatever its size.
        """
        old = self.clock() - self.seconds
        number, total = len(self._kept), sum(item.size for item, _ in self._kept.values())
        last = next(reversed(self._kept), None)
        leaving = []
        for key, (item, used) in self._kept.items():
            full = key != last and (number > self.max_items or total > self.max_bytes)
            if used > old and not full:
                break  # all following items were used later
            if not item.busy:
                number, total = number - 1, total - item.size
                leaving.append(key)
        for key in leaving:
            self.drop(key)
