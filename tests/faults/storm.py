"""Many kills in one run: of random processes, with a new checkpoint before each of them."""

from __future__ import annotations

import signal
import time
from collections import Counter

from rayssl.training import checkpoint
from tests.faults.trial import Trial
from tests.faults.victims import any_of

VICTIMS = ("worker", "memory-actor", "controller", "data-task", "raylet", "driver")
_WAIT_S = 2.0  # the longest wait between a new checkpoint and the kill


def storm(trial: Trial) -> str:
    """Kills ``trial.kills`` times. A command that has failed is given again."""
    counts: Counter[str] = Counter()
    newest = 0
    for _ in range(trial.kills):
        newest = _progress(trial, newest)
        if newest < 0:
            break
        time.sleep(trial.random.uniform(0, _WAIT_S))
        kind, victim = any_of(trial, VICTIMS)
        if victim is not None and victim.signal(signal.SIGKILL):
            counts[kind] += 1
            newest = max(checkpoint.steps(trial.run))
    trial.killed = counts.total()
    return ", ".join(f"{count} x {kind}" for kind, count in counts.most_common())


def _progress(trial: Trial, newest: int) -> int:
    """Waits for a checkpoint after ``newest``; returns its step, or -1 if the run has ended well."""
    while True:
        status = trial.status()
        if status == 0:
            return -1
        if status is not None:
            trial.statuses.append(status)
            trial.command()
        found = max(checkpoint.steps(trial.run), default=0)
        if found > newest and status is None:
            return found
        time.sleep(0.05)
