"""Opens masks, 1 = hole, from a folder, .flist or zip, or draws strokes and shapes of objects."""

import io
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from spn_jax.config import Config, DataConfig
from spn_jax.data.images import (
    IMAGE_SUFFIXES,
    byte_sizes,
    center_square,
    decode_image,
    digest,
    existing_path,
    find_images,
    lay_on,
    read_list,
)
from spn_jax.errors import InputError

# number of ten-percent bins of hole share in the paper's set of irregular masks: (0, 10 %], ...,
# (50, 60 %]; the drawn set has the same layout
TENTHS = 6
MASKS_PER_TENTH = 2000  # in either set; masks are ordered by tenth
# added to the seed of drawn test masks, so that no run is evaluated on the masks it was trained on
TEST_STROKES = 1 << 32
# what happens to a mask that is not square: squeezed, cut about its centre, or an error
Fit = Literal["squeeze", "center", "refuse"]


class MaskSource(ABC):
    """Masks of one size in a fixed order, readable from several threads at once."""

    names: Sequence[str]
    ordered: bool  # whether the set has the paper's layout, so that the number of a mask tells its tenth

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, i: int) -> np.ndarray:
        """Loads mask `i` as uint8 (size, size, 1), 1 = hole.

        A file always has a hole at its own size. A hole thinner than the sampling step of a smaller
        `size` can vanish, and the result is all zeros. Training then learns from known pixels
        alone; evaluations count the mask as 0 %.

        Raises:
            InputError: the file cannot be read, has no hole (or none in the square that is cut from
                it), or is not square although masks have to be.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns the SHA-256, in hex, of the names and byte sizes of all masks, in order; drawn
        masks have names only.
        """

    def state(self) -> str | None:
        """Returns a SHA-256, in hex, that changes with the files and with how they are read; None
        if there are no files.
        """
        return None

    def tenths(self, indices: np.ndarray) -> np.ndarray | None:
        """Returns the tenth of hole share, 0 for (0, 10 %], that each mask's number tells; None for
        sets whose shares have to be measured.

        Resizing changes the share: at 256 pixels 51 of the paper's masks leave their tenth, by
        under 0.002.
        """
        return indices // MASKS_PER_TENTH if self.ordered else None


class MaskFiles(MaskSource):
    """One image file a mask."""

    def __init__(self, names: Sequence[str], files: Sequence[Path], size: int, invert: bool, setting: str, fit: Fit = "refuse"):
        self._sizes = byte_sizes(files, setting)
        self.names = names
        self.ordered = _is_paper_set(names)
        self._files, self._size, self._invert, self._setting, self._fit = files, size, invert, setting, fit

    def load(self, i: int) -> np.ndarray:
        return _read_mask(self._files[i], self._size, self._invert, f"{self._setting}: mask {self._files[i]}", self._fit)

    def fingerprint(self) -> str:
        return digest(f"{name}\0{size}" for name, size in zip(self.names, self._sizes, strict=True))

    def state(self) -> str:
        return _state(self._files, self._size, self._invert, self._fit)


class MaskZip(MaskSource):
    """The image files in a zip archive."""

    def __init__(self, path: Path, size: int, invert: bool, setting: str, fit: Fit = "refuse"):
        self._path, self._size, self._invert, self._setting, self._fit = path, size, invert, setting, fit
        self._lock = threading.Lock()  # a ZipFile counts the readers of its one open file, unlocked
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{setting}: {path} cannot be read as a zip archive ({error}); copy it again") from error
        self.names = sorted(n for n in self._zip.namelist() if n.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(n))
        self.ordered = _is_paper_set(self.names)
        if not self.names:
            raise InputError(f"{setting}: {path} holds no mask; looked in it for {' '.join(IMAGE_SUFFIXES)}")

    def load(self, i: int) -> np.ndarray:
        what = f"{self._setting}: mask {self.names[i]} in {self._path}"
        try:
            with self._lock:
                data = self._zip.read(self.names[i])
        except Exception as error:  # broken archives raise BadZipFile, zlib.error, EOFError, NotImplementedError, ...
            raise InputError(f"{what} cannot be unpacked ({error}); copy the archive again") from error
        return _read_mask(io.BytesIO(data), self._size, self._invert, what, self._fit)

    def fingerprint(self) -> str:
        return digest(f"{name}\0{self._zip.getinfo(name).file_size}" for name in self.names)

    def state(self) -> str:
        return _state([self._path], self._size, self._invert, self._fit)


