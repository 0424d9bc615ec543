"""rayssl: large-scale self- and semi-supervised audio training on Ray.

``rayssl.prepare``, ``rayssl.train`` and ``rayssl.evaluate`` are the verbs of the command line (`rayssl.door`);
``rayssl.load("runs/x")`` reads a trained run back (`rayssl.inference.model`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayssl.door import evaluate, prepare, train
    from rayssl.inference.model import Model, load

__all__ = ["Model", "__version__", "evaluate", "load", "prepare", "train"]
__version__ = "0.1.0"

_PLACES = {
    "Model": "rayssl.inference.model",
    "load": "rayssl.inference.model",
    "prepare": "rayssl.door",
    "train": "rayssl.door",
    "evaluate": "rayssl.door",
}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'rayssl' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
