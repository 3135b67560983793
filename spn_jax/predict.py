"""Fills the hole of a photo: `python -m spn_jax.predict --checkpoint DIR --image FILE --mask FILE --output FILE`.

White in the mask is the hole; the photo has any size, and what is outside the hole comes back as it was. `--samples N` writes N
completions by a probabilistic model, as FILE-1 ... FILE-N.
"""

import argparse
import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from spn_jax.checkpoint import load_model
from spn_jax.config import Config
from spn_jax.data.images import decode_photo
from spn_jax.data.masks import read_hole
from spn_jax.errors import InputError, run_command
from spn_jax.files import check_writable, write_atomically
from spn_jax.metrics import composite, quantise
from spn_jax.models.spn import SMALLEST, SPN, Encoding
from spn_jax.runtime import set_up

# Suffix of an output: Pillow's name of the format and its options; every one but JPEG keeps each pixel as it is.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
}

MEMINFO = Path("/proc/meminfo")  # of Linux
CGROUP = Path("/sys/fs/cgroup")  # of a container, with the limit that it has
SEEDS = 2**32
PRECISION = functools.partial(jax.default_matmul_precision, "highest")  # at which completions are made and scored


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    check_options(options)
    photo, mask = read_inputs(options)
    inpainter = Inpainter.from_checkpoint(options.checkpoint)
    check_samples(options.samples, inpainter.config)
    outputs = output_files(options)
    check_writable(options.output.parent)
    for output, completed in zip(outputs, inpainter.completions(photo, mask, options.samples, options.seed), strict=True):
        write_atomically(output, encode(completed, output))
        print(f"written: {output}", flush=True)
    if is_lossy(options.output):
        print(f"note: JPEG changes every pixel a little, those outside the hole too; an --output that ends in {lossless()} does not")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.predict", description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run's work directory (its newest checkpoint) or one checkpoint")
    parser.add_argument("--image", required=True, type=Path, help="the photo")
    parser.add_argument("--mask", required=True, type=Path, help="an image of the photo's size; white is the hole")
    parser.add_argument("--invert-mask", action="store_true", help="black is the hole")
    parser.add_argument(
        "--output", required=True, type=Path, help=f"the completed photo; the suffix tells the format: {', '.join(FORMATS)}"
    )
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="different completions (probabilistic models only)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that makes them different")
    return parser.parse_args(arguments)


class Inpainter:
    """Fills holes with the model of a checkpoint, in photos of any size.

    Args:
        model: its parameters lie on one device.
        config: of the checkpoint.
    """

    def __init__(self, model: SPN, config: Config):
        self.model, self.config = model, config
        self._programs: dict[tuple[int, ...], tuple[Any, Any]] = {}  # compiled, by shape of the padded photo

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> Self:
        """The newest checkpoint of a run's work directory, or one checkpoint. InputError: there is none, or it is damaged."""
        loaded = load_model(path)
        return cls(loaded.model, loaded.config)

    def __call__(self, image: np.ndarray, mask: np.ndarray, samples: int = 1, seed: int = 0) -> np.ndarray:
        """All of `completions` as one array, uint8 (s, h, w, 3)."""
        return np.stack(list(self.completions(image, mask, samples, seed)))

    def completions(self, image: np.ndarray, mask: np.ndarray, samples: int = 1, seed: int = 0) -> Iterator[np.ndarray]:
        """Completes one photo. A size that has not been seen before is compiled first, which takes longer than the work itself.

        Args:
            image: uint8 (h, w, 3), h and w at least 1; it is neither cut nor resized.
            mask: uint8 (h, w, 1), 1 = hole; what the image holds there has no influence.
            samples: number of completions; more add to those that fewer give.
            seed: of their noise, from 0 to 2^32 - 1.

        Yields:
            uint8 (h, w, 3), one completion after the other; bit for bit the image outside the hole.

        Raises:
            InputError: several samples of a deterministic model; a photo too large for the memory; a model that diverged.
            ValueError: arrays of another type or shape, a seed outside its range.
        """
        check_arrays(image, mask)
        check_samples(samples, self.config)
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed {seed} must lie between 0 and {SEEDS - 1}")
        height, width = image.shape[:2]
        # Photo and mask are continued alike: a mirror image of the hole that counted as known would show what is under it.
        padded, hole = (pad(array, self.model.stride) for array in (image, mask))
        what = f"a photo of {width} x {height} pixels"
        photo, number = (self.model, padded, hole), np.uint32(seed)
        with out_of_memory_in_words(what):
            encode, decode = self._programs_for(photo, number, what)
            encoding = encode(*photo)
        for sample in range(samples):  # one at a time: together they would need the memory of so many photos
            with out_of_memory_in_words(what):
                completed, finite = jax.tree.map(np.asarray, decode(*photo, encoding, number, np.uint32(sample)))
            if not finite:
                raise InputError("the model's prediction is not finite; its training diverged: take an earlier checkpoint")
            yield completed[:height, :width]

    def _programs_for(self, photo: tuple[Any, ...], seed: np.uint32, what: str) -> tuple[Any, Any]:
        """The compiled halves of the network for the photo's size. InputError if one needs more memory than is free.

        It is asked beforehand because a CPU does not report that memory ran out: the process is killed.
        """
        shape = photo[1].shape
        if shape not in self._programs:
            encoding = jax.eval_shape(_encode, *photo)
            decode = _decode.lower(*photo, encoding, seed, np.uint32(0), how=self.config.eval.quantise)
            self._programs[shape] = _encode.lower(*photo).compile(), decode.compile()
        sizes = [program.memory_analysis() for program in self._programs[shape]]
        needed = max(size.temp_size_in_bytes + size.output_size_in_bytes for size in sizes)
        free = free_memory(jax.devices()[0])
        if free is not None and needed > free:
            raise InputError(f"{what} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; make it smaller")
        return self._programs[shape]


