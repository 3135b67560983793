"""Fills holes in photos of any size with a checkpoint's model; known pixels stay bit for bit."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxprs_in_params
from PIL import Image

from spn_jax.checkpoints.store import load_model
from spn_jax.config import Config
from spn_jax.errors import InputError
from spn_jax.filling.completion import PRECISION, SEEDS, check_samples, draw_noise
from spn_jax.filling.padding import bucket, pad
from spn_jax.filling.photos import Photo, Source, as_mask, as_photo
from spn_jax.filling.windows import STRATEGIES, Canvas, Shown, Strategy, Window, at_least, choose_strategy, enlarged, plan, show
from spn_jax.models.spn import SPN, Encoding
from spn_jax.pretrained.catalogue import DEFAULT
from spn_jax.runtime.compiling import without_garbage_collection
from spn_jax.runtime.memory import SMALLER, free_memory, out_of_memory_in_words

__all__ = ["STRATEGIES", "Inpainter", "Strategy"]

# called with the number of finished and of all passes through the network
Told = Callable[[int, int], None]
# number of photo sizes with compiled programs in memory; a server is asked for many sizes
KEPT_PROGRAMS = 8


class Programs(NamedTuple):
    """The compiled encoder and decoder for a size, and the bytes that they need."""

    encode: Any
    decode: Any
    needed: int


class Network(Protocol):
    """A network that fills an Inpainter's windows: our SPN, or one in an .onnx file."""

    @property
    def smallest_window(self) -> int:
        """The smallest side of a window, if the photo is so large."""

    def predictions(self, shown: Shown, number: int, samples: int, seed: int, what: str) -> Iterator[np.ndarray]:
        """Yields a prediction for a window, float32 (h, w, 3) from 0 to 255, hole and known pixels
        alike, once a sample.

        The window's pixels in the hole have no influence. `number` is the window's; the noise
        depends on it. `what` is the photo's name in errors. Raises InputError if the window does
        not fit into the memory, or the prediction is not a picture.
        """

    def priors(self, shown: Shown, seed: int, what: str) -> dict[int, np.ndarray]:
        """Returns the priors of one window as `Inpainter.priors` does. Raises InputError if the
        network has none.
        """


