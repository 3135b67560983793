"""Holds the models that come with the package, and the `catalogue` that finds them.

Each model has a folder with `weights.npz` and a MODEL_CARD.md. This imports `errors` alone;
`checkpoints` and the commands that take a checkpoint import it.
"""
