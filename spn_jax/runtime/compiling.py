"""Compiles a function and measures how long that took."""

import time
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
