"""Pairs test photos with masks in pair lists, which are the protocol of an evaluation.

Scores of two programs can be compared only where both completed the same holes of the same photos.
A pair list says so by name, one `photo<TAB>mask` line each, and results name the list by its
SHA-256. Lists for the paper's test sets ship with the package (PROTOCOLS);
`python -m spn_jax.evaluate pairs` draws others.
"""

import gzip
import hashlib
import importlib.resources
import io
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from spn_jax.errors import InputError, counted
from spn_jax.runtime.files import write_atomically

FORMAT = 1
PROTOCOLS = {
    "celeba": "the first 12,000 photos of CelebA's test partition, 182638.jpg ... 194637.jpg",
    "places2": "the first 12,000 photos of Places2's validation set, Places365_val_00000001.jpg ... 00012000.jpg",
    "celebahq": "the last 2,800 photos of CelebA-HQ, 27200.jpg ... 29999.jpg; the paper has as many, which ones is not published",
}
_HEADER = re.compile(
    r"# spn_jax pair list, format (?P<format>\d+)\n"
    r"# photos: (?P<photos>\d+), sha256 (?P<photos_sha256>[0-9a-f]{64})\n"
    r"# masks: (?P<masks>\d+), sha256 (?P<masks_sha256>[0-9a-f]{64})\n"
    r"# pairs: sha256 (?P<sha256>[0-9a-f]{64})\n"
    r"# drawn: (?P<drawn>[^\n]*)\n"
    r"photo\tmask\n"
)


