"""How often a training may fail: counted since the last new checkpoint, and told in one line."""

from __future__ import annotations

from rayssl.errors import StorageOutage
from rayssl.runtime.budget import Budget, said


class GroupError(Exception):
    """Like Ray Train's: failures by rank."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__("Worker errors:\n[Rank 1]\n...")
        self.worker_failures = failures


def test_progress_gives_all_attempts_back() -> None:
    step = 0
    budget = Budget("run", 3, lambda: step)
    for _ in range(30):
        step += 5
        assert budget.failed(RuntimeError("lost"))[1] == 0.0
    waits = [budget.failed(RuntimeError("lost"))[1] for _ in range(3)]
    assert waits == [5.0, 15.0, None]


def test_the_lines() -> None:
    steps = iter([0, 0, 7, 7, 7])
    budget = Budget("runs/a", 2, lambda: next(steps))
    lost = GroupError({3: RuntimeError("node lost\nand more"), 5: RuntimeError("x")})
    assert budget.failed(lost) == (
        "runs/a: rank 3 and 1 more: RuntimeError (node lost); resumes from the last checkpoint (the beginning), "
        "failure 1 of 3",
        0.0,
    )
    outage = StorageOutage("s3://b/k: no answer")
    line, wait = budget.failed(outage)
    assert wait == 0.0 and line.endswith("resumes from the last checkpoint (step 7), failure 1 of 3")
    line, wait = budget.failed(outage)
    assert wait == 5.0 and line.endswith("(step 7) in 5 s, failure 2 of 3")
    line, wait = budget.failed(lost)
    assert wait is None
    assert line == (
        "runs/a: gave up, 3 failures in a row since step 7: 2 x StorageOutage (s3://b/k: no answer); "
        "1 x rank 3 and 1 more: RuntimeError (node lost)"
    )


def test_the_innermost_error_is_told() -> None:
    outer = RuntimeError("ray::task() ...")
    outer.cause = ValueError("")  # type: ignore[attr-defined]
    assert said(outer) == "ValueError"
    controller = RuntimeError("Training failed due to controller error:\nno room")
    controller.controller_failure = TimeoutError("no room")  # type: ignore[attr-defined]
    assert said(controller) == "TimeoutError (no room)"
    assert said(RuntimeError("Worker errors:\n[Rank 0] it died")) == "RuntimeError ([Rank 0] it died)"


class WorkerHealthCheckFailedError(Exception):
    """Like Ray Train's."""

    def __init__(self, failure: BaseException) -> None:
        super().__init__(f"A worker health check failed.\nWorker info: ...\n{failure}")
        self.health_check_failure = failure


class WorkerHealthCheckTimeoutError(Exception):
    """Like Ray Train's."""


class ActorDiedError(Exception):
    """Like Ray's."""


DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: {}\n\tactor_id: 9f77\n\tpid: 16984\n"
    "\tip: 10.0.0.7\nThe actor is dead because its {} has died. Worker exit type: SYSTEM_ERROR"
)


def test_what_became_of_a_process_is_told() -> None:
    worker, node = (ActorDiedError(DIED.format("RayTrainWorker", what)) for what in ("worker process", "node"))
    follows = RuntimeError("Connection closed by peer")
    lost = GroupError({0: follows, 1: WorkerHealthCheckFailedError(worker), 2: follows})
    assert said(lost) == "rank 1 and 2 more: the process died on 10.0.0.7"
    assert (
        said(GroupError({4: WorkerHealthCheckFailedError(node)}))
        == "rank 4: the node of its process was lost on 10.0.0.7"
    )
    memory = RuntimeError("ray::...")
    memory.cause = ActorDiedError(DIED.format("Server", "worker process"))  # type: ignore[attr-defined]
    assert said(GroupError({0: memory})) == "rank 0: the process of the Server died on 10.0.0.7"
    text = "A worker health check has been hanging for 45.31 seconds. Marking the worker as dead.\nWorker info: x"
    stopped = GroupError({3: WorkerHealthCheckTimeoutError(text)})
    assert said(stopped) == "rank 3: it did not answer for 45 s: stopped, or its node cannot be reached"
