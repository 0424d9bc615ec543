"""The events of a run and of a preparation.

A process that has no terminal prints them as marked lines; the driver decodes these.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

MARK = "\x1erayssl "  # a control character, so that nobody else's line begins so


@dataclass(frozen=True)
class Line:
    """``text``: one line for a person."""

    text: str
    name: ClassVar[str] = "line"


@dataclass(frozen=True)
class Phase:
    """Something else than training steps took ``seconds``; ``what`` says what was done, as "started Ray"."""

    what: str
    seconds: float
    name: ClassVar[str] = "phase"


@dataclass(frozen=True)
class Stepped:
    """``step`` of ``steps`` optimiser steps are done, in ``epoch`` (from 1) of ``epochs``.

    ``loss`` is the mean since the last event that has one; None: not known now. ``utterances_per_s`` of all ranks,
    ``waiting``: the share of the time, 0 to 1, that was spent waiting for data.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None = None
    utterances_per_s: float | None = None
    waiting: float | None = None
    name: ClassVar[str] = "step"


@dataclass(frozen=True)
class Filling:
    """Before ``epoch`` a pass fills the memory: ``done`` of ``total`` utterances."""

    epoch: int
    done: int
    total: int
    name: ClassVar[str] = "filling"


@dataclass(frozen=True)
class Trained:
    """``epoch`` (from 1) of ``epochs`` has ended after ``seconds``, with the means of its ``figures``."""

    epoch: int
    epochs: int
    step: int
    steps: int
    seconds: float
    figures: dict[str, float]
    name: ClassVar[str] = "epoch"


@dataclass(frozen=True)
class Preparing:
    """The work ``what`` on a ``corpus`` ("listing", "planning", "examining", "preparing"): ``done`` of ``total`` of
    ``unit`` ("utterances", "recordings", "nights").

    ``total`` is None while it is not known. ``hours`` of audio so far, None: not known; ``rejected`` of ``done``.
    """

    what: str
    corpus: str
    done: int
    total: int | None
    unit: str
    hours: float | None = None
    rejected: int = 0
    name: ClassVar[str] = "preparing"


Event: TypeAlias = Line | Phase | Stepped | Filling | Trained | Preparing
_KINDS: dict[str, type[Any]] = {kind.name: kind for kind in (Line, Phase, Stepped, Filling, Trained, Preparing)}


def encode(event: Event) -> str:
    """``event`` as one line, which `decode` reads."""
    return MARK + json.dumps(as_dict(event))


def as_dict(event: Event) -> dict[str, Any]:
    """``event`` as JSON holds it, with its kind as ``event``."""
    return {"event": event.name, **asdict(event)}


def decode(line: str) -> Event | None:
    """The event that `encode` wrote as ``line``; None if the line is anything else."""
    if not line.startswith(MARK):
        return None
    try:
        fields = json.loads(line.removeprefix(MARK))
        return _KINDS[fields.pop("event")](**fields)  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, AttributeError):  # cut off, or of another version
        return None


def text_of(event: Event) -> str | None:
    """The line of an event that is one; None for what a screen shows in another way."""
    if isinstance(event, Line):
        return event.text
    return f"{event.what} in {event.seconds:.1f} s" if isinstance(event, Phase) else None
