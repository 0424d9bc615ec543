"""Embeddings of whole utterances do not depend on what they are batched with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayssl import transfer
from rayssl.evaluation.embeddings import embed_utterances, kept_samples


class Small(nn.Module):
    """Sees everything that could leak between neighbours: time context, statistics pooling, BatchNorm, dropout."""

    embedding_dim = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(1, 8, 11, padding=5)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(16, 6)
        self.batches: list[tuple[int, int]] = []

    def forward(self, wave: Tensor, keys: Tensor | None) -> Tensor:
        assert keys is None and wave.dtype == torch.float32 and wave.abs().max() <= 1
        assert not torch.is_grad_enabled()
        self.batches.append((wave.shape[0], wave.shape[1]))
        x = self.drop(self.norm(self.conv(wave[:, None])).relu())
        return self.out(torch.cat([x.mean(2), x.std(2)], 1))


def waves(lengths: list[int]) -> list[np.ndarray]:
    draw = np.random.default_rng([1])
    return [draw.integers(-32768, 32768, length).astype(np.int16) for length in lengths]


LENGTHS = [400, 300, 400, 500, 400, 300, 400, 400]


def test_result_is_independent_of_batching_and_order() -> None:
    encoder, audio = Small(), waves(LENGTHS)
    together = embed_utterances(encoder, audio, "cpu", batch=3)
    singly = np.concatenate([embed_utterances(encoder, [wave], "cpu") for wave in audio])
    assert together.shape == (8, 6) and together.dtype == np.float32
    np.testing.assert_allclose(together, singly, atol=1e-5)
    turned = embed_utterances(encoder, audio[::-1], "cpu", batch=8)[::-1]
    np.testing.assert_allclose(together, turned, atol=1e-5)


def test_only_equal_lengths_share_a_batch_within_the_limit() -> None:
    encoder = Small()
    embed_utterances(encoder, waves(LENGTHS), "cpu", batch=3)
    assert encoder.batches == [(1, 500), (3, 400), (2, 400), (2, 300)]


def test_normalised_rows_are_the_raw_ones_scaled() -> None:
    encoder, audio = Small(), waves(LENGTHS)
    raw = embed_utterances(encoder, audio, "cpu", normalise=False)
    unit = embed_utterances(encoder, audio, "cpu")
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01


def test_modes_and_statistics_are_left_as_they_were() -> None:
    encoder = Small().train()
    encoder.norm.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    embed_utterances(encoder, waves([300]), "cpu")
    assert encoder.training and encoder.drop.training and not encoder.norm.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_autocast_around_does_not_reach_in() -> None:
    encoder, audio = Small(), waves(LENGTHS)
    expected = embed_utterances(encoder, audio, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(embed_utterances(encoder, audio, "cpu"), expected)


def test_nothing_gives_no_rows() -> None:
    assert embed_utterances(Small(), [], "cpu").shape == (0, 6)


def test_unusable_audio_and_embeddings_are_named() -> None:
    with pytest.raises(ValueError, match="utterance 1: expected int16"):
        embed_utterances(Small(), [*waves([300]), np.zeros(0, np.int16)], "cpu")
    with pytest.raises(ValueError, match="utterance 0: expected int16"):
        embed_utterances(Small(), [np.zeros(300, np.float32)], "cpu")  # type: ignore[list-item]
    broken = Small()
    with torch.no_grad():
        broken.out.bias[0] = float("nan")
    with pytest.raises(ValueError, match="2 of 2 embeddings are NaN or infinite, first of utterance 0"):
        embed_utterances(broken, waves([300, 400]), "cpu")


def test_bf16_is_close_and_only_when_asked() -> None:
    """Its error: a cosine above .999 to the embedding of fp32, and differences of cosines below 1 %."""
    encoder, audio = Small(), waves(LENGTHS)
    full, half = (embed_utterances(encoder, audio, "cpu", precision=precision) for precision in ("fp32", "bf16"))
    assert half.dtype == np.float32 and not np.array_equal(full, half)
    assert (full * half).sum(axis=1).min() > 0.999
    assert np.abs(full @ full.T - half @ half.T).max() < 0.01


class Awaited(transfer.Fetched):
    """Notes when the host waits for a result."""

    def __init__(self, done: list[str], tensors: tuple[Tensor | None, ...]) -> None:
        super().__init__(tensors, None)
        self.done = done

    def arrays(self) -> tuple[np.ndarray | None, ...]:
        self.done.append("await")
        return super().arrays()


def test_a_batch_is_launched_before_the_one_before_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a GPU has work while the host waits; and the results stay in their order."""
    encoder, audio, done = Small(), waves(LENGTHS), list[str]()
    expected = embed_utterances(encoder, audio, "cpu", batch=2)
    encoder.register_forward_pre_hook(lambda *_: done.append("launch"))
    monkeypatch.setattr(transfer, "fetch", lambda *tensors: Awaited(done, tensors))
    np.testing.assert_array_equal(embed_utterances(encoder, audio, "cpu", batch=2), expected)
    assert done == ["launch", *(["launch", "await"] * 4), "await"]


def test_a_cut_is_bounded_and_that_of_an_utterance_alone() -> None:
    assert [kept_samples(samples, 0.0) for samples in (1, 777, 16001)] == [1, 777, 16001]
    for share in (0.01, 0.05, 0.5):
        kept = [kept_samples(samples, share) for samples in range(1, 3000)]
        assert all((1 - share) * samples <= left + 1e-6 <= samples + 1 for samples, left in enumerate(kept, 1))
        assert kept == sorted(kept) and [kept_samples(left, share) for left in kept] == kept
    assert len({kept_samples(samples, 0.05) for samples in range(64_000, 320_000)}) == 33  # of speech of 4 to 20 s
    assert kept_samples(1000, 0.05) == 967 and kept_samples(1000, 0.05, least=968) == 1000


def test_cut_utterances_share_batches() -> None:
    encoder, audio = Small(), waves([400, 399, 398, 397, 300])
    cut = [wave[: kept_samples(len(wave), 0.05)] for wave in audio]
    embed_utterances(encoder, cut, "cpu")
    assert encoder.batches == [(4, 384), (1, 297)]
