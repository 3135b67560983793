"""Photos out of a Debian package: only those whose licence allows it, whole scenes held out, every
licence written down.
"""

import hashlib
import io
import json
import lzma
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from scripts import prepare_dataset
from spn_jax.data import debian, open_scenes, prepare
from spn_jax.data.images import open_photos
from spn_jax.errors import InputError

LAND = "usr/share/games/plugins/sky/images/land"
COPYRIGHT = "usr/share/doc/sky/copyright"
TEXT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: Somebody
License: GPL-3+

Files: images/land/*
Copyright: Various
License: public-domain
 Donated to the public domain.
 (Exceptions below.)

# A photographer's own photos.
Files: images/land/*-ann*
Copyright: Ann (ann@example.org)
License: CC-BY-SA-4.0
Comment: Cropped.

Files:
 images/land/lake1*
 images/land/lake?0@2x.jpg
Copyright: Various
License: CC0-1.0

Files: images/land/hill0* images/land/hill1*
Copyright: Bob
License: CC-BY-3.0

License: CC-BY-SA-4.0
 Files: are mentioned in this text.
"""


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 48, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def package(copyright: str | None = TEXT) -> dict[str, bytes]:
    """Eighteen photos: 12 donated lakes and dunes, one CC0 lake among them, three of Ann's, two of
    Bob's; a sprite and a sound.
    """
    names = [f"dune{i}@2x.jpg" for i in range(7)] + [f"lake{i}@2x.jpg" for i in range(6)] + ["hill0@2x.jpg", "hill1@2x.jpg"]
    names += ["cliff0-ann@2x.jpg", "cliff1-ann@2x.jpg", "lake10-ann@2x.jpg"]
    files = {f"{LAND}/{name}": picture(seed) for seed, name in enumerate(names)}
    files |= {"usr/share/games/plugins/sky/images/ship/barb@2x.png": b"sprite", "usr/share/games/sounds/bang.wav": b"sound"}
    return files | ({COPYRIGHT: copyright.encode()} if copyright is not None else {})


FREE = sorted([f"sky/dune{i}@2x.jpg" for i in range(7)] + [f"sky/lake{i}@2x.jpg" for i in range(6)])


def tar(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        parts += [header.encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def as_deb(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".deb")
    path.write_bytes(ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(tar(files))}))
    return path


def as_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def run(source: Path | str, output: Path, *options: str) -> None:
    prepare_dataset.main(["open-scenes", "--source", str(source), "--output", str(output), "--threads", "2", *options])


def table(output: Path) -> list[dict[str, str]]:
    """The rows of licences.tsv."""
    header, *rows = (line.split("\t") for line in (output / "licences.tsv").read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("pack", [as_deb, as_folder])
def test_free_photos_are_copied_bit_for_bit_with_their_licences(pack: Callable[..., Path], tmp_path: Path) -> None:
    files = package()
    run(pack(tmp_path / "sky", files), tmp_path / "out")
    rows, found = table(tmp_path / "out"), list[str]()
    for split in ("train", "test"):
        photos = open_photos(str(tmp_path / "out" / split), "x")
        assert list(photos.names) == [row["name"] for row in rows if row["split"] == split]
        found += photos.names
        for i, name in enumerate(photos.names):
            assert photos.read(i) == files[f"{LAND}/{name.removeprefix('sky/')}"]
    assert sorted(found) == FREE
    for row in rows:
        assert row["sha256"] == hashlib.sha256(files[f"{LAND}/{row['name'].removeprefix('sky/')}"]).hexdigest()
    licences = {row["name"]: (row["licence"], row["copyright"], row["statement"]) for row in rows}
    assert licences["sky/lake0@2x.jpg"] == ("public-domain", "Various", "Donated to the public domain. (Exceptions below.)")
    assert licences["sky/lake1@2x.jpg"] == ("CC0-1.0", "Various", "")
    attribution = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert "## CC0-1.0: Various\n\n- sky/lake1@2x.jpg\n" in attribution and "Ann" not in attribution
    assert "5 photos under other licences are left out (3 CC-BY-SA-4.0, 2 CC-BY-3.0)" in (tmp_path / "out" / "dataset.json").read_text()


def test_the_last_matching_paragraph_holds_and_a_photographers_own_paragraph_is_heard() -> None:
    paragraphs = debian.read_copyright(TEXT, "copyright")

    def licences(name: str) -> list[str]:
        return [paragraph.licence for paragraph in debian.about(paragraphs, f"images/land/{name}@2x.jpg")]

    assert licences("dune0") == ["public-domain"]  # not of `*`
    assert licences("cliff0-ann") == ["CC-BY-SA-4.0"]
    assert licences("lake1") == licences("lakeX0") == ["CC0-1.0"]
    assert licences("hill1") == ["CC-BY-3.0"]  # two patterns in a line
    assert licences("lake10-ann") == ["CC0-1.0", "CC-BY-SA-4.0"]  # lake1* was meant for lake1
    assert [paragraph.licence for paragraph in debian.about(paragraphs, "sounds/bang.wav")] == ["GPL-3+"]
    assert debian.about(paragraphs[1:], "sounds/bang.wav") == []


def test_of_several_strict_licences_all_must_be_accepted() -> None:
    paragraphs = debian.read_copyright("Files: land/a*\nLicense: CC-BY-NC-4.0\n\nFiles: land/a1*\nLicense: CC-BY-SA-4.0\n", "copyright")
    files: Any = None
    photo = open_scenes.package_photo(files, "sky", "land/a1.jpg", "land/a1.jpg", paragraphs)
    assert photo.licence == "CC-BY-SA-4.0 and CC-BY-NC-4.0" and not open_scenes.is_accepted(photo.licence, {"cc-by-sa"})


def test_other_licences_on_request(tmp_path: Path) -> None:
    source = as_deb(tmp_path / "sky", package())
    run(source, tmp_path / "out", "--licence", "cc-by-sa")
    by_ann = {row["name"]: row for row in table(tmp_path / "out") if row["licence"] == "CC-BY-SA-4.0"}
    assert sorted(by_ann) == ["sky/cliff0-ann@2x.jpg", "sky/cliff1-ann@2x.jpg", "sky/lake10-ann@2x.jpg"]
    assert {row["copyright"] for row in by_ann.values()} == {"Ann (ann@example.org)"}
    assert (
        "## CC-BY-SA-4.0: Ann (ann@example.org)\n\nCropped.\n\n- sky/cliff0-ann@2x.jpg" in (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    )
    run(source, tmp_path / "all", "--licence", "CC-BY-SA-4.0", "--licence", "CC-BY")
    assert len(table(tmp_path / "all")) == 18
    with pytest.raises(InputError, match="--licence cc-by-nc: no photo is under it; there are 12 public-domain, 3 CC-BY-SA-4.0, 2 CC-BY"):
        run(source, tmp_path / "none", "--licence", "cc-by-nc")


@pytest.mark.parametrize(
    ("licence", "accepted", "holds"),
    [
        ("public-domain", "public-domain", True),
        ("CC0-1.0", "cc0", True),
        ("CC0", "cc0", True),
        ("CC-BY-SA-4.0", "cc-by-sa", True),
        ("CC-BY-SA-4.0", "cc-by", False),
        ("CC-BY-SA-4.0", "cc-by-sa-3.0", False),
        ("GPL-3+", "gpl", True),
        ("public-domain or GPL-3+", "public-domain", False),
        ("unknown", "unknown", False),
    ],
)
def test_licences_are_accepted_by_name_or_by_family(licence: str, accepted: str, holds: bool) -> None:
    assert open_scenes.is_accepted(licence, {accepted}) == holds


def test_whole_scenes_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the list, by the mark of another size, and by what the photos look like."""
    files = package()
    mirrored = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(files[f"{LAND}/lake5@2x.jpg"]))).save(mirrored, "JPEG", quality=60)
    files[f"{LAND}/dune9@2x.jpg"] = mirrored.getvalue()
    files[f"{LAND}/dune2.jpg"] = picture(77)
    listed = open_scenes.Listed({"sky/lake0": "Lake", "sky/lake2": "Lake"}, {"sky/lake3": "a drawing"}, frozenset({"sky/lake0"}))
    monkeypatch.setattr(open_scenes, "read_listed", lambda: listed)
    run(as_deb(tmp_path / "sky", files), tmp_path / "out")
    rows = {row["name"]: row for row in table(tmp_path / "out")}
    scenes = {name.removeprefix("sky/").partition(".")[0]: row["scene"] for name, row in rows.items()}
    assert scenes["lake0@2x"] == scenes["lake2@2x"] == "Lake"
    assert scenes["dune9@2x"] == scenes["lake5@2x"] == "sky/dune9"
    assert scenes["dune2@2x"] == scenes["dune2"] == "sky/dune2"
    assert len(set(scenes.values())) == len(scenes) - 3 and "lake3@2x" not in scenes
    sides = {scene: {row["split"] for row in rows.values() if row["scene"] == scene} for scene in scenes.values()}
    assert all(len(halves) == 1 for halves in sides.values()) and sides["Lake"] == {"test"}
    notes = json.loads((tmp_path / "out" / "dataset.json").read_text())["notes"]
    assert notes[1:] == [
        "1 photos are unsuitable and left out (open_scenes.tsv tells why)",
        "14 photos of 11 scenes: 13 public-domain, 1 CC0-1.0",
        "held out: 2 photos of 1 scenes: Lake",
    ]


def test_the_split_is_of_all_kinds_and_does_not_depend_on_the_order() -> None:
    def photo(kind: str, number: int) -> open_scenes.OpenPhoto:
        source: Any = None
        return open_scenes.OpenPhoto(prepare.Photo(f"sky/{kind}{number}.jpg", source, ""), kind, "CC0-1.0", "", "")

    photos = [photo(kind, number) for kind in ("canyon", "city", "sea", "snow") for number in range(16)]
    scenes = {one.key: one.key for one in photos}
    test = open_scenes.choose_test(photos, scenes, ())
    assert sorted(re.sub(r"\d", "", scene) for scene in test) == sorted(2 * ["sky/canyon", "sky/city", "sky/sea", "sky/snow"])
    assert open_scenes.choose_test(photos[::-1], scenes, ()) == test


def test_interrupted_and_continued_it_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "SMALLEST_SHARD", 3)
    source = as_deb(tmp_path / "sky", package())
    run(source, tmp_path / "straight")
    write, written = prepare.write_shard, list[list[str]]()

    def interrupted(*arguments: Any) -> list[str]:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(prepare, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "licences.tsv").exists() and (tmp_path / "out" / "plan.json").exists()
    monkeypatch.setattr(prepare, "write_shard", write)
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    with pytest.raises(InputError, match="holds a data set of other photos"):
        run(source, tmp_path / "out", "--licence", "cc-by")


def test_photos_of_scikit_image(tmp_path: Path) -> None:
    run("scikit-image", tmp_path / "out")
    rows = {row["name"]: row for row in table(tmp_path / "out")}
    assert sorted(rows) == [f"scikit-image/{photo.file}" for photo in open_scenes.SCIKIT_PHOTOS]
    assert rows["scikit-image/chelsea.png"]["split"] == "test" and rows["scikit-image/rocket.jpg"]["copyright"] == "SpaceX"


def test_another_picture_under_a_known_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = open_scenes.ScikitPhoto("coffee.png", "CC0-1.0", "", "", "0" * 64)
    monkeypatch.setattr(open_scenes, "SCIKIT_PHOTOS", (other,))
    with pytest.raises(InputError, match="coffee.png in .* is not the picture whose licence is known here"):
        run("scikit-image", tmp_path / "out")
    monkeypatch.setattr(open_scenes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--source scikit-image needs the package, .*pip install scikit-image"):
        run("scikit-image", tmp_path / "out")


def test_every_line_of_the_list_is_well_formed() -> None:
    listed = open_scenes.read_listed()
    assert listed.scenes["endless-sky-high-dpi/canyon1"] == listed.scenes["endless-sky-high-dpi/canyon9"] == "Bryce Canyon"
    assert not set(listed.scenes) & set(listed.unsuitable) and all(listed.unsuitable.values())
    assert listed.test == {"scikit-image/chelsea"}


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (package(None), "has no file doc/PACKAGE/copyright, so no photo's licence is known; pass the .deb, or the whole folder"),
        (package("This is free software."), "is not in the machine-readable format (DEP-5), so no photo's licence is known"),
        (package("Files: *\nCopyright: x\nLicence: CC0\n"), "is in the public domain or CC0; pass --licence to accept others"),
        (package("Files: *\nLicense: GPL-3+\n"), "is in the public domain or CC0; pass --licence to accept others"),
        (package("Files: images/ship/*\nLicense: CC0\n"), "is in the public domain or CC0; pass --licence to accept others"),
        ({COPYRIGHT: TEXT.encode()}, "has no photo in images/land/; pass Debian's endless-sky-high-dpi"),
        (package() | {"usr/share/doc/other/copyright": b""}, "has the copyright files of several packages; pass each package on its own"),
        ({**package(), COPYRIGHT: b"Files: \xff"}, "is not text in UTF-8; unpack the package again"),
        (
            {COPYRIGHT: TEXT.encode(), f"{LAND}/dune0.jpg": picture(0)},
            "1 photos of 1 scenes are too few to hold some out; pass more with --source",
        ),
    ],
)
@pytest.mark.parametrize("pack", [as_deb, as_folder])
def test_a_package_that_does_not_tell_its_licences_is_refused(
    pack: Callable[..., Path], files: dict[str, bytes], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        run(pack(tmp_path / "sky", files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "text"),
    [
        (b"no archive", "cannot be read as a Debian package (it is no ar archive); download it again"),
        (ar({"debian-binary": b"2.0\n"}), "there is no data.tar in it"),
        (ar({"data.tar.xz": b"x" * 99})[:-50], "data.tar.xz is cut off"),
        (ar({"data.tar.xz": b"no xz"}), "cannot be read as a Debian package"),
        (ar({"data.tar.xz": lzma.compress(tar({"a": b"x" * 99999}))[:-60]}), "cannot be read as a Debian package"),
    ],
)
def test_a_damaged_package_is_named(package: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "sky.deb").write_bytes(package)
    with pytest.raises(InputError, match=re.escape(text)):
        run(tmp_path / "sky.deb", tmp_path / "out")


def test_a_package_compressed_in_another_way_needs_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sky.deb").write_bytes(ar({"data.tar.zst": b"zstd"}))
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="is compressed as data.tar.zst, which only dpkg-deb reads; install dpkg, or unpack"):
        run(tmp_path / "sky.deb", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["open-scenes", "--source", "{deb}", "--test", "3"], "open-scenes takes --source, --licence, --output and --threads"),
        (["open-scenes", "--source", "{deb}", "--source", "{deb}"], "sky/cliff0-ann@2x.jpg is there twice; pass each --source once"),
        (["open-scenes", "--source", "{deb}x"], "does not exist"),
        (["folder", "--source", "{deb}", "--licence", "cc-by"], "--licence is for open-scenes; the photos of folder come without"),
        (["irregular-masks", "--source", "{deb}", "--licence", "cc-by"], "--licence is for open-scenes"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: list[str], text: str, tmp_path: Path) -> None:
    deb = as_deb(tmp_path / "sky", package())
    with pytest.raises(InputError, match=re.escape(text)):
        prepare_dataset.main([argument.format(deb=deb) for argument in arguments] + ["--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
