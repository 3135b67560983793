"""Fills holes in photos of any size with the model of a checkpoint; known pixels come back bit for bit."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from spn_jax.checkpoints.store import load_model
from spn_jax.config import Config
from spn_jax.data.masks import hole_of
from spn_jax.errors import InputError
from spn_jax.filling.completion import PRECISION, SEEDS, check_samples, draw_noise, quantise
from spn_jax.filling.photos import Photo
from spn_jax.filling.windows import STRATEGIES, Shown, Strategy, assemble, choose_strategy, plan, show
from spn_jax.models.spn import SMALLEST, SPN, Encoding
from spn_jax.pretrained import DEFAULT
from spn_jax.runtime.memory import free_memory, out_of_memory_in_words

__all__ = ["STRATEGIES", "Inpainter", "Strategy"]


class Inpainter:
    """Fills holes with the model of a checkpoint, in photos of any size.

    Strategies: "original" shows the network the whole photo as it is; "resize" the whole photo, its longer side brought down to twice
    the size that the model was trained at, and enlarges the result; "crop" surroundings of each hole. "auto" takes the first for
    photos of up to twice that size, and crops for larger ones.

    Example:

        from PIL import Image
        from spn_jax import Inpainter

        inpainter = Inpainter.load()  # or Inpainter.load("runs/celeba"), a run of one's own
        photo, mask = Image.open("photo.jpg"), Image.open("hole.png")
        (filled,) = inpainter(photo, mask)
        filled.save("filled.png")

    Args:
        model: its parameters lie on one device.
        config: of the checkpoint.
    """

    def __init__(self, model: SPN, config: Config):
        self.model, self.config = model, config
        self._programs: dict[tuple[int, ...], tuple[Any, Any]] = {}  # compiled, by shape of the padded photo

    @classmethod
    def load(cls, path: str | Path = DEFAULT) -> Self:
        """The model that comes with the package, the newest checkpoint of a run's work directory, one checkpoint or a model file.

        Raises:
            InputError: there is none, or it is damaged.
        """
        loaded = load_model(path)
        return cls(loaded.model, loaded.config)

    @overload
    def __call__(
        self, image: np.ndarray, mask: np.ndarray | Image.Image, samples: int = 1, seed: int = 0, strategy: Strategy = "auto"
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self, image: Image.Image, mask: np.ndarray | Image.Image, samples: int = 1, seed: int = 0, strategy: Strategy = "auto"
    ) -> list[Image.Image]: ...

    def __call__(
        self, image: np.ndarray | Image.Image, mask: np.ndarray | Image.Image, samples: int = 1, seed: int = 0, strategy: Strategy = "auto"
    ) -> np.ndarray | list[Image.Image]:
        """Completes one photo.

        Args:
            image: a Pillow image, or uint8 or uint16 (h, w), (h, w, 1 or 3), or with transparency (h, w, 2 or 4). It is not turned.
            mask: of the same size, white is the hole: a Pillow image, or (h, w) or (h, w, 1) of False and True, 0 and 1, or 0 and 255.
            samples, seed, strategy: as in `fill`.

        Returns:
            As many Pillow images for an image, and an array (samples, *image.shape) for an array.

        Raises:
            InputError: as `fill`.
            ValueError: arrays of another type or shape, a seed outside its range.
        """
        hole = mask_array(mask)
        if isinstance(image, Image.Image):
            return [photo.to_image() for photo in self.fill(Photo.from_image(image), hole, samples, seed, strategy)]
        filled = self.fill(photo_of_array(image), hole, samples, seed, strategy)
        return np.stack([array_of_photo(photo).reshape(image.shape) for photo in filled])

    def fill(
        self,
        photo: Photo,
        mask: np.ndarray,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[Photo]:
        """Completes one photo; what it holds in the hole has no influence.

        A size that the network has not been shown before is compiled first. Sizes are rounded up to few ones, so that photos of many
        sizes share programs.

        Args:
            mask: uint8 (h, w, 1), 1 = hole. Without a hole the photo comes back as it is.
            samples: number of completions; more add to those that fewer give.
            seed: of their noise, from 0 to 2^32 - 1.
            progress: called before each pass of the network with how many are done and how many there are. What it raises ends the
                work and reaches the caller.

        Yields:
            The photo with the hole filled, one completion after the other.

        Raises:
            InputError: several samples of a deterministic model; a photo too large for the memory; a model that diverged.
            ValueError: a mask of another type or shape, a seed outside its range, an unknown strategy.
        """
        check_mask(mask, photo.size)
        check_samples(samples, self.config)
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed {seed} must lie between 0 and {SEEDS - 1}")
        strategy = choose_strategy(strategy, photo.size, self.config.data.image_size)
        if not mask.any():
            return iter([photo] * samples)
        return self._fill(photo, mask, samples, seed, strategy, progress or (lambda done, total: None))

    def _fill(
        self, photo: Photo, mask: np.ndarray, samples: int, seed: int, strategy: Strategy, progress: Callable[[int, int], None]
    ) -> Iterator[Photo]:
        windows = plan(mask, strategy, self.config.data.image_size)
        image = photo.rgb()
        what = f"a photo of {image.shape[1]} x {image.shape[0]} pixels"
        passes = itertools.count()
        streams: Sequence[Any] = [
            self._predictions(
                show(image, mask, window), number, samples, seed, what, lambda: progress(next(passes), samples * len(windows))
            )
            for number, window in enumerate(windows)
        ]
        if len(windows) > 1:  # one window after the other: what all its samples share takes more memory than they
            streams = [list(stream) for stream in streams]
        for predictions in zip(*streams, strict=True):
            yield photo.filled(assemble(image, mask, windows, predictions), mask)

    def _predictions(
        self, shown: Shown, number: int, samples: int, seed: int, what: str, before: Callable[[], None]
    ) -> Iterator[np.ndarray]:
        """What the network makes of a window, uint8 (h, w, 3), hole and known pixels alike, once a sample."""
        padded, hole = (pad(array, self._bucket(*array.shape[:2])) for array in shown)
        photo, key, window = (self.model, padded, hole), np.uint32(seed), np.uint32(number)
        before()
        with out_of_memory_in_words(what):
            encode, decode = self._programs_for(photo, what)
            encoding = encode(*photo)
        height, width = shown.image.shape[:2]
        for sample in range(samples):  # one at a time: together they would need the memory of so many photos
            if sample:
                before()
            with out_of_memory_in_words(what):
                completed, finite = jax.tree.map(np.asarray, decode(*photo, encoding, key, window, np.uint32(sample)))
            if not finite:
                raise InputError("the model's prediction is not finite; its training diverged: take an earlier checkpoint")
            yield completed[:height, :width]

    def priors(self, image: np.ndarray, mask: np.ndarray, seed: int = 0) -> dict[int, np.ndarray]:
        """The semantic priors that steer the generator, of the photo brought down to twice the size that the model was trained at.

        Args:
            image: uint8 (h, w, 3).
            mask: uint8 (h, w, 1), 1 = hole.
            seed: of a probabilistic model's noise; its priors are those of the first sample.

        Returns:
            {level l: float32 (h', w', c)}; h' and w' are the shown photo's sides / 2^(l-1), rounded up.
        """
        check_mask(mask, image.shape[:2])
        (window,) = plan(mask, "resize", self.config.data.image_size)
        shown = show(image, mask, window)
        padded, hole = (pad(array, self._bucket(*array.shape[:2])) for array in shown)
        with out_of_memory_in_words(f"a photo of {image.shape[1]} x {image.shape[0]} pixels"):
            found = _priors(self.model, padded, hole, np.uint32(seed))
            height, width = shown.image.shape[:2]
            return {n: np.asarray(prior)[: -(-height // 2 ** (n - 1)), : -(-width // 2 ** (n - 1))] for n, prior in found.items()}

    def _bucket(self, height: int, width: int) -> tuple[int, int]:
        return bucket(height, self.config), bucket(width, self.config)

    def _programs_for(self, photo: tuple[Any, ...], what: str) -> tuple[Any, Any]:
        """The compiled halves of the network for the photo's size. InputError if one needs more memory than is free.

        It is asked beforehand because a CPU does not report that memory ran out: the process is killed.
        """
        shape, number = photo[1].shape, np.uint32(0)
        if shape not in self._programs:
            encoding = jax.eval_shape(_encode, *photo)
            decode = _decode.lower(*photo, encoding, number, number, number, how=self.config.eval.quantise)
            self._programs[shape] = _encode.lower(*photo).compile(), decode.compile()
        sizes = [program.memory_analysis() for program in self._programs[shape]]
        needed = max(size.temp_size_in_bytes + size.output_size_in_bytes for size in sizes)
        free = free_memory(jax.devices()[0])
        if free is not None and needed > free:
            raise InputError(f"{what} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; make it smaller")
        return self._programs[shape]


@jax.jit
def _encode(model: SPN, image: Array, mask: Array) -> Encoding:
    """What all completions of a photo (h, w, 3) have in common."""
    with PRECISION():
        return model.encode(image[None].astype(jnp.float32) / 255, mask[None].astype(jnp.float32))


@functools.partial(jax.jit, static_argnames="how")
def _decode(
    model: SPN,
    image: Array,
    mask: Array,
    encoding: Encoding,
    seed: Array,
    window: Array,
    sample: Array,
    how: Literal["truncate", "round"],
) -> tuple[Array, Array]:
    """One prediction, uint8 (h, w, 3), and whether it is finite."""
    noise = draw_noise(model, seed, window[None], sample[None], *image.shape[:2])
    with PRECISION():
        prediction = model.decode(encoding, noise).image[0, 0]
    return quantise(prediction, how).astype(jnp.uint8), jnp.isfinite(prediction).all()


@jax.jit
def _priors(model: SPN, image: Array, mask: Array, seed: Array) -> dict[int, Array]:
    """{level: (h', w', c)} of the first sample."""
    first = jnp.zeros(1, jnp.uint32)
    noise = draw_noise(model, seed, first, first, *image.shape[:2])
    with PRECISION():
        output = model(image[None].astype(jnp.float32) / 255, mask[None].astype(jnp.float32), noise)
    return {level: prior[0, 0].astype(jnp.float32) for level, prior in output.prior.items()}


def bucket(side: int, config: Config) -> int:
    """What a side is padded to: multiples of a quarter of the trained size up to it, of a half up to twice it, then of the whole."""
    size, stride = config.data.image_size, config.model.stride
    step = size // 4 if side <= size else size // 2 if side <= 2 * size else size
    step = max(-(-step // stride) * stride, SMALLEST)
    return -(-side // step) * step


def pad(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, c) continued by its mirror image, to the right and below. Photo and mask are continued alike: a mirror image of the hole
    that counted as known would show what is under it."""
    (height, width), (wanted_height, wanted_width) = array.shape[:2], size
    return np.pad(array, ((0, wanted_height - height), (0, wanted_width - width), (0, 0)), mode="symmetric")


