"""Declares the options by which commands take a checkpoint or an .onnx file, and a device."""

import argparse

from spn_jax.errors import InputError
from spn_jax.pretrained.catalogue import CHECKPOINT_HELP, DEFAULT, announce


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint and --model, of which at most one can be given."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--checkpoint", default=DEFAULT, help=CHECKPOINT_HELP)
    either.add_argument("--model", metavar="FILE.onnx", help="an inpainting network as an .onnx file, ours or anybody's, instead")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device."""
    parser.add_argument("--device", help="cpu, gpu or tpu (default: JAX's choice)")


def check_network(options: argparse.Namespace) -> None:
    """Raises InputError unless --model, if given, can be an .onnx file."""
    if options.model is not None and not options.model.endswith(".onnx"):
        raise InputError(f"--model {options.model} must be a file that ends in .onnx; pass checkpoints with --checkpoint")


def network_path(options: argparse.Namespace) -> str:
    """Returns the argument of `Inpainter.load`. Announces the model if none was chosen."""
    if options.model is None:
        announce(options.checkpoint)
    return str(options.checkpoint if options.model is None else options.model)
