"""Opens the methods to compare: checkpoints, folders of results, and methods without training."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spn_jax.checkpoints.store import LoadedModel, checkpoint_sha256, find_checkpoint, load_model
from spn_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, check_config, load_config
from spn_jax.data.images import PhotoSource
from spn_jax.data.pipeline import Completer
from spn_jax.errors import InputError
from spn_jax.evaluation.baselines import find_baseline
from spn_jax.evaluation.options import ONNX
from spn_jax.evaluation.results import ResultsFolder
from spn_jax.filling.completion import check_samples
from spn_jax.filling.windows import choose_strategy
from spn_jax.metrics.image import WINDOW
from spn_jax.models.spn import SMALLEST
from spn_jax.settings import replace_settings, to_dict

ONE_MODEL = "spn"  # the name of a lone checkpoint
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# Settings in which checkpoints must agree, because all methods are scored on the same pictures.
SHARED = ("data.image_size", "data.crop", "data.resize_filter", "data.invert_masks", "data.mask_fit", "eval.quantise")


@dataclasses.dataclass(frozen=True)
class ModelMethod:
    """A checkpoint's model, which completes on the devices."""

    name: str
    folder: Path  # the step's folder
    loaded: LoadedModel
    settings: EvalConfig  # this model's; a deterministic one has one sample

    def identity(self) -> dict[str, Any]:
        """Returns the entries that distinguish it from any other."""
        return {"checkpoint": str(self.folder.absolute()), "metadata": checkpoint_sha256(self.folder), "samples": self.settings.samples}

    def about(self) -> dict[str, Any]:
        told = {key: self.loaded.info.get(key) for key in ("teacher", "converted_from")}
        return {"checkpoint": str(self.folder), "step": self.loaded.step, **told}


@dataclasses.dataclass(frozen=True)
class HostMethod:
    """A method that the reader threads call."""

    name: str
    complete: Completer
    source: Mapping[str, Any]  # the entries that distinguish it from any other

    def identity(self) -> dict[str, Any]:
        return dict(self.source)

    about = identity


def named(text: str, flag: str) -> tuple[str, str]:
    """Splits NAME=DIR. Raises InputError if it is malformed, or the name could not be a file's."""
    name, separator, folder = text.partition("=")
    if not separator or not folder:
        raise InputError(f"{flag} {text} must be NAME=DIR: a name for the table and the folder")
    if not _NAME.fullmatch(name):
        raise InputError(f"{flag} {text}: the name {name!r} must be letters, digits and . _ + -; files are named after it")
    return name, folder


def named_checkpoints(given: Sequence[str]) -> dict[str, str]:
    """Returns {name: folder} of `--checkpoint [NAME=]DIR`. One without a name is called "spn" if it
    is alone, otherwise after its folder.
    """
    found: dict[str, str] = {}
    for text in given:
        if "=" in text and not Path(text).exists():
            name, folder = named(text, "--checkpoint")
        else:
            folder = text
            name = ONE_MODEL if len(given) == 1 else re.sub(r"[^A-Za-z0-9._+-]", "-", Path(text).resolve().name).lstrip("._+-") or ONE_MODEL
        if name in found:
            raise InputError(f"two checkpoints are called {name}; give them names with --checkpoint NAME=DIR")
        found[name] = folder
    return found


def check_names(checkpoints: Iterable[str], results: Sequence[str], methods: Sequence[str]) -> None:
    """Raises InputError unless there is a method, and each has a unique name."""
    names = [*checkpoints, *results, *methods]
    if not names:
        raise InputError("nothing to evaluate: pass --checkpoint DIR, --results NAME=DIR or --method NAME")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two methods are called {name}; give each --checkpoint and --results a name of its own (NAME=DIR)")


def load_checkpoints(checkpoints: Mapping[str, str]) -> dict[str, tuple[Path, LoadedModel]]:
    """Returns {name: (folder of the step, model)}."""
    return {name: (find_checkpoint(folder), load_model(folder)) for name, folder in checkpoints.items()}


def shared_config(loaded: Mapping[str, LoadedModel], config: Path | None, overrides: Sequence[str]) -> Config:
    """Returns the settings of the data and the evaluation, which all methods share.

    They come from the config file if there is one, otherwise from the first checkpoint, otherwise
    from the defaults; overrides come on top. Of the rest, only whether any model is probabilistic
    is kept.

    Raises:
        InputError: checkpoints disagree about the pictures, an override is wrong, or several
            samples are asked of deterministic models.
    """
    variational = any(of.config.model.variational for of in loaded.values())
    # Only probabilistic models have samples, so such a model's settings come before a deterministic
    # one's.
    ordered = sorted(loaded.values(), key=lambda of: not of.config.model.variational)
    given = load_config(config) if config is not None else next((of.config for of in loaded.values()), Config())
    evaluation = (
        given.eval if config is not None or not ordered else dataclasses.replace(given.eval, samples=ordered[0].config.eval.samples)
    )
    base = Config(data=given.data, eval=evaluation)
    foreign = [text for text in overrides if not text.startswith(("data.", "eval."))]
    if foreign:
        raise InputError(f"{', '.join(foreign)}: an evaluation takes settings of data and eval alone; the model is the checkpoint's")
    shared = checked_settings(base, overrides)
    if shared.eval.samples > 1 and not variational:
        if any(text.startswith("eval.samples=") for text in overrides):
            if not loaded:
                raise InputError(f"--samples {shared.eval.samples} is of probabilistic models, and none is evaluated; leave it out")
            check_samples(shared.eval.samples, next(iter(loaded.values())).config)
        shared = dataclasses.replace(shared, eval=dataclasses.replace(shared.eval, samples=1))
    if config is None:
        _check_agreement(loaded, shared, {text.partition("=")[0] for text in overrides})
    return shared