def photo_of_array(image: np.ndarray) -> Photo:
    """Raises ValueError unless it is a picture."""
    channels = image[..., None] if image.ndim == 2 else image
    if channels.dtype not in (np.uint8, np.uint16) or channels.ndim != 3 or channels.shape[2] not in (1, 2, 3, 4) or not channels.size:
        raise ValueError(f"the photo must be uint8 or uint16, (h, w) or (h, w, 1 to 4), not {image.dtype} {image.shape}")
    colours = 1 if channels.shape[2] < 3 else 3
    return Photo(channels[..., :colours], channels[..., colours:] if channels.shape[2] in (2, 4) else None)


def array_of_photo(photo: Photo) -> np.ndarray:
    return photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], -1)


def mask_array(mask: np.ndarray | Image.Image) -> np.ndarray:
    """uint8 (h, w, 1) of zeros and ones. ValueError if an array has other values than black and white."""
    if isinstance(mask, Image.Image):
        return hole_of(mask, invert=False).astype(np.uint8)[..., None]
    channels = mask[..., None] if mask.ndim == 2 else mask
    values = set(np.unique(channels).tolist())
    if channels.dtype not in (np.uint8, bool) or not (values <= {0, 1} or values <= {0, 255}):
        raise ValueError(f"the mask must be bool, or uint8 of 0 and 1 or of 0 and 255, not {mask.dtype} of {len(values)} values")
    return (channels > 0).astype(np.uint8)


def check_mask(mask: np.ndarray, size: tuple[int, ...]) -> None:
    """Raises ValueError unless it is a mask of a photo of this size."""
    if mask.dtype != np.uint8 or mask.shape != (*size, 1) or mask.max(initial=0) > 1:
        raise ValueError(f"the mask must be {(*size, 1)} of zeros and ones, not {mask.dtype} {mask.shape}")
