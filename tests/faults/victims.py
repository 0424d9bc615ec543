"""Faults of single processes: one of them is killed or stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.faults.processes import Process, titled
from tests.faults.trial import Missed, Trial

Cause = Callable[[Trial], str]  # does it, and says to what

# Titles of what may be killed. Ray writes a call into the title while it runs.
TITLES = {
    "worker": r"ray::RayTrainWorker(\.|$)",
    "memory-actor": r"ray::Server(\.|$)",
    "shard": r"ray::StoreServer(\.|$)",
    "controller": r"ray::TrainController(\.|$)",
    "data-task": r"ray::(MapBatches|_?[Rr]ead|_?prepare|_?convert|_?shard|_?pack)",
    "raylet": r"\S*/raylet/raylet ",
}
OF_VERBS = r"ray::(?!IDLE|\S*Agent|_StopSignal|_StatsActor|_Autoscaling|JobSupervisor|TrainController)"


def kill(pattern: str) -> Cause:
    """SIGKILL to a process with this title, chosen by chance."""
    return lambda trial: struck(trial, trial.victim(pattern, every_s=0.002), signal.SIGKILL)


def kill_early(pattern: str) -> Cause:
    """The same within two seconds after the first such process was seen: later there may be none."""

    def cause(trial: Trial) -> str:
        trial.victim(pattern, every_s=0.002)
        time.sleep(trial.random.uniform(0, 2.0))
        return kill(pattern)(trial)

    return cause


def kill_driver(trial: Trial) -> str:
    """SIGKILL to the command itself."""
    return struck(trial, trial.driver, signal.SIGKILL)


def stop(pattern: str) -> Cause:
    """SIGSTOP to a process with this title: it is alive, and does nothing any more."""
    return lambda trial: struck(trial, trial.victim(pattern), signal.SIGSTOP)


def struck(trial: Trial, victim: Process | None, which: signal.Signals) -> str:
    """Sends the signal, or raises `Missed`."""
    trial.mark_fault()
    if victim is None or not victim.signal(which):
        raise Missed("the process had ended before the signal came")
    return f"{victim.title.split()[0].rpartition('/')[2]} (pid {victim.pid})"


def any_of(trial: Trial, kinds: tuple[str, ...]) -> tuple[str, Process | None]:
    """One of the kinds of which there is a process now, chosen by chance, and the process."""
    found = trial.place.processes()
    there = {kind: titled(found, TITLES[kind]) for kind in kinds if kind != "driver"}
    choices = [kind for kind in kinds if kind == "driver" or there[kind]]
    kind = trial.random.choice(choices)
    return kind, trial.driver if kind == "driver" else trial.random.choice(there[kind])
