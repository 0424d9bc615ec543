"""The names that a configuration can choose, and the configurations of a folder, with a line about each."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from rayssl import storage
from rayssl.data.sources.registry import SOURCES
from rayssl.errors import ConfigError, UserError
from rayssl.experiment.files import read_yaml
from rayssl.keys.listing import plain
from rayssl.keys.roots import ROOTS, kind_of
from rayssl.methods.registry import METHODS
from rayssl.models.registry import BACKBONES, FRONTENDS
from rayssl.registry import ComponentConfig, Registry

KINDS: dict[str, tuple[Registry[Any], ...]] = {
    "methods": (METHODS,),
    "encoders": (FRONTENDS, BACKBONES),
    "sources": (SOURCES,),
}


class Entry(NamedTuple):
    """A name with a line about it. ``group``: what it belongs to."""

    group: str
    name: str
    line: str


def components(kind: str) -> Iterator[Entry]:
    """The components of a kind, a key of `KINDS`: the built-in ones, then those of installed packages."""
    for registry in KINDS[kind]:
        packages = {point.name: point for point in importlib.metadata.entry_points(group=registry.group)}
        for name in registry.names():
            package = "" if name in registry.builtin else _package(packages[name])
            try:
                line = described(registry.find(name))
            except ValueError as error:
                if "is not a" in str(error):  # front ends and backbones are in one group of entry points
                    continue
                line = f"cannot be used: {error}"
            yield Entry(registry.kind, name, f"{line}{package}")


def described(model: type[ComponentConfig]) -> str:
    """A component in a line: what its key ``name`` says, else the first line of its class."""
    field = model.model_fields["name"]
    if field.description != ComponentConfig.model_fields["name"].description:
        return plain(field.description)
    lines = plain(getattr(model.component, "__doc__", None) or model.__doc__).partition(". ")
    return lines[0] + lines[1].strip()


def configs(folder: str) -> Iterator[Entry]:
    """The YAML files below the folder or URI ``folder``: kind, place, and what its header says that it shows.

    Other YAML files are passed over. Raises `ConfigError` if there are none.
    """
    order, entries = list(ROOTS), list[Entry]()
    for place in storage.list_files(folder, suffixes=(".yaml", ".yml")):
        try:
            tree = read_yaml(place)
        except UserError:  # a file of another program, perhaps with several documents
            continue
        if any(root.mark in tree for root in ROOTS.values()):
            shown = re.search(r"^# Shows: *(\S.*)$", storage.read_text(place), re.MULTILINE)
            entries.append(Entry(kind_of(tree), place, shown[1] if shown else ""))
    if not entries:
        raise ConfigError(f"{folder}: no configurations of rayssl there; name the folder that has yours")
    yield from sorted(entries, key=lambda entry: (order.index(entry.group), entry.name))


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f" (package {point.dist.name})" if point.dist is not None else ""
