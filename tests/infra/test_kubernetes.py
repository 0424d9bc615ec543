"""Every manifest renders and holds to its schema, where an unknown field is an error: the server would drop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra import manifests
from tests.infra.manifests import KUBERNETES, OVERLAYS, RAY_KINDS, broken, find, problems, render

FILES = sorted(KUBERNETES.rglob("*.yaml"))
MANIFESTS = [path for path in FILES if path.name != "kustomization.yaml"]
KUSTOMIZATIONS = [path for path in FILES if path.name == "kustomization.yaml"]
WANTED = {
    *(
        "Namespace",
        "ServiceAccount",
        "ConfigMap",
        "Service",
        "StatefulSet",
        "NetworkPolicy",
        "PodMonitor",
        "PodDisruptionBudget",
    ),
    *("RayCluster", "RayJob", "RayCronJob"),
}


def name(path: Path) -> str:
    return str(path.relative_to(KUBERNETES))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_with_every_kind(overlay: str) -> None:
    items = render(overlay)
    assert {item["kind"] for item in items} == WANTED
    assert {item["metadata"].get("namespace") for item in items if item["kind"] != "Namespace"} == {"rayssl"}
    jobs = {item["metadata"]["name"] for item in items if item["kind"] == "RayJob"}
    assert jobs == {"rayssl-prepare", "rayssl-train", "rayssl-sweep", "rayssl-evaluate"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kinds_of_kubernetes_hold_to_their_schemas(overlay: str) -> None:
    checked = [item for item in render(overlay) if item["kind"] not in RAY_KINDS]
    assert len(checked) >= len(WANTED - set(RAY_KINDS))
    assert {item["metadata"]["name"]: found for item in checked if (found := problems(item))} == {}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kinds_of_ray_hold_to_kuberays_schemas(overlay: str) -> None:
    checked = [item for item in render(overlay) if item["kind"] in RAY_KINDS]
    assert len(checked) == 6
    assert {item["metadata"]["name"]: found for item in checked if (found := problems(item))} == {}


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_a_file_has_no_unknown_field(path: Path) -> None:
    """Without kubectl: each file as it stands. Jobs lack what kustomize copies into them, so nothing is required."""
    for document in manifests.documents(path.read_text()):
        if document["kind"] in RAY_KINDS:
            assert problems(document, parts=True) == []


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=name)
def test_a_kustomization_names_what_there_is(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    allowed = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches", "replacements"}
    assert set(tree) <= allowed
    named = [*tree.get("resources", []), *tree.get("components", [])]
    named += [patch["path"] for patch in tree.get("patches", []) if "path" in patch]
    assert named or tree["kind"] == "Component"
    assert [each for each in named if not (path.parent / each).exists()] == []


def test_every_file_is_used() -> None:
    """By a kustomization, or it is an overlay."""
    named = set()
    for path in KUSTOMIZATIONS:
        tree = yaml.safe_load(path.read_text())
        patches = [patch["path"] for patch in tree.get("patches", []) if "path" in patch]
        for each in [*tree.get("resources", []), *tree.get("components", []), *patches]:
            target = (path.parent / each).resolve()
            named.add(target / "kustomization.yaml" if target.is_dir() else target)
    roots = {KUBERNETES / "overlays" / overlay / "kustomization.yaml" for overlay in OVERLAYS}
    assert {path.resolve() for path in FILES} - named - {root.resolve() for root in roots} == set()


CORE_MISTAKES = [
    ("StatefulSet", "spec/template/spec/containers/0/readinessProbe/exec/comand", ["true"]),
    ("StatefulSet", "spec/template/spec/containers/0/securityContext/capabilities/dropp", ["ALL"]),
    ("StatefulSet", "spec/volumeClaimTemplates/0/spec/resources/request", {"storage": "1Gi"}),
    ("StatefulSet", "spec/replicas", "one"),
    ("Service", "spec/ports/0/targetport", 6379),
    ("ServiceAccount", "automountServiceAccountTokens", False),
    ("ConfigMap", "dat", {}),
    ("Namespace", "metadata/label", {}),
    ("PodMonitor", "spec/podMetricsEndpoints/0/relabelings/0/sourceLabel", ["a"]),
    ("PodMonitor", "metadata/labls", {}),
    ("NetworkPolicy", "spec/ingress/0/from/0/podselector", {}),
    ("PodDisruptionBudget", "spec/minAvailables", 1),
]
_POD = "template/spec/containers/0"
RAY_MISTAKES = [
    ("RayCluster", f"spec/workerGroupSpecs/2/{_POD}/resources/limit", {"memory": "1Gi"}),
    ("RayCluster", f"spec/workerGroupSpecs/0/{_POD}/envFrom/0/configMapRef/nam", "x"),
    ("RayCluster", f"spec/headGroupSpec/{_POD}/securityContext/allowPrivilegeEscalations", False),
    ("RayCluster", f"spec/headGroupSpec/{_POD}/env/0/value", 75),
    ("RayCluster", "spec/headGroupSpec/template/spec/terminationGracePeriod", 1),
    ("RayCluster", "spec/headGroupSpec/template/metadata", {"lables": {}}),
    ("RayCluster", "spec/autoscalerOptions/version", "v3"),
    ("RayCluster", "spec/authOptions/mode", "tokens"),
    ("RayCluster", "spec/gcsFaultToleranceOptions/redisPassword/valueFrom/secretKeyRef/keys", "x"),
    ("RayCluster", "spec/enableInTreeAutoscalling", True),
    ("RayCluster", "spec/workerGroupSpecs/0/minReplicas", "none"),
    ("RayCluster", "specs", {}),
    ("RayJob", "spec/shutdownAfterJobFinish", True),
    ("RayJob", "spec/submitterPodTemplate/spec/containers/0/envFrom/0/configMapRef/optionl", True),
    ("RayJob", f"spec/rayClusterSpec/workerGroupSpecs/1/{_POD}/volumeMounts/0/mountpath", "/"),
    ("RayJob", "spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
    ("RayJob", "metadata/annotation", {}),
    ("RayCronJob", "spec/jobTemplate/spec", {}),
    ("RayCronJob", "spec/timezone", "Etc/UTC"),
    ("RayCronJob", f"spec/jobTemplate/rayClusterSpec/workerGroupSpecs/0/{_POD}/ports/0/containerport", 8080),
]


def first(kind: str) -> dict[str, Any]:
    items = render("gpu")
    names = {
        "RayJob": "rayssl-train",
        "ServiceAccount": "rayssl",
        "NetworkPolicy": "ray",
        "PodDisruptionBudget": "rayssl-head",
    }
    return find(items, kind, names.get(kind))


@pytest.mark.parametrize(("kind", "path", "value"), CORE_MISTAKES)
def test_a_mistake_in_a_kind_of_kubernetes_is_seen(kind: str, path: str, value: Any) -> None:
    document = first(kind)
    assert problems(document) == []
    assert problems(broken(document, path, value)) != []


@pytest.mark.parametrize(("kind", "path", "value"), RAY_MISTAKES)
def test_a_mistake_in_a_kind_of_ray_is_seen(kind: str, path: str, value: Any) -> None:
    document = first(kind)
    assert problems(document) == []
    assert problems(broken(document, path, value)) != []


def test_a_mistake_in_a_file_is_seen_without_kubectl() -> None:
    (job,) = manifests.documents((KUBERNETES / "base/jobs/train.yaml").read_text())
    assert problems(job, parts=True) == []
    assert problems(broken(job, "spec/rayClusterSpec/workerGroupSpecs/0/replica", 1), parts=True) != []


def test_a_field_that_is_missing_is_seen() -> None:
    document = first("RayCluster")
    del document["spec"]["headGroupSpec"]["template"]
    assert problems(document) == ["spec.headGroupSpec: 'template' is a required property"]
