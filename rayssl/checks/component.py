"""Finds the component that a name stands for, and runs its checks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from rayssl.checks.encoder import check_encoder
from rayssl.checks.outcome import Outcome
from rayssl.checks.small_job import ENCODER, METHOD, VIEWS, SmallJob
from rayssl.checks.small_nights import MEL, NIGHT_METHOD
from rayssl.checks.source import check_source
from rayssl.checks.training import check_training
from rayssl.data.sources.registry import SOURCES, AnySource
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.experiment.files import read_yaml
from rayssl.methods.registry import METHODS, AnyMethod
from rayssl.models.registry import BACKBONES, FRONTENDS, AnyBackbone, AnyFrontend
from rayssl.registry import ComponentConfig, Registry
from rayssl.schema import Config, override, parse

_BACKBONES = {
    "bands": ENCODER["backbone"],
    "samples": {"name": "resnet1d", "width": 4, "embedding_dim": 16},
    "planes": {"name": "resnet2d", "width": 4, "embedding_dim": 16},
    "epochs": {"name": "soundsleepnet", "width": 8, "embedding_dim": 16, "blocks": 1, "hidden": 16, "sequence": 6},
}
_FRONTENDS = {
    "bands": ENCODER["frontend"],
    "samples": {"name": "raw"},
    "planes": {"name": "spectrum", "n_fft": 256, "hop_ms": 8, "bins": 16},
    "epochs": {"name": "nightmel", "mel": MEL},
}
_REGISTRIES: tuple[Registry[Any], ...] = (METHODS, BACKBONES, FRONTENDS, SOURCES)


class _Method(Config):
    method: AnyMethod


class _Frontend(Config):
    frontend: AnyFrontend


class _Backbone(Config):
    backbone: AnyBackbone


class _Source(Config):
    source: AnySource


def check(name: str, assignments: Sequence[str] = ()) -> Iterator[Outcome]:
    """Runs the checks of a component, and yields the outcome of each.

    Args:
        name: the name of a method, front end, backbone or source, as in a configuration; or the YAML file of an
            experiment, whose method and encoder are checked (of an experiment of nights with sequences of 6 epochs).
        assignments: changes of its keys, ``key.path=value``.

    Raises:
        ConfigError: there is no such component, or its settings are wrong.
    """
    registry = None if name.endswith((".yaml", ".yml")) else _registry(name)
    if registry is SOURCES:
        component = override({**SOURCES.find(name).trial_settings(), "name": name}, list(assignments))
        yield from check_source(parse(_Source, {"source": component}, name).source)
        return
    tree = _experiment(name, list(assignments))
    settings = parse(Experiment, tree, name)
    if registry is not METHODS:
        yield from check_encoder(settings.encoder)
    with tempfile.TemporaryDirectory(prefix="rayssl-check-") as folder:
        yield from check_training(SmallJob(folder, tree))


def key_of(name: str) -> str:
    """The key by which a configuration chooses the component ``name``. Raises `ConfigError` as `check` does."""
    keys = {id(METHODS): "method", id(FRONTENDS): "encoder.frontend", id(SOURCES): "source"}
    return f"{keys.get(id(_registry(name)), 'encoder.backbone')}.name"


def _experiment(name: str, assignments: list[str]) -> dict[str, Any]:
    """The tree of a small experiment with the component ``name``."""
    if name.endswith((".yaml", ".yml")):
        tree = override(read_yaml(name), assignments)
        method = parse(_Method, {"method": tree.get("method", {})}, name).method
        if method.sequences:  # of six epochs: a training sequence of 40 would take an hour here
            tree = override(tree, ["encoder.backbone.sequence=6", "encoder.backbone.scored=null"])
        return tree | {"method": method.for_trial().model_dump(mode="json"), "training": {"epochs": 2, "batch": 8}}
    registry = _registry(name)
    model: type[ComponentConfig] = registry.find(name)
    component = override({**model.trial_settings(), "name": name}, assignments)
    tree = {"run": "check", "corpus": {"uri": "check"}, "views": VIEWS}
    tree |= {"encoder": ENCODER, "method": METHOD, "training": {"epochs": 2, "batch": 8}, "ray": {"workers": 1}}
    if registry is METHODS:
        tree["method"] = component
        method = parse(_Method, {"method": component}, name).method
        if method.learns_labels:
            tree["labels"] = {"split": "few"}
        if method.sequences:
            tree["encoder"] = {"frontend": _FRONTENDS["epochs"], "backbone": _BACKBONES["epochs"]}
        return tree
    if registry is FRONTENDS:
        layout = parse(_Frontend, {"frontend": component}, name).frontend.layout
        tree["encoder"] = {"frontend": component, "backbone": _BACKBONES[layout]}
    else:
        layout = parse(_Backbone, {"backbone": component}, name).backbone.layouts[0]
        tree["encoder"] = {"frontend": _FRONTENDS[layout], "backbone": component}
    if layout == "epochs":
        tree |= {"method": NIGHT_METHOD, "labels": {"split": "few"}}
    return tree


def _registry(name: str) -> Registry[Any]:
    """The registry that has ``name``. Raises `ConfigError` if none has it."""
    problems = []
    for registry in _REGISTRIES:
        try:
            registry.find(name)
        except ValueError as error:
            problems.append(str(error))
        else:
            return registry
    if ":" in name:
        raise ConfigError(problems[0])
    every = [each for registry in _REGISTRIES for each in registry.names()]
    raise ConfigError(
        f"'{name}': no component has this name; choose one of {', '.join(every)}, an experiment's YAML file, "
        "package.module:Class or file.py:Class"
    )
