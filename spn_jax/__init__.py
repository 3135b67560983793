"""SPN image inpainting in JAX and Flax: `from spn_jax import Inpainter` fills holes in photos."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spn_jax.inpainter import Inpainter

__version__ = "0.1.0"
__all__ = ["Inpainter", "__version__"]


def __getattr__(name: str) -> Any:
    """The class is imported when it is asked for: it needs JAX, which programs set up before they import it, and data loaders never."""
    if name == "Inpainter":
        from spn_jax.inpainter import Inpainter

        return Inpainter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
