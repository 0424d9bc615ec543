"""Fingerprints of audio that stay nearly the same under another codec, rate or level.

After Haitsma and Kalker, A highly robust audio fingerprinting system (ISMIR 2002). With E[n, m] the log energy of frame
n in band m, bit m of the code of frame n is 1 if

    d[n, m] = (E[n, m] - E[n, m + 1]) - (E[n - 4, m] - E[n - 4, m + 1]) > 0.

Here frames have 256 ms and begin every 32 ms, and 25 bands from 300 to 3,400 Hz give 24 bits. Every second code of a
segment is kept: two segments are compared by the share of different bits (`agreement`). To find candidates, the 32
frames whose smallest abs(d) are largest are kept as keys: their codes hardly change, so they are looked up whole.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

FRAME, HOP = 4096, 512  # samples at 16 kHz
_BITS = 24
_LAG = 4  # frames
_EDGES = np.round(np.geomspace(300, 3400, _BITS + 2) * FRAME / 16000).astype(int)
_KEYS, _APART = 32, 3  # keys of a segment, and frames between two of them
_PARTS, _MOST_BITS = 5, 0.3  # see `agreement`
_BATCH = 64  # frames that are transformed at a time


class Print(NamedTuple):
    """The fingerprint of a segment.

    ``codes``: uint32 ``[N]``, of every second frame. ``keys``: uint32 ``[K]``, the most reliable codes. ``frames``:
    uint16 ``[K]``, the frame of each, modulo 2^16.
    """

    codes: np.ndarray
    keys: np.ndarray
    frames: np.ndarray

    def text(self) -> str:
        """As text, for JSON."""
        head = np.array([len(self.codes), len(self.keys)], "<u4")
        parts = (head, self.codes.astype("<u4"), self.keys.astype("<u4"), self.frames.astype("<u2"))
        return base64.b64encode(b"".join(part.tobytes() for part in parts)).decode("ascii")


def from_text(text: str) -> Print:
    """The fingerprint of which ``text`` is `Print.text`."""
    data = base64.b64decode(text)
    codes, keys = (int(count) for count in np.frombuffer(data, "<u4", 2))
    values = np.frombuffer(data, "<u4", codes + keys, 8)
    return Print(values[:codes], values[codes:], np.frombuffer(data, "<u2", keys, 8 + 4 * (codes + keys)))


class Codes:
    """The codes of a recording, from blocks of its audio one after the other."""

    def __init__(self) -> None:
        self._left = np.zeros(0, np.float32)
        self._before = np.zeros((0, _BITS), np.float32)
        self._codes, self._margins = list[np.ndarray](), list[np.ndarray]()
        self._window = np.hanning(FRAME).astype(np.float32)

    def add(self, block: np.ndarray) -> None:
        """The next samples, float32 ``[T]`` at 16 kHz."""
        samples = np.concatenate([self._left, block])
        count = max(0, (len(samples) - FRAME) // HOP + 1)
        for first in range(0, count, _BATCH):
            self._frames(samples, first, min(count, first + _BATCH))
        self._left = samples[count * HOP :]

    def of(self, start: int, stop: int) -> Print:
        """The fingerprint of the samples ``start`` to ``stop``. Frames that lie in them count."""
        codes, margins = self._all()
        # code n is that of frame n + _LAG, and also depends on frame n
        first, last = -(-start // HOP), (stop - FRAME) // HOP - _LAG + 1
        codes, margins = codes[first : max(first, last)], margins[first : max(first, last)]
        chosen = _spread(margins)
        return Print(codes[::2], codes[chosen], (chosen & 0xFFFF).astype(np.uint16))

    def _all(self) -> tuple[np.ndarray, np.ndarray]:
        if len(self._codes) != 1:
            empty = np.zeros(0, np.uint32), np.zeros(0, np.float16)
            self._codes = [np.concatenate(self._codes) if self._codes else empty[0]]
            self._margins = [np.concatenate(self._margins) if self._margins else empty[1]]
        return self._codes[0], self._margins[0]

    def _frames(self, samples: np.ndarray, first: int, stop: int) -> None:
        places = HOP * np.arange(first, stop)[:, None] + np.arange(FRAME)
        power = np.abs(np.fft.rfft(samples[places] * self._window, axis=1)) ** 2
        energies = np.log(np.add.reduceat(power, _EDGES, axis=1)[:, : _BITS + 1] + 1e-10)
        steps = np.concatenate([self._before, -np.diff(energies, axis=1).astype(np.float32)])
        changes = steps[_LAG:] - steps[:-_LAG]
        self._before = steps[-_LAG:]
        self._codes.append(((changes > 0) << np.arange(_BITS, dtype=np.uint32)).sum(axis=1, dtype=np.uint32))
        self._margins.append(np.sort(np.abs(changes), axis=1)[:, :2].mean(axis=1).astype(np.float16))


def _spread(margins: np.ndarray) -> np.ndarray:
    """The places of the `_KEYS` largest margins that are `_APART` from each other, ascending; int64 ``[K]``."""
    free, chosen = np.ones(len(margins), bool), list[int]()
    for place in np.argsort(-margins, kind="stable"):
        if free[place]:
            chosen.append(int(place))
            free[max(0, place - _APART + 1) : place + _APART] = False
            if len(chosen) == _KEYS:
                break
    return np.array(sorted(chosen), np.int64)


def agreement(one: Print, other: Print, shift: int) -> float:
    """How much of the shorter segment the other one is, 0 to 1, if frame f of ``one`` is f + ``shift`` of ``other``.

    What both have in common in time is divided into five parts. A part agrees if at most `_MOST_BITS` of its bits are
    different: of different audio half of them are.
    """
    best, shorter = 0.0, min(len(one.codes), len(other.codes))
    for moved in {shift // 2, -(-shift // 2)}:  # every second code is kept
        first, last = max(0, -moved), min(len(one.codes), len(other.codes) - moved)
        if last - first < _PARTS:
            continue
        bits = np.bitwise_count(one.codes[first:last] ^ other.codes[first + moved : last + moved])
        shares = [float(part.mean()) / _BITS for part in np.array_split(bits, _PARTS)]
        agreed = sum(share <= _MOST_BITS for share in shares) / _PARTS
        best = max(best, agreed * (last - first) / shorter)
    return best


def shifts(one: Print, other: Print) -> Iterator[int]:
    """The shifts at which a key of ``one`` is a key of ``other``, each once."""
    found, mine, theirs = np.intersect1d(one.keys, other.keys, return_indices=True)
    del found
    moved = other.frames[theirs].astype(int) - one.frames[mine].astype(int)
    yield from dict.fromkeys(moved.tolist())
