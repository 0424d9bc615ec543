"""Components that a configuration chooses by name: built-in ones, those of installed packages, those of a user's file.

A component is a class whose attribute ``Config`` is a `ComponentConfig`. The config class may be nested in it or stand
beside it. In the YAML, ``name`` is one of these:

- a built-in name, for example ``simclr``;
- an entry point of an installed package;
- ``package.module:Class``;
- ``path/file.py:Class``, with the path relative to the working folder.

All of them are validated, shown, saved and resumed in the same way. Choosing a component from outside rayssl imports,
and so runs, its module. A file ``barlow.py`` that adds a method::

    class Barlow(Method):
        class Config(MethodConfig):
            off_diagonal: float = 0.005

        ...  # forward and step, see rayssl.methods.base

with ``method: {name: barlow.py:Barlow, off_diagonal: 0.01}`` in the YAML.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import linecache
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rayssl.errors import described
from rayssl.schema import Choice, Config

MARK = "x-rayssl-component"  # in the JSON schema of a key that chooses a component: the kind of components
_OUTSIDE = "rayssl_outside_"  # the names of modules that were imported from files begin with this
_SOURCES: dict[str, tuple[str, str]] = {}  # the path and text of each such module, by the name of the module


class ComponentConfig(Config):
    """The settings of a component. ``name`` says which component; ``component`` is the class that they configure."""

    name: str = ""
    """Which component these settings belong to: a built-in name, the name that an installed package registers,
    ``package.module:Class``, or ``path/file.py:Class``.
    """

    component: ClassVar[Callable[..., Any] | None] = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Settings made in Python get the name by which a YAML would find their class."""
        if isinstance(given, dict) and not given.get("name") and not cls.model_fields["name"].default:
            return {**given, "name": _reference(cls)}
        return given

    def located(self) -> Any:
        """A copy with absolute paths, for processes that run in other working folders."""
        path, colon, attribute = self.name.rpartition(":")
        if not path.endswith(".py") or os.path.isabs(path):
            return self
        return self.model_copy(update={"name": os.path.abspath(path) + colon + attribute})

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled settings of a user's file contain its text: another process or node does not need the file."""
        module = type(self).__module__
        if not module.startswith(_OUTSIDE):
            return super().__reduce_ex__(protocol)
        source = _SOURCES[module]
        # the state comes last, because it may contain objects of other classes of the same file
        return _revive, (module, *source, type(self).__qualname__), self.__getstate__()

    @property
    def short_name(self) -> str:
        """The name without file or package, for tables and labels of metrics."""
        return self.name.rpartition(":")[2]

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """The settings that `rayssl check` uses if the user gives none: small values, so that a trial is quick."""
        return {}

    def _make(self, *arguments: Any, **keywords: Any) -> Any:
        """An instance of the component: ``component(settings, ...)``."""
        made = type(self).component
        if made is None:
            raise TypeError(f"{type(self).__name__}: no component has it as its Config, and it has no build of its own")
        return made(self, *arguments, **keywords)


