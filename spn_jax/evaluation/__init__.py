"""Scores completions by any method on the same pairs of photo and mask.

It has pair lists, methods, the session that scores them, and tables beside the paper's figures. It
imports filling, metrics, drawing, checkpoints, models, data and runtime; training, ablations and
views import it.
"""
