"""Files that are complete or not there, and folders that one process at a time writes to."""

import fcntl
import os
import tempfile
from pathlib import Path

from spn_jax.errors import InputError


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a file that appears only when it is complete; its folder is made.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's files are for the owner alone
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); choose another folder or free space") from error


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
        raise InputError(f"folder {folder} cannot be written to ({error.strerror or error}); choose another or free space") from error


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
