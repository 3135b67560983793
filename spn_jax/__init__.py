"""SPN image inpainting in JAX and Flax: `from spn_jax import Inpainter` fills holes in photos."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spn_jax.checkpoints.store import load_model
    from spn_jax.filling.inpainter import Inpainter

__version__ = "0.1.0"
__all__ = ["Inpainter", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """Both are imported when they are asked for: they need JAX, which programs set up before they
    import it, and data loaders never.
    """
    if name == "Inpainter":
        from spn_jax.filling.inpainter import Inpainter

        return Inpainter
    if name == "load_model":
        from spn_jax.checkpoints.store import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
