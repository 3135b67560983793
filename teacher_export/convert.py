"""Converts released checkpoints (.pt) to checkpoints of spn_jax, and back.

python -m teacher_export.convert INPUT.pt OUTPUT_DIR [--model KIND] \\
    [--config configs/X.py] [section.key=value ...]
python -m teacher_export.convert CHECKPOINT_DIR OUTPUT.pt --to-torch [--no-module]
"""

import argparse
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import spn_jax
from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.checkpoints.released import (
    FULL_SIZE,
    LEFT_OUT,
    NETWORKS,
    TEACHER_CHANNELS,
    Converted,
    convert_released,
    detect_kind,
    discriminator_to_released,
    model_to_released,
    split_released,
)
from spn_jax.config import Config, EvalConfig, apply_overrides, load_config
from spn_jax.errors import InputError, run_command
from spn_jax.runtime.files import write_atomically
from spn_jax.runtime.log import quiet_libraries
from spn_jax.settings import help_text, to_dict

LAYOUT = "it must hold a released SPN as {name: tensor}, or that in {name: {...}}"
SIZES = "if its sizes are not the published ones, describe them with --config"
DEEPEST = 8  # most levels of nested dictionaries; one that contains itself has no end

DESCRIPTION = """\
Makes a checkpoint of spn_jax from a checkpoint of the authors' PyTorch programs, or the reverse (--to-torch).

From PyTorch, INPUT is the .pt file and OUTPUT a new folder, which evaluate, predict and train --init then take as a checkpoint.
The file is read without executing anything in it. Names may begin with `generator.` or `discriminator.`, then `module.`;
all may lie in one dictionary more ({"state_dict": {...}}). Labels, teacher and VGG19 (adversarial_loss.*, tresnet_xL_hold.*,
vgg_loss.*, slice1.* to slice5.*) are left out and listed; any other entry that is missing, left over, misshapen, not float32 or
not finite stops the command. A file without discriminator gives a checkpoint without one. Without --config the distillation
heads must have TResNet-L's channels, as the published ones; with it they may have others.

To PyTorch, INPUT is a work directory or one of its checkpoints, and OUTPUT a new .pt file.
Both ways every number keeps all its bits."""

EXAMPLES = """\
examples:
  python -m teacher_export.convert celeba.pt runs/celeba_released data.test_photos=DIR data.crop=center
  python -m teacher_export.convert paris.pt runs/paris_released --config configs/paris_streetview.py
  python -m teacher_export.convert runs/celeba celeba.pt --to-torch"""


