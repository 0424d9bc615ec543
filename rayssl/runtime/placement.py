"""Placement groups that are asked for and given back, without a loss of what they reserve.

Ray 2.60 leaks what a group reserves if the group is removed while the nodes answer (ray issue 64693): its state is
PENDING or PREPARED then. No group shows the CPUs that are lost, and they have not come back within 100 s. It happens
within some dozen removals on an idle machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_ANSWER_S = 30.0  # nobody waits longer for a head that does not answer
_LOOK_S = 0.05


@contextmanager
def asked(bundles: Sequence[Mapping[str, float]]) -> Iterator[Any]:
    """A placement group of ``bundles`` (resources by name) that is given back at the end of the context."""
    from ray.util.placement_group import placement_group

    group = placement_group([dict(each) for each in bundles])
    try:
        yield group
    finally:
        give_back(group)


def made(group: Any, seconds: float) -> bool:
    """Waits until Ray has made a placement group. Returns whether it has.

    It waits so many seconds at most, and longer while Ray has not answered: a busy head is slow. Ray's own ``wait``
    takes whole seconds: it does not wait at all for 0.9.
    """
    if not _until(lambda: _row(group).get("state") == "CREATED", seconds):
        _until(lambda: answered(_row(group)), _ANSWER_S)
    return bool(_row(group).get("state") == "CREATED")


def give_back(group: Any) -> None:
    """Removes a placement group once Ray has answered for it: it is made, or there is no room for it now."""
    from ray.util.placement_group import remove_placement_group

    _until(lambda: answered(_row(group)), _ANSWER_S)
    remove_placement_group(group)


def answered(row: Mapping[str, Any]) -> bool:
    """Whether a row of Ray's table of placement groups says that no node reserves anything for the group just now."""
    if row.get("state") in ("PENDING", "RESCHEDULING"):  # the second after the loss of a node
        return row.get("stats", {}).get("scheduling_state") in ("NO_RESOURCES", "INFEASIBLE")
    return row.get("state") != "PREPARED"


def of_this_job() -> dict[str, Any]:
    """The placement groups of this job that are not removed, by id (hexadecimal: the job's own id is its end)."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table

    job, table = ray.get_runtime_context().get_job_id(), placement_group_table()
    return {
        name: PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name)))
        for name, group in table.items()
        if name.endswith(job) and group["state"] != "REMOVED"
    }


def _row(group: Any) -> dict[str, Any]:
    from ray.util.placement_group import placement_group_table

    row: dict[str, Any] = placement_group_table(group)
    return row


def _until(true: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (now := true()) and (left := until - time.monotonic()) > 0:
        time.sleep(min(_LOOK_S, left))
    return now
