"""Detects damaged checkpoints: checksums of arrays, and silence for Orbax's many tracebacks."""

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

CHECKSUMS = "checksums"  # key in a checkpoint's description
LOGGERS = ("absl", "orbax")

Checksums = dict[str, dict[str, str | None]]


def checksums(parts: Mapping[str, Mapping[str, Any]]) -> Checksums:
    """Returns {part: {name: type and CRC-32 of its bytes}}, with None for an array that this
    process holds only in part.

    Orbax's chunks of parameters have no checksum of their own, so a flipped bit would change the
    model unnoticed.
    """
    return {part: {name: checksum(array) for name, array in arrays.items()} for part, arrays in parts.items()}


def checksum(array: Any) -> str | None:
    """Returns the type and the CRC-32 of an array, or None if this process holds only a part of
    it.
    """
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return None
    values = np.ascontiguousarray(array)
    return f"{values.dtype} {zlib.crc32(values.reshape(-1).view(np.uint8)):08x}"


def read_checksums(description: Path) -> Mapping[str, Mapping[str, str | None]]:
    """Returns the checksums in a checkpoint's description, or {} if it has none, as in version
    0.1.0.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(description.read_bytes())["custom_metadata"][CHECKSUMS]
        if isinstance(stored, dict) and all(isinstance(part, dict) for part in stored.values()):
            return stored
    return {}


def changed_arrays(loaded: Mapping[str, Mapping[str, Any]], stored: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """Returns the names of loaded arrays whose checksums differ from the stored ones. Parts without
    stored checksums are skipped.
    """
    return [
        name
        for part, arrays in checksums({part: arrays for part, arrays in loaded.items() if part in stored}).items()
        for name, sum_now in arrays.items()
        if differs(sum_now, stored[part].get(name, ""))
    ]


def differs(now: str | None, before: str | None) -> bool:
    """Returns whether two checksums are of different values. Arrays read as another type cannot be
    compared and count as equal.
    """
    if now is None or before is None or not isinstance(before, str):
        return False
    return now != before and (not before or now.split()[0] == before.split()[0])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Orbax's log messages about files that it cannot read, because the caller reports
    them.
    """
    drop_late_reports()
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
def drop_late_reports() -> None:
    """Drops, from now on, the errors that arrive after Orbax has returned. Orbax stops at the first
    array that it cannot read or write; the others then report to a closed event loop, or to nobody.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(lambda record: "tensorstore_spec" not in record.getMessage())
