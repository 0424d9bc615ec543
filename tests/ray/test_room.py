"""Room for workers: as many as fit, a line about what is missing, and more of them later."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment
from rayssl.runtime import cluster, placement, room
from tests.small_experiment import tree

pytestmark = pytest.mark.ray


def experiment(folder: Path, **ray: Any) -> Experiment:
    values = tree(str(folder))
    values["ray"] = {**values.get("ray", {}), "gpu": False, **ray}
    values["training"]["batch"] = 16
    return Experiment(**values)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_TURN_S": 0.2, "_SETTLE_S": 0.5, "_TRY_S": 0.5, "_TELL_S": 0.7, "_GROW_AFTER_S": 0.0}.items():
        monkeypatch.setattr(room, name, value)


def taken(cpus: list[float]) -> Any:
    """What a job holds: a placement group of so many CPUs."""
    from ray.util.placement_group import placement_group

    group = placement_group([{"CPU": each} for each in cpus])
    assert placement.made(group, 60)
    return group


def free_cpus(ray: Any, seconds: float = 60.0) -> float:
    """All CPUs of the cluster, once what tests before have held is given back, which Ray does late."""
    from ray.util.placement_group import placement_group_table

    total, until = ray.cluster_resources()["CPU"], time.monotonic() + seconds
    while (free := ray.available_resources().get("CPU", 0.0)) < total:
        if time.monotonic() >= until:
            groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
            pytest.fail(f"{total - free:g} CPU are held after {seconds:g} s; placement groups: {groups}")
        time.sleep(0.2)
    return float(total)


@pytest.mark.timeout(180)
def test_what_is_given_back_at_once_is_free_again(ray_cluster: Any) -> None:
    """Ray itself loses what is given back while nodes answer: mostly within forty times."""
    free = free_cpus(ray_cluster)
    for _ in range(100):
        with placement.asked([{"CPU": 0.2 * free}, {"CPU": 0.1}]):
            pass
    with placement.asked([{"CPU": 2 * free}]) as never:
        began = time.monotonic()
        assert not placement.made(never, 0.3) and time.monotonic() - began >= 0.3
    with placement.asked([{"CPU": 0.9 * free}]) as most:
        assert placement.made(most, 60.0), "all of it is free"
    free_cpus(ray_cluster)


@pytest.mark.parametrize(
    ("state", "scheduling", "expected"),
    [
        ("PENDING", "QUEUED", False),
        ("PENDING", "SCHEDULING_STARTED", False),
        ("PENDING", "NO_RESOURCES", True),
        ("PENDING", "INFEASIBLE", True),
        ("PREPARED", "QUEUED", False),
        ("CREATED", "FINISHED", True),
        ("RESCHEDULING", "FINISHED", False),
        ("RESCHEDULING", "NO_RESOURCES", True),
        ("REMOVED", "REMOVED", True),
    ],
)
def test_when_ray_has_answered(state: str, scheduling: str, expected: bool) -> None:
    assert placement.answered({"state": state, "stats": {"scheduling_state": scheduling}}) is expected


def test_the_numbers_of_workers_divide_the_batch(tmp_path: Path) -> None:
    assert experiment(tmp_path, workers=[1, 9]).worker_counts == [8, 4, 2, 1]
    assert experiment(tmp_path, workers=4).worker_counts == [4]
    assert experiment(tmp_path, workers=[1, 9]).with_workers(4).ray.workers == 4
    with pytest.raises(ValueError, match=r"ray\.workers=\[3, 2\]: write the smaller number first"):
        experiment(tmp_path, workers=[3, 2])
    with pytest.raises(ValueError, match=r"training\.batch=16 is not divisible by ray\.workers=\[5, 7\]; change one"):
        experiment(tmp_path, workers=[5, 7])


@pytest.mark.timeout(240)
def test_as_many_workers_as_there_is_room_for(ray_cluster: Any, quick: None, tmp_path: Path) -> None:
    from ray.util.placement_group import remove_placement_group

    said: list[str] = []
    free = free_cpus(ray_cluster)
    each = round(free / 5, 2)
    elastic = experiment(tmp_path, workers=[1, 4], cpus_per_worker=each)
    assert room.find(elastic, False, True, said.append, 40) == 4
    other = taken([free - 1.4 * each])
    try:
        assert room.find(elastic, False, True, said.append, 40) == 1
        own = taken([each])
        with room.Growth(elastic, False, 1) as growth:
            assert growth() is None
            time.sleep(0.3)
            assert growth() is None
            remove_placement_group(other)
            until = time.monotonic() + 60
            while (why := growth()) is None and time.monotonic() < until:
                time.sleep(0.1)
            assert why == "there is room for more workers"
            assert growth() is None, "it says so once"
        remove_placement_group(own)
        assert room.find(elastic, False, True, said.append, 40) == 4, "it has given everything back"
    finally:
        remove_placement_group(other)
    assert all("so far" in line for line in said)
    with room.Growth(elastic, False, 4) as growth:
        assert growth() is None


def test_without_room_it_says_what_it_waits_for(ray_cluster: Any, quick: None, tmp_path: Path) -> None:
    said: list[str] = []
    large = experiment(tmp_path, workers=16)
    large = large.model_copy(update={"memory": large.memory.model_copy(update={"memory_bytes": 3 << 29})})
    with pytest.raises(ConfigError) as caught:
        room.find(large, False, True, said.append, 1.6)
    wanted = (
        "room for 16 workers of 1 CPU (ray.workers) and 1 actors of the memory of 0.1 CPU and 1.5 GiB memory; "
        "the cluster has 1 nodes, "
    )
    assert said and said[0].startswith(f"waits for {wanted}") and said[0].endswith(" s so far")
    text = str(caught.value)
    assert text.startswith(f"ray.start_timeout_s=1.6: no {wanted}")
    assert text.endswith(" of 8 CPU free; set it higher, add nodes, or lower ray.workers")


def test_the_bell_is_heard_with_its_first_reason(ray_cluster: Any) -> None:
    """That it rings when a node is drained: ``python -m tests.faults sigterm-node``."""
    from rayssl.runtime import signals

    with signals.GracefulShutdown() as shutdown:
        node = ray_cluster.get_runtime_context().get_node_id()
        heard = signals.listen(shutdown.bell, [node])
        assert heard is not None
        time.sleep(1.5)
        assert not heard() and shutdown.why() == ""
        ray_cluster.get(shutdown.bell.ring.remote("node 12 is being taken away"))
        ray_cluster.get(shutdown.bell.ring.remote("later"))
        until = time.monotonic() + 60
        while not heard() and time.monotonic() < until:
            time.sleep(0.05)
        assert heard() and shutdown.why() == "node 12 is being taken away"


def test_groups_that_a_failed_training_leaves_are_removed(ray_cluster: Any) -> None:
    from ray.util.placement_group import placement_group_table

    def there() -> set[str]:
        return {name for name, group in placement_group_table().items() if group["state"] != "REMOVED"}

    others = taken([1])  # of the same job, from before
    known = there()
    with cluster.no_leftovers():
        ended_well = taken([1])

    @cluster.no_leftovers()
    def fails() -> None:
        taken([1])
        raise RuntimeError("the controller died")

    with pytest.raises(RuntimeError, match="the controller died"):
        fails()
    assert there() == known | {ended_well.id.hex()}
    for group in (others, ended_well):
        ray_cluster.util.remove_placement_group(group)
