"""The base of every configuration class, and how YAML and overrides become one.

Each component declares its `Config` beside it, and `rayssl.experiment.config` puts them together. An unknown key is an
error that names the dotted path and suggests the nearest known key. Defaults are in the code. YAML files have no
inheritance and no interpolation.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rayssl.errors import ConfigError

Tree = dict[str, Any]
_MARKS = {  # the section by which a kind of file is known, and the verb that takes it
    "corpora": ("a preparation", "prepare"),
    "space": ("a sweep", "sweep"),
    "encoder": ("an experiment", "train"),
}
_SHOWN = 6  # mistakes of a configuration in one message
_DEEPEST = 5  # keys of a path that is suggested


class _Absent:
    """Stands for an attribute that a class has not got."""

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError


class Config(BaseModel):
    """Frozen, and strict about keys: a misspelt key is an error and is never ignored."""

    if not typing.TYPE_CHECKING:
        validate = _Absent()  # pydantic keeps this method of its version 1, and warns of a key with its name
    model_config = ConfigDict(
        ignored_types=(_Absent,),
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the text under a key is its description
    )


class Choice:
    """An annotation of a field that holds one of several kinds of settings; see `rayssl.registry.Registry`."""

    def models(self, given: Any) -> set[type[BaseModel]]:
        """The classes that can read ``given``, a part of a configuration; empty if this cannot be known."""
        raise NotImplementedError


C = TypeVar("C", bound=Config)


def load_yaml(text: str, where: str) -> Tree:
    """Reads a YAML document that holds a mapping.

    Args:
        text: the document.
        where: the file or URI that it comes from, for messages.

    Raises:
        ConfigError: the text is not valid YAML, a key comes twice in a mapping, or its top level is not a mapping. The
            message names ``where``.
    """
    try:
        tree = yaml.load(text, _OnceLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"has no keys at its top level, but is a {type(tree).__name__}"
        raise ConfigError(f"{where}: {found}; give a configuration, as those in configs/ or those of rayssl init")
    return tree


class _OnceLoader(yaml.SafeLoader):
    """The safe loader, but a key that comes twice is an error: PyYAML would take the last and drop the others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See PyYAML. A key that comes with ``<<`` may come again: that is what it is for."""
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = (key.tag, key.value if isinstance(key, yaml.ScalarNode) else id(key)), key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and name in seen:
                problem = f"the key '{key.value}' comes twice, in lines {seen[name]} and {line}; make it one"
                raise yaml.constructor.ConstructorError(problem=problem)
            seen[name] = line
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def override(tree: Tree, assignments: list[str]) -> Tree:
    """A copy of ``tree`` in which each assignment ``key.path=value`` is applied, in order. A value is read as YAML.

    For example, ``["training.lr=0.1"]`` sets ``tree["training"]["lr"]`` to 0.1.

    Raises:
        ConfigError: an assignment has no ``=``, its value is not valid YAML, or its path goes through a key whose
            value is not a mapping.
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
            node[leaf] = yaml.load(text, _OnceLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"override '{assignment}': the value is not valid YAML") from error
    return result


def parse(model: type[C], tree: Tree, where: str) -> C:
    """Validates ``tree`` as an instance of ``model``.

    Args:
        model: a subclass of `Config`.
        tree: nested keys and values, as `load_yaml` returns them.
        where: the file or URI that the tree comes from, for messages.

    Raises:
        ConfigError: the message names the dotted key of each mistake, of the first `_SHOWN` if there are more.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems: dict[tuple[str, ...], list[Any]] = {}  # a plain union reports one problem for each member
        for problem in error.errors(include_url=False):
            problems.setdefault(_readable_path(tree, problem), []).append(problem)
        other = _other_kind(model, tree, [keys for keys, found in problems.items() if found[0]["type"] == "missing"])
        if other:
            raise ConfigError(f"{where}: {other}") from None
        said = [_explain(model, tree, keys, each) for keys, each in list(problems.items())[:_SHOWN]]
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise ConfigError(f"{where}: {'; '.join(said)}{more}") from None


def _other_kind(model: type[BaseModel], tree: Tree, missing: list[tuple[str, ...]]) -> str | None:
    """A line if ``tree`` is a file for another verb: it lacks a section of ``model``, and has the mark of that verb."""
    known = model.model_fields
    if not any(len(keys) == 1 and keys[0] in _MARKS for keys in missing):
        return None
    for mark, (kind, verb) in _MARKS.items():
        if mark in tree and mark not in known:
            return f"is {kind} (it has '{mark}'); use rayssl {verb}"
    return None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by dotted key, in order. An empty mapping counts as a leaf."""
    if not isinstance(tree, dict) or (not tree and prefix):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return leaves


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _readable_path(tree: Any, problem: Any) -> tuple[str, ...]:
    """The location of a problem, without the tags that pydantic adds for members of a union: the YAML lacks those."""
    keys: list[str] = []
    node = tree
    for position, part in enumerate(problem["loc"]):
        absent = problem["type"] == "missing" and position == len(problem["loc"]) - 1
        if isinstance(node, dict) and (part in node or absent or problem["type"] == "invalid_key"):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        else:
            continue
        keys.append(str(part))
    return tuple(keys)


