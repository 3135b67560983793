"""Files that are complete or not there; every failure of the disk in words."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spn_jax.errors import InputError
from spn_jax.runtime.files import check_writable, write_atomically


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
    with pytest.raises(InputError, match="folder /proc/self cannot be written to"):  # also for root, whom no permission stops
        check_writable(Path("/proc/self"))
