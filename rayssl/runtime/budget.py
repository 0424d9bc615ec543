"""How often a training may fail: some times in a row, without a new checkpoint between; and what an error says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from rayssl.errors import UserError

# attributes of Ray's errors: the error inside
_INNER = ("cause", "base_exc", "health_check_failure", "controller_failure")
_SILENT = re.compile(r"hanging for ([\d.]+)\s+seconds")
_PLACE = re.compile(r"^\s*ip: (\S+)", re.MULTILINE)
_ACTOR = re.compile(r"^\s*class_name: (\w+)", re.MULTILINE)
_NODE = re.compile(r"node has died|node was (terminated|preempted)|node.* marked dead", re.IGNORECASE)
_WAITS_S = (0.0, 5.0, 15.0, 30.0, 60.0)  # before the first, second, ... attempt without progress; then the last one


class Budget:
    """Counts failures since the last new checkpoint.

    ``most``: how many are survived. ``newest`` gives the step of the last checkpoint; 0 without one.
    """

    def __init__(self, run: str, most: int, newest: Callable[[], int]) -> None:
        self._run, self._most, self._newest = run, most, newest
        self._step = newest()
        self._since: Counter[str] = Counter()

    def failed(self, error: BaseException) -> tuple[str, float | None]:
        """Takes a failure. Returns a line about it, and the seconds to wait before the next attempt; None: give up."""
        step = max(self._step, self._newest())
        if step > self._step:
            self._step = step
            self._since.clear()
        self._since[said(error)] += 1
        count = self._since.total()
        at = f"step {step}" if step else "the beginning"
        if count > self._most:
            what = "; ".join(f"{times} x {text}" for text, times in self._since.most_common())
            return f"{self._run}: gave up, {count} failures in a row since {at}: {what}", None
        wait = _WAITS_S[min(count, len(_WAITS_S)) - 1]
        later = f" in {wait:g} s" if wait else ""
        told = f"{said(error)}; resumes from the last checkpoint ({at}){later}, failure {count} of {self._most + 1}"
        return f"{self._run}: {told}", wait


def said(error: BaseException) -> str:
    """What failed, in one line: which rank, and what became of its process, or the innermost error's first line."""
    failures: Any = getattr(error, "worker_failures", None)
    where = ""
    if isinstance(failures, dict) and failures:
        # if a rank is gone, the others fail because of it
        rank, error = min(failures.items(), key=lambda item: (_gone(item[1]) is None, item[0]))
        others = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        where = f"rank {rank}{others}: "
    seen = set[int]()
    while id(error) not in seen:
        gone = _gone(error)
        if gone is not None:
            return where + gone
        seen.add(id(error))
        error = next((inner for inner in (getattr(error, name, None) for name in _INNER) if inner is not None), error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Ray begins some messages with a title that says nothing
    told = next((line for line in lines if not line.lower().startswith(("worker errors", "traceback"))), "")
    return f"{where}{type(error).__name__}" + (f" ({told[:160]})" if told else "")


def _gone(error: BaseException) -> str | None:
    """What became of the process of a worker or an actor, if ``error`` says that it is gone."""
    kind, text = type(error).__name__, str(error)
    if kind == "WorkerHealthCheckTimeoutError":
        found = _SILENT.search(text)
        return (
            f"it did not answer for {float(found[1]):.0f} s: stopped, or its node cannot be reached" if found else None
        )
    if "ActorDiedError" not in kind and "died unexpectedly" not in text:
        return None
    place = _PLACE.search(text)
    whose = "" if (actor := _ACTOR.search(text)) is None or actor[1] == "RayTrainWorker" else f" of the {actor[1]}"
    at = f" on {place[1]}" if place else ""
    return f"the node of its process{whose} was lost{at}" if _NODE.search(text) else f"the process{whose} died{at}"


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` inside an error that Ray wrapped, or None."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        inner = getattr(current, "cause", None)  # of Ray's error, whose type is a subclass of the one that it wraps
        if isinstance(current, UserError) and inner is None:
            return type(current)(first_line(current))  # Ray Data appends its own advice
        queue += [inner, current.__cause__, current.__context__]
        failures = getattr(current, "worker_failures", None)
        queue += list(failures.values()) if isinstance(failures, dict) else []
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error that says something; its type, if none does."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