class DrawnMasks(MaskSource):
    """12,000 masks, drawn on request, in the layout of the paper's set: six tenths of hole share,
    2,000 masks each.

    kind: one of DRAWN: brush strokes, shapes of objects, or both in turn.
    """

    ordered = True

    def __init__(self, kind: str, size: int, seed: int):
        self.names = [f"{kind}-{seed}-{i:05d}" for i in range(TENTHS * MASKS_PER_TENTH)]
        self._draw, self._size, self._seed = DRAWN[kind], size, seed

    def load(self, i: int) -> np.ndarray:
        return self._draw[i % len(self._draw)](i, self._size, self._seed)

    def fingerprint(self) -> str:
        return digest(self.names)


def open_masks(spec: str, size: int, invert: bool, seed: int, setting: str, fit: Fit = "refuse") -> MaskSource:
    """Opens the masks at `spec`: a folder, a .flist, a .zip, or a word of DRAWN for masks drawn
    from `seed`.

    Masks come at (size, size). `invert`: black is the hole in files (drawn masks ignore it). `fit`:
    what happens to a file that is not square, as `mask_fit` says. `setting` is the config key that
    `spec` came from, for error texts.

    Raises:
        InputError: nothing there, a folder or archive without masks, a list with missing entries.
    """
    if spec in DRAWN:
        return DrawnMasks(spec, size, seed)
    location = existing_path(spec, setting)
    if location.is_dir():
        files = find_images(location)
        if not files:
            raise InputError(f"{setting}: folder {location} holds no mask; looked there and below for {' '.join(IMAGE_SUFFIXES)}")
        return MaskFiles([f.relative_to(location).as_posix() for f in files], files, size, invert, setting, fit)
    if location.suffix.lower() == ".zip":
        return MaskZip(location, size, invert, setting, fit)
    names, files = read_list(location, setting, f"a .zip, one of the words {', '.join(DRAWN)}")
    return MaskFiles(names, files, size, invert, setting, fit)


def open_train_masks(config: Config) -> MaskSource:
    """Opens the masks of training photos, at size P. Raises InputError as `open_masks` does."""
    data = config.data
    return open_masks(data.train_masks, data.image_size, data.invert_masks, data.seed, "data.train_masks", mask_fit(data))


def open_test_masks(config: Config) -> MaskSource:
    """Opens the masks of evaluations, at size P. Drawn ones differ from those of training. Raises
    InputError as `open_masks` does.
    """
    data = config.data
    seed = data.seed + TEST_STROKES
    return open_masks(data.test_masks, data.image_size, data.invert_masks, seed, "data.test_masks", mask_fit(data))


def mask_fit(data: DataConfig) -> Fit:
    """Tells how to make a mask square that is not. The default follows the photos: cut about the
    centre if they are cut, else squeezed.

    Random crops are drawn for photos alone; masks are then cut about their centre.
    """
    if data.mask_fit == "as_photos":
        return "squeeze" if data.crop == "none" else "center"
    return data.mask_fit


def _state(files: Sequence[Path], *how: object) -> str:
    try:
        states = [(file.absolute(), file.stat()) for file in files]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); it was there a moment ago, start again") from error
    return digest([repr(how), *(f"{file}\0{state.st_size}\0{state.st_mtime_ns}" for file, state in states)])


