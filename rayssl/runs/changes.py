"""What may change when a run goes on. A run's record must name the settings that its weights have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rayssl import storage
from rayssl.errors import ConfigError
from rayssl.experiment.config import Experiment, located
from rayssl.runs.reading import read_run
from rayssl.schema import flatten

#: Keys, or their beginnings, that decide only how long, where and how visibly a run trains.
FREE = (
    *("run", "ray", "evaluation", "storage", "corpus.readers"),
    *("memory.shards", "memory.threads", "memory.cpus", "memory.memory_bytes", "memory.gpus"),
    *("training.epochs", "training.checkpoints", "training.log_every", "training.verify_every", "training.trackers"),
    "training.validate",  # it looks at copies of the weights
    "training.compile",  # as the machine does: it moves the last digits
)
_SHOWN = 8


class Change(NamedTuple):
    """A key that has another value from a step on. A value that is not set is None."""

    key: str
    before: Any
    after: Any


def changes(experiment: Experiment) -> list[Change]:
    """What ``experiment`` changes in the run that its folder holds; empty for a new run.

    Only keys count that decide what the weights become: not those of `FREE`. Raises `ConfigError` if the folder's
    ``config.yaml`` cannot be read.
    """
    if not storage.exists(storage.join(experiment.run, "config.yaml")):
        return []
    try:
        stored = read_run(experiment.run, [])
    except ConfigError as error:
        how = "use another run folder, or the rayssl that wrote it"
        raise ConfigError(f"{error}; what the run was trained with is not known: {how}") from None
    old, new = (flatten(each.model_dump(mode="json")) for each in (stored, experiment))
    # relative paths count from the folder in which the command runs
    old_places, new_places = (flatten(located(each).model_dump(mode="json")) for each in (stored, experiment))
    keys = [key for key in (*old, *(key for key in new if key not in old)) if not _under(key, FREE)]
    return [
        Change(key, old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key) and old_places.get(key) != new_places.get(key)
    ]


def refuse(run: str, found: Sequence[Change], allowed: Sequence[str], step: int) -> None:
    """Raises `ConfigError` for what is in ``found`` and not ``allowed``: keys, or their beginnings."""
    refused = [change for change in found if not _under(change.key, allowed)]
    if not refused:
        return
    listed = ", ".join(f"{key}: {_short(before)} -> {_short(after)}" for key, before, after in refused[:_SHOWN])
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    how = " ".join(f"--allow-change {change.key}" for change in refused[:_SHOWN])
    raise ConfigError(
        f"{run}: its {step} steps were trained with other settings ({listed}{more}); use another run folder, change "
        f"them back, or add {how}"
    )


def _under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in names)


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