def check_samples(samples: int, config: Config) -> None:
    """Raises InputError unless a model of this config makes so many different completions of a photo."""
    if samples < 1:
        raise InputError(f"--samples {samples} must be at least 1")
    if samples > 1 and not config.model.variational:
        raise InputError(
            f"--samples {samples}: the checkpoint's model is deterministic and completes a photo in one way; "
            "leave --samples out, or take a checkpoint of a probabilistic model"
        )


def complete(
    model: Callable[..., Any], image: Array, mask: Array, noise: Array | None, how: Literal["truncate", "round"]
) -> tuple[Array, Any]:
    """Completes photos, at the precision that scores are reported for; to be called under jit.

    Args:
        model: maps image (b, h, w, 3) in [0, 1], mask (b, h, w, 1) and noise to an object with .image (b, s, h, w, 3).
        image: uint8 (b, h, w, 3).
        mask: uint8 (b, h, w, 1), 1 = hole.
        noise: of `draw_noise`.
        how: predictions become 8-bit values by this.

    Returns:
        8-bit composites uint8 (b, s, h, w, 3), and what the model returned.
    """
    with PRECISION():
        output = model(image.astype(jnp.float32) / 255, mask.astype(jnp.float32), noise)
    return composites(output.image, image, mask, how), output


def composites(predictions: Array, image: Array, mask: Array, how: Literal["truncate", "round"]) -> Array:
    """Predictions (b, s, h, w, 3) in the hole and the photo (b, h, w, 3) elsewhere, uint8 (b, s, h, w, 3)."""
    # Known pixels are the photo's own 8-bit values; quantising a float copy of them could only lose.
    return composite(quantise(predictions, how).astype(jnp.uint8), image[:, None], mask[:, None])


def draw_noise(model: Any, seed: int | Array, photos: Array, samples: Array, height: int, width: int) -> Array | None:
    """What tells the completions of a photo from each other; None for a model that makes only one.

    The noise of a completion follows from the seed, the photo's number and its own number alone: it does not depend on the batch or
    the devices, and more samples add to those of fewer.

    Args:
        model: .variational, and .noise_shape(height, width); models without the former are deterministic.
        seed: in [0, 2^32).
        photos: their numbers (b,).
        samples: the numbers (s,) of the completions of each.

    Returns:
        Standard normal (b, s, h/32, w/32, z).
    """
    if not getattr(model, "variational", False):
        return None
    key, shape = jax.random.key(seed), model.noise_shape(height, width)

    def of_sample(photo: Array, sample: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, photo), sample), shape, jnp.float32)

    of_photo = jax.vmap(of_sample, in_axes=(None, 0))
    return jax.vmap(of_photo, in_axes=(0, None))(photos, samples)


@jax.jit
def _encode(model: SPN, image: Array, mask: Array) -> Encoding:
    """What all completions of a photo (h, w, 3) have in common."""
    with PRECISION():
        return model.encode(image[None].astype(jnp.float32) / 255, mask[None].astype(jnp.float32))


@functools.partial(jax.jit, static_argnames="how")
def _decode(
    model: SPN, image: Array, mask: Array, encoding: Encoding, seed: Array, sample: Array, how: Literal["truncate", "round"]
) -> tuple[Array, Array]:
    """One completion, uint8 (h, w, 3), and whether the prediction is finite."""
    noise = draw_noise(model, seed, jnp.zeros(1, jnp.uint32), sample[None], *image.shape[:2])
    with PRECISION():
        predictions = model.decode(encoding, noise).image
    return composites(predictions, image[None], mask[None], how)[0, 0], jnp.isfinite(predictions).all()


