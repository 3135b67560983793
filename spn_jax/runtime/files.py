"""Files that are complete or not there, and folders that one process at a time writes to."""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import tempfile
from pathlib import Path

from spn_jax.errors import InputError


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a file that appears only when it is complete; its folder is made.

    A file that is replaced keeps its mode, a new one gets the one that the process gives to new files. Where `path` is a link, the
    file that it leads to is written.

    Raises:
        InputError: it cannot be written.
    """
    try:
        target = _without_links(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A short name of its own: one that held the file's could be longer than a name may be.
        temporary = target.parent / f".spn-{secrets.token_hex(6)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(FileNotFoundError):
                    os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); {remedy(error)}") from error


def _without_links(path: Path) -> Path:
    """Where links lead to, at the end of the path and on its way. OSError if they lead in a circle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def remedy(error: OSError) -> str:
    """What to do about a file or folder that cannot be written."""
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose another folder or allow writing"
    return "choose another folder or free space"


def check_writable(folder: Path) -> None:
    """Makes the folder and tries to write in it, so that a command says before its work that the results could not be kept.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"folder {folder} cannot be written to, because a file is in its place; choose another name") from error
    except OSError as error:
        raise InputError(f"folder {folder} cannot be written to ({error.strerror or error}); {remedy(error)}") from error


def lock_folder(handle: int, refusal: str, shared: bool = False) -> None:
    """Locks an open folder until its handle is closed, however the process ends. File systems without locks go without.

    `shared`: together with others that ask for it shared.

    Raises:
        InputError: another process has locked it; the text is `refusal`.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(refusal) from None
    except OSError:
        pass
