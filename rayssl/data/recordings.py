"""Long recordings, decoded a block at a time: an hour of audio, or a day, needs as much memory as a minute.

`stream` gives what `rayssl.data.decode.decode` gives, and `excerpts` parts of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from rayssl.data import containers, media, samples
from rayssl.data.containers import Opened
from rayssl.data.errors import DecodeError
from rayssl.data.resampling import RATE, resampled
from rayssl.data.samples import Block, Channel
from rayssl.data.splices import Window, whole

_MOST = 1 << 34  # samples: 100 h at 48 kHz. A few MB of FLAC can hold a year of silence


def stream(file: BinaryIO, channel: Channel = "reject_above_2") -> Iterator[np.ndarray]:
    """The audio of an open file as blocks of mono float32 ``[T]`` in [-1, 1] at 16 kHz.

    All blocks together are the samples that `rayssl.data.decode.decode` gives for the whole file, to the bit.

    Raises:
        DecodeError: as `rayssl.data.decode.decode`, perhaps behind the last block; up to 100 h at 48 kHz are allowed.
        StorageError: the file could not be read.
    """
    return (made for _, made in _resampled(_blocks(file, channel, 0.0)))


def excerpts(
    file: BinaryIO, ranges: Sequence[tuple[int, int]], channel: Channel = "reject_above_2"
) -> Iterator[tuple[int, np.ndarray]]:
    """The samples of each (start, stop) of ``ranges``, in samples at 16 kHz, in order of their ends.

    What comes before the first one is not decoded where the format allows that. Then a resampler begins anew, which
    changes samples by less than a millionth of full scale.

    Yields:
        (position in ``ranges``, mono float32 ``[stop - start]``), each position once. An excerpt has fewer samples, or
        none, if the audio ends earlier.

    Raises:
        DecodeError: the file is damaged before the end of the last excerpt, see `stream`.
        StorageError: the file could not be read.
    """
    order = sorted(range(len(ranges)), key=lambda position: ranges[position][1])
    if not order:
        return
    last = ranges[order[-1]][1]
    waiting, held = order[::-1], list[tuple[int, np.ndarray]]()  # blocks, each with its first sample
    begins = sorted(start for start, _ in ranges)
    ended = 0
    for first, block in _resampled(_blocks(file, channel, begins[0] / RATE)):
        held.append((first, block))
        ended = first + len(block)
        while waiting and ranges[waiting[-1]][1] <= ended:
            position = waiting.pop()
            yield position, _cut(held, *ranges[position])
        if ended >= last:
            return
        needed = min((ranges[position][0] for position in waiting), default=ended)
        held = [(at, one) for at, one in held if at + len(one) > needed]
    for position in reversed(waiting):
        yield position, _cut(held, *ranges[position])


def _cut(held: Sequence[tuple[int, np.ndarray]], start: int, stop: int) -> np.ndarray:
    parts = [one[max(0, start - at) : max(0, stop - at)] for at, one in held]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _resampled(found: Iterator[Block]) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks at 16 kHz, each with the number of its first sample. The first block begins at a whole one."""
    begun = next(found, None)
    if begun is None:
        raise DecodeError("empty: the file has no samples")
    rate, at = begun.rate, begun.first * RATE // begun.rate
    for block in resampled((each.samples for each in itertools.chain([begun], found)), rate):
        yield at, block
        at += len(block)


def _blocks(file: BinaryIO, channel: Channel, start_s: float) -> Iterator[Block]:
    """The blocks of all parts, at one rate. Damage, and less than the header promises, is an error at the end."""
    window = Window(file)
    if not len(window):
        raise DecodeError("empty: the file has no bytes")
    found = Opened((whole(window),)) if media.is_media(window) else containers.opened(window)
    if start_s and found.otherwise is not None:
        found = replace(found, parts=(found.otherwise,), otherwise=None)  # it says how long it is: places are found
    if len(found.parts) > 1 or found.keep is not None:
        start_s = 0.0
    done = 0
    try:
        for block in _kept(found, channel, start_s):
            done = block.first + len(block.samples)
            yield block
    except DecodeError:
        if found.otherwise is None:
            raise
        # FLAC with other bytes behind it: what is left of the samples that the header counts
        for block in samples.blocks(found.otherwise, channel, limit=found.samples, most=_MOST):
            left = block.samples[max(0, done - block.first) :]
            if len(left):
                yield Block(block.rate, block.first + len(block.samples) - len(left), left)
            done = max(done, block.first + len(block.samples))
    least = found.samples or found.keep or 0
    if done < least:
        raise DecodeError(f"unreadable: truncated or damaged after {done} of {least} samples")


def _kept(found: Opened, channel: Channel, start_s: float) -> Iterator[Block]:
    """The blocks of all parts, numbered through, up to the last sample that is to be kept."""
    rate = end = 0
    for part in found.parts:
        before = end
        for block in samples.blocks(part, channel, start_s=start_s, most=_MOST):
            if rate and block.rate != rate:
                raise DecodeError(f"unreadable: chained streams of {rate} Hz and {block.rate} Hz")
            rate, first = block.rate, before + block.first
            end = first + len(block.samples)
            if found.keep is not None and end >= found.keep:
                if found.keep > first:
                    yield Block(rate, first, block.samples[: found.keep - first])
                return
            yield Block(rate, first, block.samples)