def draw_pairs(photos: int, masks: int, seed: int) -> np.ndarray:
    """Returns the mask index of each photo, int32 (photos,); no mask comes twice before all have
    come once.

    The first n pairs are the same for any number of photos. The order is one of hashes, so no
    version of a random number generator can change published pairs.
    """
    rounds = -(-photos // masks)
    order = [index for r in range(rounds) for index in _shuffled(masks, f"{seed} {r}")]
    return np.array(order[:photos], np.int32)


def draw_pairs_per_bin(photos: int, bins: np.ndarray, seed: int) -> np.ndarray:
    """Draws pairs as `draw_pairs` does, but with equally many photos for every bin of masks, give
    or take one.

    Args:
        bins: the bin of each mask, (masks,); a bin without masks is ignored.
    """
    members = {bin: np.flatnonzero(bins == bin) for bin in np.unique(bins).tolist()}
    rounds = -(-photos // len(members))
    of_bin = {bin: indices[draw_pairs(rounds, len(indices), seed)] for bin, indices in members.items()}
    names = list(members)
    order = [of_bin[names[place]][r] for r in range(rounds) for place in _shuffled(len(names), f"{seed} bins {r}")]
    return np.array(order[:photos], np.int32)


def _shuffled(count: int, key: str) -> list[int]:
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{key} {index}".encode()).digest())


@dataclass(frozen=True)
class PairList:
    """Test photos and the mask of each, by name (`short_names`)."""

    photos: tuple[str, ...]
    masks: tuple[str, ...]  # each photo's mask
    set_size: int  # number of masks in the set that they were drawn from
    set_sha256: str  # hash of that set's names (`names_sha256`)
    drawn: str  # how they were drawn, in words

    @property
    def sha256(self) -> str:
        """The hash of the pairs alone, whatever file they came from. Results name their protocol by
        it.
        """
        return names_sha256(f"{photo}\t{mask}" for photo, mask in zip(self.photos, self.masks, strict=True))

    @property
    def title(self) -> str:
        """One line for reports."""
        return f"{counted(len(self.photos), 'pair')}, sha256 {self.sha256[:16]} ({self.drawn})"


def make_pair_list(photos: Sequence[str], masks: Sequence[str], pairs: np.ndarray, drawn: str) -> PairList:
    """Returns the list in which photo i gets mask pairs[i].

    Args:
        photos, masks: names of the sources; any common folder is removed.

    Raises:
        InputError: a list cannot hold a name, or a name comes twice.
    """
    short_photos, short_masks = short_names(photos), short_names(masks)
    for kind, names in ("photo", short_photos), ("mask", short_masks):
        _check_names(kind, names)
    return PairList(short_photos, tuple(short_masks[i] for i in pairs), len(masks), names_sha256(short_masks), drawn)


def _check_names(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if any(character in name for character in "\t\n\r"):
            raise InputError(f"the {kind} {name!r} has a tab or a line break in its name, which a pair list cannot hold; rename the file")
    if duplicate := first_duplicate(names):
        raise InputError(f"the {kind} {duplicate} comes twice, and a pair list names each once; take one of them out")


def first_duplicate(names: Iterable[str]) -> str | None:
    """Returns the first name that repeats an earlier one."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def short_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names without their common folder: where a data set is kept is no part of a
    protocol.
    """
    paths = [PurePosixPath(name) for name in names]
    common = paths[0].parts[:-1] if paths else ()
    for path in paths:
        parts = path.parts[:-1]
        same = next((i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b), min(len(common), len(parts)))
        common = common[:same]
    return tuple(PurePosixPath(*path.parts[len(common) :]).as_posix() for path in paths)


def names_sha256(names: Iterable[str]) -> str:
    """Returns the SHA-256, in hex, of the names in order, each ended by a line break."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def as_text(pairs: PairList) -> str:
    """Returns a pair list as a file's text; `from_text` reverses it."""
    header = (
        f"# spn_jax pair list, format {FORMAT}\n"
        f"# photos: {len(pairs.photos)}, sha256 {names_sha256(pairs.photos)}\n"
        f"# masks: {pairs.set_size}, sha256 {pairs.set_sha256}\n"
        f"# pairs: sha256 {pairs.sha256}\n"
        f"# drawn: {pairs.drawn}\n"
        "photo\tmask\n"
    )
    return header + "".join(f"{photo}\t{mask}\n" for photo, mask in zip(pairs.photos, pairs.masks, strict=True))


def write_pair_list(path: Path, pairs: PairList) -> None:
    """Writes a pair list atomically, compressed if the name ends in .gz. Raises InputError if it
    cannot be written.
    """
    data = as_text(pairs).encode("utf-8", "surrogateescape")
    write_atomically(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def from_text(text: str, what: str) -> PairList:
    """Parses a pair list from a file's text; `what` names the file.

    Raises:
        InputError: the format is another, or the pairs do not match the hash in the header.
    """
    text = text.removeprefix("\ufeff").replace(
        "\r\n", "\n"
    )  # some version control systems and editors change line ends; the hashes are of the names alone
    header = _HEADER.match(text)
    if header is None or int(header["format"]) != FORMAT:
        raise InputError(f"{what} is no pair list of format {FORMAT}; draw one with `python -m spn_jax.evaluate pairs`")
    rows = [line.split("\t") for line in text[header.end() :].split("\n")[:-1]]
    if any(len(row) != 2 for row in rows) or not rows or not text.endswith("\n"):
        raise InputError(f"{what} is damaged: after its header it must have lines `photo<TAB>mask`; copy or draw it again")
    photos, masks = (tuple(row[column] for row in rows) for column in (0, 1))
    pairs = PairList(photos, masks, int(header["masks"]), header["masks_sha256"], header["drawn"])
    stated = (int(header["photos"]), header["photos_sha256"], header["sha256"])
    if stated != (len(photos), names_sha256(photos), pairs.sha256) or first_duplicate(photos):
        raise InputError(f"{what} is cut off or was edited: its pairs are not those that its header names; copy or draw it again")
    return pairs


def open_pair_list(spec: str, photos: Sequence[str], masks: Sequence[str]) -> PairList:
    """Opens the pair list that `--pairs` names: one of PROTOCOLS, a file of `write_pair_list`, or a
    released program's .npy.

    Args:
        photos, masks: available names. Only a .npy needs them: it is an integer array whose entry i
            is the index of photo i's mask.

    Raises:
        InputError: there is none of that name, it is damaged, or a .npy does not fit the photos and
            masks.
    """
    if spec in PROTOCOLS:
        data = (importlib.resources.files("spn_jax.evaluation") / "protocols" / f"{spec}.tsv.gz").read_bytes()
        return from_text(gzip.decompress(data).decode("utf-8", "surrogateescape"), f"--pairs {spec}")
    path = Path(spec)
    if not path.is_file():
        raise InputError(
            f"--pairs {spec} is neither a file nor one of the lists that come with this program: {', '.join(PROTOCOLS)}; "
            "draw a list with `python -m spn_jax.evaluate pairs`"
        )
    if path.suffix == ".npy":
        return _from_released_index(path, photos, masks)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "surrogateescape")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"--pairs {spec} cannot be read ({error}); copy or draw it again") from error
    return from_text(text, f"--pairs {spec}")


def _from_released_index(path: Path, photos: Sequence[str], masks: Sequence[str]) -> PairList:
    try:
        index = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--pairs {path} cannot be read as a NumPy array ({error}); pass an array of integers") from error
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise InputError(f"--pairs {path} holds {index.dtype} {index.shape}; an index has one integer a photo, the number of its mask")
    if len(index) != len(photos):
        raise InputError(
            f"--pairs {path} has {len(index)} entries for {len(photos)} photos; it names no photo, so that both must have the same number"
        )
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(masks):
        raise InputError(f"--pairs {path} asks for masks {index.min()} to {index.max()}, but there are {len(masks)}; pass its own mask set")
    return make_pair_list(photos, masks, index.astype(np.int64), f"index {path.name}")


@dataclass(frozen=True)
class Match:
    """The positions of a pair list's photos and masks among those available."""

    photos: np.ndarray  # index of each listed photo, (n,)
    masks: np.ndarray  # index of its mask, (n,)
    notes: tuple[str, ...]  # what a reader of the results has to know


def match(pairs: PairList, photos: Sequence[str], masks: Sequence[str]) -> Match:
    """Finds a list's photos and masks among the available names.

    The masks must be exactly the list's set. Photos are found by name, with a note if folders or
    suffixes differ (CelebA-HQ is kept as .jpg or .png). Photos that are not in the list are left
    out, with a note.

    Raises:
        InputError: the masks are of another set, or photos are missing; it says which.
    """
    mask_indices = _match_masks(pairs, short_names(masks))
    indices, how = _match_photos(pairs.photos, short_names(photos))
    notes = [f"{how} of the photos differ from the pair list's"] if how else []
    if left_out := len(photos) - len(indices):
        are, were = ("is", "was") if left_out == 1 else ("are", "were")
        notes.append(f"{left_out} of {counted(len(photos), 'photo')} {are} not in the pair list and {were} left out")
    return Match(indices, mask_indices, tuple(notes))


def _match_masks(pairs: PairList, names: Sequence[str]) -> np.ndarray:
    index = {name: i for i, name in enumerate(names)}
    if (pairs.set_size, pairs.set_sha256) != (len(names), names_sha256(names)):
        missing = [name for name in dict.fromkeys(pairs.masks) if name not in index]
        detail = f"{_some(missing)} of the list {'is' if len(missing) == 1 else 'are'} not among them" if missing else "some names differ"
        raise InputError(
            f"the pair list is for another set of masks: its set has {pairs.set_size} and there are {len(names)}, and {detail} "
            f"(sha256 of the names {pairs.set_sha256[:16]}, here {names_sha256(names)[:16]}); pass the list's set with --masks"
        )
    return np.array([index[name] for name in pairs.masks], np.int64)


_KEYS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", lambda name: name),
    ("the folders", lambda name: PurePosixPath(name).name),
    ("the suffixes", lambda name: PurePosixPath(name).stem),
)


def _match_photos(listed: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, str]:
    """Returns the index of each listed photo, and a note on what had to be ignored to find them."""
    for how, key in _KEYS:
        wanted = [key(name) for name in listed]
        at_hand: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            at_hand.setdefault(key(name), []).append(i)
        if len(set(wanted)) == len(wanted) and all(len(at_hand.get(name, ())) == 1 for name in wanted):
            return np.array([at_hand[name][0] for name in wanted], np.int64), how
    there = set(names) | {PurePosixPath(name).name for name in names} | {PurePosixPath(name).stem for name in names}
    missing = [name for name in listed if name not in there and PurePosixPath(name).stem not in there]
    if missing:
        raise InputError(
            f"{len(missing)} of the {counted(len(listed), 'photo')} of the pair list {'is' if len(missing) == 1 else 'are'} not among "
            f"the {len(names)} at hand: {_some(missing)}; "
            "pass the list's photos with --photos"
        )
    stems = [PurePosixPath(name).stem for name in names]
    several = next(name for name in listed if stems.count(PurePosixPath(name).stem) != 1)
    raise InputError(
        f"several photos at hand could be {several} of the pair list, in other folders or with other suffixes; keep one of them"
    )


def _some(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
