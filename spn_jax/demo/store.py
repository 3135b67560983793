"""What a server keeps in memory between two requests: under names that cannot be guessed, for a while, up to a size."""

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

    Args:
        seconds: that something stays after its last use.
        max_bytes: of all that is kept; what was not used for the longest time makes room.
        clock: in seconds.
    """

    def __init__(self, seconds: float, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.max_bytes, self.clock = seconds, max_bytes, clock
        self._kept: dict[str, Kept] = {}  # the longest unused first
        self._used: dict[str, float] = {}

    def put(self, item: Kept) -> None:
        self._kept[item.key] = item
        self._touch(item.key)
        self.sweep()

    def get(self, key: str, kind: type[K]) -> K | None:
        """What was put under the key, if it is still there and of that kind."""
        self.sweep()
        item = self._kept.get(key)
        if not isinstance(item, kind):
            return None
        self._touch(key)
        return item

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)
        self._used.pop(key, None)

    def sweep(self) -> None:
        """Drops what was not used for too long, and then what there is no room for; the last used thing stays whatever its size."""
        now = self.clock()
        for key in [key for key, used in self._used.items() if now - used >= self.seconds and not self._kept[key].busy]:
            self.drop(key)
        total = sum(item.size for item in self._kept.values())
        for key in list(self._kept)[:-1]:
            if total <= self.max_bytes:
                return
            if not self._kept[key].busy:
                total -= self._kept[key].size
                self.drop(key)

    def _touch(self, key: str) -> None:
        self._kept[key] = self._kept.pop(key)
        self._used[key] = self.clock()
