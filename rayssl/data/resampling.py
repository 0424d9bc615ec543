"""Samples at one rate from samples at another, in one piece or as a stream of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from rayssl.data.errors import DecodeError

RATE = 16000
RESAMPLER = "soxr HQ"  # what `resample` uses; the manifest of a new corpus names it


def resample(samples: np.ndarray, source_rate: int, rate: int = RATE) -> np.ndarray:
    """Samples ``[..., T]`` at ``source_rate`` Hz, resampled to ``rate`` Hz, without clipping; `RESAMPLER` says by what.

    The result is float32 ``[..., ceil(T * rate / source_rate)]``. Sample k of it lies k / ``rate`` seconds after the
    first one. A row does not depend on the other rows.
    """
    given = np.asarray(samples, dtype=np.float32)
    if source_rate == rate:
        return given
    import soxr  # tasks that only read shards do not need it

    # soxr rounds the length. A little silence behind the last sample changes no bit before it.
    count, silence = given.shape[-1], -(-source_rate // rate) + 1
    rows = np.zeros((given.size // max(count, 1), count + silence), dtype=np.float32)
    rows[:, :count] = given.reshape(len(rows), count)
    length = -(-count * rate // source_rate)
    made = np.empty((len(rows), length), dtype=np.float32)
    for row, result in zip(rows, made, strict=True):
        result[:] = soxr.resample(row, source_rate, rate, "HQ")[:length]
    return made.reshape(*given.shape[:-1], length)


def resampled(blocks: Iterable[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    """Blocks ``[T]`` at ``rate`` Hz as blocks at 16 kHz, clipped to [-1, 1]: the same as of the whole in one block.

    All blocks together are the samples of `resample`, to the bit. If ``blocks`` raises, what it has given before comes
    first.
    """
    if rate == RATE:
        yield from (np.clip(block, -1.0, 1.0) for block in blocks)
        return
    import soxr

    stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
    taken = given = 0
    fault: DecodeError | None = None
    try:
        for block in blocks:
            made = stream.resample_chunk(np.ascontiguousarray(block, np.float32))
            taken, given = taken + len(block), given + len(made)
            yield np.clip(made, -1.0, 1.0)
    except DecodeError as error:
        fault = error
    silence = np.zeros(int(-(-rate // RATE)) + 1, np.float32)
    yield np.clip(stream.resample_chunk(silence, last=True)[: length(taken, rate) - given], -1.0, 1.0)
    if fault is not None:
        raise fault


def length(samples: int, rate: float) -> int:
    """How many samples at 16 kHz ``samples`` at ``rate`` Hz are."""
    return int(-(-samples * RATE // rate))
