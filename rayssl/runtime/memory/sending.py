"""Exchanges with the actors of a memory: of one rank, or of all ranks of a node, see `rayssl.runtime.memory.relay`.

Nothing here needs torch: a relay starts in a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from rayssl.memory.utterances.exchange import RecallArrays, Shares, write_request
from rayssl.memory.utterances.index import WriteRequest
from rayssl.memory.utterances.joining import for_ids
from rayssl.memory.utterances.positives import merge_nearest
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.memory.utterances.store import Answer, Message
from rayssl.runtime.memory.relay import Part
from rayssl.runtime.memory.rounds import get
from rayssl.runtime.memory.servers import Asked, Placed


class Sender:
    """The exchanges of the ranks of a node with one actor; see `rayssl.runtime.memory.relay`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, call: int, parts: Sequence[Part]) -> list[RecallArrays | None]:
        """The ``call``-th of them, from 1, of all ``parts``."""
        return get(self._actor.exchanges.remote(call, list(parts)))  # type: ignore[no-any-return]


class Exchanger:
    """The exchanges of one rank or of the ranks of a node, one after the other; see `rayssl.runtime.memory.relay`."""

    def __init__(self, settings: MemorySettings, index: Any, stores: list[Any]) -> None:
        self._settings = settings
        self._shares = Shares(settings, len(stores))
        self._index, self._stores = index, stores

    def __call__(self, call: int, parts: Sequence[Part]) -> list[RecallArrays | None]:
        """The ``call``-th of them, from 1, of all ``parts``."""
        requests = [[write_request(self._settings, each) for each in part.remember] for part in parts]
        asked = [Asked(part.rank, own, part.ids, part.epoch) for part, own in zip(parts, requests, strict=True)]
        placed: list[Placed] = get(self._index.exchanges.remote(call, asked))
        by_part = [self._messages(*each) for each in zip(parts, requests, placed, strict=True)]
        ranks = [part.rank for part in parts]
        sent = [
            store.exchanges.remote(call, list(zip(ranks, messages, strict=True)))
            for store, messages in zip(self._stores, zip(*by_part, strict=True), strict=True)
        ]
        answers = list(zip(*get(sent), strict=True))  # of each part, of each store
        pools = [pool for _, _, pool in placed if pool is not None]
        if pools:
            return self._nearest(parts, answers, pools[-1])
        return [
            None if draw is None else self._shares.recall(draw, own)
            for (_, draw, _), own in zip(placed, answers, strict=True)
        ]

    def _messages(self, part: Part, requests: list[WriteRequest], placed: Placed) -> list[tuple[Message, ...]]:
        """For each store, a message for each step of ``part``."""
        slots, draw, pool = placed
        queries = np.zeros(0, dtype=np.int64) if pool is None or part.ids is None else part.ids
        steps = list(zip(part.remember, requests, slots, strict=True))
        messages = [self._shares.messages(*each) for each in steps[:-1]]
        messages.append(self._shares.messages(*(steps[-1] if steps else ()), draw=draw, queries=queries))
        return list(zip(*messages, strict=True))

    def _nearest(
        self, parts: Sequence[Part], answers: Sequence[Sequence[Answer]], pool: np.ndarray
    ) -> list[RecallArrays | None]:
        """What is drawn among the nearest references of the anchors of all ``parts``."""
        asking = [(part.ids, own) for part, own in zip(parts, answers, strict=True) if part.ids is not None]
        rows = ray.put(np.concatenate([self._shares.queries(ids, own) for ids, own in asking]))
        present = ray.put(pool)
        found = get([store.nearest.remote(rows, present) for store in self._stores])

        def recalled(anchors: np.ndarray) -> RecallArrays:
            near = merge_nearest(found, len(anchors), self._settings.neighbours + 1)
            draw = get(self._index.choose.remote(anchors, parts[0].epoch, near))
            sent = zip(self._stores, self._shares.messages(draw=draw), strict=True)
            return self._shares.recall(draw, get([store.read.remote(message) for store, message in sent]))

        return for_ids([part.ids for part in parts], recalled)
