"""Estimates free memory, and turns out-of-memory errors into InputErrors."""

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
SMALLER = "use a smaller photo or the strategy crop"  # advice where memory does not suffice
# control groups (cgroups), which limit the memory of a container or a cluster job
CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")  # lists the groups that the process belongs to


class GroupFiles(NamedTuple):
    """Names a control group's files, which differ between versions 1 and 2.

    folder: of the memory groups, in CGROUP.
    limit, used: files with the group's limit and usage in bytes.
    evictable: entry of memory.stat with the bytes of cached files that the kernel can drop.
    """

    folder: str
    limit: str
    used: str
    evictable: str


VERSION_1 = GroupFiles("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = GroupFiles("", "memory.max", "memory.current", "inactive_file")


@contextlib.contextmanager
def out_of_memory_in_words(what: str) -> Iterator[None]:
    """Turns errors that mean too little memory into an InputError."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError, cv2.error) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"not enough memory for {what}; {SMALLER}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error says that the host's or the device's memory did not suffice. XLA has
    no exception type for it.
    """
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in ("resource_exhausted", "out of memory", *OPENCV_SAYS))


def free_memory(device: jax.Device) -> int | None:
    """Returns the bytes that a program could still allocate on a device, or None where that cannot
    be known. On the CPU it is the host's memory with swap space.
    """
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not MEMINFO.is_file():
        return None
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in MEMINFO.read_text().splitlines())}
    return min([1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"]), *free_in_container()])


def free_in_container() -> list[int]:
    """Returns the bytes left below the limit of each control group that the process runs in, and
    nothing for groups without a limit.

    The kernel counts cached files as used memory until it is needed; here they count as free, as in
    Kubernetes.
    """
    found = []
    for group, files in _groups():
        limit, used = _text(group / files.limit), _text(group / files.used)
        if limit.isdecimal() and used.isdecimal():
            evictable = re.search(rf"^{files.evictable} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
            found.append(int(limit) - int(used) + (int(evictable[1]) if evictable else 0))
    return found


def _groups() -> Iterator[tuple[Path, GroupFiles]]:
    """Yields the folders of the process's own group and of those around it. Inside a container the
    process often sees its own group as the root.
    """
    # number:kinds:path
    lines = [line.split(":", 2) for line in _text(OWN_GROUPS).splitlines() if line.count(":") >= 2]
    named = {kind: path for _, kinds, path in lines for kind in kinds.split(",")}
    for files, own in ((VERSION_2, named.get("", "/")), (VERSION_1, named.get("memory", "/"))):
        root = CGROUP / files.folder
        path = root / own.lstrip("/")
        yield from ((group, files) for group in (path, *path.parents) if group.is_relative_to(root))


def _text(file: Path) -> str:
    """Returns the stripped text of a kernel's file, or "" if it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
