"""The options by which commands take either a checkpoint or an .onnx file."""

import argparse

from spn_jax.errors import InputError


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint and --model, of which one has to be given."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--checkpoint", help="a run's work directory (its newest checkpoint) or one checkpoint")
    either.add_argument("--model", metavar="FILE.onnx", help="an inpainting network as an .onnx file, ours or anybody's, instead")


def check_network(options: argparse.Namespace) -> None:
    """Raises InputError unless --model, where it is given, can be an .onnx file."""
    if options.model is not None and not options.model.endswith(".onnx"):
        raise InputError(f"--model {options.model} must be a file that ends in .onnx; pass checkpoints with --checkpoint")
