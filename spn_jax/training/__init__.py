"""Trains SPN: the loop, the step and its losses, inputs, resuming, evaluation and reports.

The command `train` and the ablations import it. The step does not depend on the data loader; the
loop combines data, checkpoints and evaluation.
"""
