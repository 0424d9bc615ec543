"""What a schema cannot say: references resolve, sizes fit, nothing runs as root, ports are open to who needs them.

Also the rules of the KubeRay operator that these manifests could break; no server is here to apply them.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.infra.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Document,
    broken,
    cluster_specs,
    containers,
    environment,
    find,
    job_specs,
    pod_templates,
    quantity,
    ray_groups,
    render,
)

EXTERNAL_SECRETS = {"rayssl-storage", "rayssl-redis"}  # made by hand, as the README says
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}  # KubeRay appends to them
SELECTING = ("NetworkPolicy", "PodMonitor", "PodDisruptionBudget")
SPOT = "cloud.google.com/gke-spot"


@pytest.fixture(params=OVERLAYS)
def items(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


def walk(node: Any, key: str) -> Iterator[Any]:
    """Every value under ``key``, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from walk(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value, key)


def names(items: list[Document], kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in items if item["kind"] == kind}


def test_names_are_short_labels(items: list[Document]) -> None:
    for item in items:
        name = item["metadata"]["name"]
        assert re.fullmatch(LABEL, name) and len(name) <= NAME_LIMITS.get(item["kind"], 63), name
    for name, group in ray_groups(items):
        assert re.fullmatch(LABEL, group.get("groupName", "head-group")), name


def test_references_resolve(items: list[Document]) -> None:
    assert names(items, "Secret") == set(), "no secret belongs in the tree"
    secrets = {each["name"] for key in ("secretRef", "secretKeyRef") for each in walk(items, key)}
    assert secrets == EXTERNAL_SECRETS
    readme = (KUBERNETES / "README.md").read_text()
    assert {name for name in secrets if f"create secret generic {name}" not in readme} == set()
    configs = {each["name"] for key in ("configMapRef", "configMapKeyRef") for each in walk(items, key)}
    assert configs and configs <= names(items, "ConfigMap")
    accounts = set(walk(items, "serviceAccountName"))
    assert accounts == names(items, "ServiceAccount")
    assert find(items, "StatefulSet")["spec"]["serviceName"] in names(items, "Service")
    redis = find(items, "RayCluster")["spec"]["gcsFaultToleranceOptions"]["redisAddress"]
    service = find(items, "Service")
    assert redis == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def test_volumes_and_ports_resolve(items: list[Document]) -> None:
    stateful = find(items, "StatefulSet")["spec"]
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    for name, template in pod_templates(items):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        for container in containers(template):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= volumes | (claims if name == "rayssl-redis" else set()), name
    port = find(items, "Service")["spec"]["ports"][0]["targetPort"]
    assert port in {each["name"] for each in stateful["template"]["spec"]["containers"][0]["ports"]}


def test_selectors_match_labels(items: list[Document]) -> None:
    stateful = find(items, "StatefulSet")["spec"]
    redis = stateful["template"]["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"].items() <= redis.items()
    assert find(items, "Service")["spec"]["selector"].items() <= redis.items()
    (submitter,) = {
        tuple(spec["submitterPodTemplate"]["metadata"]["labels"].items()) for spec in job_specs(items).values()
    }
    # KubeRay's own labels, of heads and workers.
    ray = {"ray.io/is-ray-node": {"yes"}, "ray.io/node-type": {"head", "worker", "redis-cleanup"}}
    ray["ray.io/group"] = {group["groupName"] for _, group in ray_groups(items) if "groupName" in group}
    known = {**ray, **{key: {value} for key, value in [*redis.items(), *submitter]}}
    policies = [item["spec"] for item in items if item["kind"] in SELECTING]
    used = [(key, value) for labels in walk(policies, "matchLabels") for key, value in labels.items()]
    used += [(each["key"], value) for found in walk(policies, "matchExpressions") for each in found
             for value in each["values"]]  # fmt: skip
    used = [(key, value) for key, value in used if key != "kubernetes.io/metadata.name"]
    assert used and [(key, value) for key, value in used if value not in known.get(key, ())] == []


def test_images_are_one_and_pinned(items: list[Document]) -> None:
    images = {c["image"] for name, t in pod_templates(items) if name != "rayssl-redis" for c in containers(t)}
    assert len(images) == 1
    (image,) = images
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.fullmatch(rf"rayssl:{re.escape(version)}-(cpu|gpu)", image)
    gpus = any(quantity(each.get("nvidia.com/gpu", 0)) and group.get("maxReplicas")
               for _, group in ray_groups(items) for each in walk(group, "limits"))  # fmt: skip
    assert image.endswith("-gpu") == gpus
    pinned = re.search(r"^ray==(.+)$", (ROOT / "infra/constraints.txt").read_text(), re.MULTILINE)
    assert pinned and {str(spec["rayVersion"]) for spec in cluster_specs(items).values()} == {pinned[1]}
    assert ":" in find(items, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]["image"]


