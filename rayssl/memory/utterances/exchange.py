"""One call of one rank, between an index and one or more stores: which rows go where, and how answers are joined.

The order is: `write_request` to the index; its slots and its draw make one `Message` for each store; their answers are
joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayssl.memory.pieces import limits
from rayssl.memory.utterances.index import Draw, WriteRequest
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.store import Answer, Message

_NO_IDS = np.zeros(0, dtype=np.int64)
_NOTHING = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class RecallArrays:
    """What B anchors are given: ``rows [B, De]`` float32 (zero where not found), ``found [B]`` bool, ``ids [B]`` int64.

    ``ids`` is the sampled utterance, -1 where there is none (not found, or the row is a centroid).
    """

    rows: np.ndarray
    found: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True)
class RememberArrays:
    """What B utterances leave behind; anything but the ids may be absent.

    ``ids [B]`` int64; ``references [B, Dr]`` and ``positives [B, De]`` float32; ``speakers, recordings [B]`` int32 with
    -1 for unknown, used for metrics and by the sampling "speaker" only.
    """

    ids: np.ndarray
    references: np.ndarray | None = None
    positives: np.ndarray | None = None
    speakers: np.ndarray | None = None
    recordings: np.ndarray | None = None


def write_request(settings: MemorySettings, what: RememberArrays) -> WriteRequest:
    """``what`` without its rows, for the index.

    Rows that are not finite are marked as missing, because one of them would spoil a whole clustering; so are positives
    too large for the precision they are kept in. Raises ValueError for rows of a wrong shape.
    """
    references = positives = None
    if what.references is not None:
        references = _storable(what.ids, what.references, settings.reference_dim, "references", "float32")
    if what.positives is not None:
        positives = _storable(what.ids, what.positives, settings.positive_dim, "positives", settings.positive_dtype)
    return WriteRequest(what.ids, what.speakers, what.recordings, references, positives)


def _storable(ids: np.ndarray, rows: np.ndarray, width: int, name: str, dtype: str) -> np.ndarray:
    if rows.shape != (len(ids), width):
        raise ValueError(f"{name} have shape {rows.shape}, expected {(len(ids), width)}")
    storable: np.ndarray = (np.abs(rows) <= np.finfo(dtype).max).all(axis=1)
    return storable


class Shares:
    """Which of ``shards`` stores holds what: the messages to them, and their answers put together."""

    def __init__(self, settings: MemorySettings, shards: int) -> None:
        self._settings = settings
        self._ids, self._slots = limits(settings.utterances, shards), limits(settings.capacity, shards)

    def messages(
        self,
        what: RememberArrays | None = None,
        request: WriteRequest | None = None,
        placed: np.ndarray | None = None,
        *,
        draw: Draw | None = None,
        queries: np.ndarray = _NO_IDS,
    ) -> list[Message]:
        """One for each store: rows of ``what`` to keep, what ``draw`` has sampled, references of ``queries [A]``.

        ``request`` says which references are kept, ``placed [B]``, the slots from the index, which positives.
        """
        references = positives = (_NO_IDS, _NOTHING)
        slots = read = expected = _NO_IDS
        if what is not None and request is not None and what.references is not None:
            references = what.ids[request.references], what.references[request.references]
        if what is not None and placed is not None and what.positives is not None:
            kept = placed >= 0
            slots, positives = placed[kept], (what.ids[kept], what.positives[kept])
        if draw is not None:
            wanted = draw.slots >= 0
            read, expected = draw.slots[wanted], draw.ids[wanted]
        parts = zip(
            _divided(self._ids, *references),
            _divided(self._slots, slots, *positives),
            _divided(self._slots, read, expected),
            _divided(self._ids, queries),
            strict=True,
        )
        return [Message(*(array for part in of_store for array in part)) for of_store in parts]

    def recall(self, draw: Draw, answers: Sequence[Answer]) -> RecallArrays:
        """What was drawn, with the rows of the stores. Where a row is not the expected one, nothing is found."""
        if draw.rows is not None:
            return RecallArrays(draw.rows, draw.found, draw.ids)
        found, ids = draw.found.copy(), draw.ids.copy()
        rows = np.zeros((len(found), self._settings.positive_dim), dtype=np.float32)
        wanted = np.flatnonzero(draw.slots >= 0)
        for (_, own), answer in zip(_divided(self._slots, draw.slots[wanted], wanted), answers, strict=True):
            rows[own[answer.right]] = answer.rows[answer.right]
            lost = own[~answer.right]
            found[lost], ids[lost] = False, -1
        return RecallArrays(rows, found, ids)

    def queries(self, ids: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
        """The references ``[A, Dr]`` of ``ids [A]``, from what the stores answered."""
        rows = np.zeros((len(ids), self._settings.reference_dim), dtype=np.float32)
        for (_, own), answer in zip(_divided(self._ids, ids, np.arange(len(ids))), answers, strict=True):
            rows[own] = answer.queries
        return rows


def _divided(limits: np.ndarray, keys: np.ndarray, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """``keys [n]``, ids or slots, and arrays ``[n, ...]`` beside them, for each store its own, in the given order."""
    if len(limits) == 2:
        return [(keys, *arrays)]
    owner = np.searchsorted(limits, keys, side="right") - 1  # a store without any has the limits of the next
    chosen = [np.flatnonzero(owner == shard) for shard in range(len(limits) - 1)]
    return [tuple(array[own] for array in (keys, *arrays)) for own in chosen]
