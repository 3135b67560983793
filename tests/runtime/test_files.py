"""Files that are complete or not there; every failure of the disk in words."""

import os
import stat
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


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "results.md", "x")
    assert stat.S_IMODE((tmp_path / "results.md").stat().st_mode) & 0o444 == 0o444


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
