"""Prepares freely licensed photos, split by scene, from which trained weights may be shared.

The photos come from free packages: Debian's `endless-sky-high-dpi` (backgrounds of a game, whose
copyright file tells the licence of each) and scikit-image. Public domain and CC0 are accepted,
other licences on request. Besides the shards these are written:

    DIR/licences.tsv     split, name, scene, licence, copyright holder, remarks and SHA-256 of
                         each photo
    DIR/ATTRIBUTION.md   the same for people, by licence and holder
    DIR/test_crops/      squares of the held-out photos, the test list of training on random crops
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import importlib.util
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from spn_jax.data.crops import write_crops
from spn_jax.data.debian import UNKNOWN, Deb, Paragraph, about, read_copyright
from spn_jax.data.images import IMAGE_SUFFIXES, decode_photo, open_photos
from spn_jax.data.official import Photo, Selection
from spn_jax.data.prepare import prepare
from spn_jax.data.sources import Folder, Source, open_source
from spn_jax.errors import InputError

OPEN_SCENES = "open-scenes"
SCIKIT_IMAGE = "scikit-image"  # stands for a path: the photos of the installed package
LICENCES, ATTRIBUTION = "licences.tsv", "ATTRIBUTION.md"
TEST_CROPS = "test_crops"  # name of the folder
FREE = frozenset({"public-domain", "cc0"})  # licence families, see `family`
PHOTOS = re.compile(r"(?:^|/)(images/land/[^/]+)$")  # the part of a path that the copyright file names
COPYRIGHT = re.compile(r"(?:^|/)doc/([^/]+)/copyright$")
HELD_OUT = 8  # one photo in so many
FEWEST_SCENES = 4  # kinds with fewer scenes get no share of their own in the test photos
THUMBNAIL = 16  # pixels
# Thresholds of thumbnail correlation and of histogram overlap. Different places reach 0.96 in the
# first, as sky over ground looks alike everywhere.
SAME_STRUCTURE, SAME_COLOURS = 0.975, 0.5


@dataclasses.dataclass(frozen=True)
class ScikitPhoto:
    """A photo of scikit-image, with what skimage.data says about it."""

    file: str
    licence: str
    holder: str
    statement: str
    sha256: str  # the hash of the file that skimage.data describes


SCIKIT_PHOTOS = (
    ScikitPhoto(
        "brick.png",
        "CC0-1.0",
        "CC0Textures",
        "licensed under the Creative Commons CC0 License",
        "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    ),
    ScikitPhoto(
        "chelsea.png",
        "CC0-1.0",
        "Stefan van der Walt",
        "No copyright restrictions. CC0 by the photographer",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    ScikitPhoto(
        "coffee.png",
        "CC0-1.0",
        "Rachel Michetti",
        "No copyright restrictions. CC0 by the photographer, courtesy of Pikolo Espresso Bar",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
    ScikitPhoto(
        "grass.png",
        "CC0-1.0",
        "linolafett (DeviantArt)",
        "licensed under the Creative Commons CC0 License",
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    ),
    ScikitPhoto(
        "gravel.png",
        "CC0-1.0",
        "CC0Textures",
        "licensed under the Creative Commons CC0 License",
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    ),
    ScikitPhoto(
        "hubble_deep_field.jpg",
        "public-domain",
        "NASA",
        "The image was captured by NASA and may be freely used in the public domain",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    ScikitPhoto(
        "rocket.jpg",
        "public-domain",
        "SpaceX",
        "The image was captured by SpaceX and released in the public domain",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
)


@dataclasses.dataclass(frozen=True)
class OpenPhoto:
    """A photo and the licence that it may be used under."""

    photo: Photo
    kind: str  # kind of scene, such as canyon
    licence: str  # the licence as its source writes it
    holder: str
    statement: str

    @property
    def key(self) -> str:
        """The photo's name in the list of scenes."""
        return scene_key(self.photo.name)


@dataclasses.dataclass(frozen=True)
class Listed:
    """What people found out by looking at the photos."""

    scenes: Mapping[str, str]  # {photo: the place it shows}; several photos can show one place
    unsuitable: Mapping[str, str]  # {photo: why it is left out}
    test: frozenset[str]  # photos that tests elsewhere in the program use


