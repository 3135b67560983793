"""Whether a program fits into the memory there is, and the same question answered afterwards, in words."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax

from spn_jax.errors import InputError

MEMINFO = Path("/proc/meminfo")  # of Linux
OPENCV_SAYS = ("insufficient memory", "failed to allocate", "bad_alloc")
SMALLER = "use a smaller photo or --strategy crop"  # what to do about too little
CGROUP = Path("/sys/fs/cgroup")  # of a container, with the limit that it has


@contextlib.contextmanager
def out_of_memory_in_words(what: str) -> Iterator[None]:
    """Turns the errors that mean too little memory into an InputError."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError, cv2.error) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"not enough memory for {what}; {SMALLER}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the host's or the device's memory did not suffice; XLA has no type of its own for it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in ("resource_exhausted", "out of memory", *OPENCV_SAYS))


def free_memory(device: jax.Device) -> int | None:
    """Bytes that a program could still take, the host's (with swap space) where the device is the CPU; None where it cannot be known."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not MEMINFO.is_file():
        return None
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in MEMINFO.read_text().splitlines())}
    return min([1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"]), *free_in_container()])


def free_in_container() -> list[int]:
    """Bytes up to the limit of the control group that the process runs in; empty where there is none."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return []
    return [int(limit.read_text()) - int(used.read_text())]
