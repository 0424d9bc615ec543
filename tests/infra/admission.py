"""What the API server holds a custom resource to beyond types: CEL rules, and lists whose items must differ.

The rules are those of `x-kubernetes-validations`. A rule stands at one place of a schema and is asked of each value
that an object has there, as `self`, after the schema's defaults are filled in. A rule that mentions `oldSelf` compares
an object with what it was. The server asks it only when an object is updated. Manifests here have no earlier state, so
it is passed over. The functions that Kubernetes adds to CEL (quantity, url, ...) are not there: a rule that needs one
fails and names it.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import celpy

Schema = dict[str, Any]


def places(schema: Schema, value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Schema, Any]]:
    """Every value inside ``value``, itself included, with its dotted path and the schema that stands there."""
    yield ".".join(path), schema, value
    if isinstance(value, dict):
        for key, each in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield from places(inner, each, (*path, key))
    elif isinstance(value, list) and "items" in schema:
        for number, each in enumerate(value):
            yield from places(schema["items"], each, (*path, str(number)))


def asked_when_made(rule: dict[str, str]) -> bool:
    """Whether ``rule`` is asked of a new object."""
    return not re.search(r"\boldSelf\b", rule["rule"])


def broken_rules(schema: Schema, document: Any) -> list[str]:
    """The CEL rules that ``document`` breaks, one line each: the place and the rule's own message."""
    found = []
    for path, here, value in places(schema, document):
        for rule in filter(asked_when_made, here.get("x-kubernetes-validations", ())):
            why = refusal(rule["rule"], defaulted(here, value))
            if why is not None:
                found.append(f"{path}: {rule.get('message') or 'failed rule: ' + rule['rule']}{why}")
    return found


def refusal(rule: str, value: Any) -> str | None:
    """None if ``rule`` holds for ``value``, "" if not, and what went wrong if it cannot be evaluated: refused too."""
    try:
        answer = program(rule).evaluate({"self": celpy.json_to_cel(value)})
    except celpy.CELEvalError as error:
        return f" ({error.args[0]})"
    return None if isinstance(answer, celpy.celtypes.BoolType) and answer else ""


@functools.cache
def program(rule: str) -> celpy.Runner:
    """``rule``, compiled once."""
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def defaulted(schema: Schema, value: Any) -> Any:
    """A copy of ``value`` with the schema's defaults where a field is missing, at any depth."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        missing = {key: each["default"] for key, each in properties.items() if "default" in each and key not in value}
        other = schema.get("additionalProperties")
        other = other if isinstance(other, dict) else {}
        return {key: defaulted(properties.get(key, other), each) for key, each in {**missing, **value}.items()}
    if isinstance(value, list):
        return [defaulted(schema.get("items", {}), each) for each in value]
    return value


def repeated(schema: Schema, document: Any) -> list[str]:
    """Items that occur twice in a list of type `set`, or with the same keys in one of type `map`, one line each."""
    found = []
    for path, here, value in places(schema, document):
        kind = here.get("x-kubernetes-list-type")
        if kind not in ("set", "map") or not isinstance(value, list):
            continue
        items = [defaulted(here["items"], item) for item in value]
        if kind == "map":
            items = [{key: item.get(key) for key in here["x-kubernetes-list-map-keys"]} for item in items]
        texts = [json.dumps(item, sort_keys=True) for item in items]
        found += [f"{path}: {text} occurs twice" for text in sorted(set(texts)) if texts.count(text) > 1]
    return found