class Configurable:
    """The base of components. A class that declares a ``Config`` becomes the ``component`` of that config."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = cls.__dict__.get("Config")
        if isinstance(own, type) and issubclass(own, ComponentConfig):
            own.component = cls


C = TypeVar("C", bound=ComponentConfig)


class Registry(Choice, Generic[C]):
    """The components of one kind. It annotates a field that holds the settings of one of them.

    Args:
        kind: the kind in words, for messages: "method", "source".
        base: the class that all settings of this kind extend.
        builtin: the built-in components: "module:Class" by name.
        group: the group of entry points in which installed packages offer components.
        default: the name that is used if the configuration gives no name; None if a name is required.

    For example::

        METHODS = Registry("method", MethodConfig, {"simclr": "rayssl.methods.simclr:SimCLR"}, group="rayssl.methods")
        AnyMethod = Annotated[MethodConfig, METHODS]
    """

    def __init__(
        self, kind: str, base: type[C], builtin: Mapping[str, str], *, group: str, default: str | None = None
    ) -> None:
        self.kind, self.base, self.builtin, self.group, self.default = kind, base, dict(builtin), group, default

    def names(self) -> list[str]:
        """All names that need no module or file: the built-in ones first, then those of installed packages."""
        found = importlib.metadata.entry_points(group=self.group)
        return list(dict.fromkeys([*self.builtin, *(point.name for point in found)]))

    def find(self, name: str) -> type[C]:
        """The config class of the component ``name``.

        Args:
            name: a built-in name, an entry point, ``package.module:Class`` or ``file.py:Class``.

        Raises:
            ValueError: the name is unknown, its module or class cannot be imported, or it is not a component of this
                kind. The message is one line.
        """
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
        """The validated settings in ``given``, which is a mapping with a ``name``, or settings already.

        Raises:
            PydanticCustomError: ``given`` is neither, has no name, or the name does not lead to a component. Pydantic
                adds the dotted key.
        """
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

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A mark only: `rayssl.keys.schemas` puts the components there, some of which hold components themselves."""
        return {"type": "object", MARK: self.kind}

    def _settings(self, found: Any, name: str) -> type[C]:
        for candidate in (found, getattr(found, "Config", None)):
            if isinstance(candidate, type) and issubclass(candidate, self.base):
                self._check_own(candidate, found, name)
                return candidate
        raise ValueError(
            f"{name!r} is not a {self.kind}: the class needs a Config that extends {self.base.__module__}."
            f"{self.base.__qualname__}"
        )

    def _check_own(self, model: type[C], found: Any, name: str) -> None:
        """Raises ValueError if the class inherited its Config, so that the settings belong to another class."""
        makes, taken = model.component, _literal(model)
        if found is not model and makes is not None and makes is not found:
            owner = f"its Config is that of {makes.__name__}; give it one of its own"
            raise ValueError(f"{name!r}: {owner}: class Config({makes.__name__}.Config)")
        if taken in self.builtin and "name" not in vars(model).get("__annotations__", {}):
            raise ValueError(f"{name!r}: its Config has the built-in name {taken!r}; add to it: name: str = ''")


def outside_files(settings: BaseModel) -> dict[str, str]:
    """The files from which the components in ``settings`` were imported: what exactly ran.

    Returns:
        The SHA-256 of each file, by its path.
    """
    found: dict[str, str] = {}
    if type(settings).__module__ in _SOURCES:
        path, text = _SOURCES[type(settings).__module__]
        found[path] = hashlib.sha256(text.encode()).hexdigest()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found |= outside_files(value)
    return found


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
        raise ValueError(f"{place!r}: {described(error)}") from error


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
        raise ValueError(f"{path}: {described(error)}") from error


def _run(name: str, path: str, text: str) -> ModuleType:
    """Runs the ``text`` of a file as a module. The module's name is the same in every process."""
    module = ModuleType(name)
    module.__file__ = path
    # with this a traceback shows the lines of the file even on a node that does not have it
    linecache.cache[path] = len(text), None, text.splitlines(keepends=True), path
    sys.modules[name], _SOURCES[name] = module, (path, text)
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name], _SOURCES[name]
        raise
    return module


def _revive(module: str, path: str, text: str, qualname: str) -> Any:
    """An empty instance of settings that another process has pickled. Pickle sets its state afterwards."""
    found: Any = sys.modules.get(module) or _run(module, path, text)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found.__new__(found)


def _reference(model: type[ComponentConfig]) -> str:
    """The ``name`` by which a YAML would choose the component of these settings."""
    module = sys.modules.get(model.__module__)
    place = getattr(module, "__file__", None) if model.__module__.startswith(_OUTSIDE) else None
    return f"{place or model.__module__}:{getattr(model.component, '__qualname__', model.__qualname__)}"


def _literal(model: type[BaseModel]) -> str | None:
    """The only name that the settings of a built-in component allow; None for other settings."""
    options = get_args(model.model_fields["name"].annotation)
    return options[0] if len(options) == 1 and isinstance(options[0], str) else None
