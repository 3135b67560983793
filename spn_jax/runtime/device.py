"""Prepares a program before it computes: the compilation cache, memory settings and the device."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import filelock
import jax

from spn_jax.errors import InputError

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # names of mallopt's settings in glibc's malloc.h
GOOGLE = "0x1ae0"  # vendor of PCI devices
CACHE_BYTES = 4 * 2**30  # limit of the compilation cache; JAX evicts the least recently used
# Least compile time in seconds of a program that the cache keeps. JAX's default is 1 s: it would
# compile a program of 0.9 s at every start.
LEAST_SECONDS = 0.1


def set_up(training: bool = False) -> None:
    """Prepares a program. Call it at the start, before JAX looks for devices.

    Args:
        training: whether the program takes steps of equal size for hours; it then keeps freed
            memory. Other programs fill photos of many sizes or run beside others for long, so they
            return memory to the system.
    """
    keep_compiled_programs()
    if training and only_cpu():
        keep_memory()


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Makes the context in which new arrays lie in the host's memory, unless JAX has no CPU."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda
        return contextlib.nullcontext()


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, so that a program compiles only at its first
    start.

    The cache lies in the user's cache folder and holds up to 4 GB, unless
    JAX_COMPILATION_CACHE_MAX_SIZE sets another limit. Without one, requests to a server for photos
    of many sizes could fill the disk. JAX_COMPILATION_CACHE_DIR names another folder, which gets no
    limit from us; JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    if jax.config.values["jax_compilation_cache_max_size"] == -1 and can_lock(folder):
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def can_lock(folder: Path) -> bool:
    """Returns whether files in a folder can be locked. JAX locks its cache where that has a limit,
    and some network file systems have no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # JAX's own lock file and timeout
        with filelock.FileLock(folder / ".lockfile", timeout=10):
            return True
    except (OSError, NotImplementedError):  # filelock's Timeout is an OSError
        return False


def cache_folder() -> Path:
    """Returns the folder of the compilation cache. Each kind of processor has its own, because
    programs for the CPU may contain instructions that another processor lacks.

    The folder is not "compiled", as in version 0.1.0: entries there lack the time of last use,
    without which JAX cannot evict them.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home)) / "spn_jax" / "programs" / processor()


def processor() -> str:
    """Returns a name for the set of instructions that this machine's processor has."""
    described = Path("/proc/cpuinfo")
    text = described.read_text() if described.is_file() else platform.processor()
    instructions = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    digest = hashlib.sha256((instructions.group() if instructions else text).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def only_cpu() -> bool:
    """Returns whether JAX can only compute on the CPU here, without starting JAX."""
    if jax.config.values["jax_platforms"]:
        return jax.config.values["jax_platforms"] == "cpu"
    return importlib.util.find_spec("jax_plugins") is None and not (importlib.util.find_spec("libtpu") and has_tpu())


def has_tpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Returns whether a PCI device of Google's is attached, as JAX itself tests. An installed
    libtpu does not imply one: it may serve to compile for TPUs elsewhere.
    """
    return any(path.read_text().strip() == GOOGLE for path in devices.glob("*/vendor"))


def keep_memory() -> None:
    """Makes the C library keep freed memory for the next step.

    A training step at 256 x 256 allocates and frees gigabytes. By default they go back to the
    system, which clears every page before it hands it out again: that takes 15 % of the step on two
    cores. Only glibc has these settings; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
        mallopt(setting, value)


def choose_device(name: str | None) -> None:
    """Makes JAX compute on devices of one kind: "cpu", "gpu" or "tpu"; None leaves the choice to
    JAX. Call it before JAX computes.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return
    before = jax.config.values["jax_platforms"]
    try:
        jax.config.update("jax_platforms", name)
        jax.devices(name)
    except RuntimeError as error:
        jax.config.update("jax_platforms", before)  # a refused name changes nothing
        raise InputError(f"--device {name}: JAX finds no such device here; leave it out, or install JAX for it") from error
