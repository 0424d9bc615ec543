"""What a key may hold, in words, from its JSON schema."""

from __future__ import annotations

from typing import Any

_PLAIN = {"string": "text", "boolean": "true or false", "null": "null", "object": "keys"}


def in_words(schema: dict[str, Any]) -> str:
    """The values that fit ``schema``, such as "integer of at least 1" or "one of flac, pcm16"."""
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(map(in_words, schema[union])))
    if schema.get("type") in ("integer", "number"):
        return f"{schema['type']}{_bounds(schema)}"
    if schema.get("type") == "array":
        return _array(schema)
    if isinstance(schema.get("additionalProperties"), dict):
        return f"names, each with {in_words(schema['additionalProperties'])}"
    return _PLAIN.get(schema.get("type", ""), "any value" if not schema.keys() - {"title", "default"} else "keys")


def _array(schema: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return "[" + ", ".join(map(in_words, schema["prefixItems"])) + "]"
    items = schema.get("items", {})
    what = in_words(items).replace("one of", "any of", 1) if "enum" in items else in_words(items)
    fixed = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
    return f"list of {what}" if fixed is None else f"list of {fixed}, each {what}"


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    lower = f"of at least {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    upper = f"at most {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    multiple = f"a multiple of {schema['multipleOf']:g}" if "multipleOf" in schema else ""
    said = ", ".join(part for part in (lower, upper, multiple) if part)
    return f" {said}" if said else ""
