"""What a program sets up before it computes: a place for compiled programs, and for training memory that stays with the process."""

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
CACHE_BYTES = 4 * 2**30  # of compiled programs on the disk; the longest unused make room


def set_up(training: bool = False) -> None:
    """Prepares a program; to be called at its start, before JAX looks for devices.

    Args:
        training: whether it takes steps of equal size for hours, for which freed memory is kept. Other programs fill photos of many
            sizes or run for long beside others, and give memory back.
    """
    keep_compiled_programs()
    if training and only_cpu():
        keep_memory()


def on_host() -> contextlib.AbstractContextManager[Any]:
    """The context in which new arrays lie in the host's memory, where JAX was not told to do without the CPU."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda
        return contextlib.nullcontext()


def keep_compiled_programs() -> None:
    """Compiled programs go to the user's cache folder, so that the second start of a program does not compile again.

    The folder holds up to 4 GB, unless JAX_COMPILATION_CACHE_MAX_SIZE says otherwise: who asks a server for photos of many sizes could
    fill the disk. JAX_COMPILATION_CACHE_DIR names another folder, which has no limit of ours; JAX_ENABLE_COMPILATION_CACHE=false keeps
    none.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.values["jax_compilation_cache_max_size"] == -1 and can_lock(folder):
        jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)


def can_lock(folder: Path) -> bool:
    """Whether files in a folder can be locked, which JAX does where its cache has a limit; some network file systems cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lockfile", timeout=10):  # JAX's own lock, and its patience
            return True
    except (OSError, NotImplementedError):  # filelock's Timeout is an OSError
        return False


def cache_folder() -> Path:
    """One a kind of processor, because programs for the CPU may hold instructions that another lacks.

    Not "compiled", as in version 0.1.0: its entries have no time of last use, without which JAX cannot make room.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(home)) / "spn_jax" / "programs" / processor()


def processor() -> str:
    """A name for the instructions that this machine's processor has."""
    described = Path("/proc/cpuinfo")
    text = described.read_text() if described.is_file() else platform.processor()
    instructions = re.search(r"^(flags|Features)\s*:.*$", text, re.MULTILINE)
    digest = hashlib.sha256((instructions.group() if instructions else text).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def only_cpu() -> bool:
    """Whether JAX can only compute on the CPU here, found out without starting it."""
    if jax.config.values["jax_platforms"]:
        return jax.config.values["jax_platforms"] == "cpu"
    return importlib.util.find_spec("jax_plugins") is None and not (importlib.util.find_spec("libtpu") and has_tpu())


def has_tpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a chip of Google's is attached, which is what JAX itself looks for: libtpu alone may serve to compile for TPUs elsewhere."""
    return any(path.read_text().strip() == GOOGLE for path in devices.glob("*/vendor"))


def keep_memory() -> None:
    """Has the C library keep freed memory for the next step.

    A training step at 256 x 256 takes and frees gigabytes. As a rule they go back to the system, which clears every page of
    them before it hands them out again: 15 % of the step on two cores. Only glibc has these settings; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
        mallopt(setting, value)


def choose_device(name: str | None) -> None:
    """Has JAX compute on the devices of a kind: "cpu", "gpu", "tpu"; None leaves it the choice. To be called before it computes.

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
        jax.config.update("jax_platforms", before)  # a refused name leaves no trace
        raise InputError(f"--device {name}: JAX finds no such device here; leave it out, or install JAX for it") from error
