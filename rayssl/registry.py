"""Components that a configuration chooses by name: ours, those of installed packages, and those of a user's own file.

A component is a class with a `ComponentConfig` as its attribute ``Config``, nested or beside it. ``name`` in the YAML
is one of our names (``simclr``), an entry point of an installed package, ``package.module:Class``, or
``path/file.py:Class``, seen from the working folder. All are validated, shown, saved and resumed alike. To choose a
component from outside runs its module.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rayssl.schema import Choice, Config

_OUTSIDE = "rayssl_outside_"  # modules that were imported from files begin with this
_SOURCES: dict[str, tuple[str, str]] = {}  # their paths and texts, by the names of the modules


class ComponentConfig(Config):
    """The settings of a component, which `name` says. ``component`` is the class that they configure."""

    name: str = ""

    component: ClassVar[Callable[..., Any] | None] = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Settings made in Python have the name by which a YAML would find their class."""
        if isinstance(given, dict) and not given.get("name") and not cls.model_fields["name"].default:
            return {**given, "name": _reference(cls)}
        return given

    def located(self) -> Any:
        """The same with absolute paths, for processes in other working folders."""
        path, colon, attribute = self.name.rpartition(":")
        if not path.endswith(".py") or os.path.isabs(path):
            return self
        return self.model_copy(update={"name": os.path.abspath(path) + colon + attribute})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Settings of a user's file take its text along, so that another process, or node, needs no such file."""
        module = type(self).__module__
        if not module.startswith(_OUTSIDE):
            return super().__reduce_ex__(protocol)
        source = _SOURCES[module]
        # the state comes last: it may hold objects of classes that are in the file too
        return _revive, (module, *source, type(self).__qualname__), self.__getstate__()

    @property
    def short_name(self) -> str:
        """The name without file or package: for tables and labels of metrics."""
        return self.name.rpartition(":")[2]

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """What `rayssl check` sets where nothing else is asked for: the least that makes sense, and quickly."""
        return {}

    def _make(self, *arguments: Any, **keywords: Any) -> Any:
        """An instance of the component: ``component(settings, ...)``."""
        made = type(self).component
        if made is None:
            raise TypeError(f"{type(self).__name__}: no component has it as its Config, and it has no build of its own")
        return made(self, *arguments, **keywords)


class Configurable:
    """A component; a class that declares ``Config`` becomes the ``component`` of it."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = cls.__dict__.get("Config")
        if isinstance(own, type) and issubclass(own, ComponentConfig):
            own.component = cls


C = TypeVar("C", bound=ComponentConfig)


class Registry(Choice, Generic[C]):
    """The components of one kind, as the annotation of a field that holds the settings of one of them.

    ``builtin``: "module:Class" by name; ``group``: of the entry points; ``default``: what no name stands for.
    """

    def __init__(
        self, kind: str, base: type[C], builtin: Mapping[str, str], *, group: str, default: str | None = None
    ) -> None:
        self.kind, self.base, self.builtin, self.group, self.default = kind, base, dict(builtin), group, default

    def names(self) -> list[str]:
        """All that can be named without a module: ours first, then those of installed packages."""
        found = importlib.metadata.entry_points(group=self.group)
        return list(dict.fromkeys([*self.builtin, *(point.name for point in found)]))

    def find(self, name: str) -> type[C]:
        """The settings' class of a component; raises ValueError in one line that says what can be named."""
        if name in self.builtin:
            return self._settings(_attribute(self.builtin[name]), name)
        if ":" in name:
            return self._settings(_attribute(name), name)
        for point in importlib.metadata.entry_points(group=self.group):
            if point.name == name:
                return self._settings(_attribute(point.value.partition(" ")[0]), name)
        close = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.6)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        known = ", ".join(repr(each) for each in self.names())
        raise ValueError(
            f"unknown name {name!r}{hint}; choose one of {known}, or package.module:Class or file.py:Class"
        )

    def read(self, given: Any) -> C:
        """The settings in ``given``: a mapping with a ``name``, or settings already."""
        if isinstance(given, self.base):
            return given
        if not isinstance(given, Mapping):
            raise PydanticCustomError("dict_type", "expected keys below it")
        name = given.get("name", self.default)
        if not isinstance(name, str):
            known = ", ".join(repr(each) for each in self.names())
            raise PydanticCustomError("no_name", "{text}", {"text": f"choose one of {known}"})
        try:
            model = self.find(name)
        except ValueError as error:
            raise PydanticCustomError("no_component", "{text}", {"text": str(error)}) from None
        return model.model_validate({**given, "name": _literal(model) or name})

    def models(self, given: Any) -> set[type[BaseModel]]:
        """See `rayssl.schema.Choice`."""
        name = given.get("name", self.default) if isinstance(given, Mapping) else self.default
        try:
            return {self.find(name)} if isinstance(name, str) else set()
        except ValueError:
            return set()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def _settings(self, found: Any, name: str) -> type[C]:
        for candidate in (found, getattr(found, "Config", None)):
            if isinstance(candidate, type) and issubclass(candidate, self.base):
                self._check_own(candidate, found, name)
                return candidate
        raise ValueError(
            f"{name!r} is no {self.kind}: the class needs a Config that extends {self.base.__module__}."
            f"{self.base.__qualname__}"
        )

    def _check_own(self, model: type[C], found: Any, name: str) -> None:
        """Raises ValueError where settings that a class inherited would stand for another class."""
        makes, taken = model.component, _literal(model)
        if found is not model and makes is not None and makes is not found:
            whose = f"its Config is that of {makes.__name__}; give it one of its own"
            raise ValueError(f"{name!r}: {whose}: class Config({makes.__name__}.Config)")
        if taken in self.builtin and "name" not in vars(model).get("__annotations__", {}):
            raise ValueError(f"{name!r}: its Config has the name {taken!r} of ours; add to it: name: str = ''")


