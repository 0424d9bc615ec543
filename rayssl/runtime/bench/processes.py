"""CPU seconds of processes, and how they are divided among kinds of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import psutil

Key = tuple[str, int, float]  # the node, the process, and when it started: numbers of processes come again
Seconds = dict[Key, tuple[str, float]]  # the title of each process, and its CPU seconds so far


def seconds(processes: Iterable[psutil.Process], node: str = "") -> Seconds:
    """The CPU seconds, user and system, of ``processes`` on ``node``. Processes that have ended are left out."""
    found: Seconds = {}
    for process in processes:
        try:
            times = process.cpu_times()
            title = " ".join(process.cmdline())
            found[node, process.pid, process.create_time()] = (title, times.user + times.system)
        except psutil.Error:
            continue
    return found


def own() -> list[psutil.Process]:
    """This process and all below it."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def of_raylet() -> list[psutil.Process]:
    """The raylet above this process, which must be a worker of Ray, and all processes below it."""
    for process in psutil.Process().parents():
        if "raylet" in process.name():
            return [process, *process.children(recursive=True)]
    return [psutil.Process(os.getppid())]


def spent(before: Seconds, after: Seconds, kind: Callable[[Key, str], str]) -> dict[str, float]:
    """The seconds between two calls of `seconds` by the kind of process. What ended in between is left out."""
    found: dict[str, float] = {}
    for key, (title, total) in after.items():
        name = kind(key, title)
        found[name] = found.get(name, 0.0) + total - before.get(key, ("", 0.0))[1]
    return found