def test_no_container_has_rights(items: list[Document]) -> None:
    """The restricted standard, which the namespace enforces, for what is written here and what KubeRay adds."""
    assert find(items, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in pod_templates(items):
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0 and context["runAsGroup"] > 0, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in containers(template):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}, name
            assert {"privileged", "runAsUser", "runAsNonRoot"}.isdisjoint(own), name
    for spec in cluster_specs(items).values():
        if spec["enableInTreeAutoscaling"]:
            own = spec["autoscalerOptions"]["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}


def test_only_heads_that_scale_have_the_account_for_it(items: list[Document]) -> None:
    for name, spec in cluster_specs(items).items():
        head = spec["headGroupSpec"]["template"]["spec"]["serviceAccountName"]
        assert head == ("rayssl-head" if spec["enableInTreeAutoscaling"] else "rayssl"), name
        assert {g["template"]["spec"]["serviceAccountName"] for g in spec["workerGroupSpecs"]} == {"rayssl"}
    assert find(items, "ServiceAccount", "rayssl")["automountServiceAccountToken"] is False


def test_memory_is_reserved_and_holds_what_is_in_it(items: list[Document]) -> None:
    for name, template in pod_templates(items):
        for container in containers(template):
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name
    for name, group in ray_groups(items):
        spec, parameters = group["template"]["spec"], group["rayStartParams"]
        limit = quantity(spec["containers"][0]["resources"]["limits"]["memory"])
        store = int(parameters["object-store-memory"])
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (shm,) = [v["emptyDir"] for v in spec["volumes"] if v["name"] == mount["name"]]
        assert shm["medium"] == "Memory" and quantity(shm["sizeLimit"]) >= store, name
        assert quantity(shm["sizeLimit"]) + int(parameters.get("memory", 0)) <= limit, name


def test_clusters_keep_to_the_operators_rules(items: list[Document]) -> None:
    for name, spec in cluster_specs(items).items():
        assert spec["authOptions"] == {"mode": "token"}, name
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", name
        assert "autoscalerOptions" not in spec or spec["autoscalerOptions"]["version"] == "v2"
        assert len({g["groupName"] for g in spec["workerGroupSpecs"]}) == len(spec["workerGroupSpecs"]), name
        for group in spec["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], name
    for name, group in ray_groups(items):
        assert "resources" not in group and "labels" not in group["rayStartParams"], name
        assert "restartPolicy" not in group["template"]["spec"], f"{name}: autoscaler v2 wants Never, the default"
        managed = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_AUTH_TOKEN", "RAY_enable_autoscaler_v2"}
        assert managed.isdisjoint(environment(group)), name
    standing = find(items, "RayCluster")["spec"]
    assert standing["enableInTreeAutoscaling"] and "storage" not in standing["gcsFaultToleranceOptions"]


def allowed(policies: list[Document], labels: dict[str, str], port: int) -> list[Document]:
    """Who may connect to ``port`` of a pod with ``labels``, by policies that match labels."""
    peers = []
    for spec in policies:
        if spec["podSelector"].get("matchLabels", {}).items() <= labels.items():
            for rule in spec.get("ingress", []):
                if "ports" not in rule or port in {each["port"] for each in rule["ports"]}:
                    assert rule.get("from"), "a rule without peers lets everyone in"
                    peers += rule["from"]
    return peers


def test_ports_are_open_to_those_who_need_them(items: list[Document]) -> None:
    policies = [item["spec"] for item in items if item["kind"] == "NetworkPolicy"]
    assert all(spec["policyTypes"] == ["Ingress"] for spec in policies)
    inside = {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}}
    submitter = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "rayssl-submitter"}}}
    operator, monitoring = (
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in ("kuberay-system", "monitoring")
    )
    head = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
    worker = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"}
    others = {"dashboard": [operator, submitter], "metrics": [monitoring]}
    for name, group in ray_groups(items):
        ports = {p["name"]: p["containerPort"] for p in group["template"]["spec"]["containers"][0]["ports"]}
        is_head = name.endswith("/head")
        assert set(ports) == ({"gcs-server", "dashboard", "client", "metrics"} if is_head else {"metrics"})
        for label, port in ports.items():
            assert allowed(policies, head if is_head else worker, port) == [inside, *others.get(label, [])]
        assert allowed(policies, worker, 8265) == [inside]
    redis = find(items, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert len(allowed(policies, redis, 6379)) == 1 and not allowed(policies, redis, 22)
    assert allowed(policies, submitter["podSelector"]["matchLabels"], 22) == []


def test_metrics_are_read_where_they_are(items: list[Document]) -> None:
    wanted = {each["port"] for each in find(items, "PodMonitor")["spec"]["podMetricsEndpoints"]}
    for name, group in ray_groups(items):
        assert wanted <= {each["name"] for each in group["template"]["spec"]["containers"][0]["ports"]}, name


def test_only_workers_that_may_go_are_on_spot_nodes() -> None:
    for overlay in OVERLAYS:
        for name, group in ray_groups(render(overlay)):
            spec = group["template"]["spec"]
            affinity = spec.get("affinity", {}).get("nodeAffinity", {})
            terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
            wanted = {e["operator"] for term in terms for e in term["matchExpressions"] if e["key"] == SPOT}
            tolerated = SPOT in {each["key"] for each in spec.get("tolerations", [])}
            if group.get("groupName") in (None, "memory"):
                assert wanted == {"DoesNotExist"} and not tolerated, f"{overlay}/{name}"
            elif overlay == "spot":  # where an autoscaler that may not evict would not hand on the notice either
                assert "annotations" not in group["template"].get("metadata", {}), name
                assert wanted == {"In"} and tolerated, name
            else:
                assert not wanted and not tolerated, f"{overlay}/{name}"


_CLUSTER, _JOB = ("RayCluster", "rayssl"), ("RayJob", "rayssl-train")
_HEAD, _WORKER = "spec/headGroupSpec/template/spec", "spec/workerGroupSpecs/1/template/spec"
_LIMITS = f"{_WORKER}/containers/0/resources/limits"
MISTAKES: list[tuple[Callable[[list[Document]], None], tuple[str, str], str, Any]] = [
    (test_names_are_short_labels, _JOB, "metadata/name", "rayssl-" + 41 * "x"),
    (test_references_resolve, _CLUSTER, f"{_HEAD}/containers/0/envFrom/0/configMapRef/name", "rayssl-buckets"),
    (test_references_resolve, _CLUSTER, f"{_WORKER}/serviceAccountName", "default"),
    (test_volumes_and_ports_resolve, _CLUSTER, f"{_WORKER}/containers/0/volumeMounts/0/name", "shm"),
    (test_selectors_match_labels, ("Service", "rayssl-redis"), "spec/selector", {"app": "redis"}),
    (test_images_are_one_and_pinned, _CLUSTER, f"{_WORKER}/containers/0/image", "rayssl:latest"),
    (test_images_are_one_and_pinned, _JOB, "spec/rayClusterSpec/rayVersion", "2.59.0"),
    (test_no_container_has_rights, _JOB, "spec/submitterPodTemplate/spec/securityContext/runAsUser", 0),
    (test_only_heads_that_scale_have_the_account_for_it, _CLUSTER, f"{_WORKER}/serviceAccountName", "rayssl-head"),
    (test_memory_is_reserved_and_holds_what_is_in_it, _CLUSTER, f"{_HEAD}/volumes/0/emptyDir/sizeLimit", "1Gi"),
    (test_memory_is_reserved_and_holds_what_is_in_it, _CLUSTER, f"{_LIMITS}/memory", "8Gi"),
    (test_clusters_keep_to_the_operators_rules, _CLUSTER, "spec/headGroupSpec/rayStartParams/num-cpus", "2"),
    (test_ports_are_open_to_those_who_need_them, ("NetworkPolicy", "ray"), "spec/ingress/0/from", []),
    (test_ports_are_open_to_those_who_need_them, ("NetworkPolicy", "ray-head"), "spec/podSelector", {}),
    (test_metrics_are_read_where_they_are, ("PodMonitor", "ray"), "spec/podMetricsEndpoints/0/port", "metric"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "which", "path", "value"), MISTAKES)
def test_a_mistake_is_seen(check: Callable[..., None], which: tuple[str, str], path: str, value: Any) -> None:
    items = render("gpu")
    document = find(items, *which)
    items[items.index(document)] = broken(document, path, value)
    with pytest.raises(AssertionError):
        check(items)