def outside_files() -> dict[str, str]:
    """The SHA-256 of every file that a component was imported from, by its path: what exactly ran."""
    return {path: hashlib.sha256(text.encode()).hexdigest() for path, text in _SOURCES.values()}


def _attribute(place: str) -> Any:
    """The object at ``module:Class`` or ``file.py:Class``; raises ValueError in one line."""
    path, _, attribute = place.rpartition(":")
    module = _from_file(path) if path.endswith(".py") else _from_package(path, place)
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            have = sorted(name for name, value in vars(module).items() if isinstance(value, type))
            raise ValueError(f"{place!r}: {path} has no '{attribute}'; its classes are {', '.join(have) or 'none'}")
    return found


def _from_package(path: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
            raise ValueError(f"{place!r}: {path} needs the module '{error.name}', which is not installed") from None
        raise ValueError(
            f"{place!r}: no module '{error.name}' is installed here; install it, or name a file as file.py:Class"
        ) from None
    except Exception as error:
        raise ValueError(f"{place!r}: {_where(error)}") from error


def _from_file(path: str) -> ModuleType:
    whole = os.path.abspath(path)
    if not os.path.isfile(whole):
        raise ValueError(f"{path}: no such file, seen from {os.getcwd()}")
    name = _OUTSIDE + hashlib.sha256(whole.encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    try:
        with open(whole, encoding="utf-8") as file:
            return _run(name, whole, file.read())
    except Exception as error:
        raise ValueError(f"{path}: {_where(error)}") from error


def _run(name: str, path: str, text: str) -> ModuleType:
    """The module of a file's ``text``, under a name that is the same in every process."""
    module = ModuleType(name)
    module.__file__ = path
    # a traceback can show the lines of a file that is not on this node
    linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path
    sys.modules[name], _SOURCES[name] = module, (path, text)
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name], _SOURCES[name]
        raise
    return module


def _revive(module: str, path: str, text: str, qualname: str) -> Any:
    """The settings that another process has pickled, before they get their state."""
    found: Any = sys.modules.get(module) or _run(module, path, text)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found.__new__(found)


def _where(error: Exception) -> str:
    """What went wrong while a module was imported, and on which line."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} on line {last.lineno} of {os.path.basename(last.filename)}: {error}"


def _reference(model: type[ComponentConfig]) -> str:
    """How a YAML would name the component of these settings."""
    module = sys.modules.get(model.__module__)
    place = getattr(module, "__file__", None) if model.__module__.startswith(_OUTSIDE) else None
    return f"{place or model.__module__}:{getattr(model.component, '__qualname__', model.__qualname__)}"


def _literal(model: type[BaseModel]) -> str | None:
    """The one name that the settings of a component of ours allow."""
    options = get_args(model.model_fields["name"].annotation)
    return options[0] if len(options) == 1 and isinstance(options[0], str) else None
