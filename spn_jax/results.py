"""Folders of completed photos that any program made, one a test photo, for scoring under the same pairs as all others."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from spn_jax.data.images import decode_photo, existing_path, find_images
from spn_jax.errors import InputError
from spn_jax.pairs import names_sha256, short_names


class ResultsFolder:
    """The completed photos in a folder.

    Photo a/b.jpg's is a/b.png, or any other format; where there are no folders in it, b.png. Where photos differ by their suffix
    alone, the photo's suffix stays: a.jpg.png and a.tif.png.

    Args:
        name: of the method, for error texts.
        folder: searched through.
        photos: names of all the photos that are evaluated.
        size: the size they are evaluated at.

    Raises:
        InputError: results that are missing, there twice, of no photo, or of another size; one error for all of them, with names.
    """

    def __init__(self, name: str, folder: str, photos: Sequence[str], size: int):
        self._what = f"--results {name}={folder}"
        self._size = size
        location = existing_path(folder, f"--results {name}")
        if not location.is_dir():
            raise InputError(f"{self._what} is a file; pass the folder of the completed photos")
        self._files = self._find(location, photos)

    def _find(self, location: Path, photos: Sequence[str]) -> list[Path]:
        files: dict[str, list[Path]] = {}
        for file in find_images(location):
            files.setdefault(file.relative_to(location).with_suffix("").as_posix(), []).append(file)
        keys = composite_stems(photos)
        flat = [PurePosixPath(key).name for key in keys]
        if not any("/" in key for key in files) and len(set(flat)) == len(flat):
            keys = flat
        wanted = set(keys)

        def names(paths: Sequence[Path]) -> str:
            return " and ".join(path.relative_to(location).as_posix() for path in paths)

        problems = {
            "missing": [key for key in keys if key not in files],
            "of no test photo": [names(paths) for key, paths in files.items() if key not in wanted],
            "there more than once": [names(paths) for key, paths in files.items() if key in wanted and len(paths) > 1],
            f"not {self._size} x {self._size} pixels, the size of the evaluated photos": [
                f"{names([path])} ({width} x {height})"
                for key, paths in files.items()
                if key in wanted
                for path in paths
                for width, height in [image_size(path, self._what)]
                if (width, height) != (self._size, self._size)
            ],
        }
        if found := [
            f"{len(some)} {problem}: {', '.join(some[:3])}{', ...' if len(some) > 3 else ''}" for problem, some in problems.items() if some
        ]:
            raise InputError(
                f"{self._what} must hold one completed image for each of the {len(photos)} photos, named after it; {'; '.join(found)}"
            )
        return [files[key][0] for key in keys]

    def load(self, i: int) -> np.ndarray:
        """The result for photo `i`, uint8 (size, size, 3). InputError: it cannot be read, or has another size."""
        result = decode_photo(self._files[i], f"{self._what}: {self._files[i]}")
        if result.shape != (self._size, self._size, 3):
            raise InputError(
                f"{self._what}: {self._files[i]} is {result.shape[1]} x {result.shape[0]} pixels, not {self._size} x {self._size}"
            )
        return result

    def completed(self, i: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The result in the hole, the photo's own pixels elsewhere."""
        return np.where(mask > 0, self.load(i), image)

    def raw(self, i: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The result as it is."""
        return self.load(i)

    def fingerprint(self) -> str:
        """SHA-256, in hex, over name, size in bytes and time of change of every result."""
        states = [(file, file.stat()) for file in self._files]
        return names_sha256(f"{file}\0{state.st_size}\0{state.st_mtime_ns}" for file, state in states)


def image_size(path: Path, what: str) -> tuple[int, int]:
    """Width and height that an image file says it has; only its beginning is read. InputError: it is no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ... according to the format
        raise InputError(f"{what}: {path} cannot be read as an image ({error}); make it again") from error


def composite_stems(names: Sequence[str]) -> list[str]:
    """A relative name without suffix for each photo's completed image; the photo's suffix stays where two names would become one."""
    inside = [PurePosixPath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..", "."))) for name in short_names(names)]
    short = [path.with_suffix("").as_posix() for path in inside]
    return short if len(set(short)) == len(short) else [path.as_posix() for path in inside]
