"""KubeRay's schemas in a compact form: 3 MB of custom resource definitions become `schemas.json` beside this file.

    python -m tests.infra.kuberay.compact FOLDER    # reads FOLDER/ray.io_rayclusters.yaml and so on

What changes: only the version `v1` is kept, descriptions are left out, and a part of a schema that occurs more than
once stands once, under `$defs`, and is named with `$ref` elsewhere. All else stays, also the CEL rules
(`x-kubernetes-validations`). `expanded` undoes it. Where the originals are at hand, a test compares it with them:
beside the project in shared/kubernetes, or in the folder that RAYSSL_KUBERAY_CRDS names.

The definitions are those of KubeRay 1.7, by the KubeRay authors, under the Apache License 2.0: see `LICENSE` here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

KINDS = {"RayCluster": "rayclusters", "RayCronJob": "raycronjobs", "RayJob": "rayjobs"}
COMPACT = Path(__file__).with_name("schemas.json")
ORIGIN = "KubeRay 1.7's definitions of custom resources (ray.io/v1), Apache License 2.0, made compact by compact.py"
SHORTEST = 60  # characters of JSON: a shorter part is written out each time
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten seconds in Python


def original(folder: Path, kind: str) -> Schema:
    """The schema of version `v1` in a definition as KubeRay publishes it, without descriptions."""
    definition = yaml.load((folder / f"ray.io_{KINDS[kind]}.yaml").read_text(), Loader=_LOADER)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1" and v["served"]]
    return without_descriptions(version["schema"]["openAPIV3Schema"])


def parts(schema: Schema) -> list[tuple[str, str, Schema]]:
    """The schemas directly inside ``schema``: the key that holds them, a property's name or "", the schema."""
    found = [("properties", name, each) for name, each in schema.get("properties", {}).items()]
    inner = ("items", "additionalProperties")  # the latter may also be true or false
    return found + [(key, "", schema[key]) for key in inner if isinstance(schema.get(key), dict)]


def rebuilt(schema: Schema, inner: list[tuple[str, str, Schema]]) -> Schema:
    """``schema`` with other schemas inside, given as `parts` gives them."""
    made = {key: {} if key == "properties" else value for key, value in schema.items()}
    for key, name, each in inner:
        if key == "properties":
            made[key][name] = each
        else:
            made[key] = each
    return made


def without_descriptions(schema: Schema) -> Schema:
    """A property may be called `description`, so this looks only where a schema's own description stands."""
    own = {key: value for key, value in schema.items() if key != "description"}
    return rebuilt(own, [(key, name, without_descriptions(each)) for key, name, each in parts(own)])


def compact(schemas: dict[str, Schema]) -> Schema:
    """All ``schemas`` in one tree, in which what occurs twice is a definition."""
    times: Counter[str] = Counter()
    for schema in schemas.values():
        _count(schema, times)
    names = {key: "" for key, n in times.items() if n > 1 and len(key) >= SHORTEST}
    definitions: dict[str, Schema] = {}
    kinds = {kind: _referring(schema, kind, names, definitions) for kind, schema in schemas.items()}
    return {"$comment": ORIGIN, "$defs": dict(sorted(definitions.items())), "kinds": kinds}


def expanded(tree: Schema) -> dict[str, Schema]:
    """The schemas of `compact`'s tree by kind. Equal parts are one and the same object."""
    made: dict[str, Schema] = {}

    def expand(schema: Schema) -> Schema:
        if "$ref" in schema:
            name = schema["$ref"].removeprefix("#/$defs/")
            if name not in made:
                made[name] = expand(tree["$defs"][name])
            return made[name]
        return rebuilt(schema, [(key, name, expand(each)) for key, name, each in parts(schema)])

    return {kind: expand(schema) for kind, schema in tree["kinds"].items()}


def text(tree: Schema) -> str:
    """JSON with one line for each definition and kind, so that a difference can be read."""
    lines = [f'"$comment":{json.dumps(tree["$comment"])}']
    for group in ("$defs", "kinds"):
        inner = [f"{json.dumps(name)}:{_dumped(each)}" for name, each in tree[group].items()]
        lines.append(f'"{group}":{{\n' + ",\n".join(inner) + "\n}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _dumped(schema: Any) -> str:
    return json.dumps(schema, separators=(",", ":"), sort_keys=True)


def _count(schema: Schema, times: Counter[str]) -> None:
    """What lies inside a part that was seen before is not counted again: it will stand there once."""
    key = _dumped(schema)
    times[key] += 1
    if times[key] == 1:
        for _, _, each in parts(schema):
            _count(each, times)


def _referring(schema: Schema, called: str, names: dict[str, str], definitions: dict[str, Schema]) -> Schema:
    """``schema`` with references; what they refer to is added to ``definitions``, named after its first place."""
    key = _dumped(schema)
    if names.get(key):
        return {"$ref": f"#/$defs/{names[key]}"}
    inner = [(k, name, _referring(each, name or called, names, definitions)) for k, name, each in parts(schema)]
    made = rebuilt(schema, inner)
    if key not in names:
        return made
    taken = sum(name.rstrip("0123456789") == called for name in names.values())
    names[key] = f"{called}{taken + 1}" if taken else called
    assert names[key] not in definitions
    definitions[names[key]] = made
    return {"$ref": f"#/$defs/{names[key]}"}


def main() -> None:
    """Reads the definitions in the folder that the command line names, and writes `schemas.json`."""
    parser = argparse.ArgumentParser(prog="python -m tests.infra.kuberay.compact", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="has ray.io_rayclusters.yaml and so on, as KubeRay publishes them")
    folder = parser.parse_args().folder
    COMPACT.write_text(text(compact({kind: original(folder, kind) for kind in KINDS})))


if __name__ == "__main__":
    main()
