"""How much memory is free where control groups limit it: containers and jobs of a cluster."""

from pathlib import Path

import pytest

from spn_jax.runtime import memory

GB = 10**9


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file system of control groups with none in it yet."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


def group(folder: Path, files: memory.GroupFiles, limit: object, used: int, evictable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files.limit).write_text(f"{limit}\n")
    (folder / files.used).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\nactive_file 7\n{files.evictable} {evictable}\nslab 3\n")


VERSIONS = [(memory.VERSION_1, "4:memory:/job\n3:cpu,cpuacct:/\n"), (memory.VERSION_2, "0::/job\n")]


@pytest.mark.parametrize(("files", "own"), VERSIONS)
def test_files_that_were_read_do_not_count_as_used(root: Path, files: memory.GroupFiles, own: str) -> None:
    group(root / files.folder, files, 8 * GB, 7 * GB, 6 * GB)
    (root / "own").write_text(own)
    assert memory.free_in_container() == [7 * GB]


@pytest.mark.parametrize(("files", "own"), VERSIONS)
def test_the_own_group_and_those_around_it_limit(root: Path, files: memory.GroupFiles, own: str) -> None:
    group(root / files.folder / "job", files, 4 * GB, GB, 0)
    group(root / files.folder, files, 8 * GB, 6 * GB, 0)
    (root / "own").write_text(own)
    assert sorted(memory.free_in_container()) == [2 * GB, 3 * GB]


def test_groups_without_a_limit_or_that_cannot_be_read_limit_nothing(root: Path) -> None:
    assert memory.free_in_container() == []
    group(root, memory.VERSION_2, "max", 6 * GB, 0)
    (root / "own").write_text("0::/elsewhere\nnonsense\n")
    assert memory.free_in_container() == []
    (root / memory.VERSION_2.limit).write_text(str(8 * GB))
    (root / "memory.stat").unlink()
    assert memory.free_in_container() == [2 * GB]
