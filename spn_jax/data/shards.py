"""ArrayRecord files that are whole or not there, in a folder that several processes may fill at
once.

A file is written under another name, beginning with `unfinished-`, and gets its own when it is
complete and on the disk. While it is written its temporary file is locked, so that no two processes
write the same one; what a killed process left behind is locked by nobody and is taken over. On file
systems without locks every process has temporary files of its own and the last rename
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
from spn_jax.runtime.files import is_same_file, keep_mode, replace_file, without_links

TEMPORARY = "unfinished-"  # prefix of files that are being written
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class BeingWritten(Exception):
    """Another process is writing this very file, or has just finished it."""


@contextlib.contextmanager
def new_shard(folder: Path, name: str, options: str) -> Iterator[Callable[[bytes], None]]:
    """Context that yields `put(record)`; leaving it without an exception gives the file its name.

    A file that is replaced keeps its mode. Where a link has the name, the file that it leads to is
    written.

    Args:
        options: of ArrayRecordWriter.

    Raises:
        BeingWritten: by another process.
        InputError: the disk is full or fails; nothing of the file is left.
    """
    with _reserve(folder / name) as (temporary, final):
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
                # writing happens in the background: this is where a full disk is noticed
                writer.close()
                finish_file(temporary, final)
            except (RuntimeError, OSError) as error:
                raise write_failed(folder / name, error) from error
        except BaseException:
            with contextlib.suppress(RuntimeError):
                if writer is not None and writer.is_open():
                    writer.close()
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _reserve(path: Path) -> Iterator[tuple[Path, Path]]:
    """The locked temporary file for `path`, created if need be, and where it goes: to `path`, or to
    where a link there leads.
    """
    with contextlib.ExitStack() as stack:
        try:
            final = without_links(path)
            temporary = final.parent / (TEMPORARY + final.name)
            mine = stack.enter_context(locked_file(temporary, create=True))
        except OSError as error:
            raise write_failed(path, error) from error
        if mine is False:  # or it was finished or given up between opening and locking
            raise BeingWritten(path.name)
        if mine is None:
            temporary.unlink(missing_ok=True)
            temporary = final.parent / f"{TEMPORARY}{final.name}-{socket.gethostname()}-{os.getpid()}"
        yield temporary, final


@contextlib.contextmanager
def locked_file(path: Path, create: bool) -> Iterator[bool | None]:
    """Context that yields whether this process has the file to itself; None where the file system
    has no locks.

    False as well for a file that went while it was being locked, or that is not there and is not to
    be created.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
    except FileNotFoundError:
        if create:
            raise
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine: bool | None = is_same_file(path, handle)
        except BlockingIOError:
            mine = False
        except OSError:
            mine = None
        yield mine
    finally:
        os.close(handle)


def finish_file(temporary: Path, final: Path) -> None:
    """Gives a complete file its name, and sees both to the disk. OSError if that fails."""
    keep_mode(temporary, final)
    _flush(temporary)
    os.replace(temporary, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text in UTF-8, in which names of files that are none keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a small file at once: a reader sees the old or the new one, never a part. Modes and
    links as of `new_shard`.

    Raises:
        InputError: it cannot be written.
    """
    try:
        written = replace_file(path, data, TEMPORARY)
        _flush(written.parent)
    except OSError as error:
        raise write_failed(path, error) from error


def write_failed(path: Path, error: Exception) -> InputError:
    """The error of a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
    return InputError(f"writing {path} failed: {reason}; free some space and run the same command again, finished files are kept")


def count_records(path: Path) -> int:
    """Records in a file; 0 for one that is no ArrayRecord file, which is an empty one to its
    reader.
    """
    return ArrayRecordReader(str(path), READER_OPTIONS).num_records()
