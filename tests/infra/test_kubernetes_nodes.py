"""What Ray's pods take of a node and who may take them from it: CPUs, whole nodes of GPUs, RDMA, evictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.infra.manifests import (
    OVERLAYS,
    Document,
    broken,
    environment,
    find,
    pod_templates,
    quantity,
    ray_groups,
    render,
    requested,
)

GPU = "nvidia.com/gpu"
RDMA = "rdma/hca_shared_devices_a"
GPUS_OF_A_POD = {"gpu": 8, "spot": 8, "rdma": 8, "single": 1}  # dev has none


@pytest.fixture(params=OVERLAYS)
def items(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


def test_every_group_says_how_many_cpus_it_has(items: list[Document]) -> None:
    """What is not said, KubeRay or Ray would guess. On dev, where pods are small, a core is offered twice."""
    small = any(c["image"].endswith("-cpu") for _, t in pod_templates(items) for c in t["spec"]["containers"])
    for name, group in ray_groups(items):
        cpus = int(group["rayStartParams"]["num-cpus"])
        if "groupName" not in group:
            assert cpus == 0, f"{name}: tasks could take the whole cluster down"
        else:
            most = 2 if small else 1
            assert 1 <= requested(group, "cpu") * most >= cpus >= requested(group, "cpu"), name


def whole_nodes(items: list[Document], gpus: int) -> None:
    """Pods with GPUs have ``gpus``, 8 CPUs a rank and more, and a /dev/shm with room for NCCL beside the store."""
    found = [(name, group) for name, group in ray_groups(items) if group.get("groupName") == "gpu"]
    assert len(found) == 6
    for name, group in found:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"][GPU] == resources["limits"][GPU] == str(gpus), name
        assert requested(group, "cpu") >= gpus * 8 + 1, name
        (shm,) = [v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shared-mem"]
        (spilled,) = [v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "ray-logs"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert quantity(shm["sizeLimit"]) - store >= gpus * 2**30, name
        assert quantity(spilled["sizeLimit"]) >= store, f"{name}: an object store that spills would end the pod"
        assert {"key": GPU, "operator": "Exists", "effect": "NoSchedule"} in group["template"]["spec"]["tolerations"]


@pytest.mark.parametrize(("overlay", "gpus"), GPUS_OF_A_POD.items())
def test_a_pod_has_the_gpus_of_its_overlay(overlay: str, gpus: int) -> None:
    whole_nodes(render(overlay), gpus)


def rdma(items: list[Document]) -> None:
    """Pods with GPUs ask for the network's device, and NCCL may use nothing else between nodes."""
    for name, group in ray_groups(items):
        resources, nccl = group["template"]["spec"]["containers"][0]["resources"], environment(group)
        if group.get("groupName") == "gpu":
            assert resources["requests"][RDMA] == resources["limits"][RDMA] == "1", name
            assert nccl.get("NCCL_NET") == "IB" and {"NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"} <= nccl.keys(), name
        else:
            assert RDMA not in resources["requests"] and "NCCL_NET" not in nccl, name


def test_rdma_is_there_when_asked_for_and_only_then() -> None:
    rdma(render("rdma"))
    for overlay in set(OVERLAYS) - {"rdma"}:
        assert "rdma/" not in str(render(overlay)) and "NCCL_" not in str(render(overlay))


def test_with_rdma_a_training_spans_nodes() -> None:
    (group,) = [g for name, g in ray_groups(render("rdma")) if name == "rayssl-train/gpu"]
    assert group["replicas"] == 2


def labels(name: str, group: Document) -> dict[str, str]:
    """Those that KubeRay gives a pod."""
    kind = "worker" if "groupName" in group else "head"
    return {"ray.io/is-ray-node": "yes", "ray.io/node-type": kind, "ray.io/group": group.get("groupName", "headgroup")}


def test_no_eviction_takes_a_head_a_memory_or_redis(items: list[Document]) -> None:
    """One budget allows none; two budgets for a pod would be an error. Other workers leave when they are asked."""
    budgets = [item["spec"] for item in items if item["kind"] == "PodDisruptionBudget"]
    pods = [(name, labels(name, group)) for name, group in ray_groups(items)]
    redis = find(items, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    for name, has in [*pods, ("redis", redis)]:
        fitting = [b for b in budgets if b["selector"]["matchLabels"].items() <= has.items()]
        stays = name.endswith(("/head", "/memory")) or name == "redis"
        assert len(fitting) == stays, name
        if name == "redis":
            assert fitting[0]["maxUnavailable"] == 0
        elif stays:
            # A RayCluster has no scale: Kubernetes cannot turn `maxUnavailable` or a percentage into a number of pods.
            assert "maxUnavailable" not in fitting[0] and fitting[0]["minAvailable"] >= 1000, name


_CLUSTER = ("RayCluster", "rayssl")
_HEAD, _GPU = "spec/headGroupSpec", "spec/workerGroupSpecs/2"
_POD = f"{_GPU}/template/spec"
MISTAKES: list[tuple[Callable[[list[Document]], None], tuple[str, str], str, Any]] = [
    (test_every_group_says_how_many_cpus_it_has, _CLUSTER, f"{_HEAD}/rayStartParams/num-cpus", "1"),
    (test_every_group_says_how_many_cpus_it_has, _CLUSTER, f"{_GPU}/rayStartParams/num-cpus", "96"),
    (lambda items: whole_nodes(items, 8), _CLUSTER, f"{_POD}/containers/0/resources/requests", {"cpu": "88", GPU: "1"}),
    (lambda items: whole_nodes(items, 8), _CLUSTER, f"{_POD}/volumes/0/emptyDir/sizeLimit", "94Gi"),
    (lambda items: whole_nodes(items, 8), _CLUSTER, f"{_POD}/volumes/1/emptyDir/sizeLimit", "50Gi"),
    (lambda items: whole_nodes(items, 8), _CLUSTER, f"{_POD}/tolerations", []),
    (rdma, _CLUSTER, f"{_POD}/containers/0/resources/limits", {RDMA: "0"}),
    (rdma, _CLUSTER, f"{_POD}/containers/0/env", []),
    (test_no_eviction_takes_a_head_a_memory_or_redis, ("PodDisruptionBudget", "rayssl-head"), "spec",
     {"maxUnavailable": 0, "selector": {"matchLabels": {"ray.io/node-type": "head"}}}),
    (test_no_eviction_takes_a_head_a_memory_or_redis, ("PodDisruptionBudget", "rayssl-memory"),
     "spec/selector/matchLabels", {"ray.io/is-ray-node": "yes"}),
    (test_no_eviction_takes_a_head_a_memory_or_redis, ("PodDisruptionBudget", "rayssl-redis"),
     "spec/maxUnavailable", 1),
]  # fmt: skip


@pytest.mark.parametrize(("check", "which", "path", "value"), MISTAKES)
def test_a_mistake_is_seen(check: Callable[..., None], which: tuple[str, str], path: str, value: Any) -> None:
    items = render("rdma")
    check(items)
    document = find(items, *which)
    items[items.index(document)] = broken(document, path, value)
    with pytest.raises(AssertionError):
        check(items)