def checked_settings(base: Config, overrides: Sequence[str]) -> Config:
    """Returns `base` with the overrides, checked without regard to any model, since each model
    requires its own picture size.

    Raises:
        InputError: a setting is wrong, or pictures are smaller than SSIM's window.
    """
    # a probabilistic model, which allows samples
    shared = dataclasses.replace(replace_settings(base, overrides), model=ModelConfig(variational=True))
    size = shared.data.image_size
    # The crops and the teacher of training do not matter here either.
    untrained = dataclasses.replace(shared.data, image_size=DataConfig.image_size)
    check_config(dataclasses.replace(shared, data=untrained, loss=LossConfig(prior=0.0)))
    if size < WINDOW:
        raise InputError(f"data.image_size={size} must be at least {WINDOW}, the window of SSIM")
    return shared


def _check_agreement(loaded: Mapping[str, LoadedModel], shared: Config, overridden: set[str]) -> None:
    ours = to_dict(shared)
    for name, of in loaded.items():
        theirs = to_dict(of.config)
        for key in SHARED:
            section, setting = key.split(".")
            if key not in overridden and theirs[section][setting] != ours[section][setting]:
                raise InputError(
                    f"the checkpoints disagree about {key}: {ours[section][setting]}, and {theirs[section][setting]} in {name}; "
                    f"evaluate them apart, or add {key}=VALUE for all"
                )


def model_methods(loaded: Mapping[str, tuple[Path, LoadedModel]], shared: Config) -> list[ModelMethod]:
    """Returns the checkpoints' methods. Raises InputError if a model does not take pictures of this
    size.
    """
    methods = []
    for name, (folder, model) in loaded.items():
        size, stride = shared.data.image_size, model.config.model.stride
        if size % stride or size < SMALLEST:
            raise InputError(f"data.image_size={size} must be divisible by {stride} and at least {SMALLEST} for {name}")
        samples = shared.eval.samples if model.config.model.variational else 1
        methods.append(ModelMethod(name, folder, model, dataclasses.replace(shared.eval, samples=samples)))
    return methods


def named_methods(given: Sequence[str]) -> dict[str, str]:
    """Returns {name: method} of `--method`: a baseline's name, or [NAME=]onnx:FILE, whose default
    name is its file's.

    Raises:
        InputError: there is no such method, or two have one name.
    """
    found: dict[str, str] = {}
    for text in given:
        name, method = text, text
        if ONNX in text:
            name, method = named(text, "--method") if not text.startswith(ONNX) else (default_name(text.removeprefix(ONNX)), text)
        else:
            find_baseline(text)
        if name in found:
            raise InputError(f"two methods are called {name}; give each --checkpoint, --results and --method a name of its own")
        found[name] = method
    return found


def default_name(file: str) -> str:
    """Returns the stem of a file's name as the name of a method."""
    return re.sub(r"[^A-Za-z0-9._+-]", "-", Path(file).stem).lstrip("._+-") or "onnx"


def host_methods(results: Mapping[str, str], raw: bool, methods_given: Sequence[str], photos: PhotoSource, size: int) -> list[HostMethod]:
    """Opens folders of results, baselines and networks in .onnx files.

    Raises:
        InputError: results do not fit the photos, a baseline is unknown, or a file holds no
            inpainting network.
    """
    methods = []
    for name, folder in results.items():
        opened = ResultsFolder(name, folder, photos.names, size)
        source = {"results": str(Path(folder).absolute()), "files": opened.fingerprint(), "raw": raw}
        methods.append(HostMethod(name, opened.raw if raw else opened.completed, source))
    for name, method in named_methods(methods_given).items():
        methods.append(onnx_method(name, method.removeprefix(ONNX)) if method.startswith(ONNX) else baseline_method(name))
    return methods


def baseline_method(name: str) -> HostMethod:
    return HostMethod(name, _Baseline(name), {"method": name})


def onnx_method(name: str, file: str) -> HostMethod:
    """Opens a network in an .onnx file, which fills each photo as a whole. Raises InputError if the
    file holds none.
    """
    from spn_jax.filling.inpainter import Inpainter

    inpainter = Inpainter.load(file)

    def complete(i: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        # What is scored is the prediction itself, without a correction along the hole's border.
        usual = choose_strategy("auto", image.shape[:2], inpainter.config.data.image_size)
        return inpainter(image, mask, strategy="original" if usual == "resize" else usual)[0]

    described = Path(file).with_suffix(".json")
    source = {"onnx": str(Path(file).absolute()), "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}
    if described.is_file():
        source["described"] = hashlib.sha256(described.read_bytes()).hexdigest()
    return HostMethod(name, complete, source)


@dataclasses.dataclass(frozen=True)
class _Baseline:
    name: str

    def __call__(self, i: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return find_baseline(self.name)(image, mask)
