"""How long things may take: to start, to leave a node, to be missed. One setting must leave room for another."""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.infra.manifests import OVERLAYS, Document, broken, environment, find, job_specs, ray_groups, render

DRAIN, STOP = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "RAY_JOB_STOP_WAIT_TIME_S"
START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
CHECKS = tuple(f"RAY_health_check_{name}" for name in ("period_ms", "timeout_ms", "failure_threshold"))
# Where Ray reads each. Its C++ knows the last three without RAY_.
READ_BY = {
    DRAIN: "_private/ray_constants.py",
    STOP: "dashboard/modules/job/job_supervisor.py",
    START: "train/v2/_internal/constants.py",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "train/constants.py",
    **dict.fromkeys(CHECKS, "core/src/ray/gcs/gcs_server"),
}


@pytest.fixture(params=OVERLAYS)
def items(request: pytest.FixtureRequest) -> list[Document]:
    return render(request.param)


def spot(group: Document) -> bool:
    return "spot" in str(group["template"]["spec"].get("tolerations", ""))


def test_ray_reads_every_variable(items: list[Document]) -> None:
    """A name that Ray does not know would do nothing, without a word."""
    for name, group in ray_groups(items):
        assert {each for each in environment(group) if each.startswith("RAY_")} == set(READ_BY), name


@pytest.mark.parametrize(("name", "file"), READ_BY.items())
def test_the_variables_are_in_this_ray(name: str, file: str) -> None:
    package = importlib.util.find_spec("ray")
    assert package and package.origin
    with open(Path(package.origin).parent / file, "rb") as source:
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as text:
            known = name.removeprefix("RAY_") if file.endswith("gcs_server") else name
            assert text.find(known.encode()) >= 0
            assert text.find(b"RAY_JOB_STOP_WAIT_TIMEOUT_S") < 0  # one that it does not know


def test_a_node_has_time_to_drain(items: list[Document]) -> None:
    """The grace period goes on after the drain, for what Ray then stops. Spot nodes are told 120 s ahead at most."""
    for name, group in ray_groups(items):
        grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
        drain = float(environment(group)[DRAIN])
        assert grace >= drain + 30, name
        assert grace <= 120 if spot(group) else drain >= 300, name


def test_a_job_that_is_stopped_has_time_to_save(items: list[Document]) -> None:
    """The job's driver lives on the head, whose end must not come before the job's."""
    for name, group in ray_groups(items):
        if name.endswith("/head"):
            variables = environment(group)
            assert 60 <= float(variables[STOP]) <= float(variables[DRAIN]), name


def test_a_lost_node_is_noticed_in_half_a_minute(items: list[Document]) -> None:
    """One that answers nothing: each check takes its whole time. Five failures in a row are no hiccup."""
    for name, group in ray_groups(items):
        period, timeout, times = (int(environment(group)[check]) for check in CHECKS)
        assert times * (period + timeout) <= 30_000, name
        assert times >= 5 and timeout >= 3000, f"{name}: a busy node would be given up"


def test_a_start_has_time_for_new_nodes_and_images(items: list[Document]) -> None:
    """And less than the cluster of a job has, and a job has time for its work after both."""
    wait = min(float(environment(group)[START]) for _, group in ray_groups(items))
    assert wait >= 600
    for name, spec in job_specs(items).items():
        assert spec["preRunningDeadlineSeconds"] >= wait, name
        assert spec["activeDeadlineSeconds"] >= spec["preRunningDeadlineSeconds"] + wait + 1200, name


_CLUSTER, _JOB = ("RayCluster", "rayssl"), ("RayJob", "rayssl-train")
_HEAD, _GPU = "spec/headGroupSpec/template/spec", "spec/workerGroupSpecs/2/template/spec"


def env(number: int, path: str = _GPU) -> str:
    return f"{path}/containers/0/env/{number}/value"


MISTAKES: list[tuple[Callable[[list[Document]], None], tuple[str, str], str, Any]] = [
    (test_ray_reads_every_variable, _CLUSTER, f"{_GPU}/containers/0/env/1/name", "RAY_JOB_STOP_WAIT_TIMEOUT_S"),
    (test_a_node_has_time_to_drain, _CLUSTER, f"{_GPU}/terminationGracePeriodSeconds", 300),
    (test_a_node_has_time_to_drain, _CLUSTER, env(0), "30"),
    (test_a_job_that_is_stopped_has_time_to_save, _CLUSTER, env(1, _HEAD), "3"),
    (test_a_job_that_is_stopped_has_time_to_save, _CLUSTER, env(0, _HEAD), "30"),
    (test_a_lost_node_is_noticed_in_half_a_minute, _CLUSTER, env(5), "10000"),
    (test_a_lost_node_is_noticed_in_half_a_minute, _CLUSTER, env(6), "2"),
    (test_a_start_has_time_for_new_nodes_and_images, _CLUSTER, env(2), "60"),
    (test_a_start_has_time_for_new_nodes_and_images, _JOB, "spec/preRunningDeadlineSeconds", 600),
    (test_a_start_has_time_for_new_nodes_and_images, _JOB, "spec/activeDeadlineSeconds", 3600),
]


@pytest.mark.parametrize(("check", "which", "path", "value"), MISTAKES)
def test_a_mistake_is_seen(check: Callable[..., None], which: tuple[str, str], path: str, value: Any) -> None:
    items = render("gpu")
    check(items)
    document = find(items, *which)
    items[items.index(document)] = broken(document, path, value)
    with pytest.raises(AssertionError):
        check(items)


def test_a_spot_node_that_drains_longer_than_it_lives_is_seen() -> None:
    items = render("spot")
    cluster = find(items, *_CLUSTER)
    items[items.index(cluster)] = broken(cluster, f"{_GPU}/terminationGracePeriodSeconds", 360)
    with pytest.raises(AssertionError):
        test_a_node_has_time_to_drain(items)
