"""The base of every configuration class, and the way from YAML and overrides to one.

Each component declares a `Config` beside it; `rayssl.experiment` composes them. Unknown keys are errors that name the
dotted path and suggest the nearest known key; defaults live in code; YAML has neither inheritance nor interpolation.
"""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from rayssl.errors import ConfigError

Tree = dict[str, Any]


class Config(BaseModel):
    """Frozen, and strict about keys: a misspelt key is an error, never a silently ignored one."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def load_yaml(text: str, where: str) -> Tree:
    """The mapping in a YAML document; raises `ConfigError` naming ``where`` (a file or URI) when it is none."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of keys at the top level, found {type(tree).__name__}")
    return tree


def override(tree: Tree, assignments: list[str]) -> Tree:
    """A copy of ``tree`` with each ``key.path=value`` applied in order; the value is read as YAML.

    Raises `ConfigError` for an assignment without ``=``, or one that goes below a value that is not a mapping.
    """
    result: Tree = _copy(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"override '{assignment}': write it as key.path=value")
        *parents, leaf = path.split(".")
        node = result
        for depth, name in enumerate(parents):
            child = node.setdefault(name, {})
            if child is None:
                child = node[name] = {}
            if not isinstance(child, dict):
                raise ConfigError(
                    f"override '{assignment}': '{'.'.join(parents[: depth + 1])}' holds a value, not keys"
                )
            node = child
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{assignment}': the value is not valid YAML") from error
    return result


def parse(model: type[C], tree: Tree, where: str) -> C:
    """``tree`` as a ``model``; raises `ConfigError` with the dotted key of the first mistake, and how many follow."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        keys = _readable_path(tree, first["loc"])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{where}: {_explain(model, keys, first)}{more}") from None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted leaf keys of a nested mapping, in order; an empty mapping is a leaf of its own."""
    if not isinstance(tree, dict) or (not tree and prefix):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return leaves


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _readable_path(tree: Any, location: tuple[Any, ...]) -> list[str]:
    """Pydantic's location without the tags it inserts for members of a union, which are no keys of the YAML."""
    keys: list[str] = []
    node = tree
    for position, part in enumerate(location):
        if isinstance(node, dict) and part not in node and position < len(location) - 1:
            continue
        keys.append(str(part))
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
    return keys


def _explain(model: type[BaseModel], keys: list[str], problem: Any) -> str:
    dotted = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = sorted(_known_keys(model, keys[:-1]))
        close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys here: {', '.join(known)}"
        return f"unknown key '{dotted}'; {hint}"
    if problem["type"] == "missing":
        return f"'{dotted}' is required and not given"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        expected = problem.get("ctx", {}).get("expected_tags", "")
        tag = problem.get("ctx", {}).get("tag")
        return (
            f"'{dotted}.name': {f'unknown name {tag!r}; ' if tag else ''}choose one of {expected or 'the known names'}"
        )
    given = problem.get("input")
    shown = f", got {given!r}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"'{dotted}': {message[:1].lower()}{message[1:]}{shown}"


def _known_keys(model: type[BaseModel], path: list[str]) -> set[str]:
    """Field names reachable at ``path`` below ``model``, over all members of unions on the way."""
    models = {model}
    for key in path:
        following: set[type[BaseModel]] = set()
        for candidate in models:
            if key in candidate.model_fields:
                following |= _models_in(candidate.model_fields[key].annotation)
            elif key.isdigit():
                following.add(candidate)
        models = following or models
    return {name for candidate in models for name in candidate.model_fields}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {model for argument in typing.get_args(annotation) for model in _models_in(argument)}