def prepare_open_scenes(sources: Sequence[str], licences: Sequence[str], output: Path, threads: int) -> None:
    """Writes the data set. After an interruption it continues where it stopped.

    Args:
        sources: paths of Debian packages or of folders that they were unpacked to, or
            `scikit-image`.
        licences: names of licences to accept beside the public domain and CC0, such as cc-by-sa or
            CC-BY-SA-4.0.
        output: folder to fill.
        threads: see `prepare`.

    Raises:
        InputError: a source is not known or does not state licences, or no photo is left; also as
            `prepare`.
    """
    found = [photo for source in sources for photo in (scikit_photos() if source == SCIKIT_IMAGE else package_photos(source))]
    if twice := [name for name, count in Counter(photo.photo.name for photo in found).items() if count > 1]:
        raise InputError(f"{twice[0]} is there twice; pass each --source once")
    accepted = FREE | {licence.lower() for licence in licences}
    check_licences(licences, found)
    free = [photo for photo in found if is_accepted(photo.licence, accepted)]
    listed = read_listed()
    photos = sorted((photo for photo in free if photo.key not in listed.unsuitable), key=lambda photo: photo.photo.name)
    if not photos:
        raise InputError(f"no photo of {', '.join(sources)} is in the public domain or CC0; pass --licence to accept others")
    scenes = group_scenes(photos, listed)
    test = choose_test(photos, scenes, listed.test)
    halves = {"train": [p for p in photos if scenes[p.key] not in test], "test": [p for p in photos if scenes[p.key] in test]}
    if not halves["train"] or not halves["test"]:
        raise InputError(
            f"{len(photos)} photos of {len(set(scenes.values()))} scenes are too few to hold some out; pass more with --source"
        )
    notes = (
        f"{len(found) - len(free)} photos under other licences are left out ({counts(p.licence for p in found if p not in free)})",
        f"{len(free) - len(photos)} photos are unsuitable and left out (open_scenes.tsv tells why)",
        f"{len(photos)} photos of {len(set(scenes.values()))} scenes: {counts(p.licence for p in photos)}",
        f"held out: {len(halves['test'])} photos of {len(test)} scenes: {', '.join(sorted(test))}",
    )
    selection = Selection([p.photo for p in halves["train"]], [p.photo for p in halves["test"]], notes)
    beside = functools.partial(licence_texts, halves, scenes)
    prepare(OPEN_SCENES, selection, sources, output, threads, beside)
    count = write_crops(open_photos(str(output / "test"), "--output"), output / TEST_CROPS)
    print(f"{output / TEST_CROPS} has {count} squares of the held-out photos", flush=True)


def package_photos(source: str) -> list[OpenPhoto]:
    """Returns the photos of a Debian package, or of a folder it was unpacked to. Raises InputError
    if their licences are not stated.
    """
    path = Path(source).expanduser()
    files: Source
    if path.is_file() and path.suffix == ".deb":
        files = Deb(path, lambda name: bool(PHOTOS.search(name) or COPYRIGHT.search(name)))
    else:
        files = open_source(source)
    documents = [(name, match[1]) for name in files.names if (match := COPYRIGHT.search(name))]
    if not documents:
        raise InputError(
            f"--source {source} has no file doc/PACKAGE/copyright, so no photo's licence is known; "
            "pass the .deb, or the whole folder that it was unpacked to"
        )
    if len(documents) > 1:
        raise InputError(f"--source {source} has the copyright files of several packages; pass each package on its own")
    (name, package), label = documents[0], f"{documents[0][0]} in {source}"
    try:
        paragraphs = read_copyright(files.read(name).decode(), label)
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not text in UTF-8; unpack the package again") from error
    places = [(name, match[1]) for name in files.names if (match := PHOTOS.search(name)) and name.lower().endswith(IMAGE_SUFFIXES)]
    if not places:
        raise InputError(f"--source {source} has no photo in images/land/; pass Debian's endless-sky-high-dpi")
    return [package_photo(files, package, path, place, paragraphs) for path, place in places]


