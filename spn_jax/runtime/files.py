"""Writes files that are complete or absent, and locks folders against other processes."""

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import socket
import stat
import sys
import tempfile
from pathlib import Path

from spn_jax.errors import InputError

TEMPORARY = ".spn-"  # prefix of files that are being written; one stays if the process is killed


def write_atomically(path: Path, data: str | bytes) -> None:
    """Writes a file that appears only when it is complete, and makes its folder.

    A replaced file keeps its mode; a new one gets the process's default mode. Where `path` is a
    link, its target is written. A device or a pipe, such as /dev/null, is written to and stays.

    Raises:
        InputError: it cannot be written.
    """
    try:
        without_links(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); {remedy(error)}") from error


def replace_file(path: Path, data: bytes, mark: str = TEMPORARY) -> Path:
    """Does what `write_atomically` does, in a folder that exists. Returns the file that was
    written, which is the link's target where `path` is a link.

    Args:
        mark: prefix of the temporary file's name; such a file stays if the process is killed.

    Raises:
        OSError: it cannot be written; the old file is whole, and nothing else is left.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(data)
        return path
    target = without_links(path)
    # The temporary name does not contain the file's, which may be as long as names may be.
    temporary = target.parent / f"{mark}{secrets.token_hex(6)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            keep_mode(handle, target)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def keep_mode(new: Path | int, old: Path) -> None:
    """Gives a file (a path or a handle) the mode of the file that it is about to replace, if that
    exists.
    """
    with contextlib.suppress(FileNotFoundError):
        os.chmod(new, stat.S_IMODE(old.stat().st_mode))


def without_links(path: Path) -> Path:
    """Resolves all links in a path. Raises OSError if they form a cycle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error, or one that caused it, says that the disk or the user's quota is
    full.
    """
    chain: BaseException | None = error
    while chain is not None:
        text = str(chain)
        if getattr(chain, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def remedy(error: OSError) -> str:
    """Returns advice about a file or folder that cannot be written."""
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose another folder or allow writing"
    return "choose another folder or free space"


def check_writable(folder: Path) -> None:
    """Makes the folder and tries to write in it, so that a command fails before its work and not
    after.

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


LOCK = ".lock"  # the file in a folder that is locked, and that says who holds it
# errors of file systems without locks
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderLock(contextlib.AbstractContextManager["FolderLock"]):
    """Locks a folder for this process until `release` or until the process ends in any way.

    It locks a regular file in the folder, because NFS lets every machine lock a directory at the
    same time. A file system without locks protects nothing; the first lock on one says so on
    stderr.

    Args:
        folder: must exist.
        busy: first part of the error where another process holds the lock, such as "another run is
            writing to runs/celeba".
        advice: last part of that error: what the user can do.
        shared: whether to share the lock with other processes that ask for a shared one.

    Raises:
        FolderIsLocked: another process holds the lock.
        InputError: the folder cannot be locked, because nothing can be written there.
    """

    def __init__(self, folder: Path, busy: str, advice: str, shared: bool = False):
        self._path = folder / LOCK
        while True:
            try:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise InputError(f"folder {folder} cannot be locked ({error.strerror or error}); choose another or free space") from error
            try:
                self._take(busy, advice, shared)
                if is_same_file(self._path, self._handle):
                    break
            except BaseException:
                os.close(self._handle)
                raise
            os.close(self._handle)  # the process that held the lock has deleted the file
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _take(self, busy: str, advice: str, shared: bool) -> None:
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 200, 0).decode(errors="replace").strip()
            raise FolderIsLocked(f"{busy}{f' ({holder})' if holder else ''}; {advice}") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise InputError(f"folder {self._path.parent} cannot be locked ({error.strerror or error}); choose another") from error
            tell_of_missing_locks(self._path.parent)

    def release(self) -> None:
        """Releases the lock and deletes its file, unless others share the lock. A second call does
        nothing.
        """
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_same_file(self._path, self._handle):
                    self._path.unlink()
            os.close(self._handle)
            self._handle = -1

    def __exit__(self, *_: object) -> None:
        self.release()


def is_same_file(path: Path, handle: int) -> bool:
    """Returns whether an open file still has this name. It may have been renamed or deleted between
    opening and locking.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


class FolderIsLocked(InputError):
    """Raised when another process holds the lock of a folder."""


@functools.cache
def tell_of_missing_locks(folder: Path) -> None:
    """Warns once per folder that its file system has no locks."""
    print(
        f"warning: the file system of {folder} has no locks, so nothing keeps a second process from writing there; start only one",
        file=sys.stderr,
        flush=True,
    )
