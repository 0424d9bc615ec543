"""Lines about how much of a corpus is embedded, with the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

Say = Callable[[str], None]
_SAY_EVERY_S = 10.0
_UNITS = ("shards", "utterances")


def silent(_line: str) -> None:
    """Says nothing."""


class Progress:
    """Lines of progress: at most one in ten seconds, and one at the end.

    ``rows`` of each of the ``shards``, of which ``missing`` are left to do. ``units``: what shards and rows are called.
    """

    def __init__(
        self, shards: int, rows: Sequence[int], missing: set[int], say: Say, units: Sequence[str] = _UNITS
    ) -> None:
        self.pieces, self.items = units
        self.shards, self.rows, self.say = shards, rows, say
        self.before = sum(count for k, count in enumerate(rows) if k not in missing)
        self.left, self.fresh = len(missing), 0
        self.started = self.said = time.monotonic()
        if self.before:
            say(f"{shards - len(missing)} of {shards} {self.pieces} were embedded before")

    def done(self, index: int) -> None:
        """Counts shard ``index``, whose file has been written."""
        self.left, self.fresh = self.left - 1, self.fresh + self.rows[index]
        now = time.monotonic()
        if self.left and now - self.said < _SAY_EVERY_S:
            return
        self.said = now
        pace = self.fresh / max(now - self.started, 1e-3)  # includes the start of Ray and its actors
        whole = sum(self.rows)
        line = f"{self.shards - self.left} of {self.shards} {self.pieces}, "
        line += f"{self.before + self.fresh} of {whole} {self.items}, {pace:.0f} {self.items}/s"
        left = round((whole - self.before - self.fresh) / pace)
        self.say(line + (f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if self.left else ""))