class Inpainter:
    """Fills holes with the model of a checkpoint, in photos of any size.

    The strategy "original" shows the network the whole photo as it is, and leaves the prediction as
    it is. "resize" shows it the whole photo, with the longer side reduced to twice the size that
    the model was trained at where it is longer, and enlarges the result. "crop" shows it
    surroundings of each hole. "auto" takes "resize" for photos of up to twice that size, which are
    shown as they are then, and "crop" for larger ones.

    Example:

        from PIL import Image
        from spn_jax import Inpainter

        inpainter = Inpainter.load("runs/celebahq_probabilistic")
        photo, mask = Image.open("photo.jpg"), Image.open("hole.png")
        for i, filled in enumerate(inpainter(photo, mask, samples=3, seed=0)):
            filled.save(f"filled_{i}.png")

    Args:
        model: an SPN whose parameters lie on one device, or anything else that fills windows.
        config: the checkpoint's; for another network its size and kind.
    """

    def __init__(self, model: SPN | Network, config: Config):
        self.model, self.config = model, config
        self.network: Network = SPNNetwork(model, config) if isinstance(model, SPN) else model

    @classmethod
    def load(cls, path: str | Path = DEFAULT) -> Self:
        """Loads the model that comes with the package, a run's newest checkpoint, one checkpoint or
        a model file.

        An .onnx file, ours or anybody's, works too (`onnx_network`).

        Raises:
            InputError: there is none, it is damaged, or it is not a supported inpainting network.
        """
        if Path(path).suffix == ".onnx":
            from spn_jax.filling.onnx_network import OnnxNetwork  # needs an extra

            network = OnnxNetwork(path)
            return cls(network, network.config)
        loaded = load_model(path)
        return cls(loaded.model, loaded.config)

    @overload
    def __call__(
        self,
        image: np.ndarray,
        mask: Source,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Told | None = None,
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self,
        image: Image.Image,
        mask: Source,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Told | None = None,
    ) -> list[Image.Image]: ...

    @overload
    def __call__(
        self,
        image: Source,
        mask: Source,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Told | None = None,
    ) -> np.ndarray | list[Image.Image] | list[Photo]: ...

    def __call__(
        self,
        image: Source,
        mask: Source,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Told | None = None,
    ) -> np.ndarray | list[Image.Image] | list[Photo]:
        """Completes one photo.

        Args:
            image: a path, a file's bytes or an open file, a Pillow image, a `Photo`, or an array:
                uint8 or uint16 (h, w), (h, w, 1 or 3), or with transparency (h, w, 2 or 4). All but
                arrays are turned upright by their EXIF data.
            mask: has the upright photo's size, and white is the hole; see
                `spn_jax.filling.photos.as_mask`.
            samples, seed, strategy, progress: as in `fill`.

        Returns:
            `samples` Pillow images for a Pillow image, an array (samples, *image.shape) for an
            array, and for everything else `Photo`s, which have a method `save`.

        Raises:
            InputError: as `fill`, or a photo or mask cannot be read.
            ValueError: an array has another type or shape, or the seed is outside its range.
        """
        photo = as_photo(image)
        filled = self.fill(photo, as_mask(mask, photo.size), samples, seed, strategy, progress)
        if isinstance(image, np.ndarray):
            return np.stack([array_of_photo(result).reshape(image.shape) for result in filled])
        return [result.to_image() for result in filled] if isinstance(image, Image.Image) else list(filled)

    def fill(
        self,
        photo: Photo,
        mask: np.ndarray,
        samples: int = 1,
        seed: int = 0,
        strategy: Strategy = "auto",
        progress: Told | None = None,
    ) -> Iterator[Photo]:
        """Completes one photo. Its pixels in the hole have no influence.

        Each new size is compiled first. Sizes are rounded up to a few, so that photos of many sizes
        share programs.

        Args:
            mask: uint8 (h, w, 1), 1 = hole. Without a hole the photo comes back as it is.
            samples: number of completions. A larger number extends the same sequence.
            seed: seed of their noise, from 0 to 2^32 - 1.
            progress: called before each pass through the network with the numbers of finished and
                of all passes. An exception in it ends the work and reaches the caller.

        Yields:
            The photo with the hole filled, one completion after the other. They are rounded to the
            photo's own depth.

        Raises:
            InputError: several samples are asked of a deterministic model, the photo is too large
                for the memory, or the model diverged.
            ValueError: the mask has another type or shape, the seed is outside its range, or the
                strategy is unknown.
        """
        check_mask(mask, photo.size)
        check_samples(samples, self.config, "samples")
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed {seed} must lie between 0 and {SEEDS - 1}")
        strategy = choose_strategy(strategy, photo.size, self.config.data.image_size)
        if not mask.any():
            return iter([photo] * samples)
        return self._fill(photo, mask, samples, seed, strategy, progress or (lambda done, total: None))

    def _fill(self, photo: Photo, mask: np.ndarray, samples: int, seed: int, strategy: Strategy, progress: Told) -> Iterator[Photo]:
        windows = plan(mask, strategy, self.config.data.image_size)
        windows = [at_least(window, self.network.smallest_window, photo.size) for window in windows]
        image = photo.rgb()
        passes = self._passes(image, mask, windows, samples, seed, progress)
        if len(windows) == 1:  # each completion is yielded as soon as it is made
            for _, _, prediction in passes:
                canvas = Canvas(mask)
                canvas.add(windows[0], enlarged(prediction, image, mask, windows[0]))
                yield photo.with_colours_in_hole(canvas.colours(), mask)
            return
        canvas = Canvas(mask, samples)
        for window, sample, prediction in passes:
            canvas.add(window, enlarged(prediction, image, mask, window), sample)
        for sample in range(samples):
            yield photo.with_colours_in_hole(canvas.colours(sample), mask)

    def _passes(
        self, image: np.ndarray, mask: np.ndarray, windows: list[Window], samples: int, seed: int, progress: Told
    ) -> Iterator[tuple[Window, int, np.ndarray]]:
        """Yields each window with the number of a sample and the network's prediction.

        Windows are done one by one: the encoding that all samples share is computed once, and takes
        more memory than they do.
        """
        what = f"a photo of {image.shape[1]} x {image.shape[0]} pixels"
        done, total = itertools.count(), len(windows) * samples
        for number, window in enumerate(windows):
            predictions = self.network.predictions(show(image, mask, window), number, samples, seed, what)
            for sample in range(samples):
                progress(next(done), total)
                yield window, sample, next(predictions)

    def priors(self, image: np.ndarray, mask: np.ndarray, seed: int = 0) -> dict[int, np.ndarray]:
        """Returns the semantic priors that steer the generator, of the photo reduced to twice the
        trained size.

        Args:
            image: uint8 (h, w, 3).
            mask: uint8 (h, w, 1), 1 = hole.
            seed: seed of a probabilistic model's noise; the priors are those of the first sample.

        Returns:
            {level l: float32 (h', w', c)}; h' and w' are the shown photo's sides / 2^(l-1), rounded
            up.
        """
        check_mask(mask, image.shape[:2])
        (window,) = plan(mask, "resize", self.config.data.image_size)
        return self.network.priors(show(image, mask, window), seed, f"a photo of {image.shape[1]} x {image.shape[0]} pixels")


