"""``rayssl show``, and the functions with which every verb reads its configuration."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rayssl.cli.advice import say_next
from rayssl.cli.parser import CONFIG, OVERRIDES, Verbs, declare

if TYPE_CHECKING:
    from rayssl.experiment.config import Experiment


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    text, example = "resolved configuration, with origins", "configs/synthetic_ssps.yaml seed=1"
    declare(verbs, show, text, example, CONFIG, OVERRIDES)


def show(arguments: argparse.Namespace) -> int:
    """Prints the resolved configuration, and where each value comes from."""
    from rayssl.runs.origin import origins
    from rayssl.schema import flatten

    tree, experiment = read_experiment(arguments)
    leaves = flatten(experiment.model_dump(mode="json"))
    where = origins(tree, arguments.overrides, experiment)
    width = max(len(key) for key in leaves)
    for key, value in leaves.items():
        print(f"{key:<{width}}  {json.dumps(value):<40}  {where[key]}")
    say_next(arguments, "train", arguments.config, *arguments.overrides)
    return 0


def read_tree(arguments: argparse.Namespace) -> dict[str, Any]:
    """The YAML of ``arguments.config``, changed by ``arguments.overrides``. It is not checked yet."""
    from rayssl.experiment.files import read_yaml
    from rayssl.schema import override

    return override(read_yaml(arguments.config), arguments.overrides)


def read_experiment(arguments: argparse.Namespace) -> tuple[dict[str, Any], Experiment]:
    """The tree of `read_tree`, and the experiment that it describes."""
    from rayssl.experiment.config import Experiment
    from rayssl.schema import parse

    tree = read_tree(arguments)
    return tree, parse(Experiment, tree, arguments.config)
