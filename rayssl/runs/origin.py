"""Records what exactly ran: the resolved configuration, the origin of each key, the commit and the versions."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rayssl import __version__, storage
from rayssl.experiment.config import Experiment
from rayssl.registry import outside_files
from rayssl.schema import Config, flatten, override

_PACKAGES = ("torch", "torchaudio", "ray", "faiss-cpu", "pyarrow", "s3fs", "numpy")


def origins(tree: dict[str, Any], overrides: list[str], config: Config) -> dict[str, str]:
    """Where the value of each dotted key of ``config`` comes from: ``file``, ``override`` or ``default``."""
    given = _leaves(tree)
    changed = {key for assignment in overrides for key in _leaves(override({}, [assignment]))}
    return {key: _origin(key, given, changed) for key in flatten(config.model_dump(mode="json"))}


def record(experiment: Experiment, where: dict[str, str], changes: Sequence[dict[str, Any]] = ()) -> None:
    """Writes ``config.yaml`` and ``origin.json``. Earlier starts of the same run stay in its list ``starts``.

    ``changes``: the keys that have another value from a step on (``step``, ``key``, ``before``, ``after``); they are
    added to the earlier ones in the list ``changes``.
    """
    path = storage.join(experiment.run, "origin.json")
    earlier = json.loads(storage.read_text(path)) if storage.exists(path) else {}
    starts = earlier.get("starts", [])
    starts.append({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "argv": sys.argv, "commit": commit()})
    origin = {
        **starts[-1],
        "seed": experiment.seed,
        "world_size": experiment.ray.most,
        "versions": versions(),
        "components": outside_files(experiment),
        "origins": where,
        "starts": starts,
        "changes": [*earlier.get("changes", []), *changes],
    }
    tree = experiment.model_dump(mode="json")
    storage.write_text(storage.join(experiment.run, "config.yaml"), yaml.safe_dump(tree, sort_keys=False))
    storage.write_text(path, json.dumps(origin, indent=1))


def versions() -> dict[str, str]:
    """The versions of Python, rayssl, and the packages that could change a result."""
    found = {"python": platform.python_version(), "rayssl": __version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the checkout that rayssl runs from, with ``+changes`` if it has any; None outside of git."""
    folder = Path(__file__).parent
    try:
        head, status = (
            subprocess.run(["git", *verb], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
            for verb in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _leaves(tree: dict[str, Any]) -> set[str]:
    """The dotted keys that have a value. An empty mapping is not a value."""
    return {key for key, value in flatten(tree).items() if value != {}}


def _origin(key: str, given: set[str], changed: set[str]) -> str:
    if any(key == name or key.startswith(name + ".") for name in changed):
        return "override"
    return "file" if any(key == name or key.startswith(name + ".") for name in given) else "default"
