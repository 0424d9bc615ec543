"""Listens to some recordings of a source: how long they are, at which rate, and which cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import soundfile

from rayssl.data import columns, containers, decode, media, samples
from rayssl.data.decode import DecodeError
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.splices import Window
from rayssl.random import draws

MOST = 256  # recordings that are looked at
_BYTES = 256 << 20  # of recordings that are decoded as a whole
_LARGE = 4 << 20  # of a larger one only the header is read
_GUESSED_BITS = 96_000  # bits a second, where only decoding would tell the length
_LEAST_S = 0.1  # `corpora.NAME.min_s`: what is shorter is a reject
_HEARD = 45


@dataclass(frozen=True)
class Heard:
    """What was heard. ``seconds [n]``: the lengths of the recordings that can be read, sorted.

    ``rates`` and ``channels`` count these recordings. ``unreadable``: the name and the reason of each other one.
    ``whole``: whether all recordings of the source were looked at.
    """

    seconds: np.ndarray
    rates: Counter[int]
    channels: Counter[int]
    unreadable: dict[str, str]
    whole: bool

    @property
    def asked(self) -> int:
        """How many recordings were looked at."""
        return len(self.seconds) + len(self.unreadable)

    @property
    def unreadable_share(self) -> float:
        """The share of these that cannot be read."""
        return len(self.unreadable) / max(1, self.asked)

    def at(self, share: float) -> float:
        """A length in seconds: ``share`` of the recordings are shorter."""
        return float(np.quantile(self.seconds, share)) if len(self.seconds) else 0.0

    @property
    def mean_s(self) -> float:
        """The mean length in seconds."""
        return float(self.seconds.mean()) if len(self.seconds) else 0.0


def listen(source: CheckedSource, references: Sequence[Reference]) -> Heard:
    """Looks at the ``references``, or at `MOST` of them; which ones depends on their names only."""
    chosen = _some(references)
    found, unreadable = list[tuple[float, int, int]](), dict[str, str]()
    left = _BYTES
    for count, reference in enumerate(chosen):
        try:
            file = source.open(reference)
            if isinstance(file, np.ndarray):
                one, size = (len(file) / decode.RATE, decode.RATE, 1), file.nbytes
            else:
                with file:
                    one, size = _heard(file)
            if one[0] < _LEAST_S:
                raise DecodeError(f"too short: {one[0]:.3f} s")
            found.append(one)
            left -= size
        except DecodeError as error:
            unreadable[reference.name] = str(error)
        if left < 0:
            chosen = chosen[: count + 1]
            break
    lengths = np.sort(np.array([seconds for seconds, _, _ in found]))
    rates, channels = Counter(rate for _, rate, _ in found if rate), Counter(count for _, _, count in found if count)
    return Heard(lengths, rates, channels, unreadable, len(chosen) == len(references))


def _some(references: Sequence[Reference]) -> list[Reference]:
    if len(references) <= MOST:
        return list(references)
    names = pa.array([reference.name for reference in references], pa.string())
    keys = draws.texts_np(draws.fold(0, _HEARD), *columns.texts(names))
    return [references[k] for k in np.sort(np.argsort(keys, kind="stable")[:MOST])]


def _heard(file: BinaryIO) -> tuple[tuple[float, int, int], int]:
    """Seconds, rate in Hz and channels (0: not known) of an open file, and the bytes that were read.

    Raises `DecodeError` if it is damaged. Of a large file only the header is looked at.
    """
    window = Window(file)
    size = len(window)
    if not size:
        raise DecodeError("empty: the file has no bytes")
    if media.is_media(window):
        if size > _LARGE:
            return (8 * size / _GUESSED_BITS, 0, 0), 0
        return (len(decode.decode(window[:size], "mean")) / decode.RATE, 0, 0), size
    if size <= _LARGE:
        data = window[:size]
        head = samples.header(containers.opened(data).parts[0])
        seconds = len(decode.decode(data, "mean")) / decode.RATE
        return (seconds, head.rate if head else 0, head.channels if head else 0), size
    head = samples.header(containers.opened(window).parts[0])
    if head is None:
        return (8 * size / _GUESSED_BITS, 0, 0), 0
    frames = head.frames or _frames(file)
    seconds = frames / head.rate if frames else 8 * size / _GUESSED_BITS
    return (seconds, head.rate, head.channels), 0


def _frames(file: BinaryIO) -> int:
    """How many samples libsndfile counts in a compressed file; 0 if it cannot tell."""
    try:
        file.seek(0)
        with soundfile.SoundFile(file) as sound:
            return int(sound.frames) if 0 < sound.frames < 1 << 40 else 0
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError):
        return 0