class SPNNetwork:
    """An SPN as a network that fills windows, with JAX programs compiled once for each size.

    Args:
        model: the SPN, with parameters on one device.
        config: the checkpoint's.
    """

    def __init__(self, model: SPN, config: Config):
        self.model, self.config = model, config
        # {shape of the padded photo: programs}, the latest used last
        self._programs: OrderedDict[tuple[int, ...], Programs] = OrderedDict()
        # bytes needed, also by programs that are no longer kept
        self._needed: dict[tuple[int, ...], int] = {}

    @property
    def smallest_window(self) -> int:
        return self.config.data.image_size

    def predictions(self, shown: Shown, number: int, samples: int, seed: int, what: str) -> Iterator[np.ndarray]:
        """Yields a prediction for a window, float32 (h, w, 3) from 0 to 255, hole and known pixels
        alike, once a sample.
        """
        padded, hole = (pad(array, self._bucket(*array.shape[:2])) for array in shown)
        arguments, seed_number, window_number = (self.model, padded, hole), np.uint32(seed), np.uint32(number)
        with out_of_memory_in_words(what):
            encode, decode, _ = self._programs_for(padded.shape, what)
            encoding = encode(*arguments)
        height, width = shown.image.shape[:2]
        # one at a time; together they would need a multiple of the memory
        for sample in range(samples):
            with out_of_memory_in_words(what):
                drawn = decode(*arguments, encoding, seed_number, window_number, np.uint32(sample))
                prediction, finite = jax.tree.map(np.asarray, drawn)
            if not finite:
                raise InputError("the model's prediction is not finite; its training diverged: take an earlier checkpoint")
            yield prediction[:height, :width]

    def priors(self, shown: Shown, seed: int, what: str) -> dict[int, np.ndarray]:
        """Returns the semantic priors for a window, as `Inpainter.priors` does."""
        padded, hole = (pad(array, self._bucket(*array.shape[:2])) for array in shown)
        with out_of_memory_in_words(what):
            found = _priors(self.model, padded, hole, np.uint32(seed))
            height, width = shown.image.shape[:2]
            return {n: np.asarray(prior)[: -(-height // 2 ** (n - 1)), : -(-width // 2 ** (n - 1))] for n, prior in found.items()}

    def _bucket(self, height: int, width: int) -> tuple[int, int]:
        return bucket(height, self.config), bucket(width, self.config)

    def _programs_for(self, shape: tuple[int, ...], what: str) -> Programs:
        """Returns the compiled encoder and decoder for padded photos of this shape, (h, w, 3).
        Raises InputError if one needs more memory than is free.

        The check comes first because a CPU does not report that memory ran out; the process is
        killed. It also comes before the slow compilation: a program needs at least what its largest
        convolution reads and writes.
        """
        if shape in self._needed:
            self._check_memory(self._needed[shape], what)
        if shape not in self._programs:
            image, mask = (jax.ShapeDtypeStruct((*shape[:2], channels), np.uint8) for channels in (3, 1))
            encode, number = _encode.trace(self.model, image, mask), np.uint32(0)
            decode = _decode.trace(self.model, image, mask, encode.out_info, number, number, number)
            self._check_memory(max(largest_convolution(half.jaxpr.jaxpr) for half in (encode, decode)), what)
            halves = encode.lower().compile(), decode.lower().compile()
            sizes = [half.memory_analysis() for half in halves]
            self._needed[shape] = max(size.temp_size_in_bytes + size.output_size_in_bytes for size in sizes)
            self._check_memory(self._needed[shape], what)
            self._programs[shape] = Programs(*halves, self._needed[shape])
            while len(self._programs) > KEPT_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(shape)
        return self._programs[shape]

    def _check_memory(self, needed: int, what: str) -> None:
        free = free_memory(jax.devices()[0])
        if free is not None and needed > free:
            raise InputError(f"{what} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; {SMALLER}")


def largest_convolution(jaxpr: Any) -> int:
    """Returns the bytes that the largest convolution of a program reads and writes."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found = max(found, sum(variable.aval.size * variable.aval.dtype.itemsize for variable in (*equation.invars, *equation.outvars)))
        for inner in jaxprs_in_params(equation.params):
            found = max(found, largest_convolution(inner))
    return found


@jax.jit
def _encode(model: SPN, image: Array, mask: Array) -> Encoding:
    """Computes what all completions of a photo (h, w, 3) have in common."""
    with without_garbage_collection(), PRECISION():
        return model.encode(image[None].astype(jnp.float32) / 255, mask[None].astype(jnp.float32))


@jax.jit
def _decode(model: SPN, image: Array, mask: Array, encoding: Encoding, seed: Array, window: Array, sample: Array) -> tuple[Array, Array]:
    """Returns one prediction, float32 (h, w, 3) from 0 to 255, and whether it is finite. It is
    rounded later, when it is put into the photo.
    """
    noise = draw_noise(model, seed, window[None], sample[None], *image.shape[:2])
    with without_garbage_collection(), PRECISION():
        prediction = model.decode(encoding, noise).image[0, 0].astype(jnp.float32)
    return 255 * jnp.clip(prediction, 0, 1), jnp.isfinite(prediction).all()


@jax.jit
def _priors(model: SPN, image: Array, mask: Array, seed: Array) -> dict[int, Array]:
    """Returns {level: (h', w', c)} of the first sample."""
    first = jnp.zeros(1, jnp.uint32)
    noise = draw_noise(model, seed, first, first, *image.shape[:2])
    with PRECISION():
        output = model(image[None].astype(jnp.float32) / 255, mask[None].astype(jnp.float32), noise)
    return {level: prior[0, 0].astype(jnp.float32) for level, prior in output.prior.items()}


def array_of_photo(photo: Photo) -> np.ndarray:
    return photo.pixels if photo.alpha is None else np.concatenate([photo.pixels, photo.alpha], -1)


def check_mask(mask: np.ndarray, size: tuple[int, ...]) -> None:
    """Raises ValueError unless `mask` fits a photo of this size."""
    if mask.dtype != np.uint8 or mask.shape != (*size, 1) or mask.max(initial=0) > 1:
        raise ValueError(f"the mask must be {(*size, 1)} of zeros and ones, not {mask.dtype} {mask.shape}")
