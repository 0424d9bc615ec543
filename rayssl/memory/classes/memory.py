"""The memory of DASO: one queue of features for each class, their means, and the histogram of past pseudo-labels.

Oh, Kim and Kweon, CVPR 2022. The queues of all classes have the same length, so that rare classes have prototypes as
good as those of common ones, only of older features. A contrastive loss can have the newest rows of the queues
themselves: as many of a rare class as of a common one, though a batch may have no row of the rare class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.classes.windows import Windows
from rayssl.memory.pieces import Piece, Read, check_array, cuts

_QUEUES = ("rows", "pushed", "rejected")  # attributes of ClassMemory whose first axis is its classes


@dataclass(frozen=True)
class ClassRememberArrays:
    """What one step, or a part of its batch, leaves behind.

    ``step`` from 0; ``features [B, D]`` float32 of labelled rows, not normalised, or None; ``labels [B]`` int, theirs;
    ``counts [C]`` int64: how often each class was the pseudo-label of an unlabelled row, or None.
    """

    step: int
    features: np.ndarray | None
    labels: np.ndarray
    counts: np.ndarray | None = None


@dataclass(frozen=True)
class ClassRecallArrays:
    """``prototypes [n, D]`` float32 of the n classes of a part (zero where not present), ``present [n]`` bool,
    ``histogram [C]`` int64 of all classes.

    ``rows [n, A, D]`` float32: the newest A rows of each class, the newest first, as they were given. The first
    ``filled [n]`` (int64, 0..A) of a class are valid, and the others are zero.
    """

    prototypes: np.ndarray
    present: np.ndarray
    histogram: np.ndarray
    rows: np.ndarray
    filled: np.ndarray


class ClassMemory:
    """Queues of the last ``length`` features of each of ``classes`` C, and their pseudo-labels in `Windows` of
    ``window`` steps.

    A memory may have several parts. A part holds the classes ``first`` to ``last - 1`` (default: all), 4 (last - first)
    length dim bytes, and passes over rows of other classes. All parts get all calls, and each keeps the whole
    histogram. Cut as `rayssl.memory.pieces.limits` says, parts write the same pieces whatever their number.
    """

    def __init__(self, settings: ClassSettings, *, first: int = 0, last: int | None = None) -> None:
        classes, dim, length = settings.classes, settings.dim, settings.length
        self.classes, self.dim, self.length, self.anchors = classes, dim, length, settings.anchors
        self.first, self.last = first, classes if last is None else last
        if not 0 <= self.first <= self.last <= classes:
            raise ValueError(f"classes {self.first}..{self.last} are no part of 0..{classes}")
        own = self.last - self.first
        self.windows = Windows(classes, settings.window)
        self.rows = np.zeros((own, length, dim), dtype=np.float32)
        self.pushed = np.zeros(own, dtype=np.int64)  # of each class so far; the next goes to slot pushed % length
        self.rejected = np.zeros(own, dtype=np.int64)
        self._means = np.zeros((own, dim), dtype=np.float32)
        self._changed = np.zeros(own, dtype=bool)  # classes whose mean has to be computed again

    def remember(self, what: ClassRememberArrays) -> None:
        """Stores rows, in order, and counts. Calls for the parts of a batch, in order, equal one call for all.

        Rows with a value that is not finite are skipped, and counted in the metrics. Raises ValueError, changing
        nothing, for labels of no class, shapes that do not fit, and negative steps or counts.
        """
        labels, counts = self._checked(what)
        self.windows.add(what.step, counts)
        if what.features is not None:
            own = (labels >= self.first) & (labels < self.last)
            self._push(labels[own] - self.first, np.asarray(what.features)[own])

    def recall(self, step: int) -> ClassRecallArrays:
        """The prototypes by the rows there are now, and the histogram of the last window closed before ``step``'s own.

        A prototype is the mean of its class's queue, in float64 and then float32. Not ``present`` are classes without
        rows, and one whose mean is zero, which has no direction (its rows are handed out all the same). Raises
        ValueError for a negative step.
        """
        histogram = self.windows.before(step)
        for own in np.flatnonzero(self._changed):  # one queue at a time: the same sum in any part
            self._means[own] = self.rows[own, : self.pushed[own]].mean(axis=0, dtype=np.float64)
        self._changed[:] = False
        rows, filled = self._newest()
        return ClassRecallArrays(
            prototypes=self._means.copy(),
            present=np.asarray(self._means.any(axis=1)),
            histogram=histogram,
            rows=rows,
            filled=filled,
        )

    def metrics(self, reset: bool = True) -> dict[str, float]:
        """Figures of this part's classes; ``reset`` sets the counters to 0.

        prototypes_filled: share of classes with any row; queue_fill: 0..1, of all places; rejected: rows that were not
        finite; dropped: pseudo-labels that came too late for their window (the same in all parts).
        """
        sizes, classes = np.minimum(self.pushed, self.length), max(1, len(self.pushed))
        result = {
            "prototypes_filled": float(np.count_nonzero(sizes) / classes),
            "queue_fill": float(sizes.sum() / (classes * self.length)),
            "rejected": float(self.rejected.sum()),
            "dropped": float(self.windows.dropped),
        }
        if reset:
            self.rejected[:] = 0
            self.windows.dropped = 0
        return result

    def _newest(self) -> tuple[np.ndarray, np.ndarray]:
        """The newest A rows of each class, copied, the newest first: ``[n, A, D]``; how many are valid: ``[n]``."""
        filled, ages = np.minimum(self.pushed, self.anchors), np.arange(self.anchors)
        slots = (self.pushed[:, None] - 1 - ages) % self.length
        rows = self.rows[np.arange(len(slots))[:, None], slots]
        rows[ages >= filled[:, None]] = 0
        return rows, filled

    def _checked(self, what: ClassRememberArrays) -> tuple[np.ndarray, np.ndarray | None]:
        """The labels as int64, and the counts, if everything can be stored."""
        labels, counts = np.asarray(what.labels), what.counts
        if labels.ndim != 1 or (len(labels) and not np.issubdtype(labels.dtype, np.integer)):
            raise ValueError(f"labels must be integers [B], got {labels.dtype} {labels.shape}")
        wrong = labels[(labels < 0) | (labels >= self.classes)]
        if len(wrong):
            raise ValueError(f"labels must lie in 0..{self.classes - 1}, got {wrong[0]}")
        if what.features is not None and np.shape(what.features) != (len(labels), self.dim):
            raise ValueError(f"features have shape {np.shape(what.features)}, expected {(len(labels), self.dim)}")
        if counts is not None:
            counts = np.asarray(counts)
            if counts.shape != (self.classes,) or not np.issubdtype(counts.dtype, np.integer):
                raise ValueError(f"counts must be integers {(self.classes,)}, got {counts.dtype} {counts.shape}")
            if (counts < 0).any():
                raise ValueError(f"counts must not be negative, got {counts.min()}")
            counts = counts.astype(np.int64)
        return labels.astype(np.int64), counts

    def _push(self, own: np.ndarray, features: np.ndarray) -> None:
        """Puts ``features [B, D]`` into the queues of ``own [B]``, classes counted from the first of this part."""
        finite = (np.abs(features) <= np.finfo(np.float32).max).all(axis=1)
        self.rejected += np.bincount(own[~finite], minlength=len(self.rejected))
        order = np.flatnonzero(finite)
        order = order[np.argsort(own[order], kind="stable")]
        into = own[order]
        pushed = np.bincount(into, minlength=len(self.pushed))
        nth = np.arange(len(order)) - (np.cumsum(pushed) - pushed)[into]  # of its class in this call
        slots = (self.pushed[into] + nth) % self.length
        stays = nth >= pushed[into] - self.length  # the others would be overwritten by the last of this call
        self.rows[into[stays], slots[stays]] = features[order[stays]]
        self.pushed += pushed
        self._changed |= pushed > 0

    # ---- state

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that later calls depend on, copied; of the queues those of this part."""
        queues = {f"classes.{name}": getattr(self, name).copy() for name in _QUEUES}
        return queues | {name: array.copy() for name, array in self.windows.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Continues exactly where ``state_dict`` was taken. Raises ValueError, changing nothing, if it does not fit."""
        index = {name: array for name, array in state.items() if not name.startswith("classes.")}
        queues = {name.removeprefix("classes."): array for name, array in state.items() if name not in index}
        self.restore(index, lambda kind, first, end: [Piece(kind, first, first, end, queues)])

    def snapshot(self) -> Iterator[Piece]:
        """The state of this part as it is now, copied, a piece at a time.

        The piece "index", the windows, is of the part with class 0. Pieces of classes are numbered by their first.
        """
        made = []
        if self.first == 0 < self.last:
            windows = {name: array.copy() for name, array in self.windows.state_dict().items()}
            made.append(Piece("index", 0, 0, 0, windows))
        bounds = np.unique(np.clip(cuts(self.classes), self.first, self.last)).tolist()
        for first, end in pairwise(bounds):
            own = slice(first - self.first, end - self.first)
            queues = {name: getattr(self, name)[own].copy() for name in _QUEUES}
            made.append(Piece("classes", first, first, end, queues))
        return iter(made)

    def restore(self, index: Mapping[str, np.ndarray], read: Read) -> None:
        """Continues where a `snapshot` was taken, by any number of parts: ``index`` are the arrays of that piece.

        Raises ValueError, changing nothing, if they do not fit or some are missing. Meanwhile both the old and
        the new arrays are held.
        """
        self.windows.check(index)
        staged = self._staged(read("classes", self.first, self.last))
        self.windows.load_state_dict(index)
        for name, array in staged.items():
            setattr(self, name, array)
        self._means[:] = 0
        self._changed = self.pushed > 0

    def _staged(self, pieces: Iterable[Piece]) -> dict[str, np.ndarray]:
        """The queues of this part, by the names of their arrays."""
        staged = {name: np.zeros_like(getattr(self, name)) for name in _QUEUES}
        found = np.zeros(len(self.pushed), dtype=bool)
        for piece in pieces:
            if piece.arrays.keys() != staged.keys():
                raise ValueError(f"memory state: classes have {sorted(piece.arrays)}, expected {sorted(staged)}")
            begin, end = max(self.first, piece.first), min(self.last, piece.end)
            if begin >= end:
                continue
            for name, own in staged.items():
                given = piece.arrays[name]
                check_array(f"classes.{name}", given, own.dtype, (piece.end - piece.first, *own.shape[1:]))
                own[begin - self.first : end - self.first] = given[begin - piece.first : end - piece.first]
            found[begin - self.first : end - self.first] = True
        if not found.all():
            raise ValueError(f"memory state: nothing of class {self.first + int(np.argmin(found))}")
        for name in ("pushed", "rejected"):
            if (staged[name] < 0).any():
                raise ValueError(f"memory state: 'classes.{name}' has a negative number")
        return staged