def _is_hidden(name: str) -> bool:
    # Archives made on a Mac hold a second file, which is no image, beside every image.
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _is_paper_set(names: Sequence[str]) -> bool:
    return [Path(name).stem for name in names] == [f"{i:05d}" for i in range(TENTHS * MASKS_PER_TENTH)]


def read_hole(file: Path | io.BytesIO, invert: bool, what: str) -> np.ndarray:
    """Reads the hole of a mask file, (h, w) bool: the white half of its range, or with `invert` the
    black half. Transparent pixels are never hole.

    Raises:
        InputError: it cannot be read as an image; `what` names it.
    """
    return hole_of(decode_image(file, what), invert)


def hole_of(image: Image.Image, invert: bool) -> np.ndarray:
    """Returns the hole of a decoded mask, (h, w) bool, as `read_hole` defines it."""
    return _is_white(image, background=255 if invert else 0) != invert


def _read_mask(file: Path | io.BytesIO, size: int, invert: bool, what: str, fit: Fit) -> np.ndarray:
    image = decode_image(file, what)
    hole = hole_of(image, invert)
    height, width = hole.shape
    if not hole.any():
        raise InputError(f"{what} has no hole: {_why_no_hole(image, invert)}")
    if height != width and fit == "refuse":
        raise InputError(
            f"{what} is {width} x {height} pixels, the photos are {size} x {size}; make masks that are square, "
            "or set data.mask_fit=as_photos to cut or squeeze them as the photos"
        )
    if height != width and fit == "center":
        hole = center_square(hole)
        if not hole.any():
            raise InputError(
                f"{what} has its hole outside the centred square that is kept of its {width} x {height} pixels; "
                "take it out of the set, or set data.mask_fit=squeeze"
            )
    if hole.shape != (size, size):
        hole = np.array(Image.fromarray(hole.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))
    return hole.astype(np.uint8)[..., None]


def _why_no_hole(image: Image.Image, invert: bool) -> str:
    """Explains what the pixels of a mask without a hole are instead, and what to do."""
    deep = image.mode.startswith("I")
    if not deep and image.mode != "F":
        image = (lay_on(image, 255 if invert else 0) if image.has_transparency_data else image).convert("L")
    values, full = np.asarray(image), 65535 if deep else 1 if image.mode == "F" else 255
    colour, extreme, other = (
        ("black", f"darkest has {values.min()}", "false") if invert else ("white", f"brightest has {values.max()}", "true")
    )
    text = f"no pixel is {colour}, the {extreme} of {full}; "
    # class numbers 0 and 1, or 8-bit values in a 16-bit file
    if not invert and full > 1 and 0 < values.max() <= full // 255:
        return text + f"if {values.max()} marks the hole, save the masks with {full} in its place"
    return text + f"take it out of the set, or set data.invert_masks={other} if holes have the other colour"


def _is_white(image: Image.Image, background: int) -> np.ndarray:
    """Returns where an image is at or above half of the file's range, (h, w) bool. Transparent
    parts count as `background`.
    """
    values, white, _ = levels_of(image, background)
    return values >= white


def levels_of(image: Image.Image, background: int) -> tuple[np.ndarray, float, float]:
    """Returns a picture's brightness (h, w), the threshold for white (half of the range), and the
    largest value of the range. Transparent parts count as `background` (0..255).
    """
    if image.mode.startswith("I"):
        return np.asarray(image), 32768, 65535  # 16-bit grey
    if image.mode == "F":
        return np.asarray(image), 0.5, 1
    if image.has_transparency_data:
        image = lay_on(image, background)
    return np.asarray(image.convert("L")), 128, 255


