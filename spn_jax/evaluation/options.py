"""Defines the values of an evaluation's options, without JAX, so that --help answers at once."""

from spn_jax.evaluation.baselines import BASELINES

ONNX = "onnx:"  # prefix of the file's name, in --method
METHODS = f"one that needs no training ({', '.join(BASELINES)}), or [NAME=]{ONNX}FILE, a network in an .onnx file"
COMPARED = 6  # default number of photos in the comparison picture of several methods