def main(arguments: Sequence[str]) -> None:
    """Converts in the direction of the options. Raises InputError for wrong input."""
    quiet_libraries()
    options = parse_arguments(arguments)
    if options.to_torch:
        if options.model or options.config or options.overrides:
            raise InputError("--to-torch takes kind and settings from the checkpoint; leave out --model, --config and section.key=value")
        to_torch(options.input, options.output, module=not options.no_module)
    elif options.no_module:
        raise InputError("--no-module is about the names that --to-torch writes; leave it out, a file is read with and without them")
    else:
        from_torch(options.input, options.output, kind=options.model, config_file=options.config, overrides=options.overrides)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m teacher_export.convert",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n\n{help_text(Config, '*')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="released .pt file; with --to-torch a checkpoint folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="new folder; with --to-torch a new .pt file")
    parser.add_argument("--model", choices=list(FULL_SIZE), help="kind of the file's model; default: what the names in it say")
    parser.add_argument(
        "--config",
        help="settings that the checkpoint stores (data, evaluation, and the model with its sizes); default: the published model's",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from these, see below")
    parser.add_argument("--to-torch", action="store_true", help="write a .pt file from a checkpoint of spn_jax")
    parser.add_argument(
        "--no-module", action="store_true", help="with --to-torch: write generator.NAME, not generator.module.NAME as the authors do"
    )
    return parser.parse_intermixed_args(arguments)


def from_torch(path: Path, output: Path, *, kind: str | None, config_file: str | None, overrides: Sequence[str]) -> Path:
    """Writes the released file `path` as a checkpoint in the new folder `output`. Returns the
    checkpoint's folder.

    Args:
        kind: the model's kind; None: determined by the names in the file.
        config_file: has the settings to store, the model's among them; None: the published model's.
        overrides: `section.key=value` settings.

    Raises:
        InputError: the file cannot be read or does not fit (every entry is listed), settings are of
            another kind, or the output is not empty or not writable.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; pass a released .pt file, or --to-torch to make one from a checkpoint")
    if not path.is_file():
        raise InputError(f"{path} is not a file; pass a released .pt file")
    from spn_jax.checkpoints.store import require_new_folder, save_converted  # not before the cheap checks: JAX takes seconds

    require_new_folder(output)
    config = load_config(config_file, overrides) if config_file else None
    if config and kind and config.model.kind != kind:
        raise InputError(f"--model {kind} contradicts --config {config_file}, whose model is {config.model.kind}; leave out one of them")

    arrays, digest = read_arrays(path)
    file = split_released(arrays)
    kind = kind or (config.model.kind if config else detect_kind(file, str(path)))
    if config:
        converted = convert_released(file, config.model, str(path))
    else:
        config = apply_overrides(default_config(kind), overrides)
        converted = convert_released(file, config.model, str(path), teacher_channels=TEACHER_CHANNELS, hint=SIZES)
    print(f"{path}: {kind}, {count(converted.model):,} parameters in prior learner and generator")
    print(f"distillation heads: {', '.join(f'l={level} {n}' for level, n in converted.teacher_channels.items())} channels")
    if converted.discriminator is None:
        print("discriminator: there is none in the file, so none in the checkpoint; train --init starts a new one")
    else:
        print(f"discriminator: {count(converted.discriminator):,} parameters")
    print(f"left out: {describe_left_out(file.left_out)}")
    info = checkpoint_info(config, converted, {"file": path.name, "sha256": digest})
    folder = save_converted(output, converted.model, converted.discriminator, info)
    print(f"wrote {folder}", flush=True)
    return folder


def default_config(kind: str) -> Config:
    """Returns the settings of a published model. Evaluation of the probabilistic one makes five
    completions a photo, as in the paper.
    """
    model = FULL_SIZE[kind]
    return Config(model=model, eval=EvalConfig(samples=5 if model.variational else 1))


def checkpoint_info(config: Config, converted: Converted, source: Mapping[str, str]) -> dict[str, Any]:
    """Returns the checkpoint's description, like that of a training run but without training
    data.
    """
    return {
        "model": config.model.kind,
        "version": spn_jax.__version__,
        "config": to_dict(config),
        "teacher": {
            "channels": {str(level): channels for level, channels in converted.teacher_channels.items()},
            "origin": "released checkpoint",
            "identity": None,
        },
        "converted_from": dict(source),
    }


def describe_left_out(names: Sequence[str]) -> str:
    """Returns the number of names and, a line each, the names."""
    if not names:
        return "nothing"
    belong = "entry that belongs" if len(names) == 1 else "entries that belong"
    return "\n  ".join([f"{len(names)} {belong} to neither", *names])


def count(arrays: Mapping[str, np.ndarray]) -> int:
    """Counts the parameters without the singular vectors of spectral norm."""
    return sum(math.prod(array.shape) for name, array in arrays.items() if not name.endswith((".u", ".v")))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Reads the tensors of a torch file by name, with dots for nested dictionaries, and the file's
    SHA-256.

    A dictionary around everything is removed, and its name printed.

    Raises:
        InputError: it is not a torch file, contains code or anything but tensors (listed), or has
            one name twice.
    """
    # imported after the cheap checks, since importing torch takes seconds
    from teacher_export.teachers import read_torch_file

    content = read_torch_file(path, str(path), LAYOUT)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; {LAYOUT}")
    around, content = unwrap(content)
    if around:
        print(f"{path}: read what lies in its only entry {'.'.join(around)}", flush=True)
    arrays: dict[str, np.ndarray] = {}
    problems = []
    for name, value in flatten(content):
        array = to_numpy(value)
        if array is None:
            problems.append(f"{name} is no dense tensor ({type(value).__name__})")
        elif name in arrays:
            problems.append(f"{name} is there twice")
        else:
            arrays[name] = array
    if problems:
        raise InputError(f"{path} has another layout: {'; '.join(problems)}; {LAYOUT}")
    with open(path, "rb") as file:
        return arrays, hashlib.file_digest(file, "sha256").hexdigest()


def unwrap(content: Mapping[Any, Any]) -> tuple[list[str], Mapping[Any, Any]]:
    """Returns the names of the dictionaries around everything, such as {"state_dict": {...}}, and
    their content.
    """
    around: list[str] = []
    while len(content) == 1 and len(around) < DEEPEST:
        ((key, value),) = content.items()
        if not isinstance(value, Mapping) or key in (*NETWORKS, "module") or f"{key}.".startswith(LEFT_OUT):
            break
        around.append(str(key))
        content = value
    return around, content


def flatten(content: Mapping[Any, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Yields (name, value) of all values in nested dictionaries."""
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from flatten(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def to_numpy(value: Any) -> np.ndarray | None:
    """Returns a tensor as an array that shares its memory; None for anything else."""
    from teacher_export.frameworks import torch

    if not isinstance(value, torch.Tensor):
        return None
    value = value.detach()
    if value.dtype == torch.bfloat16:  # NumPy does not have this type
        return value.float().numpy().astype(ml_dtypes.bfloat16)
    try:
        return value.numpy()
    except (TypeError, RuntimeError):  # sparse, quantised, without data
        return None


def to_torch(checkpoint: Path, output: Path, *, module: bool) -> None:
    """Writes the checkpoint as the new file `output` under the released names, with the
    discriminator where there is one.

    Args:
        checkpoint: a step folder, checkpoints folder or work directory (newest step).
        module: use the names of the authors' multi-GPU programs, `generator.module.NAME`.

    Raises:
        InputError: there is no checkpoint, it does not fit its own settings, or the file exists or
            cannot be written.
    """
    if output.exists() or output.is_symlink():
        raise InputError(f"{output} exists; choose another name, nothing is overwritten")
    import jax  # not before the cheap checks: it takes seconds
    from flax import nnx

    from spn_jax.checkpoints.store import find_checkpoint, load_discriminator, load_model, stored_metadata, teacher_channels

    folder = find_checkpoint(checkpoint)
    loaded = load_model(folder)
    model = loaded.config.model
    channels = teacher_channels(loaded.info)
    parameters = jax.device_get(named_arrays(nnx.as_pure(nnx.state(loaded.model))))
    networks = {"generator": model_to_released(parameters, model, channels)}
    if (discriminator := load_discriminator(folder)) is not None:
        networks["discriminator"] = discriminator_to_released(jax.device_get(discriminator), model)

    from teacher_export.frameworks import torch

    between = ".module." if module else "."
    tensors = {
        f"{network}{between}{name}": torch.from_numpy(np.array(array, order="C"))
        for network, arrays in networks.items()
        for name, array in arrays.items()
    }
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_atomically(output, buffer.getvalue())
    averaged = " (their moving average, which the run kept)" if "ema" in stored_metadata(folder).metadata else ""
    print(f"{folder}: {model.kind}, step {loaded.step}, parameters of prior learner and generator{averaged}")
    if discriminator is None:
        print("discriminator: there is none in the checkpoint, so none in the file")
    if missing := sorted(set(model.prior_levels) - set(channels)):
        print(f"distillation heads: trained without those of level {', '.join(map(str, missing))}, which the released model has")
    print(f"wrote {output}: {len(tensors)} tensors", flush=True)


if __name__ == "__main__":
    run_command(main)
