"""JSON schemas of the three kinds of files, with which editors complete, explain and check the YAML.

They are in draft 7, which the YAML language server knows. The components of a kind are told apart by ``name``: with a
built-in name the keys are those of its Config; with a name that holds a colon any keys may follow, because the file or
package that it names is not read here.
"""

from __future__ import annotations

from typing import Any

from rayssl.keys.listing import plain
from rayssl.keys.roots import REGISTRIES, ROOTS
from rayssl.registry import MARK, ComponentConfig, Registry

Schema = dict[str, Any]

_DRAFT = "http://json-schema.org/draft-07/schema#"
_DROPPED = ("title", "discriminator")  # of every node: pydantic's titles say what the name of a key says


def schema(kind: str, *, installed: bool = True) -> Schema:
    """The JSON schema of a kind of file (`rayssl.keys.roots.ROOTS`).

    ``installed``: also with the components that installed packages register.
    """
    root, definitions = ROOTS[kind].model, dict[str, Schema]()
    made = _taken_out(root.model_json_schema(), definitions)
    while missing := [each for each in _named([made, *definitions.values()]) if _slug(each) not in definitions]:
        for registry in missing:
            models = _members(registry, installed)
            definitions[_slug(registry)] = _choice(registry, list(models))
            for name, model in models.items():
                definitions[_place(registry, name)] = _taken_out(model.model_json_schema(), definitions)
    whole = {"title": f"rayssl: {kind}", "description": plain(root.__doc__), **_clean(made)}
    return {"$schema": _DRAFT, **whole, "$defs": {name: _clean(definitions[name]) for name in sorted(definitions)}}


def _taken_out(part: Schema, definitions: dict[str, Schema]) -> Schema:
    """``part`` without its definitions, which join ``definitions``, and without what its class says for developers."""
    for name, found in part.pop("$defs", {}).items():
        definitions.setdefault(name, _taken_out(found, definitions))
    part.pop("description", None)
    return part


def _named(nodes: list[Schema]) -> list[Registry[Any]]:
    """The registries that are marked in ``nodes``."""
    marks = set(_marks(nodes))
    return [each for each in REGISTRIES.values() if each.kind in marks]


def _marks(node: Any) -> list[str]:
    if isinstance(node, list):
        return [mark for item in node for mark in _marks(item)]
    if not isinstance(node, dict):
        return []
    return [node[MARK]] if MARK in node else _marks(list(node.values()))


def _members(registry: Registry[Any], installed: bool) -> dict[str, type[ComponentConfig]]:
    """The settings of the components by name."""
    found = {}
    for name in registry.names() if installed else registry.builtin:
        try:
            found[name] = registry.find(name)
        except ValueError:  # a package that is installed and cannot be imported
            continue
    return found


def _choice(registry: Registry[Any], names: list[str]) -> Schema:
    """The definition of a choice by ``name``: which keys go with which name."""
    of_name: Schema = {
        "description": ComponentConfig.model_fields["name"].description,
        "anyOf": [{"enum": names}, {"type": "string", "pattern": ":"}],
    }
    rules: list[Schema] = [
        {
            "if": {"properties": {"name": {"const": name}}, "required": ["name"]},
            "then": {"$ref": f"#/$defs/{_place(registry, name)}"},
        }
        for name in names
    ]
    made: Schema = {"type": "object", "properties": {"name": of_name}, "allOf": rules}
    if registry.default is None:
        made["required"] = ["name"]
    else:
        then = {"$ref": f"#/$defs/{_place(registry, registry.default)}"}
        rules.append({"if": {"not": {"required": ["name"]}}, "then": then})
    return made


def _place(registry: Registry[Any], name: str) -> str:
    return f"{_slug(registry)}.{name}"


def _slug(registry: Registry[Any]) -> str:
    return _dashed(registry.kind)


def _dashed(kind: str) -> str:
    return kind.replace(" ", "-")


def _clean(node: Any) -> Any:
    """A node without what editors do not need, in the words of draft 7."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    if MARK in node:
        node = {**node, "$ref": f"#/$defs/{_dashed(node[MARK])}"}
    found: Schema = {}
    for key, value in node.items():
        if key == "properties":
            found[key] = {name: _clean(each) for name, each in value.items()}
        elif key in _DROPPED or key == MARK or (key == "default" and isinstance(value, dict)):
            continue
        elif key in ("default", "const", "enum"):
            found[key] = value
        else:
            found["items" if key == "prefixItems" else key] = plain(value) if key == "description" else _clean(value)
    if "$ref" in found and len(found) > 1:  # draft 7 ignores what stands beside a reference
        found = {"allOf": [{"$ref": found.pop("$ref")}], **found}
    return found
