"""Files that are complete or not there; every failure of the disk in words."""

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spn_jax.errors import InputError
from spn_jax.runtime import files
from spn_jax.runtime.files import LOCK, FolderIsLocked, FolderLock, check_writable, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "text.md", "gr\u00fcn")
    write_atomically(tmp_path / "a" / "b" / "bytes.png", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text.md").read_bytes() == "gr\u00fcn".encode()
    assert (tmp_path / "a" / "b" / "bytes.png").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "a" / "b") == ["bytes.png", "text.md"]


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    write_atomically(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "first"
    write_atomically(path, "second")
    assert path.read_text() == "second"
    assert names(tmp_path) == ["results.md"]


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the process's umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: Callable[[int], int], mask: int, mode: int) -> None:
    umask(mask)
    write_atomically(tmp_path / "results.md", "x")
    (tmp_path / "ordinary").touch()
    assert stat.S_IMODE((tmp_path / "results.md").stat().st_mode) == mode == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, umask: Callable[[int], int], mode: int) -> None:
    umask(0o022)
    (tmp_path / "results.md").touch()
    (tmp_path / "results.md").chmod(mode)
    write_atomically(tmp_path / "results.md", "x")
    assert stat.S_IMODE((tmp_path / "results.md").stat().st_mode) == mode and (tmp_path / "results.md").read_text() == "x"


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "\u5bfa" * 83 + ".webp", "\u5bfa" * 85])
def test_a_name_may_be_as_long_as_names_may_be(tmp_path: Path, name: str) -> None:
    assert 250 < len(name.encode()) <= 255
    write_atomically(tmp_path / name, "x")
    assert names(tmp_path) == [name]
    with pytest.raises(InputError, match=r"cannot be written \(File name too long\); choose a shorter name"):
        write_atomically(tmp_path / ("a" * 256), "x")


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.md").write_text("old")
    (tmp_path / "link.md").symlink_to("folder/file.md")
    (tmp_path / "to_nothing.md").symlink_to("folder/new.md")
    (tmp_path / "way").symlink_to("folder")
    for name in "link.md", "to_nothing.md", "way/third.md":
        write_atomically(tmp_path / name, name)
    assert (tmp_path / "link.md").is_symlink() and (tmp_path / "to_nothing.md").is_symlink()
    assert [(tmp_path / "folder" / name).read_text() for name in ("file.md", "new.md", "third.md")] == [
        "link.md",
        "to_nothing.md",
        "way/third.md",
    ]
    assert names(tmp_path / "folder") == ["file.md", "new.md", "third.md"]


def test_a_pipe_or_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    """For whoever may write to /dev, a file in the place of /dev/null would end many programs."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for name in "pipe", "link":
        write_atomically(tmp_path / name, name)
        assert os.read(reader, 100) == name.encode() and pipe.is_fifo()
    os.close(reader)
    assert names(tmp_path) == ["link", "pipe"]


def test_links_in_a_circle_are_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match=r"a cannot be written \(Too many levels of symbolic links\)"):
        write_atomically(tmp_path / "a", "x")
    assert names(tmp_path) == ["a", "b"]


def test_a_full_disk_is_wrong_input_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"results\.md cannot be written \(No space left on device\); "):
        write_atomically(tmp_path / "results.md", "x")
    assert not names(tmp_path)


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_in_the_folders_place_is_wrong_input(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"{folder}/results.md cannot be written"):
        write_atomically(tmp_path / folder / "results.md", "x")
    with pytest.raises(InputError, match=f"folder .*{folder} cannot be written to"):
        check_writable(tmp_path / folder)


def test_a_folder_is_made_and_nothing_left_in_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not names(tmp_path / "a" / "b")
    check_writable(tmp_path / "a")
    assert names(tmp_path / "a") == ["b"]


def test_a_folder_that_takes_no_files_is_wrong_input() -> None:
    # also for root, whom no permission stops
    with pytest.raises(InputError, match="folder /proc/self cannot be written to"):
        check_writable(Path("/proc/self"))


def test_a_locked_folder_says_who_holds_it_until_it_is_released(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "another run is in it", "wait"):
        held_by = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(FolderIsLocked, match=rf"^another run is in it \({held_by}\); wait$"):
            FolderLock(tmp_path, "another run is in it", "wait")
        assert names(tmp_path) == [LOCK]
    assert not names(tmp_path)
    with FolderLock(tmp_path, "x", "y", shared=True):
        FolderLock(tmp_path, "x", "y", shared=True).release()
        with pytest.raises(FolderIsLocked):
            FolderLock(tmp_path, "x", "y")
    assert not names(tmp_path)
    (tmp_path / LOCK).write_text("process 1 on a machine that lost its power")
    FolderLock(tmp_path, "x", "y").release()


def test_the_lock_is_on_a_regular_file_that_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS grants an exclusive lock to nobody else: directories can be locked by every machine at
    once.
    """
    seen: list[int] = []
    monkeypatch.setattr(files.fcntl, "flock", lambda handle, how: seen.append(handle))
    with FolderLock(tmp_path, "x", "y"):
        assert stat.S_ISREG(os.fstat(seen[0]).st_mode) and os.write(seen[0], b"") == 0


# What another process is told that asks for the lock: exclusively, and together with others.
ASK = """
import fcntl, sys
answers = []
for how in fcntl.LOCK_EX, fcntl.LOCK_SH:
    with open(sys.argv[1], "r+") as file:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            answers.append("granted")
        except BlockingIOError:
            answers.append("refused")
print(*answers)
"""


@pytest.mark.parametrize(("shared", "answers"), [(False, "refused refused"), (True, "refused granted")])
def test_the_lock_keeps_other_processes_out(tmp_path: Path, shared: bool, answers: str) -> None:
    ask = [sys.executable, "-c", ASK, str(tmp_path / LOCK)]
    with FolderLock(tmp_path, "x", "y", shared=shared):
        assert (tmp_path / LOCK).is_file() and not (tmp_path / LOCK).is_symlink()
        assert subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip() == answers
    (tmp_path / LOCK).touch()
    assert subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip() == "granted granted"


def test_a_file_is_never_written_to_in_the_place_of_the_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda length: "0" * 2 * length)
    (tmp_path / "somebody's").write_text("mine")
    (tmp_path / f".spn-{'0' * 12}").symlink_to("somebody's")
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "results.md", "x")
    assert (tmp_path / "somebody's").read_text() == "mine" and not (tmp_path / "results.md").exists()


def test_a_file_system_without_locks_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(number: int) -> None:
        def flock(handle: int, how: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(files.fcntl, "flock", flock)

    refuse(errno.ENOLCK)
    for _ in range(2):
        FolderLock(tmp_path, "x", "y").release()
    assert capsys.readouterr().err.count(f"warning: the file system of {tmp_path} has no locks") == 1
    refuse(errno.EIO)
    with pytest.raises(InputError, match="cannot be locked"):
        FolderLock(tmp_path, "x", "y")