def package_photo(files: Source, package: str, path: str, place: str, paragraphs: Sequence[Paragraph]) -> OpenPhoto:
    """Returns a photo with its licence: all licences named for it that are not free, joined, or
    else that of the last matching paragraph.
    """
    file = PurePosixPath(place)
    holding = about(paragraphs, place) or [Paragraph((), UNKNOWN, UNKNOWN, "")]
    strict = {paragraph.licence: paragraph for paragraph in holding if not is_accepted(paragraph.licence, FREE)}
    told = list(strict.values()) or holding[:1]
    # several licences joined like this are accepted only under this very name
    licence = " and ".join(paragraph.licence for paragraph in told)
    holder = "; ".join(paragraph.copyright for paragraph in told)
    statement = " ".join(paragraph.statement for paragraph in told if paragraph.statement)
    kind = re.sub(r"[\d@].*", "", file.stem) or file.stem
    photo = Photo(f"{package}/{file.name}", files, path)
    return OpenPhoto(photo, kind, licence, holder, statement)


def scikit_photos() -> list[OpenPhoto]:
    """Returns scikit-image's photos that are CC0 or in the public domain. Raises InputError if it
    is not installed or has other files.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError("--source scikit-image needs the package, which is not installed; run: pip install scikit-image")
    files, photos = Folder(Path(package.origin).parent / "data"), []
    for photo in SCIKIT_PHOTOS:
        if hashlib.sha256(files.read(photo.file)).hexdigest() != photo.sha256:
            raise InputError(
                f"{photo.file} in {files.label} is not the picture whose licence is known here; install scikit-image 0.26, "
                "or leave --source scikit-image out"
            )
        placed = Photo(f"{SCIKIT_IMAGE}/{photo.file}", files, photo.file)
        photos.append(OpenPhoto(placed, SCIKIT_IMAGE, photo.licence, photo.holder, photo.statement))
    return photos


def family(licence: str) -> str:
    """Returns a licence in small letters without its version: cc-by-sa for CC-BY-SA-4.0, gpl for
    GPL-3+.
    """
    return re.sub(r"-v?\d[\d.]*\+?$", "", licence.lower())


def is_accepted(licence: str, accepted: Iterable[str]) -> bool:
    """Returns whether a licence or its family is among `accepted` (in small letters). An unknown
    one never is.
    """
    return licence != UNKNOWN and (licence.lower() in accepted or family(licence) in accepted)


def check_licences(licences: Sequence[str], photos: Sequence[OpenPhoto]) -> None:
    """Raises InputError if no photo has one of the licences that were asked for."""
    for licence in licences:
        if not any(is_accepted(photo.licence, {licence.lower()}) for photo in photos):
            raise InputError(f"--licence {licence}: no photo is under it; there are {counts(photo.licence for photo in photos)}")


def counts(names: Iterable[str]) -> str:
    """Counts names, the most frequent first, as in `198 public-domain, 45 CC-BY-SA-4.0`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))) or "none"


def scene_key(name: str) -> str:
    """Returns a photo's name without its suffix and without `@2x`, the mark of double size."""
    return re.sub(r"@\dx$", "", str(PurePosixPath(name).with_suffix("")))


def read_listed() -> Listed:
    """Reads open_scenes.tsv: photo, scene, remark. The scene `-` leaves a photo out; a scene
    `!name` is always held out.
    """
    text = importlib.resources.files("spn_jax.data").joinpath("open_scenes.tsv").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    return Listed(
        {photo: scene.removeprefix("!") for photo, scene, _ in lines if scene != "-"},
        {photo: remark for photo, scene, remark in lines if scene == "-"},
        frozenset(photo for photo, scene, _ in lines if scene.startswith("!")),
    )


def group_scenes(photos: Sequence[OpenPhoto], listed: Listed) -> dict[str, str]:
    """Returns {photo's key: its scene}. A scene groups photos of one listed place, one picture in
    several sizes, and near-duplicates.

    A scene has its name in the list, or else that of its first photo.
    """
    scenes = {photo.key: listed.scenes.get(photo.key, photo.key) for photo in photos}
    for one, other in near_duplicates(photos):
        joined, name = {scenes[one], scenes[other]}, min(scenes[one], scenes[other])
        scenes = {key: name if scene in joined else scene for key, scene in scenes.items()}
    return scenes


