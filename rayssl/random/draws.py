"""Random numbers without a generator: every number is a hash of its purpose.

The state of a generator must be saved, restored and divided among ranks. A hash of (seed, epoch, utterance, purpose) is
the same in every process, in any order, and after any resume. The mixing function is SplitMix64 (Steele, Lea and Flood,
2014). This file uses NumPy, because data tasks must not import torch. `rayssl.random.draws_torch` gives identical
results for tensors on any device. For example::

    keys = keys_np(fold(seed, epoch), ids)   # one key for each utterance
    position = uniform_np(keys, stream=100)  # one number in [0, 1) for each
"""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_FIRST = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)  # masks of the first bytes of a word


def fold(*parts: int) -> int:
    """One 64-bit key, 0..2**64-1, from integers whose order matters: ``fold(seed, epoch, purpose)``."""
    key = 0
    for part in parts:
        key = _splitmix_int((key ^ (part & _MASK)) & _MASK)
    return key


def keys_np(key: int, ids: np.ndarray) -> np.ndarray:
    """Keys uint64 ``[B]``, one for each of the integer ``ids [B]``; ``key`` is common to all."""
    return _splitmix_np(np.asarray(ids).astype(np.int64).view(np.uint64) ^ np.uint64(key))


def texts_np(key: int, offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Keys uint64 ``[B]``, one for each of B texts; ``key`` is common to all.

    Text k is the bytes ``data[offsets[k]:offsets[k + 1]]``, as in a column of Arrow. ``data`` is uint8. A text's key
    does not depend on the other texts.
    """
    starts, lengths = offsets[:-1].astype(np.int64), np.diff(offsets)
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    words: np.ndarray = np.ndarray((len(data) + 1,), "<u8", padded.data, strides=(1,))  # the 8 bytes from each place
    keys, done = keys_np(key, lengths), 0
    longer = np.flatnonzero(lengths > done)
    while len(longer):
        word = words[starts[longer] + done] & _FIRST[np.minimum(lengths[longer] - done, 8)]
        keys[longer] = _splitmix_np(keys[longer] ^ word)
        done += 8
        longer = longer[lengths[longer] > done]
    return keys


def fold_np(keys: np.ndarray, more: np.ndarray) -> np.ndarray:
    """``keys [B]`` uint64, each folded with one of the integers ``more [B]``, as `fold` does with its last part."""
    return _splitmix_np(keys ^ np.asarray(more).astype(np.int64).view(np.uint64))


def uniform_np(keys: np.ndarray, stream: int) -> np.ndarray:
    """Uniform float64 ``[B]`` in [0, 1), one for each of ``keys [B]`` uint64; ``stream`` numbers the purpose."""
    bits = _splitmix_np(keys ^ np.uint64(fold(stream))) >> np.uint64(11)
    return np.asarray(bits.astype(np.float64) * 2.0**-53)


def _splitmix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)


def _splitmix_np(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(_GOLDEN)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
        return np.asarray(x ^ (x >> np.uint64(31)))
