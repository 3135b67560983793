"""What Orbax leaves to its users where files are damaged: checksums of the arrays, and one sentence
instead of a hundred tracebacks.
"""

import contextlib
import functools
import json
import logging
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

CHECKSUMS = "checksums"  # the entry of a checkpoint's description
LOGGERS = ("absl", "orbax")

Checksums = dict[str, dict[str, str | None]]


def checksums(parts: Mapping[str, Mapping[str, Any]]) -> Checksums:
    """{part: {name: type and CRC-32 of its bytes}}; None for an array of which this process has a
    piece alone.

    Orbax's chunks of parameters have no checksum of their own: a flipped bit would give another
    model, and nobody would know.
    """
    return {part: {name: checksum(array) for name, array in arrays.items()} for part, arrays in parts.items()}


def checksum(array: Any) -> str | None:
    """The type and the CRC-32 of an array; None if this process has a piece alone."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return None
    values = np.ascontiguousarray(array)
    return f"{values.dtype} {zlib.crc32(values.reshape(-1).view(np.uint8)):08x}"


def read_checksums(description: Path) -> Mapping[str, Mapping[str, str | None]]:
    """The checksums in a checkpoint's description; empty where it has none, as those of version
    0.1.0.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(description.read_bytes())["custom_metadata"][CHECKSUMS]
        if isinstance(stored, dict) and all(isinstance(part, dict) for part in stored.values()):
            return stored
    return {}


def changed_arrays(loaded: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """Names of the loaded arrays that are not those whose checksums were stored. Nothing is known
    about parts without any.
    """
    return [
        name
        for part, arrays in checksums({part: arrays for part, arrays in loaded.items() if part in stored}).items()
        for name, sum_now in arrays.items()
        if differs(sum_now, stored[part].get(name, ""))
    ]


def differs(now: str | None, before: str | None) -> bool:
    """Whether two checksums are of different values; an array that was read as another type cannot
    be compared.
    """
    if now is None or before is None or not isinstance(before, str):
        return False
    return now != before and (not before or now.split()[0] == before.split()[0])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what Orbax reports about files that it cannot read off the terminal: the caller says it
    in words.
    """
    _drop_late_reports()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@functools.cache
def _drop_late_reports() -> None:
    """Drops, from now on, what comes when Orbax has returned: it stops at the first array that
    cannot be read, and each of the others reports to an event loop that is closed, or to nobody."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: "tensorstore_spec" not in record.getMessage())
