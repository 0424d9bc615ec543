"""The compact form of KubeRay's schemas says what the originals say. A bare clone has only the compact form."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.kuberay import compact
from tests.infra.manifests import ROOT

FOLDER = Path(os.environ.get("RAYSSL_KUBERAY_CRDS", ROOT.parent / "shared/kubernetes"))
KINDS = [kind for kind, plural in compact.KINDS.items() if (FOLDER / f"ray.io_{plural}.yaml").is_file()]

POD = {"type": "object", "description": "a pod", "required": ["image"], "properties": {
    "image": {"type": "string", "description": "where it comes from"},
    "description": {"type": "string", "description": "a field of this name"},
    "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63, "minLength": 1}},
    "open": {"type": "object", "additionalProperties": True},
}}  # fmt: skip
RULE = [{"rule": "self.size() > 0", "message": "no workers"}]
SCHEMAS: dict[str, compact.Schema] = {
    "A": {"type": "object", "properties": {"head": POD, "workers": {"type": "array", "items": POD}}},
    "B": {"properties": {"pods": {"type": "array", "items": POD, "x-kubernetes-validations": RULE}, "head": POD}},
}


def plain(node: Any) -> Any:
    """Without descriptions: those are texts, whereas a property of that name is a schema."""
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items() if not (k == "description" and isinstance(v, str))}
    return [plain(each) for each in node] if isinstance(node, list) else node


def validations(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.get("x-kubernetes-validations", [])
        for each in node.values():
            yield from validations(each)
    elif isinstance(node, list):
        for each in node:
            yield from validations(each)


def test_expansion_undoes_compaction() -> None:
    schemas = {kind: compact.without_descriptions(schema) for kind, schema in SCHEMAS.items()}
    tree = compact.compact(schemas)
    assert compact.expanded(json.loads(compact.text(tree))) == schemas == plain(SCHEMAS)
    assert list(tree["$defs"]) == ["head"], "the pod, under the name of its first place, and nothing inside it"
    assert compact.text(tree).count('"image":') == 1


def test_what_differs_a_little_stays_apart() -> None:
    other = copy.deepcopy(SCHEMAS)
    other["B"]["properties"]["head"]["required"] = []
    tree = compact.compact({kind: compact.without_descriptions(schema) for kind, schema in other.items()})
    assert compact.expanded(tree) == plain(other) != plain(SCHEMAS)


def test_the_compact_form_is_small_and_has_every_kind_with_its_rules() -> None:
    text = compact.COMPACT.read_text()
    assert len(text) < 50_000
    schemas = compact.expanded(json.loads(text))
    assert set(schemas) == set(compact.KINDS)
    assert {kind: len(list(validations(schema))) for kind, schema in schemas.items()} == {
        "RayCluster": 3, "RayCronJob": 9, "RayJob": 9,
    }  # fmt: skip


def test_the_licence_is_there() -> None:
    assert "Apache License" in (compact.COMPACT.parent / "LICENSE").read_text()
    assert "Apache License" in json.loads(compact.COMPACT.read_text())["$comment"]


if KINDS:  # where the originals are at hand: see `python -m tests.infra.kuberay.compact`

    @pytest.fixture(scope="module")
    def originals() -> dict[str, Any]:
        """As KubeRay publishes them, read without a function of `compact`."""
        assert len(KINDS) == len(compact.KINDS), f"{FOLDER} has only {KINDS}"
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        found = {}
        for kind, plural in compact.KINDS.items():
            definition = yaml.load((FOLDER / f"ray.io_{plural}.yaml").read_text(), Loader=loader)
            (found[kind],) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
        return found

    @pytest.mark.long
    def test_the_compact_form_says_what_the_originals_say(originals: dict[str, Any]) -> None:
        schemas = compact.expanded(json.loads(compact.COMPACT.read_text()))
        assert schemas == {kind: plain(version["schema"]["openAPIV3Schema"]) for kind, version in originals.items()}
        assert list(validations(originals)) == list(validations(schemas))

    @pytest.mark.long
    def test_a_raycluster_has_no_scale(originals: dict[str, Any]) -> None:
        """Then a budget of disruptions with `maxUnavailable` or a percentage would not work for its pods."""
        assert originals["RayCluster"]["subresources"] == {"status": {}}

    @pytest.mark.long
    def test_the_compact_form_is_what_the_script_makes() -> None:
        made = compact.compact({kind: compact.original(FOLDER, kind) for kind in compact.KINDS})
        assert compact.COMPACT.read_text() == compact.text(made)
