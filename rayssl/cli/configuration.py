"""``rayssl show``, and the functions with which every verb reads its configuration."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from rayssl.cli.advice import say_next
from rayssl.cli.parser import CONFIG, OVERRIDES, Verbs, declare

if TYPE_CHECKING:
    from rayssl.experiment.config import Experiment
    from rayssl.schema import Config


def add(verbs: Verbs) -> None:
    """Declares the verbs of this file."""
    text, example = "resolved configuration, with origins", "configs/synthetic_ssps.yaml seed=1"
    declare(verbs, show, text, example, CONFIG, OVERRIDES)


def show(arguments: argparse.Namespace) -> int:
    """Prints the resolved configuration of an experiment, a preparation or a sweep (with the experiment that all its
    trials change), and where each value comes from.
    """
    from rayssl.keys.roots import ROOTS, kind_of
    from rayssl.schema import parse

    tree = read_tree(arguments)
    kind = kind_of(tree)
    if kind == "sweep":
        _show_sweep(arguments)
    else:
        _print_leaves(tree, arguments.overrides, parse(ROOTS[kind].model, tree, arguments.config))
    verb = {"experiment": "train", "preparation": "prepare", "sweep": "sweep"}[kind]
    say_next(arguments, verb, arguments.config, *arguments.overrides)
    return 0


def _show_sweep(arguments: argparse.Namespace) -> None:
    from rayssl.sweeps.config import read_plan, split_overrides

    plan = read_plan(arguments.config, arguments.overrides)
    ours, of_trials = split_overrides(arguments.overrides)
    print("# the sweep")
    _print_leaves(plan.config.model_dump(mode="json", exclude_unset=True), ours, plan.config)
    print(f"\n# the experiment that its trials change, {plan.where}")
    _print_leaves(plan.tree, [*plan.config.overrides, *of_trials], plan.experiment({}, plan.run(0)))


def _print_leaves(tree: dict[str, Any], overrides: list[str], config: Config) -> None:
    """A line for each key of ``config``, which ``tree`` has become: its value, and where it comes from."""
    from rayssl.runs.origin import origins
    from rayssl.schema import flatten

    leaves = flatten(config.model_dump(mode="json"))
    where = origins(tree, overrides, config)
    width = max(len(key) for key in leaves)
    for key, value in leaves.items():
        print(f"{key:<{width}}  {json.dumps(value):<40}  {where[key]}")


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
