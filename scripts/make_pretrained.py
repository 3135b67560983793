"""Packs a checkpoint as a model file that ships with the package.

python scripts/make_pretrained.py CHECKPOINT --output DIR/weights.npz

The file has the moving average of the parameters, in float16, and the checkpoint's description
without its paths. Size and SHA-256 are printed, for the model card.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spn_jax.checkpoints.model_file import SUFFIX, write_model_file
from spn_jax.checkpoints.parameters import named_arrays
from spn_jax.errors import InputError, run_command

LARGEST = 10 * 10**6  # most bytes of a file in the repository


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises InputError for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's work directory (its newest checkpoint) or one checkpoint")
    parser.add_argument("--output", type=Path, required=True, metavar=f"FILE{SUFFIX}")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the parameters in the file")
    options = parser.parse_args(arguments)
    if options.output.suffix != SUFFIX:
        raise InputError(f"--output {options.output} must be the name of a file that ends in {SUFFIX}")
    print(pack(options.checkpoint, options.output, options.dtype))


def pack(checkpoint: str | Path, output: Path, dtype: str) -> str:
    """Writes the model file and returns a report. Raises InputError as `load_model` and
    `write_model_file` do.
    """
    from flax import nnx  # not before the options are read: JAX takes seconds to import

    from spn_jax.checkpoints.store import checkpoint_sha256, load_model

    loaded = load_model(checkpoint)
    arrays = {name: np.asarray(array) for name, array in named_arrays(nnx.as_pure(nnx.state(loaded.model))).items()}
    write_model_file(output, arrays, {**without_paths(loaded.info), "step": loaded.step}, dtype)
    size = output.stat().st_size
    if size > LARGEST:
        output.unlink()
        raise InputError(f"{output} would have {size:,} bytes, and at most {LARGEST:,} are shipped; train a smaller model")
    count = sum(array.size for array in arrays.values())
    sha256 = checkpoint_sha256(output)
    return f"{output}: {count:,} parameters, {size:,} bytes, step {loaded.step:,}, sha256 {sha256}"


def without_paths(info: dict) -> dict:
    """Returns a checkpoint's description without file paths of the machine that trained it."""
    config = {section: dict(settings) for section, settings in info["config"].items()}
    for section, setting in (
        ("data", "train_photos"),
        ("data", "test_photos"),
        ("data", "train_masks"),
        ("data", "test_masks"),
        ("teacher", "weights"),
        ("teacher", "cache"),
        ("loss", "vgg"),
    ):
        config[section][setting] = Path(config[section][setting]).name
    return {**{key: info[key] for key in ("model", "version", "teacher") if key in info}, "config": config}


if __name__ == "__main__":
    run_command(main)
