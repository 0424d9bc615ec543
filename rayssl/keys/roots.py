"""The three kinds of configuration files, and the kinds of components that they choose by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from rayssl.data.corpus import PrepareConfig
from rayssl.data.sources.registry import SOURCES
from rayssl.experiment.config import Experiment
from rayssl.methods.registry import METHODS
from rayssl.models.registry import BACKBONES, FRONTENDS
from rayssl.registry import Registry
from rayssl.schema import Config, Tree
from rayssl.sweeps.config import SweepConfig


class Root(NamedTuple):
    """A kind of file: its ``model``, the ``verb`` that takes it, and the key by which it is known (``mark``)."""

    model: type[Config]
    verb: str
    mark: str


ROOTS = {
    "experiment": Root(Experiment, "train", "encoder"),
    "preparation": Root(PrepareConfig, "prepare", "corpora"),
    "sweep": Root(SweepConfig, "sweep", "space"),
}
#: By the key whose ``name`` chooses a component.
REGISTRIES: dict[str, Registry[Any]] = {
    "method": METHODS,
    "encoder.frontend": FRONTENDS,
    "encoder.backbone": BACKBONES,
    "corpora.<name>.source": SOURCES,
}


def kind_of(tree: Tree) -> str:
    """The kind of file, a key of `ROOTS`, that ``tree`` is. Without any mark it is taken for an experiment."""
    return next((kind for kind, root in ROOTS.items() if kind != "experiment" and root.mark in tree), "experiment")