def near_duplicates(photos: Sequence[OpenPhoto]) -> list[tuple[str, str]]:
    """Returns pairs of photos, by key, that look the same at 16 x 16 pixels, as they are or
    mirrored.
    """
    looks = {photo.key: look for photo in photos if (look := appearance(photo.photo)) is not None}
    keys = list(looks)
    if not keys:
        return []
    grey = np.stack([looks[key][0] for key in keys])  # (N, 16, 16)
    colours = np.stack([looks[key][1] for key in keys])  # (N, 64)
    flat = grey.reshape(len(keys), -1)
    structure = np.maximum(flat @ flat.T, flat @ grey[:, :, ::-1].reshape(len(keys), -1).T) / flat.shape[1]
    pairs = []
    for i in range(len(keys)):
        for j in range(i + 1, len(keys)):
            if structure[i, j] >= SAME_STRUCTURE and np.minimum(colours[i], colours[j]).sum() >= SAME_COLOURS:
                pairs.append((keys[i], keys[j]))
    return pairs


def appearance(photo: Photo) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a grey thumbnail, float (16, 16), of mean 0 and variance 1, and a colour histogram,
    float (64,), of sum 1.

    None for a broken photo, which is reported when it is copied.
    """
    try:
        pixels = decode_photo(io.BytesIO(photo.source.read(photo.path)), photo.path)
    except InputError:
        return None
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), float)
    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX)).reshape(-1, 3) // 64
    histogram = np.bincount(small @ np.array([16, 4, 1]), minlength=64) / len(small)
    return (grey - grey.mean()) / (grey.std() + 1e-6), histogram


def choose_test(photos: Sequence[OpenPhoto], scenes: Mapping[str, str], always: Iterable[str]) -> set[str]:
    """Chooses the scenes to hold out, about one photo in eight. The kinds take turns; within a kind
    hashes of the names decide.
    """
    sizes = Counter(scenes.values())
    kinds: dict[str, str] = {}
    for photo in photos:  # a scene has the kind of its first photo
        kinds.setdefault(scenes[photo.key], photo.kind)
    many = Counter(kinds.values())
    ordered = defaultdict[str, list[str]](list)
    for scene in sorted(kinds, key=digest):
        ordered[kinds[scene] if many[kinds[scene]] >= FEWEST_SCENES else "other"].append(scene)
    turns = [(turn, digest(scene), scene) for of_kind in ordered.values() for turn, scene in enumerate(of_kind)]
    chosen = {scenes[key] for key in always if key in scenes}
    target = max(1, round(len(photos) / HELD_OUT))
    for _, _, scene in sorted(turns):
        if sum(sizes[held] for held in chosen | {scene}) <= target:
            chosen.add(scene)
    return chosen


def digest(name: str) -> str:
    """Returns the SHA-256 of a name, in hex, for an order that depends on nothing else."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def licence_texts(halves: Mapping[str, Sequence[OpenPhoto]], scenes: Mapping[str, str]) -> dict[str, str]:
    """Returns {file name: text} of the table of licences and of the attribution list."""
    rows = ["split\tname\tscene\tlicence\tcopyright\tstatement\tsha256"]
    for split, photos in halves.items():
        for photo in photos:
            sha256 = hashlib.sha256(photo.photo.source.read(photo.photo.path)).hexdigest()
            cells = (split, photo.photo.name, scenes[photo.key], photo.licence, photo.holder, photo.statement, sha256)
            rows.append("\t".join(re.sub(r"\s+", " ", cell) for cell in cells))
    return {LICENCES: "".join(f"{row}\n" for row in rows), ATTRIBUTION: attribution([*halves["train"], *halves["test"]])}


def attribution(photos: Sequence[OpenPhoto]) -> str:
    """Returns the attribution list in Markdown, by licence, holder and statement."""
    lines = [
        "# Where the photos come from, and under which licence",
        "",
        f"{len(photos)} photos: {counts(photo.licence for photo in photos)}. The photos are copied bit for bit. "
        f"{LICENCES} has a line a photo, with its SHA-256.",
    ]
    groups = defaultdict[tuple[str, str, str], list[str]](list)
    for photo in photos:
        groups[photo.licence, photo.holder, photo.statement].append(photo.photo.name)
    for (licence, holder, statement), names in sorted(groups.items()):
        lines += ["", f"## {licence}: {holder}", "", *([statement, ""] if statement else []), *(f"- {name}" for name in sorted(names))]
    return "\n".join(lines) + "\n"
