"""What the options of an evaluation may be. Imports no JAX, so that --help answers at once."""

from spn_jax.evaluation.baselines import BASELINES

ONNX = "onnx:"  # before the file's name, in --method
METHODS = f"one that needs no training ({', '.join(BASELINES)}), or [NAME=]{ONNX}FILE, a network in an .onnx file"
COMPARED = 6  # photos in the comparison picture of several methods, where --grid does not say
