"""rayssl: large-scale self- and semi-supervised audio training on Ray.

``rayssl.load("runs/x")`` reads a trained run back, see `rayssl.inference.model`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayssl.inference.model import Model, load

__all__ = ["Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for."""
    if name not in ("Model", "load"):
        raise AttributeError(f"module 'rayssl' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("rayssl.inference.model"), name)
