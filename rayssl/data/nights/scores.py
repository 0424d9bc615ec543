"""What a model says of the epochs of a night, and the table of many such nights (``stages.parquet``).

The table has a row for each epoch: ``night``, ``subject``, ``index`` int32, ``truth`` int8 (-1: unscored) and
``predicted`` int8, and after them a float32 column of probabilities for each stage, named by the stage in lower case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayssl.data.sources.nights import STAGES, UNSCORED
from rayssl.errors import CorpusError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

COLUMNS = ("night", "subject", "index", "truth", "predicted")


@dataclass(frozen=True)
class NightScores:
    """A night of n epochs (30 s each) with the probabilities of C stages.

    ``index`` int64 ``[n]`` rises: the epoch's position in the night. Where it jumps, epochs are missing. ``truth``
    int64 ``[n]``: the scored stage in [0, C), or `UNSCORED`. ``probabilities`` float32 ``[n, C]``: rows sum to 1.

    Raises `ValueError` that names the night if shapes do not fit or values are out of range.
    """

    name: str
    subject: str
    index: Ints
    truth: Ints
    probabilities: Floats

    def __post_init__(self) -> None:
        shape = np.shape(self.probabilities)
        if len(shape) != 2 or not len(self.index) == len(self.truth) == shape[0]:
            raise ValueError(
                f"night {self.name}: {len(self.index)} indices, {len(self.truth)} stages, probabilities {list(shape)}"
            )
        if len(self.index) and (self.index[0] < 0 or (np.diff(self.index) <= 0).any()):
            raise ValueError(f"night {self.name}: the indices of its epochs do not rise from 0 or later")
        if not np.isfinite(self.probabilities).all():
            raise ValueError(f"night {self.name}: some probabilities are NaN or infinite")
        if len(self.truth) and (self.truth.min() < UNSCORED or self.truth.max() >= shape[1]):
            raise ValueError(f"night {self.name}: stages must lie in 0..{shape[1] - 1}, or be {UNSCORED} for unscored")

    @property
    def predicted(self) -> Ints:
        """The most probable stage of each epoch, int64 ``[n]``; of equal ones the first."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)


def consecutive_runs(index: Ints) -> list[tuple[int, int]]:
    """The runs of consecutive epochs in ``index [n]``: the first row of each, and the row after its last."""
    if not len(index):
        return []
    edges = [0, *(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    return list(pairwise(edges))


def write_stages(nights: Sequence[NightScores], names: Sequence[str] = STAGES) -> pa.Table:
    """The table of ``nights`` with the stages ``names [C]``. Raises `ValueError` if a night has other than C stages."""
    for night in nights:
        if night.probabilities.shape[1] != len(names):
            raise ValueError(f"night {night.name}: {night.probabilities.shape[1]} probabilities, {len(names)} stages")
    counts = [len(night.index) for night in nights]

    def column(values: list[np.ndarray], kind: pa.DataType) -> pa.Array:
        return pa.array(np.concatenate(values) if values else np.zeros(0), kind)

    columns = {
        "night": pa.array(np.repeat([night.name for night in nights], counts).tolist(), pa.string()),
        "subject": pa.array(np.repeat([night.subject for night in nights], counts).tolist(), pa.string()),
        "index": column([night.index for night in nights], pa.int32()),
        "truth": column([night.truth for night in nights], pa.int8()),
        "predicted": column([night.predicted for night in nights], pa.int8()),
    }
    for place, name in enumerate(names):
        columns[name.lower()] = column([night.probabilities[:, place] for night in nights], pa.float32())
    return pa.table(columns)


def read_stages(table: pa.Table) -> list[NightScores]:
    """The nights of a table that `write_stages` made, in the order of their first rows; rows sorted by ``index``.

    Raises `CorpusError` if columns are missing or values cannot be used.
    """
    stages = [name for name in table.column_names if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing or not stages:
        raise CorpusError(
            f"a table of stages lacks {', '.join(missing) or 'probabilities'}; run 'rayssl evaluate' again to write it"
        )
    nights, first, row = np.unique(np.array(table["night"].to_pylist(), object), return_index=True, return_inverse=True)
    index, truth = (np.asarray(table[name].to_numpy(), np.int64) for name in ("index", "truth"))
    rows = np.stack([np.asarray(table[name].to_numpy(), np.float32) for name in stages], axis=1)
    order = np.lexsort((index, row))
    bounds = np.searchsorted(row[order], np.arange(len(nights) + 1))
    found = []
    for place in np.argsort(first):
        mine = order[bounds[place] : bounds[place + 1]]
        subject = str(table["subject"][int(mine[0])].as_py())
        try:
            found.append(NightScores(str(nights[place]), subject, index[mine], truth[mine], rows[mine]))
        except ValueError as error:
            raise CorpusError(f"a table of stages cannot be used: {error}") from error
    return found
