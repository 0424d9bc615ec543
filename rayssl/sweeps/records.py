"""What came of each trial: one small file in its run's folder, from which a sweep resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field

from rayssl import storage
from rayssl.errors import UserError
from rayssl.schema import Config, parse

FILE = "trial.json"


class Rung(Config):
    """After ``epoch`` epochs the metric was ``value``; ``figures``: all others; ``seconds``: since the rung before."""

    epoch: int = Field(ge=1)
    value: float
    seconds: float = 0.0
    figures: dict[str, float] = {}


class Taken(Config):
    """After ``epoch`` a trial of a population resumed from the checkpoint of trial ``source``; its point ``before``."""

    epoch: int
    source: int
    before: dict[str, Any]


class TrialRecord(Config):
    """A trial: its point, how far it has come, and why no further; ``passed``: the last rung after which it continued;
    ``taken``: where it became a copy of another one.
    """

    index: int = Field(ge=0)
    point: dict[str, Any]
    state: Literal["running", "stopped", "finished", "failed"] = "running"
    reason: str | None = None
    rungs: list[Rung] = []
    passed: int = 0
    taken: list[Taken] = []

    @property
    def epochs(self) -> int:
        """The epochs after which it was last judged, 0 before the first time."""
        return self.rungs[-1].epoch if self.rungs else 0

    @property
    def value(self) -> float | None:
        """The metric at that time."""
        return self.rungs[-1].value if self.rungs else None

    @property
    def seconds(self) -> float:
        """Of training and evaluation together, as far as it was judged."""
        return sum(rung.seconds for rung in self.rungs)

    def at(self, **changes: Any) -> TrialRecord:
        """The same with ``changes``."""
        return self.model_copy(update=changes)


def write(run: str, record: TrialRecord) -> None:
    """Writes the record into the run's folder, atomically."""
    storage.write_text(storage.join(run, FILE), json.dumps(record.model_dump(mode="json"), indent=1))


def read_all(sweep: str) -> dict[int, TrialRecord]:
    """The records of all trials of the sweep in the folder ``sweep``, by index, ascending.

    Raises `UserError` naming the file where one cannot be used.
    """
    found = {}
    for uri in storage.list_files(storage.join(sweep, "trials"), suffixes=(f"/{FILE}",)):
        try:
            tree = json.loads(storage.read_text(uri))
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise UserError(f"{uri}: not the record of a trial; delete the folder it is in to have it tried again")
        record = parse(TrialRecord, tree, uri)
        found[record.index] = record
    return dict(sorted(found.items()))


def better(one: float, other: float, mode: str) -> bool:
    """Whether ``one`` is better than ``other``."""
    return one < other if mode == "min" else one > other


def place(value: float, values: Iterable[float], mode: str) -> int:
    """The place of ``value`` among ``values``, from 1."""
    return 1 + sum(better(other, value, mode) for other in values)


def continues(value: float, values: Sequence[float], reduction: float, mode: str) -> bool:
    """Whether a trial with ``value`` at a rung is among the best 1/``reduction`` of ``values``, its own included."""
    return place(value, values, mode) <= max(1, math.floor(len(values) / reduction))


def ranked(records: Iterable[TrialRecord], mode: str) -> list[TrialRecord]:
    """The records, best first: those that trained longer before others, failed ones last."""
    sign = 1.0 if mode == "min" else -1.0

    def key(record: TrialRecord) -> tuple[bool, int, float, int]:
        value = math.inf if record.value is None else sign * record.value
        return record.state == "failed", -record.epochs, value, record.index

    return sorted(records, key=key)


def best(records: Iterable[TrialRecord], mode: str) -> TrialRecord | None:
    """The best of those that reached a rung and did not fail; None where there is none."""
    return next((each for each in ranked(records, mode) if each.rungs and each.state != "failed"), None)
