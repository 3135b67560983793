"""Whether a program fits into the memory there is, and the same question answered afterwards, in
words.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import jax

from spn_jax.errors import InputError

MEMINFO = Path("/proc/meminfo")  # of Linux
OPENCV_SAYS = ("insufficient memory", "failed to allocate", "bad_alloc")
SMALLER = "use a smaller photo or --strategy crop"  # what to do about too little
# control groups, which limit what a container or a job of a cluster may take
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")  # which of them the process belongs to


class GroupFiles(NamedTuple):
    """What a control group's files are called.

    folder: of the memory's groups, in CGROUP.
    evictable: the entry of memory.stat with the bytes of files that were read and can go at any
        moment.
    """

    folder: str
    limit: str
    used: str
    evictable: str


VERSION_1 = GroupFiles("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = GroupFiles("", "memory.max", "memory.current", "inactive_file")


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
    """Whether an error says that the host's or the device's memory did not suffice; XLA has no type
    of its own for it.
    """
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in ("resource_exhausted", "out of memory", *OPENCV_SAYS))


def free_memory(device: jax.Device) -> int | None:
    """Bytes that a program could still take, the host's (with swap space) where the device is the
    CPU; None where it cannot be known.
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not MEMINFO.is_file():
        return None
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in MEMINFO.read_text().splitlines())}
    return min([1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"]), *free_in_container()])


def free_in_container() -> list[int]:
    """Bytes up to the limit of each control group that the process runs in; empty where none has a
    limit.

    The kernel counts files that were read as used memory until somebody needs it; here they do not
    count, as in Kubernetes.
    """
    found = []
    for group, files in _groups():
        limit, used = _text(group / files.limit), _text(group / files.used)
        if limit.isdecimal() and used.isdecimal():
            evictable = re.search(rf"^{files.evictable} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            found.append(int(limit) - int(used) + (int(evictable[1]) if evictable else 0))
    return found


def _groups() -> Iterator[tuple[Path, GroupFiles]]:
    """The folders of the process's own group and of those around it. Inside a container the own one
    often is the root alone.
    """
    # number:kinds:path
    lines = [line.split(":", 2) for line in _text(OWN_GROUPS).splitlines() if line.count(":") >= 2]
    named = {kind: path for _, kinds, path in lines for kind in kinds.split(",")}
    for files, own in ((VERSION_2, named.get("", "/")), (VERSION_1, named.get("memory", "/"))):
        root = CGROUP / files.folder
        path = root / own.lstrip("/")
        yield from ((group, files) for group in (path, *path.parents) if group.is_relative_to(root))


def _text(file: Path) -> str:
    """Of a file of the kernel's, without white space around it; empty if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
