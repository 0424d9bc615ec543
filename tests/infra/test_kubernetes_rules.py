"""The rules inside KubeRay's schemas are asked, hold on every manifest, and refuse what they are for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.infra.admission import asked_when_made, broken_rules, defaulted, places, refusal, repeated
from tests.infra.manifests import OVERLAYS, RAY_KINDS, Document, broken, find, problems, ray_schemas, render

MANAGER = "the managedBy field value must be either 'ray.io/kuberay-operator' or 'kueue.x-k8s.io/multikueue'"
LEGACY = (
    "legacy policies (onSuccess/onFailure) and deletionRules cannot be used together within the same deletionStrategy"
)
EITHER = "deletionStrategy requires either BOTH onSuccess and onFailure, OR the deletionRules field (cannot be empty)"
TOGETHER = "JobStatus and JobDeploymentStatus cannot be used together within the same deletion condition."
NEITHER = "the deletion condition requires either the JobStatus or the JobDeploymentStatus field."

DELETE = {"policy": "DeleteCluster"}
WHEN = {"jobStatus": "FAILED", "ttlSeconds": 60}
GOOD_STRATEGIES = [
    {"onSuccess": DELETE, "onFailure": DELETE},
    {"deletionRules": [{**DELETE, "condition": WHEN}, {**DELETE, "condition": {"jobDeploymentStatus": "Failed"}}]},
]
BAD_STRATEGIES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({}, [("", EITHER)]),
    ({"onSuccess": DELETE}, [("", EITHER)]),
    ({"onSuccess": DELETE, "deletionRules": [{**DELETE, "condition": WHEN}]}, [("", LEGACY)]),
    ({"deletionRules": [{**DELETE, "condition": WHEN}, {**DELETE, "condition": {"ttlSeconds": 1}}]},
     [(".deletionRules.1.condition", NEITHER)]),
    ({"deletionRules": [{**DELETE, "condition": {**WHEN, "jobDeploymentStatus": "Failed"}}]},
     [(".deletionRules.0.condition", TOGETHER)]),
]  # fmt: skip
JOBS = {"RayJob": "spec", "RayCronJob": "spec.jobTemplate"}
MANAGED = [("RayCluster", "spec"), *((kind, path + inner) for kind, path in JOBS.items()
                                     for inner in ("", ".rayClusterSpec"))]  # fmt: skip


def document(kind: str) -> Document:
    return find(render("gpu"), kind, "rayssl-train" if kind == "RayJob" else None)


def put(kind: str, path: str, value: Any) -> Document:
    return broken(document(kind), path.replace(".", "/"), value)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_keeps_to_the_rules(overlay: str) -> None:
    checked = [item for item in render(overlay) if item["kind"] in RAY_KINDS]
    assert len(checked) == 6
    for item in checked:
        schema = ray_schemas()[item["kind"]]
        assert broken_rules(schema, item) == repeated(schema, item) == []


@pytest.mark.parametrize(("kind", "path"), MANAGED)
def test_a_cluster_has_no_other_manager(kind: str, path: str) -> None:
    for manager in ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"):
        assert problems(put(kind, f"{path}.managedBy", manager)) == []
    assert problems(put(kind, f"{path}.managedBy", "rayssl")) == [f"{path}.managedBy: {MANAGER}"]


@pytest.mark.parametrize(("kind", "path"), JOBS.items())
def test_strategies_of_deletion_are_whole(kind: str, path: str) -> None:
    place = f"{path}.deletionStrategy"
    for strategy in GOOD_STRATEGIES:
        assert problems(put(kind, place, strategy)) == []
    for strategy, wanted in BAD_STRATEGIES:
        assert problems(put(kind, place, strategy)) == [f"{place}{inner}: {message}" for inner, message in wanted]


def rules(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The place of each rule that is asked of new objects, with its message; numbers of items are 0."""
    yield from ((path, rule["message"]) for rule in filter(asked_when_made, schema.get("x-kubernetes-validations", [])))
    for key, each in schema.get("properties", {}).items():
        yield from rules(each, f"{path}.{key}" if path else key)
    if "items" in schema:
        yield from rules(schema["items"], f"{path}.0")


