"""The writer of shards and of the small files beside them: modes, links, and what a killed process
leaves behind.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from spn_jax.data.shards import UNFINISHED, BeingWritten, count_records, new_shard, write_text
from spn_jax.errors import InputError

OPTIONS = "group_size:1,uncompressed"


@pytest.fixture(params=[0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_shard(folder: Path, name: str = "shard", records: int = 1) -> None:
    with new_shard(folder, name, OPTIONS) as put:
        for _ in range(records):
            put(b"record")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_new_files_get_the_mode_that_the_process_gives(tmp_path: Path, umask: int) -> None:
    write_shard(tmp_path)
    write_text(tmp_path / "plan.json", "{}")
    assert mode(tmp_path / "shard") == mode(tmp_path / "plan.json") == 0o666 & ~umask


def test_files_that_are_replaced_keep_their_mode(tmp_path: Path) -> None:
    for name in ("shard", "plan.json"):
        (tmp_path / name).write_text("old")
        (tmp_path / name).chmod(0o640)
    write_shard(tmp_path)
    write_text(tmp_path / "plan.json", "{}")
    assert mode(tmp_path / "shard") == mode(tmp_path / "plan.json") == 0o640


def test_where_a_link_is_the_file_that_it_leads_to_is_written(tmp_path: Path) -> None:
    (folder := tmp_path / "cache").mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    for name in ("shard", "plan.json"):
        (elsewhere / name).write_text("old")
        (folder / name).symlink_to(elsewhere / name)
    write_shard(folder, records=3)
    write_text(folder / "plan.json", "{}")
    assert (folder / "shard").is_symlink() and (folder / "plan.json").is_symlink()
    assert count_records(elsewhere / "shard") == 3
    assert (elsewhere / "plan.json").read_text() == "{}"
    assert sorted(path.name for path in (*folder.iterdir(), *elsewhere.iterdir())) == ["plan.json", "plan.json", "shard", "shard"]


def test_a_text_of_the_longest_name_that_may_be(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"


def test_what_a_killed_process_left_is_taken_over_and_bears_the_mark_of_what_is_unfinished(tmp_path: Path) -> None:
    (tmp_path / f"{UNFINISHED}shard").write_bytes(b"half of it")
    write_shard(tmp_path, records=2)
    assert [path.name for path in tmp_path.iterdir()] == ["shard"] and count_records(tmp_path / "shard") == 2


def test_a_text_that_cannot_be_put_in_place_leaves_the_old_one_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan.json").write_text("old")
    seen: list[str] = []

    def full(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
        seen.append(Path(source).name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"^writing .*plan\.json failed: No space left on device; free some space and run the same"):
        write_text(tmp_path / "plan.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"] and (tmp_path / "plan.json").read_text() == "old"
    assert seen[0].startswith(UNFINISHED)  # by which the leftover of a killed process is found


def test_no_two_write_the_same_shard(tmp_path: Path) -> None:
    with new_shard(tmp_path, "shard", OPTIONS) as put:
        put(b"record")
        with pytest.raises(BeingWritten), new_shard(tmp_path, "shard", OPTIONS):
            pass
    assert count_records(tmp_path / "shard") == 1


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^writing .*shard failed: No such file or directory; free some space"):
        write_shard(tmp_path / "gone")
