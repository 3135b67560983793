"""`from spn_jax.checkpoint import load_model` is what programs outside were promised; the package
is `spn_jax.checkpoints`.
"""

from spn_jax.checkpoints.store import load_model

__all__ = ["load_model"]
