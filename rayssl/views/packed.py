"""The batches of a rank as they travel: each utterance's samples once, and where its segments begin in them.

Segments of an utterance may overlap (the global and local segments of DINO, or a segment and its 4 s reference), so
their union is shorter than their sum. A data task ships the union; the rank cuts the segments, on the device if it has
one. NumPy only: this file must not import torch or ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

INTEGERS = ("speaker", "recording", "label", "truth", "turn")  # int32 columns; ``id`` is int64
_TYPES: dict[str, Any] = {"id": np.int64, "pcm": np.int16, "ends": np.int64, "starts": np.int32}


@dataclass(frozen=True)
class Spans:
    """Which samples of utterances are shipped.

    ``parts[k]``: start and stop of each shipped part of utterance k, ascending and apart. ``lengths [n]``: how many
    samples they have together. ``starts [n, segments]``: where each segment begins in them.
    """

    parts: list[list[tuple[int, int]]]
    lengths: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray, sizes: Sequence[int], lengths: np.ndarray) -> Spans:
        """What is shipped for segments of ``sizes`` samples that begin at ``starts [n, segments]``.

        ``lengths [n]`` are those of the utterances. If one is shorter than a segment, it is shipped whole.
        """
        segment = np.array(sizes, np.int64)
        order = np.argsort(starts, axis=1, kind="stable")
        first = np.take_along_axis(starts, order, axis=1)
        last = np.maximum.accumulate(first + segment[order], axis=1)
        gaps = np.maximum(first[:, 1:] - last[:, :-1], 0)
        removed = first[:, :1] + np.concatenate([np.zeros_like(first[:, :1]), np.cumsum(gaps, axis=1)], axis=1)
        moved = np.empty_like(starts)
        np.put_along_axis(moved, order, first - removed, axis=1)
        whole = lengths < segment.max()
        moved[whole] = starts[whole]
        shipped = np.where(whole, lengths, last[:, -1] - removed[:, -1])
        parts: list[list[tuple[int, int]]] = []
        rows = (whole.tolist(), lengths.tolist(), first.tolist(), last.tolist(), gaps.tolist())
        for all_of_it, length, begins, stops, apart in zip(*rows, strict=True):
            if all_of_it:
                parts.append([(0, length)])
                continue
            found, begin = [], begins[0]
            for j, gap in enumerate(apart):
                if gap > 0:
                    found.append((begin, stops[j]))
                    begin = begins[j + 1]
            parts.append([*found, (begin, stops[-1])])
        return cls(parts, shipped, moved)


@dataclass(frozen=True)
class Packed:
    """Consecutive batches of one rank: ``steps`` from ``first_step`` of ``epoch``.

    ``columns``, by name, int64 ``[n]`` (id) and int32 ``[n]`` (speaker, recording, label, truth, turn), for n = steps *
    B utterances in the order of the batches. ``pcm``: int16, the shipped samples of one utterance after the other;
    ``ends [n]``: where each one ends. ``segments``: the length in samples of each segment, by name. ``starts [n,
    segments]``: where they begin in the utterance's samples.
    """

    epoch: int
    first_step: int
    steps: int
    rank: int
    fill: bool
    columns: dict[str, np.ndarray]
    pcm: np.ndarray
    ends: np.ndarray
    segments: dict[str, int]
    starts: np.ndarray

    def batches(self) -> Iterator[dict[str, Any]]:
        """Each batch as a dictionary, see `rayssl.views.reading.read`. The arrays are copies."""
        for part in self.split():
            raw = part.facts()
            bounds = np.concatenate([[0], part.ends]).tolist()
            for j, (name, size) in enumerate(part.segments.items()):
                cuts = np.empty((len(part.ends), size), np.int16)
                for row, start in enumerate(part.starts[:, j].tolist()):
                    _cut(part.pcm[bounds[row] : bounds[row + 1]], start, cuts[row])
                raw[name] = cuts
            yield raw

    def split(self) -> Iterator[Packed]:
        """Each batch alone, as views."""
        size = len(self.ends) // self.steps
        bounds = np.concatenate([[0], self.ends])
        for step in range(self.steps):
            rows = slice(step * size, (step + 1) * size)
            start, stop = int(bounds[rows.start]), int(bounds[rows.stop])
            yield Packed(
                self.epoch,
                self.first_step + step,
                1,
                self.rank,
                self.fill,
                {name: column[rows] for name, column in self.columns.items()},
                self.pcm[start:stop],
                self.ends[rows] - start,
                self.segments,
                self.starts[rows],
            )

    def facts(self) -> dict[str, Any]:
        """The entries of the batch that are no audio: epoch, step, rank, fill, and copies of the columns."""
        raw: dict[str, Any] = {"epoch": self.epoch, "step": self.first_step, "rank": self.rank, "fill": self.fill}
        return raw | {name: column.copy() for name, column in self.columns.items()}

    def table(self) -> pa.Table:
        """One row that holds everything, without a copy."""
        head = {name: getattr(self, name) for name in ("epoch", "first_step", "steps", "rank", "fill", "segments")}
        arrays = {**self.columns, "pcm": self.pcm, "ends": self.ends, "starts": self.starts}
        made = {name: _boxed(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return pa.table({"head": pa.array([json.dumps(head)]), **made})

    @classmethod
    def of(cls, table: pa.Table) -> Packed:
        """What `table` was made from, as views."""
        head = json.loads(table.column("head")[0].as_py())
        arrays = {name: _unboxed(table.column(name), name) for name in table.column_names if name != "head"}
        pcm, ends, starts = (arrays.pop(name) for name in ("pcm", "ends", "starts"))
        return cls(columns=arrays, pcm=pcm, ends=ends, starts=starts.reshape(len(ends), -1), **head)


def _cut(pcm: np.ndarray, start: int, out: np.ndarray) -> None:
    """Fills ``out`` from ``start`` of ``pcm``; after the last sample it goes on with the first one."""
    if start + len(out) <= len(pcm):
        out[:] = pcm[start : start + len(out)]
    else:
        out[:] = np.resize(np.concatenate((pcm[start:], pcm[:start])), len(out))


def _boxed(array: np.ndarray) -> pa.Array:
    """One binary value with the bytes of ``array``."""
    ends = np.array([0, array.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends), pa.py_buffer(array)])


def _unboxed(column: pa.ChunkedArray, name: str) -> np.ndarray:
    chunk = column.chunk(0)
    _, offsets, data = chunk.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2].tolist()
    return np.frombuffer(memoryview(data)[start:stop], _TYPES.get(name, np.int32))
