"""Models that come with the package: a folder each, with `weights.npz` and a MODEL_CARD.md, and the
`catalogue` that finds them.

It imports `errors` alone; `checkpoints` and the commands that take a checkpoint import it.
"""
