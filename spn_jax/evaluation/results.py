"""Opens folders of completed photos made by any program, to score them under the same pairs."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from spn_jax.data.images import decode_photo, find_images
from spn_jax.errors import InputError, counted, first_few
from spn_jax.evaluation.pairs import short_names
from spn_jax.evaluation.resume import files_state


class ResultsFolder:
    """The completed photos in a folder.

    The result for photo a/b.jpg is a/b.jpg or, in any other format, a/b.png; if the folder has no
    subfolders, b.jpg or b.png. If photos differ by their suffix alone, the photo's suffix stays:
    a.jpg or a.jpg.png, and a.tif or a.tif.png.

    Args:
        name: the method's name, for error texts.
        folder: searched recursively. Every result is decoded once, so that a broken one is found
            before any model runs.
        photos: names of all evaluated photos.
        size: the size they are evaluated at.

    Raises:
        InputError: results are missing, duplicate, of no photo, broken, or of another size. One
            error names all.
    """

    def __init__(self, name: str, folder: str, photos: Sequence[str], size: int):
        self._what = f"--results {name}={folder}"
        self._size = size
        location = Path(folder).expanduser()
        if not location.exists():
            raise InputError(f"{self._what} does not exist; pass the folder of the completed photos as --results {name}=DIR")
        if not location.is_dir():
            raise InputError(f"{self._what} is a file; pass the folder of the completed photos as --results {name}=DIR")
        self._files = self._find(location, name, photos)

    def _find(self, location: Path, name: str, photos: Sequence[str]) -> list[Path]:
        names = [file.relative_to(location).as_posix() for file in find_images(location)]
        found = assign(photos, names)
        if len(found.missing) == len(photos) and (below := _folder_below(photos, names)):
            raise InputError(f"{self._what}: the completed photos are one folder further down; pass --results {name}={location / below}")
        wanted = [some[0] for some in found.of_photo if some]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            states = dict(zip(wanted, pool.map(lambda file: self._state(location / file), wanted), strict=True))
        problems = {
            "missing": found.missing,
            "not named after any photo": found.foreign,
            "more than one for a photo": [" and ".join(some) for some in found.of_photo if len(some) > 1],
            "unreadable (make these again)": [file for file, state in states.items() if isinstance(state, str)],
            f"not {self._size} x {self._size} pixels": [
                f"{file} ({state[0]} x {state[1]})"
                for file, state in states.items()
                if not isinstance(state, str) and state != (self._size, self._size)
            ],
        }
        listed = [f"{problem} ({len(some):,}): {first_few(some)}" for problem, some in problems.items() if some]
        if listed:
            raise InputError(
                f"{self._what}: expected one image per photo ({counted(len(photos), 'photo')} of {self._size} x {self._size} pixels), "
                f"named like it; {'; '.join(listed)}"
            )
        return [location / some[0] for some in found.of_photo]

    def _state(self, file: Path) -> tuple[int, int] | str:
        """Returns width and height, or why the file cannot be read."""
        try:
            with Image.open(file) as image:
                if image.size != (self._size, self._size):
                    return image.size
            height, width, _ = self._decode(file).shape
        except Exception as error:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ... depending on the format
            return str(error)
        return width, height

    def _decode(self, file: Path) -> np.ndarray:
        try:
            return decode_photo(file, f"{self._what}: {file}")
        except InputError as error:
            if error.__cause__ is None:
                raise
            raise InputError(f"{self._what}: {file} cannot be read as an image ({error.__cause__}); make it again") from error

    def load(self, i: int) -> np.ndarray:
        """Loads the result for photo `i`, uint8 (size, size, 3). Raises InputError if it was
        replaced by one that is broken or of another size.
        """
        result = self._decode(self._files[i])
        if result.shape != (self._size, self._size, 3):
            raise InputError(
                f"{self._what}: {self._files[i]} is {result.shape[1]} x {result.shape[0]} pixels, not {self._size} x {self._size}"
            )
        return result

    def completed(self, i: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the result in the hole, the photo's own pixels elsewhere."""
        return np.where(mask > 0, self.load(i), image)

    def raw(self, i: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Returns the result as it is."""
        return self.load(i)

    def fingerprint(self) -> str:
        """Returns the SHA-256, in hex, of name, byte size and modification time of every result."""
        return files_state(self._files)


@dataclasses.dataclass(frozen=True)
class Assigned:
    """The assignment of result files to photos."""

    of_photo: list[list[str]]  # results of each photo
    missing: list[str]  # the expected file names for photos without results
    foreign: list[str]  # files that belong to no photo


def assign(photos: Sequence[str], files: Sequence[str]) -> Assigned:
    """Finds each photo's results among files, named relative to their folder: first by its whole
    name, then without the suffix.
    """
    names = _inside(photos)
    flat = [PurePosixPath(name).name for name in names]
    if not any("/" in file for file in files) and len(set(flat)) == len(flat):
        names = flat
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in names]
    times = Counter(stems)
    by_name = {name: i for i, name in enumerate(names)}
    by_stem = {stem: i for i, stem in enumerate(stems) if times[stem] == 1}
    of_photo: list[list[str]] = [[] for _ in photos]
    foreign = []
    for file in files:
        short = PurePosixPath(file).with_suffix("").as_posix()
        photo = by_name.get(file, by_stem.get(short, by_name.get(short)))
        if photo is None:
            foreign.append(file)
        else:
            of_photo[photo].append(file)
    wanted = [name if times[stem] > 1 else f"{stem}.png" for name, stem in zip(names, stems, strict=True)]
    return Assigned(of_photo, [name for name, some in zip(wanted, of_photo, strict=True) if not some], foreign)


def _folder_below(photos: Sequence[str], files: Sequence[str]) -> str | None:
    """Returns the first folder that has a result of every photo."""
    counts = Counter(parent.as_posix() for file in files for parent in PurePosixPath(file).parents[:-1])
    for folder in sorted(folder for folder, count in counts.items() if count >= len(photos)):
        inside = [file.removeprefix(f"{folder}/") for file in files if file.startswith(f"{folder}/")]
        if not assign(photos, inside).missing:
            return folder
    return None


def composite_stems(names: Sequence[str]) -> list[str]:
    """Returns a relative name without suffix for each photo's composite. The photo's suffix stays
    if two names would coincide.
    """
    inside = _inside(names)
    short = [PurePosixPath(name).with_suffix("").as_posix() for name in inside]
    return short if len(set(short)) == len(short) else inside


def _inside(names: Sequence[str]) -> list[str]:
    """Returns the short names without parts that lead out of a folder. Names that would coincide
    keep a folder "_" in place of "..".

    So neither overwrites the other's composite, and both are found again as results.
    """
    paths = [[part for part in PurePosixPath(name).parts if part not in ("/", ".")] for name in short_names(names)]
    inside = [PurePosixPath(*(part for part in parts if part != "..")).as_posix() for parts in paths]
    if len(set(inside)) == len(inside):
        return inside
    return [PurePosixPath(*("_" if part == ".." else part for part in parts)).as_posix() for parts in paths]
