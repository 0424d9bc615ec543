"""Runs of a results table: trained and evaluated where that has not been done, by the commands a user would type."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rayssl import storage

CONFIGS = Path(__file__).parents[2] / "configs"


def result(
    run: str, config: str, seed: int, overrides: Sequence[str] = (), which: str = "last", *, here: bool = False
) -> Any:
    """What `rayssl evaluate` wrote of the checkpoint ``which``; a run that was interrupted resumes.

    ``here``: with ``--local``, in one process of one thread without Ray.
    """
    place = storage.join(run, "evaluation", *([] if which == "last" else [which]), "result.json")
    if not storage.exists(place):
        say, how = str(Path(sys.executable).with_name("rayssl")), ["--local"] if here else []
        env = {**os.environ, "OMP_NUM_THREADS": "1"} if here else None
        train = ["train", str(CONFIGS / config), f"run={run}", f"seed={seed}", *overrides]
        for verb in (train, ["evaluate", run, "--checkpoint", which]):
            subprocess.run([say, *verb, *how], check=True, env=env)
    return json.loads(storage.read_text(place))


def cell(values: Iterable[float | None], scale: float = 1.0, digits: int = 0) -> str:
    """Mean and standard deviation of those that are known, for a column of a Markdown table."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{spread}"
