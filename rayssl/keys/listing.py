"""The keys of a configuration: dotted path, values, default and description, as the classes declare them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from rayssl.errors import ConfigError
from rayssl.keys.roots import REGISTRIES, ROOTS
from rayssl.keys.values import in_words
from rayssl.registry import Registry

Nested: TypeAlias = "Registry[Any] | type[BaseModel]"
_NAMED, _LISTED = ".<name>", "[]"  # what follows the path of a mapping with names of the user's, and of a list


@dataclass(frozen=True)
class Key:
    """One key.

    ``path``: dotted; ``<name>`` stands for a name of the user's, ``[]`` for the items of a list. ``values``: what it
    may hold, in words; empty for a section, which only holds keys. ``default``: as YAML, empty for a section; None if
    the key must be given.
    ``choice``: the key and value that bring this key, such as ``method.name: simclr``; empty if it is always there.
    ``like``: the section that has the same keys, which are not listed again; empty for others.
    """

    path: str
    values: str
    default: str | None
    text: str
    choice: str = ""
    like: str = ""


def keys(kind: str, *, installed: bool = True) -> list[Key]:
    """All keys of a kind of file (`rayssl.keys.roots.ROOTS`), in the order of their declaration.

    ``installed``: also those of components that installed packages register.
    """
    return list(_walk(ROOTS[kind].model, "", "", None, {}, installed))


def of_component(name: str) -> list[Key]:
    """The keys of a component of one's own, ``package.module:Class`` or ``file.py:Class``.

    Raises `ConfigError` if the name leads to no component.
    """
    problem = ""
    for path, registry in REGISTRIES.items():
        try:
            model = registry.find(name)
        except ValueError as error:
            problem = problem if "is not a" in str(error) and problem else str(error)
            continue
        return list(_walk(model, path, f"{path}.name: {name}", None, {registry: path}, installed=True))
    raise ConfigError(problem)


def find(wanted: str, listed: list[Key]) -> list[Key]:
    """The keys of ``listed`` that ``wanted`` means.

    That is a dotted path with all below it; the name of a component (``simclr``); or else the end of a path, such as
    ``temperature``. Indices and names of the user's may stand in a path as in a file.
    """
    steps = wanted.split(".")
    for key in listed:
        if key.like and _begins(steps, key.path) and len(steps) > len(key.path.split(".")):
            return find(".".join([key.like, *steps[len(key.path.split(".")) :]]), listed)
    found = [key for key in listed if _begins(_steps(key.path), wanted)]
    found = found or [key for key in listed if key.choice.endswith(f"name: {wanted}")]
    count = len(steps)
    return found or [key for key in listed if _alike(_steps(key.path)[-count:], steps)]


def nearest(wanted: str, listed: list[Key]) -> str | None:
    """The path, or the name of a component, that is most like ``wanted``; None if nothing is like it."""
    leaf = wanted.rpartition(".")[2]
    names = [key.choice.partition(": ")[2] for key in listed if key.choice]
    for given, known in ((wanted, [key.path for key in listed]), (leaf, names)):
        if close := difflib.get_close_matches(given, known, n=1, cutoff=0.75):
            return close[0]
    for key in listed:
        if difflib.get_close_matches(leaf, [key.path.rpartition(".")[2]], n=1, cutoff=0.75):
            return key.path
    return None


def in_lines(key: Key) -> str:
    """What a key may hold and its default, in a line."""
    default = {None: "must be given", "": "may be left out"}.get(key.default, f"default {key.default}")
    return f"{key.values or 'section'}; {default}"


def plain(text: str | None) -> str:
    """A docstring on one line, with the marks of code that Markdown has."""
    return " ".join((text or "").split()).replace("``", "`")


def _begins(path: list[str], prefix: str) -> bool:
    steps = _steps(prefix)
    return _alike(path[: len(steps)], steps)


def _steps(path: str) -> list[str]:
    """The parts of a path without places in lists, which a reader may leave out."""
    return [part for part in path.replace(_LISTED, "").split(".") if not part.isdigit()]


def _alike(path: list[str], wanted: list[str]) -> bool:
    pairs = zip(path, wanted, strict=False)
    return len(path) == len(wanted) and all(a == b or "<" in a or "<" in b for a, b in pairs)


def _walk(
    model: type[BaseModel],
    path: str,
    choice: str,
    given: BaseModel | None,
    above: dict[Nested, str],
    installed: bool,
) -> Iterator[Key]:
    """The keys of ``model`` at ``path``. ``given`` holds their defaults; None: those of the class.

    ``above``: the paths of the sections and choices that are open, because some hold themselves.
    """
    schema = model.model_json_schema()
    # a class that holds itself is a definition in its own schema
    properties = schema.get("properties") or schema["$defs"][model.__name__]["properties"]
    above = {**above, model: path}
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        default = getattr(given, name) if given is not None else field.get_default(call_default_factory=True)
        required = given is None and field.is_required()
        nested = list(_nested(field.annotation, field.metadata))
        like = next((above[kind] for _, kind in nested if kind in above), "")
        yield Key(
            here,
            "" if nested and (required or isinstance(default, BaseModel)) else in_words(properties[name]),
            None if required else "" if isinstance(default, BaseModel) else _yaml(default),
            plain(field.description),
            choice,
            like,
        )
        if like:
            continue
        several = len(nested) > 1
        for suffix, kind in nested:
            if isinstance(kind, Registry):
                yield from _choices(kind, here + suffix, default, above, installed)
                continue
            own = default if isinstance(default, kind) else None
            yield from _walk(kind, here + suffix, (several and _tag(kind, here)) or choice, own, above, installed)


def _choices(
    registry: Registry[Any], path: str, default: Any, above: dict[Nested, str], installed: bool
) -> Iterator[Key]:
    """The keys of every component that may be chosen at ``path``."""
    for name in registry.names() if installed else registry.builtin:
        try:
            model = registry.find(name)
        except ValueError:  # a package that is installed and cannot be imported
            continue
        own = default if type(default) is model else None
        yield from _walk(model, path, f"{path}.name: {name}", own, {**above, registry: path}, installed)


def _nested(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> Iterator[tuple[str, Nested]]:
    """The sections that a field may hold: what follows its path, and the class or the registry of each."""
    if registries := [each for each in metadata if isinstance(each, Registry)]:
        yield "", registries[0]
    elif isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield "", annotation
    elif get_origin(annotation) is Annotated:
        yield from _nested(annotation.__origin__, annotation.__metadata__)
    else:
        after = {dict: _NAMED, list: _LISTED, tuple: _LISTED}.get(get_origin(annotation), "")
        for argument in get_args(annotation):
            yield from ((after + suffix, kind) for suffix, kind in _nested(argument))


def _tag(model: type[BaseModel], path: str) -> str:
    """The key and value that choose ``model`` in a union; empty if it has none."""
    for key in ("name", "task"):
        field = model.model_fields.get(key)
        options = get_args(field.annotation) if field is not None else ()
        if len(options) == 1:
            return f"{path}.{key}: {options[0]}"
    return ""


def _yaml(value: Any) -> str:
    """``value`` as YAML on one line."""
    dumped = yaml.safe_dump([to_jsonable_python(value)], default_flow_style=True, width=10**6, sort_keys=False)
    return str(dumped).strip()[1:-1]