def test_no_rule_is_forgotten() -> None:
    """The tests above break each rule at each of its places. A newer KubeRay with other rules fails here."""
    tried = {(kind, f"{path}.managedBy", MANAGER) for kind, path in MANAGED}
    tried |= {(kind, f"{path}.deletionStrategy{inner.replace('.1.', '.0.')}", message) for kind, path in JOBS.items()
              for _, wanted in BAD_STRATEGIES for inner, message in wanted}  # fmt: skip
    assert tried == {(kind, *rule) for kind, schema in ray_schemas().items() for rule in rules(schema)}
    assert len(tried) == 13


def test_rules_about_the_past_are_passed_over() -> None:
    """`oldSelf` is what the object was before an update; these manifests have no before."""
    passed = [
        rule["rule"] for schema in ray_schemas().values() for rule in everywhere(schema) if not asked_when_made(rule)
    ]
    assert len(passed) == 8
    assert set(passed) == {"self == oldSelf"}
    assert not asked_when_made({"rule": "!has(oldSelf.a) || self.a >= oldSelf.a"})
    assert asked_when_made({"rule": "self.boldSelf == 1"})


def everywhere(schema: dict[str, Any]) -> Iterator[dict[str, str]]:
    yield from schema.get("x-kubernetes-validations", [])
    for each in [*schema.get("properties", {}).values(), *(schema[k] for k in ("items",) if k in schema)]:
        yield from everywhere(each)


def test_a_rule_is_asked_of_every_value_at_its_place() -> None:
    """In lists, in maps, on the object itself, with defaults; a rule that cannot be evaluated refuses."""
    rule = [{"rule": "self.low <= self.high", "message": "upside down"}]
    schema = {"properties": {"low": {"default": 0}, "high": {}}, "x-kubernetes-validations": rule}
    nested = {"properties": {"list": {"items": schema}, "map": {"additionalProperties": schema}}}
    good: dict[str, Any] = {"list": [{"low": 1, "high": 2}, {"high": 0}], "map": {"a": {"high": 1}}, "unknown": {}}
    assert broken_rules(nested, good) == []
    bad = copy.deepcopy(good)
    bad["list"][1]["high"] = bad["map"]["a"]["high"] = -1
    assert broken_rules(nested, bad) == ["list.1: upside down", "map.a: upside down"]
    assert broken_rules(schema, {"low": 2, "high": 1}) == [": upside down"]
    (line,) = broken_rules(schema, {"low": 1})
    assert line.startswith(": upside down (") and "high" in line
    assert refusal("self + 1", 1) == "", "an answer that is neither true nor false"
    assert [path for path, _, _ in places(nested, good)] == [
        "", "list", "list.0", "list.0.low", "list.0.high", "list.1", "list.1.high", "map", "map.a", "map.a.high",
    ]  # fmt: skip
    assert defaulted(nested, good)["list"] == [{"low": 1, "high": 2}, {"low": 0, "high": 0}]


def test_what_must_differ_in_a_list_does() -> None:
    """Such as two variables of one name, which a patch that appends may leave."""
    kind, place = "RayCluster", "spec.workerGroupSpecs.2.template.spec.containers.0"
    container = document(kind)["spec"]["workerGroupSpecs"][2]["template"]["spec"]["containers"][0]
    twice = [*container["env"], {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "1"}]
    assert problems(put(kind, f"{place}.env", twice)) == [
        f'{place}.env: {{"name": "RAY_JOB_STOP_WAIT_TIME_S"}} occurs twice'
    ]
    ports = [{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}]
    assert problems(put(kind, f"{place}.ports", ports)) == []
    ports += [{"containerPort": 1, "protocol": "TCP"}]  # which is the default
    (line,) = problems(put(kind, f"{place}.ports", ports))
    assert line.endswith('{"containerPort": 1, "protocol": "TCP"} occurs twice')
    assert repeated({"items": {}, "x-kubernetes-list-type": "set"}, ["a", "b", "a"]) == [': "a" occurs twice']
