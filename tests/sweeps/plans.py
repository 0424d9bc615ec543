"""A sweep over the small experiment, for tests that train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rayssl.sweeps.config import SweepPlan, read_plan
from tests.small_experiment import tree, write_config

SPACE: dict[str, Any] = {
    "method.clusters": {"choices": [4, 8, 16]},
    "method.over.temperature": {"low": 0.05, "high": 0.5, "log": True},
}


def sweep_tree(folder: Path, **changes: Any) -> dict[str, Any]:
    """A random search of four trials under ASHA with rungs after one and two of three epochs."""
    return {
        "sweep": str(folder / "sweep"),
        "base": "experiment.yaml",
        "space": SPACE,
        "trials": 4,
        "scheduler": {"name": "asha", "reduction": 2, "rungs": [1, 2]},
        "metric": "eer",
        "mode": "min",
        **changes,
    }


def write_sweep(folder: Path, **changes: Any) -> str:
    """The sweep and its base experiment as files in ``folder``; the path of the sweep's."""
    folder.mkdir(exist_ok=True)
    write_config(folder / "experiment.yaml", tree(str(folder)))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_tree(folder, **changes), sort_keys=False))
    return str(path)


def plan(folder: Path, *overrides: str, **changes: Any) -> SweepPlan:
    """That sweep, read."""
    return read_plan(write_sweep(folder, **changes), list(overrides))