def _explain(model: type[BaseModel], tree: Tree, keys: tuple[str, ...], problems: list[Any]) -> str:
    """One line about the ``problems`` that the value at ``keys`` has."""
    dotted, problem = ".".join(keys), problems[0]
    if problem["type"] == "extra_forbidden":
        candidates = _models_at(model, tree, keys[:-1])
        # pydantic's location contains the member that it chose, even if the YAML names none and the default is used
        taken = {candidate for candidate in candidates if set(_names(candidate)) & set(problem["loc"])} or candidates
        known = sorted({name for candidate in taken for name in candidate.model_fields})
        close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        below = list(_paths(model, tree, keys[-1], keys[:-1]))  # the same word is nearer than a like one
        meant = sorted(below, key=len)[:3] or close
        hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"known keys here: {', '.join(known)}"
        return f"unknown key '{dotted}'; {hint}"
    if problem["type"] == "missing":
        return f"'{dotted}' is required and not given"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        unknown = f"unknown name {problem['ctx']['tag']!r}; " if problem["type"] == "union_tag_invalid" else ""
        known = sorted({repr(name) for candidate in _models_at(model, tree, keys) for name in _names(candidate)})
        return f"'{dotted}.name': {unknown}choose one of {', '.join(known)}"
    if problem["type"] in ("no_component", "no_name"):  # of a `Choice`
        return f"'{dotted}.name': {problem['msg']}"
    given = problem.get("input")
    shown = f", got {given!r}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    message = " or ".join(_message(problem) for problem in problems)
    if isinstance(given, bool) and any(problem["type"] == "string_type" for problem in problems):
        shown += ": YAML reads yes, no, on and off as true and false, put quotes around the word"
    return f"'{dotted}': {message}{shown}" if dotted else f"{message}{shown}"


def _message(problem: Any) -> str:
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "expected keys below it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message if message[1:2].isupper() else message[:1].lower() + message[1:]  # acronyms stay what they are


def _models_at(model: type[BaseModel], tree: Any, path: tuple[str, ...]) -> set[type[BaseModel]]:
    """The classes that ``path`` below ``model`` may hold. If ``tree`` names a member of a union: only that member."""
    models, node = {model}, tree
    for key in path:
        fields = [candidate.model_fields[key] for candidate in models if key in candidate.model_fields]
        # without fields, ``key`` is an index or a key that the user chose: the models of its items stay the same
        if fields:
            below = node.get(key) if isinstance(node, dict) else None
            models = {found for field in fields for found in _models_of(field, below)}
        node = node.get(key) if isinstance(node, dict) else None
        name = node.get("name") if isinstance(node, dict) else None
        models = {candidate for candidate in models if name in _names(candidate)} or models
    return models


def _paths(model: type[BaseModel], tree: Any, leaf: str, above: tuple[str, ...]) -> Iterator[str]:
    """The dotted paths below ``above`` that end with ``leaf``. Where ``tree`` names a member, only those in it."""
    for key in sorted({name for found in _models_at(model, tree, above) for name in found.model_fields}):
        path = (*above, key)
        if key == leaf:
            yield ".".join(path)
        elif len(path) < _DEEPEST and _models_at(model, tree, path):
            yield from _paths(model, tree, leaf, path)


def _models_of(field: FieldInfo, given: Any) -> set[type[BaseModel]]:
    """The classes that the value of a field may have. ``given`` is the part of the configuration for the field."""
    choices = [choice for choice in field.metadata if isinstance(choice, Choice)]
    return choices[0].models(given) if choices else _models_in(field.annotation)


def _names(model: type[BaseModel]) -> tuple[Any, ...]:
    """The values that the field ``name`` allows: they identify the members of a union. Empty for other models."""
    field = model.model_fields.get("name")
    return typing.get_args(field.annotation) if field is not None else ()


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {model for argument in typing.get_args(annotation) for model in _models_in(argument)}
