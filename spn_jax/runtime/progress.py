"""Prints the progress of long work on files, in lines that suit a log file and a terminal."""

import dataclasses
import threading
import time
from collections.abc import Callable
from datetime import timedelta

SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass
class Progress:
    """Prints a line every ten seconds and at the end. It is thread-safe. (`log.StepClock` is for
    training steps.)
    """

    done: int  # photos
    total: int
    clock: Callable[[], float] = time.monotonic
    unit: str = "photos"

    def __post_init__(self) -> None:
        self._first, self._start = self.done, self.clock()
        self._printed = self._start
        self._lock = threading.Lock()

    def add(self, photos: int) -> None:
        """Counts finished photos."""
        with self._lock:
            self.done += photos
            now = self.clock()
            if now - self._printed >= SECONDS_BETWEEN_LINES or self.done == self.total:
                self._printed = now
                rate = (self.done - self._first) / max(now - self._start, 1e-9)
                left = timedelta(seconds=round((self.total - self.done) / rate))
                print(f"{self.done:,}/{self.total:,} {self.unit}, {rate:.1f} {self.unit}/s, {left} left", flush=True)

    def seconds(self) -> float:
        """Returns the seconds since the start."""
        return self.clock() - self._start
