"""Compiles a function and measures how long that took; traces without searches for garbage."""

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


class TimedProgram(NamedTuple):
    """A compiled program with the seconds that it took to make."""

    lowered: Any  # the program before it was compiled
    program: Any
    trace_s: float  # time to trace the function, which Python does, and to lower it; no cache avoids it
    compile_s: float  # time of the compiler alone; with a cache of compiled programs, of reading it


def compile_timed(function: Any, *arguments: Any) -> TimedProgram:
    """Compiles a jitted function for arguments, or for their shapes."""
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    program = lowered.compile()
    return TimedProgram(lowered, program, traced - start, time.perf_counter() - traced)


class _GarbageCollection:
    """Python's search for garbage, which is off while at least one thread needs that."""

    def __init__(self) -> None:
        self.lock, self.needing, self.was_on = threading.Lock(), 0, True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        with self.lock:
            if self.needing == 0:
                self.was_on = gc.isenabled()
                gc.disable()
            self.needing += 1
        try:
            yield
        finally:
            with self.lock:
                self.needing -= 1
                if self.needing == 0 and self.was_on:
                    gc.enable()


_GARBAGE_COLLECTION = _GarbageCollection()


def without_garbage_collection() -> contextlib.AbstractContextManager[None]:
    """Stops Python's search for garbage inside the context, which a large function that JAX traces
    enters itself.

    A trace makes hundreds of thousands of objects that all live until it ends. Python would search
    them for cycles again and again, for a quarter of the time. When the last of several threads has
    left, the search is on if it was on before the first one came, so a program that does without
    it keeps doing so.
    """
    return _GARBAGE_COLLECTION.off()
