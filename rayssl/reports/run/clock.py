"""How long a run has trained: one answer for every page."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.reports.run.reading import Run, is_number

Floats = NDArray[np.float64]


def training_seconds(run: Run) -> float | None:
    """Seconds from the start of the training to its last logged step or epoch, without the pauses between restarts."""
    lines = [r for r in run.metrics if r.get("kind") in ("step", "epoch") and is_number(r.get("time"))]
    if not lines:
        return None
    return float(running_time(run, np.array([max(float(r["time"]) for r in lines)]))[0])


def running_time(run: Run, times: Floats) -> Floats:
    """The seconds ``[k]`` since the last start before the first line, without the pauses before later starts."""
    starts = run.origin.get("starts")
    given = (
        [_unix(start.get("time")) for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    )
    known = sorted(start for start in given if start is not None)
    every = sorted(float(r["time"]) for r in run.metrics if r.get("kind") != "probe" and is_number(r.get("time")))
    zero = max((start for start in known if start <= every[0]), default=every[0])
    seconds = times - zero
    for start in known:
        before = [time for time in every if time < start]
        if start > zero and before and start < every[-1]:
            seconds[times >= start] -= start - before[-1]
    return seconds


def duration(seconds: float) -> str:
    """``seconds`` for people: below three minutes in seconds, else in minutes, or hours and minutes."""
    if seconds < 180:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _unix(text: Any) -> float | None:
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
