"""Draws: known values, equality of the NumPy and torch twins, uniformity, independence."""

import numpy as np
import torch

from rayssl.random import draws
from rayssl.random.draws import fold, keys_np, uniform_np
from rayssl.random.draws_torch import keys_torch, uniform_torch

IDS = np.concatenate([np.arange(2000), [-1, 2**62, -(2**63)]]).astype(np.int64)


def test_fold_is_splitmix64() -> None:
    # The generator's published first outputs for seed 1234567, each from the state after one more golden increment
    golden, seed = 0x9E3779B97F4A7C15, 1234567
    outputs = [fold((seed + k * golden) % 2**64) for k in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_fold_depends_on_order_and_every_part() -> None:
    assert len({fold(1, 2, 3), fold(3, 2, 1), fold(1, 2), fold(1, 2, 4), fold(0, 2, 3), fold(1, 2, 3, 0)}) == 6
    assert fold(-1) == fold(2**64 - 1)


def test_torch_twin_gives_the_same_keys_and_numbers() -> None:
    for key in (fold(0), fold(7, 1), 2**64 - 1):
        expected = keys_np(key, IDS)
        keys = keys_torch(key, torch.from_numpy(IDS))
        np.testing.assert_array_equal(keys.numpy().view(np.uint64), expected)
        for stream in (0, 1, 203):
            drawn = uniform_torch(keys, stream).numpy()
            np.testing.assert_allclose(drawn, uniform_np(expected, stream), atol=2.0**-24)
            assert drawn.dtype == np.float32


def test_draws_are_uniform_below_one() -> None:
    keys = keys_np(fold(3), np.arange(200_000))
    drawn = uniform_np(keys, 5)
    assert 0.0 <= drawn.min() < 1e-4
    assert 1.0 - 1e-4 < drawn.max() < 1.0
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    # chi-square with 49 degrees of freedom: 99.99 % lie below 98
    assert ((counts - 4000) ** 2 / 4000).sum() < 98


def test_streams_ids_and_keys_are_uncorrelated() -> None:
    ids = np.arange(50_000)
    first, other_key = keys_np(fold(3), ids), keys_np(fold(4), ids)
    rows = np.stack([uniform_np(first, 0), uniform_np(first, 1), uniform_np(other_key, 0), uniform_np(first + 1, 0)])
    rows = np.concatenate([rows, np.roll(rows[:1], 1)])
    off_diagonal = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(off_diagonal).max() < 0.02


def test_several_draws_of_a_row_are_uncorrelated_and_its_own() -> None:
    keys = keys_torch(fold(9), torch.arange(50_000))
    drawn = uniform_torch(keys, 2, 4)
    assert drawn.shape == (50_000, 4)
    assert np.abs(np.corrcoef(drawn.numpy().T) - np.eye(4)).max() < 0.02
    assert torch.equal(drawn[123:125], uniform_torch(keys[123:125], 2, 4))


def transcribed(key: int, text: bytes) -> int:
    """`draws.texts_np` for one text, word by word."""
    result = draws.fold(len(text) ^ key)
    for start in range(0, len(text), 8):
        result = draws.fold(int.from_bytes(text[start : start + 8], "little") ^ result)
    return result


def test_keys_of_texts_are_those_of_each_text_alone() -> None:
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(0, 256, size).astype(np.uint8)) for size in [0, 1, 7, 8, 9, 0, 16, 17, 100, 3]]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    data = np.frombuffer(b"".join(texts), np.uint8)
    for key in (0, draws.fold(5, 1)):
        keys = draws.texts_np(key, offsets, data)
        assert keys.dtype == np.uint64 and keys.tolist() == [transcribed(key, text) for text in texts]
        assert draws.texts_np(key, offsets[3:6], data).tolist() == keys[3:5].tolist()
    assert draws.texts_np(1, offsets[:1], data).tolist() == []
    assert transcribed(0, b"a") != transcribed(0, b"a\0")


def test_keys_of_similar_texts_are_spread_evenly() -> None:
    texts = [f"speaker/{k:06d}.wav".encode() for k in range(20_000)]
    keys = draws.texts_np(3, np.arange(len(texts) + 1) * len(texts[0]), np.frombuffer(b"".join(texts), np.uint8))
    assert len(np.unique(keys)) == len(texts)
    for shift in (58, 0):
        counts = np.bincount((keys >> np.uint64(shift) & np.uint64(63)).astype(int), minlength=64)
        assert ((counts - 312.5) ** 2 / 312.5).sum() < 120  # chi-square with 63 degrees of freedom: beyond p = 1e-5


def test_keys_are_folded_as_integers_are() -> None:
    keys = np.array([draws.fold(1, 2), draws.fold(3)], np.uint64)
    assert draws.fold_np(keys, np.array([7, -1])).tolist() == [draws.fold(1, 2, 7), draws.fold(3, -1)]