def draw_strokes(i: int, size: int, seed: int) -> np.ndarray:
    """Draws mask `i` of the stroke set of `seed`: uint8 (size, size, 1), 1 = hole, with a hole
    share in tenth i // 2,000.

    Curved strokes of varying width are drawn piece by piece until the share reaches a value drawn
    from the tenth. A piece that would exceed the tenth is taken back. The mask is done if its share
    then lies in the tenth, as it nearly always does.
    """
    random = np.random.default_rng([seed, i])
    tenth = i // MASKS_PER_TENTH
    below, full = tenth * size * size // 10, (tenth + 1) * size * size // 10
    wanted = full - random.uniform(0, 0.99) * (full - below)
    share = wanted / size**2
    # wider in masks with more holes, as in the paper's set
    brush = random.uniform(0.02 + 0.03 * share, 0.05 + 0.06 * share) * size
    mask = np.zeros((size, size), np.uint8)
    count = 0
    while count < wanted:
        for start, end, width in _stroke(random, size, brush):
            before = mask.copy()
            cv2.line(mask, start, end, 1, width)
            grown = cv2.countNonZero(mask)
            if grown > full:
                mask = before
                if count > below:
                    return mask[..., None]
                break
            count = grown
            if count >= wanted:
                break
    return mask[..., None]


def _stroke(random: np.random.Generator, size: int, brush: float) -> list[tuple[tuple[int, int], tuple[int, int], int]]:
    """Returns pieces (start, end, width) of a stroke with drifting direction and varying width;
    `brush` is the mean width in pixels.
    """
    pieces = int(random.integers(2, 24))
    bend = random.normal(0, 0.12) + random.normal(0, 0.35, pieces)
    direction = random.uniform(0, 2 * np.pi) + np.cumsum(bend)
    step = size * random.uniform(0.03, 0.06)
    path = random.uniform(0, size, 2) + step * np.cumsum(np.stack([np.cos(direction), np.sin(direction)], 1), 0)
    swell = random.uniform(0.5, 1.4) * (1 + 0.35 * np.sin(random.uniform(0, 6.3) + random.uniform(0.2, 0.6) * np.arange(pieces)))
    widths = np.clip(np.rint(brush * swell), 1, max(1, size // 8)).astype(int).tolist()
    points = [(int(x), int(y)) for x, y in path.tolist()]
    return list(zip(points, points[1:], widths, strict=False))


def draw_objects(i: int, size: int, seed: int) -> np.ndarray:
    """Draws mask `i` of the object set of `seed`: uint8 (size, size, 1), 1 = hole, with a hole
    share in tenth i // 2,000.

    The mask has one to three rounded shapes, stretched and turned at random, which may reach beyond
    the border. A pixel's distance from a shape's middle is measured in units of the shape's radius
    in that direction. The hole is the pixels with the least distances, as many as a share drawn
    from the tenth has.
    """
    random = np.random.default_rng([seed, i, 1])
    tenth = i // MASKS_PER_TENTH
    wanted = int((tenth + 1 - random.uniform(0, 0.99)) * size * size / 10)
    y, x = np.mgrid[:size, :size] / size
    distance = np.full((size, size), np.inf)
    for _ in range(int(random.choice((1, 2, 3), p=(0.6, 0.25, 0.15)))):
        across, down = x - random.random(), y - random.random()
        turn, stretch, scale = random.uniform(0, np.pi), random.uniform(1, 3), random.uniform(0.6, 1.4)
        along = (across * np.cos(turn) + down * np.sin(turn)) / stretch
        beside = down * np.cos(turn) - across * np.sin(turn)
        angle = np.arctan2(beside, along)
        waves = [random.normal(0, 0.35 / k) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in range(1, 7)]
        distance = np.minimum(distance, np.hypot(along, beside) / (scale * np.exp(sum(waves))))
    mask = np.zeros(size * size, np.uint8)
    mask[np.argpartition(distance.ravel(), wanted)[:wanted]] = 1
    return mask.reshape(size, size, 1)


# Kinds of drawn masks. Each lists the functions (number, size, seed) -> mask that take turns.
DRAWN: dict[str, tuple[Callable[[int, int, int], np.ndarray], ...]] = {
    "strokes": (draw_strokes,),
    "objects": (draw_objects,),
    "drawn": (draw_strokes, draw_objects),
}
