"""Each data set is recognised in its published layout, split by the published lists and copied bit
for bit, whatever interrupts.
"""

import dataclasses
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts import prepare_dataset
from spn_jax.config import Config, apply_overrides
from spn_jax.data import images, mask_set, official, prepare
from spn_jax.data.images import open_photos
from spn_jax.data.masks import open_masks
from spn_jax.data.shards import UNFINISHED, write_text
from spn_jax.data.sources import open_source
from spn_jax.errors import InputError
from spn_jax.evaluation.pairs import make_pair_list, match

ROOT = Path(__file__).resolve().parents[2]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def as_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def as_zip(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_tar(folder: Path, files: Mapping[str, bytes], mode: Any = "w", suffix: str = ".tar") -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(suffix)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def celeba() -> dict[str, bytes]:
    """Six photos for training, one for validation, four in the test partition, of which the first
    three are used.
    """
    parts = [0] * 6 + [1] + [2] * 4
    photos = {f"Img/img_align_celeba/{i:06d}.jpg": picture(i) for i in range(1, 12)}
    return photos | {"Eval/list_eval_partition.txt": "".join(f"{i:06d}.jpg {part}\n" for i, part in enumerate(parts, 1)).encode()}


def celebahq() -> dict[str, bytes]:
    return {f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg": picture(i) for i in range(7)} | {"CelebAMask-HQ/mask-anno/0/00000_hair.png": b"mask"}


def places2() -> dict[str, bytes]:
    train = {f"data_256/{name}.jpg": picture(i) for i, name in enumerate(("b/bar/00000001", "a/abbey/00000002", "a/abbey/00000001"))}
    validation = {f"val_256/Places365_val_{i:08d}.jpg": picture(10 + i) for i in range(1, 6)}
    lines = "/b/bar/00000001.jpg 1\n/a/abbey/00000001.jpg 0\n/a/abbey/00000002.jpg 0\n"
    return train | validation | {"filelist/places365_train_standard.txt": lines.encode()}


def paris() -> dict[str, bytes]:
    train = {f"paris_train_original/{name}.JPG": picture(i) for i, name in enumerate(("b,1", "a,2", "c,3"))}
    return train | {f"paris_eval/paris_eval_gt/{i:03d}_im.png": picture(9 + i, "PNG") for i in (1, 2)}


LAYOUTS: dict[str, tuple[Callable[[], dict[str, bytes]], dict[str, int], list[str], list[str]]] = {
    "celeba": (
        celeba,
        {"train": 6, "validation": 1, "test partition": 4, "test": 3},
        [f"{i:06d}.jpg" for i in range(1, 7)],
        ["000008.jpg", "000009.jpg", "000010.jpg"],
    ),
    "celebahq": (celebahq, {"all": 7, "test": 2}, [f"{i}.jpg" for i in range(5)], ["5.jpg", "6.jpg"]),
    "places2": (
        places2,
        {"train": 3, "test": 4},
        ["b/bar/00000001.jpg", "a/abbey/00000001.jpg", "a/abbey/00000002.jpg"],
        [f"Places365_val_{i:08d}.jpg" for i in range(1, 5)],
    ),
    "paris-streetview": (paris, {"train": 3, "test": 2}, ["a,2.JPG", "b,1.JPG", "c,3.JPG"], ["001_im.png", "002_im.png"]),
}


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official counts are those of the miniatures, and a shard holds two photos."""
    small = {name: dataclasses.replace(official.DATA_SETS[name], counts=counts) for name, (_, counts, _, _) in LAYOUTS.items()}
    monkeypatch.setattr(prepare_dataset, "DATA_SETS", official.DATA_SETS | small)
    monkeypatch.setattr(prepare, "SMALLEST_SHARD", 2)


def run(name: str, sources: Sequence[str | Path], output: Path, *options: str) -> None:
    flags = [text for source in sources for text in ("--source", str(source))]
    prepare_dataset.main([name, *flags, "--output", str(output), "--threads", "2", *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("miniature")
@pytest.mark.parametrize("pack", [as_folder, as_zip, as_tar])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_data_set_is_prepared_from_its_published_layout(name: str, pack: Callable[..., Path], tmp_path: Path) -> None:
    build, _, train, test = LAYOUTS[name]
    files = build()
    run(name, [pack(tmp_path / "source", files)], tmp_path / "out")
    by_end = {path.rpartition("/")[2]: data for path, data in files.items()} | {
        path.partition("/")[2]: data for path, data in files.items()
    }
    for split, names in {"train": train, "test": test}.items():
        photos = open_photos(str(tmp_path / "out" / split), f"data.{split}_photos")
        assert list(photos.names) == names
        assert [photos.read(i) for i in range(len(photos))] == [by_end[photo] for photo in names]
        assert photos.load(0).shape == (12, 10, 3)
    made = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (made["data_set"], made["photos"], made["notes"]) == (name, {"train": len(train), "test": len(test)}, [])
    assert sorted(made["bytes"]["train"]) == [path.name for path in sorted((tmp_path / "out" / "train").glob("photos-*"))]
    assert not list((tmp_path / "out").rglob(f"{UNFINISHED}*")) and not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        ("celeba", [f"{i:06d}.jpg" for i in range(182638, 182638 + 12000)]),
        ("celebahq", [f"{i}.jpg" for i in range(30000 - 2800, 30000)]),
        ("places2", [f"Places365_val_{i:08d}.jpg" for i in range(1, 12001)]),
    ],
)
def test_full_size_lists_are_those_of_the_pair_lists(protocol: str, names: list[str]) -> None:
    text = gzip.decompress((ROOT / "spn_jax" / "evaluation" / "protocols" / f"{protocol}.tsv.gz").read_bytes()).decode()
    assert [line.split("\t")[0] for line in text.splitlines() if not line.startswith(("#", "photo\t"))] == names

    class Listed(official.Source):
        label = "listed"

        def __init__(self, paths: Sequence[str]):
            self._paths = paths

        @property
        def names(self) -> Sequence[str]:
            return self._paths

        def read(self, name: str) -> bytes:
            parts = "0" * 162770 + "1" * 19867 + "2" * 19962
            return "".join(f"{i:06d}.jpg {part}\n" for i, part in enumerate(parts, 1)).encode()

        def size(self, name: str) -> int:
            return 1

    paths = {
        "celeba": [f"{i:06d}.jpg" for i in range(1, 202600)] + ["list_eval_partition.txt"],
        "celebahq": [f"{i}.jpg" for i in range(30000)],
        "places2": [f"Places365_val_{i:08d}.jpg" for i in range(1, 36501)],
    }[protocol]
    data_set = official.DATA_SETS[protocol]
    chosen = data_set.select([Listed(paths)], official.Options(data_set.counts, allow_incomplete=protocol == "places2"))
    assert [photo.name for photo in chosen.test] == names
    if protocol == "celeba":
        assert len(chosen.train) == 162770 and chosen.train[-1].name == "162770.jpg"


@pytest.mark.usefixtures("miniature")
def test_missing_photos_are_named_and_may_be_allowed(tmp_path: Path) -> None:
    files = celeba()
    del files["Img/img_align_celeba/000002.jpg"], files["Img/img_align_celeba/000005.jpg"]
    source = as_folder(tmp_path / "source", files)
    with pytest.raises(InputError, match="2 of 6 photos of the training .* are missing: 000002.jpg, 000005.jpg; .*--allow-incomplete"):
        run("celeba", [source], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run("celeba", [source], tmp_path / "out", "--allow-incomplete")
    assert list(open_photos(str(tmp_path / "out" / "train"), "x").names) == ["000001.jpg", "000003.jpg", "000004.jpg", "000006.jpg"]
    assert "incomplete: 2 of 6" in json.loads((tmp_path / "out" / "dataset.json").read_text())["notes"][0]


@pytest.mark.usefixtures("miniature")
@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            "celeba",
            lambda f: f.pop("Eval/list_eval_partition.txt"),
            "list_eval_partition.txt is not in .*; pass it with another",
        ),
        ("celeba", lambda f: f.update({"Eval/list_eval_partition.txt": b"000001.jpg 7\n"}), "has the line '000001.jpg 7'"),
        (
            "celeba",
            lambda f: f.update({"Eval/list_eval_partition.txt": b"000001.jpg 0\n"}),
            "there are 1 entries of partition 0 ",
        ),
        ("celeba", lambda f: f.update({"copy/000001.jpg": b""}), "000001.jpg is there twice"),
        ("celebahq", lambda f: f.update({"9.jpg": picture(9)}), "1 photo with numbers from 9 on, CelebA-HQ ends with 6"),
        ("celebahq", lambda f: f.update({"3.png": picture(9)}), "there as .jpg and as .png"),
        (
            "places2",
            lambda f: f.pop("val_256/Places365_val_00000002.jpg"),
            "1 of 4 photos of the test set are missing: Places",
        ),
        ("paris-streetview", lambda f: f.pop("paris_train_original/b,1.JPG"), "there are 2 photos in paris_train_original instead of 3"),
        ("folder", lambda f: [f.pop(name) for name in list(f) if "img" in name], "there is no photo in"),
    ],
)
def test_a_source_that_is_not_the_data_set_is_refused(name: str, change: Callable[[dict], object], text: str, tmp_path: Path) -> None:
    files = LAYOUTS[name][0]() if name in LAYOUTS else celeba()
    change(files)
    with pytest.raises(InputError, match=text):
        run(name, [as_folder(tmp_path / "source", files)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("miniature")
def test_broken_photos_are_all_named_and_what_is_whole_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = celeba()
    whole = files["Img/img_align_celeba/000001.jpg"]
    files["Img/img_align_celeba/000001.jpg"] = whole[: len(whole) // 2]
    files["Img/img_align_celeba/000009.jpg"] = b"no picture"
    source = as_folder(tmp_path / "source", files)
    with pytest.raises(InputError, match="2 broken photos: .*000001.jpg cannot be read.*000009.jpg cannot be read.*; mend the source"):
        run("celeba", [source], tmp_path / "out")
    kept = [path.name for path in sorted((tmp_path / "out" / "train").glob("*.array_record"))]
    assert kept == ["photos-00001-of-00003.array_record", "photos-00002-of-00003.array_record"]
    assert not list((tmp_path / "out").rglob(f"{UNFINISHED}*"))
    files["Img/img_align_celeba/000003.jpg"] = picture(99)  # of a shard that is there
    mended = {**files, **{name: celeba()[name] for name in ("Img/img_align_celeba/000001.jpg", "Img/img_align_celeba/000009.jpg")}}
    run("celeba", [as_folder(tmp_path / "source", mended)], tmp_path / "out")
    assert "photos-00001-of-00003.array_record is written again" in capsys.readouterr().out
    run("celeba", [source], tmp_path / "straight")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    with pytest.raises(InputError, match="holds a data set of other photos .the photos' files have other sizes"):
        run("celeba", [as_folder(tmp_path / "source", celeba())], tmp_path / "out")


@pytest.mark.usefixtures("miniature")
def test_interrupted_and_continued_a_preparation_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_zip(tmp_path / "source", celeba())
    run("celeba", [source], tmp_path / "straight")
    write, written = prepare.write_shard, list[list[str]]()

    def interrupted(*arguments: Any) -> list[str]:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(prepare, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("celeba", [source], tmp_path / "out")
    monkeypatch.setattr(prepare, "write_shard", write)
    assert (tmp_path / "out" / "plan.json").exists() and not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(InputError, match="data_set: celeba -> folder"):
        run("folder", [source], tmp_path / "out")
    (tmp_path / "out" / "train" / f"{UNFINISHED}photos-00000-of-00009.array_record").write_bytes(b"of a killed process")
    run("celeba", [source], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    run("celeba", [source], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_killed_and_started_again_a_preparation_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "source", {f"{i:04d}.jpg": picture(i) for i in range(3000)})
    command = [sys.executable, "scripts/prepare_dataset.py", "folder", "--source", str(source), "--threads", "1", "--output"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, str(tmp_path / "out")], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/train/photos-*")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "dataset.json").exists()
    for output in ("out", "straight"):
        subprocess.run([*command, str(tmp_path / output)], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


@pytest.mark.usefixtures("miniature")
def test_one_preparation_at_a_time_into_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_folder(tmp_path / "source", celeba())
    as_folder(tmp_path / "full", {"letter.txt": b"dear"})
    with pytest.raises(InputError, match="is not empty and no preparation of this program"):
        run("celeba", [source], tmp_path / "full")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run("celeba", [source], tmp_path / "file")
    write = prepare.write_splits

    def second(*arguments: Any) -> None:
        with pytest.raises(InputError, match="another preparation is writing to"):
            run("celeba", [source], tmp_path / "out")
        write(*arguments)

    monkeypatch.setattr(prepare, "write_splits", second)
    run("celeba", [source], tmp_path / "out")


def test_too_small_a_disk_is_noticed_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_folder(tmp_path / "source", {"a.jpg": picture(0), "b.jpg": picture(1)})
    usage = prepare.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match="its disk has 100 free; choose another folder"):
        run("folder", [source], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.array_record"))


# --- one's own photos ---


def notes(folder: Path) -> list[str]:
    """What a prepared data set says about itself."""
    return json.loads((folder / "dataset.json").read_text())["notes"]


def test_a_folder_of_one_s_own_is_split_by_the_hashes_of_the_names(tmp_path: Path) -> None:
    names = [f"{'holiday/' * (i % 2)}{i}.png" for i in range(30)]
    source = as_folder(
        tmp_path / "source", {name: picture(i, "PNG") for i, name in enumerate(names)} | {".hidden/x.png": b"", "a.txt": b""}
    )
    run("folder", [source], tmp_path / "out")
    assert notes(tmp_path / "out") == ["held out by the hashes of their names: 3 photos"]
    train, test = (set(open_photos(str(tmp_path / "out" / split), "x").names) for split in ("train", "test"))
    assert train | test == set(names) and len(test) == 3 and not train & test
    more = {f"new{i}.png": picture(100 + i, "PNG") for i in range(30)}
    run("folder", [as_folder(tmp_path / "source", more)], tmp_path / "more", "--test", "6")
    assert len({name for name in open_photos(str(tmp_path / "more" / "test"), "x").names if name in train}) <= 3
    run("folder", [source], tmp_path / "one", "--test", "1")
    assert notes(tmp_path / "one") == ["held out by the hashes of their names: 1 photo"]


def test_folders_called_train_and_test_are_the_split(tmp_path: Path) -> None:
    names = ["photos/train/a.jpg", "photos/train/b/a.jpg", "photos/test/a.jpg", "photos/other/a.jpg"]
    run("folder", [as_zip(tmp_path / "mine", {name: picture(i) for i, name in enumerate(names)})], tmp_path / "out")
    assert list(open_photos(str(tmp_path / "out" / "train"), "x").names) == ["a.jpg", "b/a.jpg"]
    assert list(open_photos(str(tmp_path / "out" / "test"), "x").names) == ["a.jpg"]
    assert notes(tmp_path / "out") == ["left out: 1 photo outside of train/ and test/"]


def test_photos_of_equal_names_in_several_train_folders_keep_their_folders(tmp_path: Path) -> None:
    names = [f"{kind}/{half}/1.jpg" for kind in ("cats", "dogs") for half in ("train", "test")]
    run("folder", [as_folder(tmp_path / "source", {name: picture(i) for i, name in enumerate(names)})], tmp_path / "out")
    for half in ("train", "test"):
        assert list(open_photos(str(tmp_path / "out" / half), "x").names) == ["cats/1.jpg", "dogs/1.jpg"]


def test_links_among_the_folders_of_a_source_bring_no_photo_twice(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "source", {f"in/{i}.jpg": picture(i) for i in range(3)})
    (source / "in" / "back").symlink_to(source)
    (source / "again").symlink_to(source / "in")
    assert open_source(str(source)).names == ["in/0.jpg", "in/1.jpg", "in/2.jpg"]


def test_a_link_to_nowhere_is_one_sentence(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "source", {f"{i}.jpg": picture(i) for i in range(3)})
    (source / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match=r"gone\.jpg cannot be read \(No such file or directory\); put it back, or remove it"):
        run("folder", [source], tmp_path / "out")


def test_odd_names_are_kept_and_one_with_a_line_break_is_refused(tmp_path: Path) -> None:
    odd = ["a\u2028b.jpg", "c\x85d.jpg", os.fsdecode(b"\xff.jpg")]
    source = as_folder(tmp_path / "source", {name: picture(i) for i, name in enumerate([*odd, *"123456789"])})
    for name in "123456789":
        (source / name).rename(source / f"{name}.jpg")
    run("folder", [source], tmp_path / "out")
    names = [name for half in ("train", "test") for name in open_photos(str(tmp_path / "out" / half), "x").names]
    assert set(odd) < set(names) and len(names) == 12
    as_folder(source, {"e\nf.jpg": picture(9)})
    with pytest.raises(InputError, match=r"1 photo with a line break in the name, such as 'e\\nf.jpg'; rename the files"):
        run("folder", [source], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_preparation_killed_in_its_first_moment_goes_on(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "source", {f"{i}.jpg": picture(i) for i in range(3)})
    (tmp_path / "out").mkdir()
    names, replace = list[str](), os.replace

    def replace_and_note(old: Path, new: Path) -> None:
        names.append(old.name)
        replace(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace_and_note)
        write_text(tmp_path / "text", "")
    (tmp_path / "out" / names[0]).write_text("{")
    run("folder", [source], tmp_path / "out")
    assert not list((tmp_path / "out").rglob(f"{UNFINISHED}*"))


def test_what_a_user_calls_unfinished_is_never_deleted(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "source", {f"{i}.jpg": picture(i) for i in range(3)})
    (tmp_path / "out" / f"{UNFINISHED}edits").mkdir(parents=True)
    (tmp_path / "out" / f"{UNFINISHED}portrait.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match="is not empty and no preparation of this program; choose another folder"):
        run("folder", [source], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{UNFINISHED}edits", f"{UNFINISHED}portrait.jpg"]


def test_more_shards_than_open_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SMALLEST_SHARD", 1)
    monkeypatch.setattr(images, "OPEN_FILES", 2)
    run("folder", [as_folder(tmp_path / "source", {f"{i}.jpg": picture(i) for i in range(10)})], tmp_path / "out")
    photos = open_photos(str(tmp_path / "out" / "train"), "x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for i, name in enumerate(photos.names):
            assert photos.read(i) == picture(int(name.partition(".")[0]))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_names_beside_records_have_to_be_as_many(tmp_path: Path) -> None:
    run("folder", [as_folder(tmp_path / "source", {f"{i}.jpg": picture(i) for i in range(5)})], tmp_path / "out")
    (tmp_path / "out" / "train" / "names.txt").write_text("one\n")
    with pytest.raises(InputError, match="names.txt has 1 names for 4 records"):
        open_photos(str(tmp_path / "out" / "train"), "data.train_photos")


def test_prepared_photos_are_found_by_the_names_of_a_pair_list(tmp_path: Path) -> None:
    names = ["000003.jpg", "000001.jpg", "000002.jpg"]
    files = {f"test/{name}": picture(i) for i, name in enumerate(names)} | {"train/a.jpg": picture(9)}
    run("folder", [as_folder(tmp_path / "source", files)], tmp_path / "out")
    masks = [f"{i:05d}.png" for i in range(4)]
    pairs = make_pair_list(names, masks, np.array([3, 0, 1]), "by hand")
    found = match(pairs, open_photos(str(tmp_path / "out" / "test"), "data.test_photos").names, masks)
    assert (found.photos.tolist(), found.masks.tolist()) == ([2, 0, 1], [3, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["folder", "--source", "nowhere"], "--source nowhere does not exist"),
        (["folder", "--source", "{tgz}"], "is a compressed tar archive, from which photos cannot be read one by one; unpack it"),
        (["folder", "--source", "{bad_zip}"], "cannot be read as a zip archive"),
        (["folder", "--source", "{bad_tar}"], "cannot be read as a tar archive"),
        (["folder", "--source", "{photos}", "--test", "2"], "--test 2 of 2 photos leaves none"),
        (["celeba", "--source", "{photos}", "--test", "2"], "--test is for `folder`: celeba has a published test set"),
        (["folder", "--source", "{photos}", "--invert-masks"], "--invert-masks is for irregular-masks"),
        (["irregular-masks", "--source", "{photos}", "--test", "1"], "irregular-masks is read from its archive or folder, whole"),
        (["places2", "--source", "tfds:places365_small"], "places2 is not in tensorflow-datasets; `--source tfds:` is for celeba, folder"),
        (["folder", "--source", "tfds:a", "--source", "tfds:b"], "is a whole data set; leave the other --source out"),
        (["folder", "--source", "tfds:no_such_data_set"], "--source tfds:no_such_data_set is not known to tensorflow-datasets"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], text: str, tmp_path: Path) -> None:
    places = {"photos": as_folder(tmp_path / "photos", {"a.jpg": picture(0), "b.jpg": picture(1)})}
    places["tgz"] = as_tar(tmp_path / "packed", {"a.jpg": picture(0)}, "w:gz", ".tgz")
    for kind in ("zip", "tar"):
        places[f"bad_{kind}"] = tmp_path / f"bad.{kind}"
        places[f"bad_{kind}"].write_bytes(b"x" * 2000)
    with pytest.raises(InputError, match=re.escape(text).replace("\\`", "`")):
        prepare_dataset.main([argument.format(**places) for argument in arguments] + ["--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_names_that_lead_out_of_an_archive_do_no_harm(tmp_path: Path) -> None:
    files = {"../../escaped.jpg": picture(0), "a.jpg": picture(1), "/absolute.jpg": picture(2)}
    for pack in (as_zip, as_tar):
        run("folder", [pack(tmp_path / "deep" / "in" / "source", files)], tmp_path / pack.__name__)
        names = [open_photos(str(tmp_path / pack.__name__ / split), "x").names for split in ("train", "test")]
        # a name with .. is taken for a hidden one
        assert sorted(sum(map(list, names), [])) == ["a.jpg", "absolute.jpg"]
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_a_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "source", {"a.jpg": picture(0), "b.jpg": picture(1)})
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match="a.jpg in .* is cut off"):
        source.read("a.jpg")


# --- masks ---

FOLDER = "mask/testing_mask_dataset"


def masks(per_tenth: int, size: int = 40) -> dict[str, bytes]:
    """As published: number // per_tenth is the tenth of hole share; white holes."""
    files = {}
    for number in range(6 * per_tenth):
        mask = np.zeros((size, size), np.uint8)
        mask.reshape(-1)[: int((number // per_tenth + 0.5) / 10 * size * size)] = 255
        file = io.BytesIO()
        Image.fromarray(mask).convert("RGB" if number % 2 else "L").save(file, "PNG")
        files[f"{FOLDER}/{number:05d}.png"] = file.getvalue()
    return files


def prepare_masks(source: Path, output: Path, invert: bool = False) -> None:
    mask_set.prepare_masks([open_source(str(source))], output, 2, invert, per_tenth=2)


@pytest.mark.parametrize("pack", [as_folder, as_zip])
def test_masks_become_one_zip_that_the_trainer_reads(pack: Callable[..., Path], tmp_path: Path) -> None:
    prepare_masks(pack(tmp_path / "source", masks(2)), tmp_path / "out")
    made = tmp_path / "out" / "irregular_masks.zip"
    read = open_masks(str(made), 40, False, 0, "data.train_masks")
    assert list(read.names) == [f"{number:05d}.png" for number in range(12)]
    assert [round(float(read.load(i).mean()), 2) for i in range(12)] == [round((i // 2 + 0.5) / 10, 2) for i in range(12)]
    with zipfile.ZipFile(made) as archive:
        assert Image.open(io.BytesIO(archive.read("00000.png"))).mode == "1"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["irregular_masks.zip"]


def inverted(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(255 - np.asarray(Image.open(io.BytesIO(data)).convert("L"))).save(file, "PNG")
    return file.getvalue()


def test_black_holes_are_recognised(tmp_path: Path) -> None:
    source = as_zip(tmp_path / "source", {name: inverted(data) for name, data in masks(2).items()})
    with pytest.raises(InputError, match="have their holes in black; pass --invert-masks"):
        prepare_masks(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare_masks(source, tmp_path / "out", invert=True)
    prepare_masks(as_zip(tmp_path / "white", masks(2)), tmp_path / "same")
    assert contents(tmp_path / "out") == contents(tmp_path / "same")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: f.pop(f"{FOLDER}/00003.png"), "1 of 12 masks are missing: 00003.png"),
        (lambda f: f.update({f"{FOLDER}/00003.png": picture(0, "PNG")}), "00003.png in .* is not black and white"),
        (
            lambda f: f.update({f"{FOLDER}/00003.png": f["mask/testing_mask_dataset/00011.png"]}),
            "1 mask outside the tenth",
        ),
        (lambda f: f.update({f"{FOLDER}/00003.png": b"x"}), "00003.png cannot be read as an image"),
    ],
)
def test_other_masks_are_refused(change: Callable[[dict], object], text: str, tmp_path: Path) -> None:
    files = masks(2)
    change(files)
    with pytest.raises(InputError, match=text):
        prepare_masks(as_zip(tmp_path / "source", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- tensorflow-datasets ---


@pytest.mark.parametrize("test_split", [True, False])
def test_photos_of_tensorflow_datasets(tmp_path: Path, test_split: bool) -> None:
    build_tfds(tmp_path / "tfds", test_split)
    run("folder", ["tfds:small_photos"], tmp_path / "out", "--tfds-dir", str(tmp_path / "tfds"))
    train, test = (open_photos(str(tmp_path / "out" / split), "x") for split in ("train", "test"))
    assert (len(train), len(test)) == ((7, 3) if test_split else (6, 1))
    assert {train.read(i) for i in range(len(train))} <= {picture(i) for i in range(7)}
    note = json.loads((tmp_path / "out" / "dataset.json").read_text())["notes"][0]
    assert "keeps no file names" in note and ("whole test split" if test_split else "last 1 of the training split") in note


def build_tfds(folder: Path, test_split: bool) -> None:
    """A data set shaped as tensorflow-datasets' celeb_a, made without TensorFlow's help."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # it is found by its files alone

        class SmallPhotos(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self) -> Any:
                features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager: Any) -> Any:
                splits = {"train": self._generate_examples(range(7))}
                return splits | ({"test": self._generate_examples(range(7, 10))} if test_split else {})

            def _generate_examples(self, seeds: range) -> Any:
                for seed in seeds:
                    yield seed, {"image": io.BytesIO(picture(seed))}

    builder = SmallPhotos(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()


def test_prepared_photos_train(tmp_path: Path) -> None:
    """The folders are what the settings take."""
    run("folder", [as_folder(tmp_path / "source", {f"{i}.jpg": picture(i) for i in range(5)})], tmp_path / "out")
    config = apply_overrides(Config(), [f"data.train_photos={tmp_path / 'out' / 'train'}"])
    photos = open_photos(config.data.train_photos, "data.train_photos")
    assert len(photos) == 4 and photos.fingerprint() == open_photos(config.data.train_photos, "data.train_photos").fingerprint()
