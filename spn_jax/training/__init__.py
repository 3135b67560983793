"""A training run: its loop, the step and its losses, what a run reads, how it resumes, evaluates
and reports.

The command `train` and the ablations import it. The step knows no data; the loop brings data,
checkpoints and evaluation together.
"""
