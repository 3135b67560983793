"""Runs a network in an .onnx file, ours or anybody's, for the inpainter, with ONNX Runtime."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from spn_jax.config import Config, DataConfig, ModelConfig
from spn_jax.errors import InputError, first_line
from spn_jax.filling.completion import draw_noise
from spn_jax.filling.onnx_contract import Port, find_contract
from spn_jax.filling.padding import bucket, pad
from spn_jax.filling.windows import Shown

OWN_METADATA = "spn_jax"  # the metadata entry in which our files describe themselves, as JSON
SILENT = 4  # ONNX Runtime's log level; errors are raised with our own text instead
FAINT = 8  # of 255; a picture with brighter pixels is not black
IN_SOURCE = re.compile(r"^\S+\.(?:h|cc):\d+ .*\) (?=[A-Z])")  # file, line and function of ONNX Runtime, before a sentence
ACCELERATORS = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider")


class OnnxNetwork:
    """Fills windows with the network of a file (`spn_jax.filling.inpainter.Network`).

    Args:
        path: the .onnx file. A JSON file of the same name beside it may describe it
            (`spn_jax.filling.onnx_contract`).

    Raises:
        InputError: ONNX Runtime is not installed, or the file cannot be read or is not a supported
            inpainting network.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._session = open_session(self.path)
        inputs = [Port(one.name, one.type, declared(one.shape)) for one in self._session.get_inputs()]
        outputs = [Port(one.name, one.type, declared(one.shape)) for one in self._session.get_outputs()]
        self.contract = find_contract(self.path, inputs, outputs, own_words(self._session))
        self.variational = self.contract.latent is not None

    @property
    def config(self) -> Config:
        """The settings that the program asks a model for: the size that it was trained at, and
        whether it is probabilistic.
        """
        return Config(
            model=ModelConfig(variational=self.variational),
            data=DataConfig(image_size=self.contract.trained_size),
        )

    @property
    def smallest_window(self) -> int:
        """The smallest useful side of a window; smaller ones would be padded to it."""
        return min(self.contract.fixed) if self.contract.fixed else self.contract.trained_size

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the shape of one completion's noise, (h/32, w/32, z), so that `draw_noise` draws
        what JAX would.
        """
        assert self.contract.latent is not None, "a deterministic network takes no noise"
        return height // self.contract.multiple, width // self.contract.multiple, self.contract.latent

    def predictions(self, shown: Shown, number: int, samples: int, seed: int, what: str) -> Iterator[np.ndarray]:
        """Yields a prediction for a window, float32 (h, w, 3) from 0 to 255, hole and known pixels
        alike, once a sample.

        Args:
            number: the window's number, on which the noise depends.
            what: the photo's name in errors.

        Raises:
            InputError: the window is larger than the network takes, the memory does not suffice, or
                the file's program fails.
        """
        height, width = shown.image.shape[:2]
        padded = self._padded(height, width)
        image, hole = (pad(array, padded) for array in shown)
        bright = bool((image[hole[..., 0] == 0] > FAINT).any())
        # erased, so that the file's program cannot see what was there
        image = np.where(hole > 0, np.uint8(self.contract.erased), image)
        given = self._inputs(image, hole)
        for sample in range(samples):
            if self.variational:
                numbers = jnp.asarray([number], jnp.uint32), jnp.asarray([sample], jnp.uint32)
                noise = draw_noise(self, jnp.asarray(seed, jnp.uint32), *numbers, *padded)
                given["noise"] = np.asarray(noise)[0].transpose(0, 3, 1, 2)
            yield self._run(given, image.shape, bright, what)[:height, :width]

    def priors(self, shown: Shown, seed: int, what: str) -> dict[int, np.ndarray]:
        """Raises InputError, because a file gives completions alone."""
        raise InputError(f"{self.path.name} is an .onnx file, which gives completions and no priors; load a checkpoint to see those")

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        contract = self.contract
        if contract.fixed:
            if height > contract.fixed[0] or width > contract.fixed[1]:
                raise InputError(
                    f"{self.path} takes pictures of {contract.fixed[1]} x {contract.fixed[0]} pixels and no larger ones; "
                    'choose the strategy "crop" or "resize"'
                )
            return contract.fixed
        if contract.ours:
            return bucket(height, self.config), bucket(width, self.config)
        return tuple(-(-side // contract.multiple) * contract.multiple for side in (height, width))  # type: ignore[return-value]

    def _inputs(self, image: np.ndarray, hole: np.ndarray) -> dict[str, np.ndarray]:
        contract = self.contract
        picture, mask = contract.image.encode(image.astype(np.float32) / 255), contract.mask.encode(hole.astype(np.float32))
        if contract.image.name == contract.mask.name:
            return {contract.image.name: np.concatenate([picture, mask], contract.image.layout.index("c"))}
        return {contract.image.name: picture, contract.mask.name: mask}

    def _run(self, given: dict[str, np.ndarray], shape: tuple[int, ...], bright: bool, what: str) -> np.ndarray:
        """Runs the network. `bright`: whether some known pixels are not black, so that the
        prediction cannot be black.
        """
        output = self.contract.output
        with in_words(self.path, what):
            (found,) = self._session.run([output.name], given)
        try:
            picture = output.decode(np.asarray(found))
        except ValueError as error:
            raise InputError(f"{self.path}: its output {output.name} is no picture; {error}") from error
        if picture.shape != shape:
            raise InputError(f"{self.path}: it was given a picture of {shape} and returned one of {picture.shape} (h, w, c)")
        if output.high == 255 and output.dtype != "uint8" and picture.max() <= 1 and bright:
            raise InputError(
                f"{self.path} returns values from 0 to 1 where the published file of its kind has 0 to 255; describe it in "
                f"{self.path.with_suffix('.json')}"
            )
        if not np.isfinite(picture).all():
            raise InputError(f"{self.path}: its prediction is not finite; the network is broken, or needs a file of higher precision")
        return np.clip(picture, 0, 255)


def open_session(path: Path) -> Any:
    """Opens the file's program, ready to run. Raises InputError if ONNX Runtime is not installed,
    or cannot read the file.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} needs the package onnxruntime, which is not installed; run pip install -e '.[onnx]' in the checkout"
        ) from error
    if not path.is_file():
        raise InputError(f"{path} is not there, or is no file; pass an .onnx file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = SILENT
    available = onnxruntime.get_available_providers()
    providers = [name for name in ACCELERATORS if name in available] + ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime has many kinds
        if "external data" in str(error).lower():
            reason = "its weights lie in a second file, which is missing or damaged; put it beside this one under its own name"
        else:
            reason = f"{reason_of(error)}; it is no ONNX file, is damaged, or needs a newer onnxruntime"
        raise InputError(f"{path} cannot be read: {reason}") from error


def declared(shape: Any) -> tuple[int | None, ...]:
    """Returns a shape as the file declares it; a side without a fixed length is None."""
    return tuple(side if isinstance(side, int) else None for side in shape)


def own_words(session: Any) -> dict[str, Any] | None:
    """Returns the description in a file that `spn_jax.export` wrote, else None."""
    text = session.get_modelmeta().custom_metadata_map.get(OWN_METADATA)
    with contextlib.suppress(ValueError):
        found = json.loads(text) if text else None
        return found if isinstance(found, dict) else None
    return None


@contextlib.contextmanager
def in_words(path: Path, what: str) -> Iterator[None]:
    """Turns runtime errors of ONNX Runtime into an InputError; `what` is the photo's name."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or "failed to allocate" in str(error).lower() or "bad_alloc" in str(error):
            raise InputError(f"{what} did not fit into the memory; make it smaller") from error
        raise InputError(f"{path} fails at {what} ({reason_of(error)}); see whether its description fits the file") from error


def reason_of(error: Exception) -> str:
    """Returns the first line of an error's text without ONNX Runtime's own prefix and the place in
    its source.
    """
    text = first_line(error, longest=2000).rpartition(" failed:")[2].removeprefix("[ONNXRuntimeError] : ")
    return IN_SOURCE.sub("", text)[:200].rstrip(". ")
