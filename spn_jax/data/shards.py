"""ArrayRecord files that are whole or not there, in a folder that several processes may fill at once.

A file is written under another name, beginning with `unfinished-`, and gets its own when it is complete and on the disk.
While it is written its temporary file is locked, so that no two processes write the same one; what a killed process left behind is
locked by nobody and is taken over. On file systems without locks every process has temporary files of its own and the last rename
wins: both wrote the same.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from spn_jax.errors import InputError

TEMPORARY = "unfinished-"  # prefix of files that are being written
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class BeingWritten(Exception):
    """Another process is writing this very file, or has just finished it."""


@contextlib.contextmanager
def new_shard(folder: Path, name: str, options: str) -> Iterator[Callable[[bytes], None]]:
    """Context that yields `put(record)`; leaving it without an exception gives the file its name.

    Args:
        options: of ArrayRecordWriter.

    Raises:
        BeingWritten: by another process.
        InputError: the disk is full or fails; nothing of the file is left.
    """
    with _reserve(folder, name) as temporary:
        writer = None
        try:
            try:
                writer = ArrayRecordWriter(str(temporary), options)
            except RuntimeError as error:
                raise write_failed(folder / name, error) from error

            def put(record: bytes) -> None:
                try:
                    writer.write(record)
                except RuntimeError as error:
                    raise write_failed(folder / name, error) from error

            yield put
            try:
                writer.close()  # writing happens in the background: this is where a full disk is noticed
                finish_file(temporary, folder / name)
            except (RuntimeError, OSError) as error:
                raise write_failed(folder / name, error) from error
        except BaseException:
            with contextlib.suppress(RuntimeError):
                if writer is not None and writer.is_open():
                    writer.close()
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _reserve(folder: Path, name: str) -> Iterator[Path]:
    """The locked temporary file for `name`, created if need be."""
    temporary = folder / (TEMPORARY + name)
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise write_failed(folder / name, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BeingWritten(name) from None
        except OSError:  # no locks here
            temporary.unlink(missing_ok=True)
            temporary = folder / f"{TEMPORARY}{name}-{socket.gethostname()}-{os.getpid()}"
        else:
            if not is_same_file(temporary, handle):  # it was finished or given up between opening and locking
                raise BeingWritten(name)
        yield temporary
    finally:
        os.close(handle)


def is_same_file(path: Path, handle: int) -> bool:
    """Whether the open file still has this name: it may have been renamed or deleted between opening and locking."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def finish_file(temporary: Path, final: Path) -> None:
    """Gives a complete file its name, and sees both to the disk. OSError if that fails."""
    _flush(temporary)
    temporary.replace(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replaces a small file at once: a reader sees the old or the new one, never a part.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{socket.gethostname()}-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
        finish_file(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_failed(path, error) from error


def write_failed(path: Path, error: Exception) -> InputError:
    """The error of a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
    return InputError(f"writing {path} failed: {reason}; free some space and run the same command again, finished files are kept")


def count_records(path: Path) -> int:
    """Records in a file; 0 for one that is no ArrayRecord file, which is an empty one to its reader."""
    return ArrayRecordReader(str(path), READER_OPTIONS).num_records()
