"""Writes ArrayRecord files atomically, in a folder that several processes may fill at once.

A file is written under another name, beginning with `unfinished-`, and renamed when it is complete
and on the disk. Its temporary file is locked meanwhile, so that no two processes write the same
one. What a killed process left behind is unlocked and is taken over. On file systems without locks
every process has its own temporary files and the last rename wins, which is harmless because both
wrote the same.
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

UNFINISHED = "unfinished-"  # prefix of files that are being written
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class BeingWritten(Exception):
    """Another process is writing this very file, or has just finished it."""


@contextlib.contextmanager
def new_shard(folder: Path, name: str, options: str) -> Iterator[Callable[[bytes], None]]:
    """Opens a context that yields `put(record)`. The file gets its name if the context is left
    without an exception.

    A replaced file keeps its mode. If the name is a link, the file that it leads to is written.

    Args:
        options: those of ArrayRecordWriter.

    Raises:
        BeingWritten: another process is writing the file.
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
                # writing happens in the background, so a full disk is noticed here
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
    """Opens a context that yields the locked temporary file for `path`, created if needed, and the
    final path (the target if `path` is a link).
    """
    with contextlib.ExitStack() as stack:
        try:
            final = without_links(path)
            temporary = final.parent / (UNFINISHED + final.name)
            mine = stack.enter_context(locked_file(temporary, create=True))
        except OSError as error:
            raise write_failed(path, error) from error
        if mine is False:  # or the file was finished or given up between opening and locking
            raise BeingWritten(path.name)
        if mine is None:
            temporary.unlink(missing_ok=True)
            temporary = final.parent / f"{UNFINISHED}{final.name}-{socket.gethostname()}-{os.getpid()}"
        yield temporary, final


@contextlib.contextmanager
def locked_file(path: Path, create: bool) -> Iterator[bool | None]:
    """Opens a context that yields whether this process holds the file's lock, or None if the file
    system has no locks.

    It also yields False for a file that vanished while being locked, or that is absent and not to
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
    """Renames a complete file and syncs it to the disk. Raises OSError if that fails."""
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


def leftovers(folder: Path, *patterns: str) -> list[Path]:
    """Returns the files in a folder that killed processes left behind: those of `write_bytes`, and
    those of `new_shard` for names of these patterns. A user's own file may begin with the same
    word.
    """
    found = [*folder.glob(UNFINISHED + "[0-9a-f]" * 12), *(path for pattern in patterns for path in folder.glob(UNFINISHED + pattern))]
    return sorted(path for path in found if path.is_file())


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 as `write_bytes` does. File names that are not valid UTF-8 keep their
    bytes.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a small file atomically: a reader sees the old or the new content. Modes and links
    are treated as in `new_shard`.

    Raises:
        InputError: it cannot be written.
    """
    try:
        written = replace_file(path, data, UNFINISHED)
        _flush(written.parent)
    except OSError as error:
        raise write_failed(path, error) from error


def write_failed(path: Path, error: Exception) -> InputError:
    """Returns the error for a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
    return InputError(f"writing {path} failed: {reason}; free some space and run the same command again, finished files are kept")


def count_records(path: Path) -> int:
    """Counts the records in a file. A file that is not ArrayRecord counts as empty, as for its
    reader.
    """
    return ArrayRecordReader(str(path), READER_OPTIONS).num_records()
