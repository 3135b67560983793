"""Writes a model as a file that runs without this package: `python -m spn_jax.export --output FILE
[--checkpoint DIR] [--format FORMAT]`.

Formats: stablehlo (FILE.zip, which runs with JAX alone, for the sizes of --size), onnx (FILE.onnx,
the network, for any size that its stride divides), onnx-photo (FILE.onnx, a photo and a mask of any
size in, the completed photo out) and web (a folder, the web page without a server).
`spn_jax.onnx_files.write` and `.photo` have the inputs and outputs.

Inside FILE.zip: a StableHLO program for each size, compiled for CPU, CUDA or TPU by whoever loads
it; the weights, which are its arguments; and manifest.json, which says what goes in and comes out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spn_jax.errors import InputError, run_command
from spn_jax.pretrained.catalogue import CHECKPOINT_HELP, DEFAULT, announce
from spn_jax.runtime.files import check_writable, write_atomically

if TYPE_CHECKING:
    from spn_jax.checkpoints.store import LoadedModel
    from spn_jax.filling.archive import Size

# of what is written, by format
SUFFIXES = {"stablehlo": ".zip", "onnx": ".onnx", "onnx-photo": ".onnx", "web": ""}


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    check_options(options)
    if options.format != "stablehlo":
        require_onnx()
    announce(options.checkpoint)
    if options.format == "web":
        from spn_jax.onnx_files.web import write_page

        write_page(options.output, options.checkpoint, options.precision, options.onnxruntime_web)
        return

    # After the cheap checks: importing JAX takes seconds.
    from spn_jax.checkpoints.store import load_model
    from spn_jax.filling.archive import check_sizes

    loaded = load_model(options.checkpoint)
    sizes = [tuple(size) for size in options.size or [[loaded.config.data.image_size] * 2]]
    check_sizes(sizes, loaded.config.model.stride)
    check_writable(options.output.parent)
    write_atomically(options.output, contents(loaded, options.format, options.precision, sizes))
    print(f"written: {options.output}, {options.output.stat().st_size / 1e6:.1f} MB")


def contents(loaded: "LoadedModel", form: str, precision: Any, sizes: "Sequence[Size]") -> bytes:
    """The bytes of a file of one format."""
    if form == "stablehlo":
        from spn_jax.filling.archive import archive

        return archive(loaded, sizes)
    from spn_jax.onnx_files import photo, write

    return write.network_file(loaded, precision) if form == "onnx" else photo.photo_file(loaded, precision)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spn_jax.export", description=__doc__)
    parser.add_argument("--checkpoint", default=DEFAULT, help=CHECKPOINT_HELP)
    parser.add_argument("--output", required=True, type=Path, help="the file: .zip for stablehlo, .onnx for onnx; the new folder of web")
    parser.add_argument("--format", choices=list(SUFFIXES), default="stablehlo", help="stablehlo if left out")
    parser.add_argument(
        "--precision", choices=("float32", "float16"), help="of an .onnx file's convolutions and weights; float32 if left out"
    )
    parser.add_argument(
        "--onnxruntime-web", type=Path, metavar="DIR", help="the package onnxruntime-web, a folder or .tgz; fetched with npm if left out"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        action="append",
        metavar=("H", "W"),
        help="height and width of a stablehlo program's photos; several times for several programs, the trained size if left out",
    )
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raises InputError for what can be known to be wrong before the checkpoint is read."""
    suffix = SUFFIXES[options.format]
    if suffix and (options.output.is_dir() or options.output.suffix != suffix):
        raise InputError(
            f"--output {options.output} must be the name of a file that ends in {suffix}, because --format is {options.format}"
        )
    if options.size and options.format != "stablehlo":
        raise InputError(f"--size is for --format stablehlo; --format {options.format} takes photos of many sizes: leave it out")
    if options.precision and options.format == "stablehlo":
        raise InputError(f"--precision {options.precision} is for .onnx files; a StableHLO program is float32: leave it out")
    if options.onnxruntime_web and options.format != "web":
        raise InputError(f"--onnxruntime-web {options.onnxruntime_web} is for --format web; leave it out")
    options.precision = options.precision or "float32"


def require_onnx() -> None:
    """Raises InputError where the package that writes .onnx files is not installed."""
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "an .onnx file needs the package onnx, which is not installed; run pip install -e '.[onnx]' in the checkout"
        ) from error


def cli() -> None:
    """The console command `spn-export`."""
    parse(sys.argv[1:])  # --help and misspelt options are answered before JAX is imported
    from spn_jax.runtime.device import set_up

    set_up()
    run_command(main)


if __name__ == "__main__":
    cli()
