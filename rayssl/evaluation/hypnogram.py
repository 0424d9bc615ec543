"""What a hypnogram says of a night: sleep time, efficiency, latencies, wake after sleep onset (AASM's definitions)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayssl.data.sources.nights import EPOCH_S
from rayssl.schema import Config

Ints = NDArray[np.int64]

_EPOCH_MIN = EPOCH_S / 60


class SleepVariables(Config):
    """The variables of one hypnogram, in minutes; ``efficiency`` is a fraction in [0, 1]. Or differences of them.

    A variable that does not exist is None: the latencies and ``waso`` of a night without sleep, ``rem_latency`` of a
    night without REM.
    """

    tst: float | None
    efficiency: float | None
    latency: float | None
    waso: float | None
    rem_latency: float | None


class VariableError(Config):
    """How one sleep variable of all nights is off. Minutes; for ``efficiency`` fractions.

    ``nights``: those in which both hypnograms have the variable; the other figures are over them. ``bias``: the mean
    of predicted - scored. ``mae``: the mean of its absolute value. ``only_scored``, ``only_predicted``: the nights in
    which only one hypnogram has the variable.
    """

    name: str
    nights: int
    scored_mean: float | None
    predicted_mean: float | None
    bias: float | None
    mae: float | None
    only_scored: int
    only_predicted: int


VARIABLES = tuple(SleepVariables.model_fields)


def sleep_variables(stages: ArrayLike, index: ArrayLike, names: Sequence[str]) -> SleepVariables:
    """The variables of a hypnogram.

    ``stages [n]`` are in [0, C), at the positions ``index [n]``, rising; ``names [C]`` has "Wake" and "REM". Epochs
    that are missing or unscored are left out before, on both sides of a comparison. With epochs of half a minute:

    - ``tst``, total sleep time: half the number of epochs that are not Wake.
    - ``efficiency``: ``tst`` / recording time. Only the given epochs count as recording time.
    - ``latency``: from the beginning of the first epoch to the beginning of the first epoch of sleep (sleep onset), by
      ``index``. The first epoch stands for "lights off", which no source of nights gives.
    - ``waso``, wake after sleep onset: half the number of Wake epochs after sleep onset, *to the end of the
      recording*: AASM's recording time - latency - TST, which includes the time after the final awakening.
    - ``rem_latency``: from sleep onset to the beginning of the first REM epoch, by ``index``.

    Raises `ValueError` without epochs.
    """
    given, place = np.asarray(stages, np.int64), np.asarray(index, np.int64)
    if not len(given) or len(given) != len(place):
        raise ValueError(f"sleep variables need epochs with their indices, got {len(given)} and {len(place)}")
    asleep = given != names.index("Wake")
    tst = _EPOCH_MIN * int(asleep.sum())
    efficiency = tst / (_EPOCH_MIN * len(given))
    if not asleep.any():
        return SleepVariables(tst=tst, efficiency=efficiency, latency=None, waso=None, rem_latency=None)
    onset = int(asleep.argmax())
    rem = np.flatnonzero(given == names.index("REM"))
    return SleepVariables(
        tst=tst,
        efficiency=efficiency,
        latency=_EPOCH_MIN * int(place[onset] - place[0]),
        waso=_EPOCH_MIN * int((~asleep[onset:]).sum()),
        rem_latency=_EPOCH_MIN * int(place[rem[0]] - place[onset]) if len(rem) else None,
    )


def difference(predicted: SleepVariables, scored: SleepVariables) -> SleepVariables:
    """``predicted - scored`` of each variable; None where one of the two is None."""
    pairs = {name: (getattr(predicted, name), getattr(scored, name)) for name in VARIABLES}
    return SleepVariables(**{name: None if None in pair else pair[0] - pair[1] for name, pair in pairs.items()})


def variable_errors(scored: Sequence[SleepVariables], predicted: Sequence[SleepVariables]) -> list[VariableError]:
    """The errors of each variable over the nights, whose hypnograms are ``scored [M]`` and ``predicted [M]``."""
    found = []
    for name in VARIABLES:
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(scored, predicted, strict=True)]
        both = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
        gap = both[:, 1] - both[:, 0]
        found.append(
            VariableError(
                name=name,
                nights=len(both),
                scored_mean=float(both[:, 0].mean()) if len(both) else None,
                predicted_mean=float(both[:, 1].mean()) if len(both) else None,
                bias=float(gap.mean()) if len(both) else None,
                mae=float(np.abs(gap).mean()) if len(both) else None,
                only_scored=sum(a is not None and b is None for a, b in pairs),
                only_predicted=sum(a is None and b is not None for a, b in pairs),
            )
        )
    return found