@contextlib.contextmanager
def out_of_memory_in_words(what: str) -> Iterator[None]:
    """Turns the errors that mean too little memory into an InputError."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{what} did not fit into the memory; make it smaller") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the host's or the device's memory did not suffice; XLA has no type of its own for it."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def free_memory(device: jax.Device) -> int | None:
    """Bytes that a program could still take, the host's (with swap space) where the device is the CPU; None where it cannot be known."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu" or not MEMINFO.is_file():
        return None
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in MEMINFO.read_text().splitlines())}
    return min([1024 * (kilobytes["MemAvailable"] + kilobytes["SwapFree"]), *free_in_container()])


def free_in_container() -> list[int]:
    """Bytes up to the limit of the control group that the process runs in; empty where there is none."""
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return []
    return [int(limit.read_text()) - int(used.read_text())]


def pad(array: np.ndarray, stride: int) -> np.ndarray:
    """(h, w, c) continued by its mirror image, to the right and below, to the nearest size that the network takes."""
    least = max(SMALLEST, stride)
    height, width = (max(-(-side // stride) * stride, least) for side in array.shape[:2])
    return np.pad(array, ((0, height - array.shape[0]), (0, width - array.shape[1]), (0, 0)), mode="symmetric")


def check_arrays(image: np.ndarray, mask: np.ndarray) -> None:
    """Raises ValueError unless they are a photo and its mask."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"the photo must be uint8 (h, w, 3), not {image.dtype} {image.shape}")
    if mask.dtype != np.uint8 or mask.shape != (*image.shape[:2], 1) or mask.max() > 1:
        raise ValueError(
            f"the mask must be uint8 {(*image.shape[:2], 1)} of zeros and ones, not {mask.dtype} {mask.shape} up to {mask.max()}"
        )


def read_inputs(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The photo, uint8 (h, w, 3), and its mask, uint8 (h, w, 1).

    The photo is read as those of training are: upright, in RGB (grey ones too), transparent parts white.

    Raises:
        InputError: a file is missing or no image, their sizes differ, there is no hole.
    """
    for name, path in ("--image", options.image), ("--mask", options.mask):
        if not path.is_file():
            raise InputError(f"{name} {path} is not a file; pass the path of an image")
    photo = decode_photo(options.image, f"--image {options.image}")
    hole = read_hole(options.mask, options.invert_mask, f"--mask {options.mask}")
    if hole.shape != photo.shape[:2]:
        theirs, ours = (f"{shape[1]} x {shape[0]}" for shape in (photo.shape, hole.shape))
        raise InputError(
            f"--mask {options.mask} is {ours} pixels, the photo {options.image}, upright, is {theirs}; make a mask of the photo's size"
        )
    if not hole.any():
        colour, hint = ("white", "white is the hole; --invert-mask: black")
        if options.invert_mask:
            colour, hint = ("black", "black is the hole with --invert-mask, without it white is")
        raise InputError(f"nothing to fill: no pixel of --mask {options.mask} is {colour} ({hint}; what is transparent is no hole)")
    return photo, hole.astype(np.uint8)[..., None]


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for what can be known to be wrong before anything is read."""
    if options.samples < 1:
        raise InputError(f"--samples {options.samples} must be at least 1")
    if not 0 <= options.seed < SEEDS:
        raise InputError(f"--seed {options.seed} must lie between 0 and {SEEDS - 1}")
    if options.output.suffix.lower() not in FORMATS:
        raise InputError(f"--output {options.output} must name an image file: its suffix is none of {', '.join(FORMATS)}")


def output_files(options: argparse.Namespace) -> list[Path]:
    """A file a completion; InputError if one could not be written, or would replace what is read."""
    output, read = options.output, (options.image.resolve(), options.mask.resolve())
    numbered = [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, options.samples + 1)]
    files = numbered if options.samples > 1 else [output]
    for file in files:
        if file.is_dir():
            raise InputError(f"--output {file} is a folder; choose the name of a file")
        if file.resolve() in read:
            raise InputError(f"--output {file} would replace what is read; choose another name")
    return files


def is_lossy(output: Path) -> bool:
    """Whether the file's format changes pixels."""
    return FORMATS[output.suffix.lower()][0] == "JPEG"


def lossless() -> str:
    """The suffixes of formats that keep every pixel, for the terminal."""
    *others, last = (suffix for suffix in FORMATS if not is_lossy(Path(f"x{suffix}")))
    return f"{', '.join(others)} or {last}"


def encode(picture: np.ndarray, output: Path) -> bytes:
    """A picture, uint8 (h, w, 3), as a file of the format that the suffix of `output` tells; InputError if that cannot hold it."""
    kind, options = FORMATS[output.suffix.lower()]
    buffer = io.BytesIO()
    try:
        Image.fromarray(picture).save(buffer, kind, **options)
    except (OSError, ValueError) as error:  # WebP and JPEG have a largest size, and Pillow may have been built without WebP
        raise InputError(f"{output} cannot be written as {kind} ({error}); choose an --output that ends in .png") from error
    return buffer.getvalue()


if __name__ == "__main__":
    set_up()
    run_command(main)
