"""Whitening: the covariance it leaves, directions without variance, blocks, and what it does for the memory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from rayssl.clustering import whitening
from rayssl.clustering.whitening import Whitening
from rayssl.memory.utterances.exchange import RememberArrays
from rayssl.memory.utterances.memory import UtteranceMemory
from rayssl.memory.utterances.settings import MemorySettings

N, SPEAKERS, D = 240, 60, 16


def rows(seed: int = 0, channel: float = 3.0) -> np.ndarray:
    """Four utterances of each speaker: small differences between speakers, one large direction that all share."""
    random = np.random.default_rng(seed)
    shared = np.outer(random.standard_normal(N), np.eye(D)[0]) * channel
    speakers = np.repeat(random.standard_normal((SPEAKERS, D)), N // SPEAKERS, axis=0)
    return (shared + 0.5 * speakers + 0.1 * random.standard_normal((N, D)) + 1.0).astype(np.float32)


def test_covariance_becomes_the_identity() -> None:
    x = rows()
    found = Whitening.fit(x)
    white = (x - found.mean) @ found.map
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(D), atol=0.06)
    np.testing.assert_allclose(np.linalg.norm(found(x), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found(x), white / np.linalg.norm(white, axis=1, keepdims=True), atol=1e-5)


def test_scale_and_shift_of_the_rows_do_not_matter() -> None:
    x = rows()
    products = [whiten(x) @ whiten(x).T for x in (x, 7 * x + 3) for whiten in (Whitening.fit(x),)]
    np.testing.assert_allclose(products[0], products[1], atol=2e-3)


def test_directions_without_variance_stay_small() -> None:
    x = rows()
    x[:, 5] = 2.0
    found = Whitening.fit(x)
    white = (x - found.mean) @ found.map
    assert np.isfinite(found.map).all() and np.abs(white).max() < 10
    assert np.isfinite(Whitening.fit(np.ones((5, 4), np.float32))(np.ones((2, 4), np.float32))).all()
    with pytest.raises(ValueError, match="at least 2 references, got 1"):
        Whitening.fit(x[:1])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows().astype(np.float16)
    whole = Whitening.fit(x)(x)
    monkeypatch.setattr(whitening, "_BLOCK", 17)
    np.testing.assert_allclose(Whitening.fit(x)(x), whole, atol=1e-5)


def memory(**changes: Any) -> UtteranceMemory:
    sizes: dict[str, Any] = {"utterances": N, "reference_dim": D, "positive_dim": 2, "queue": N, "clusters": SPEAKERS}
    return UtteranceMemory(MemorySettings(**{**sizes, "seed": 1, "reference_dtype": "float32", **changes}))


def remembered(x: np.ndarray, part: np.ndarray) -> RememberArrays:
    speakers = part // (N // SPEAKERS)
    return RememberArrays(part, x[part], np.zeros((len(part), 2), np.float32), speakers.astype(np.int32))


@pytest.mark.parametrize("changes", [{"sampling": "nn", "neighbours": 2}, {"sampling": "cluster"}])
def test_it_finds_speakers_behind_what_all_share(changes: dict[str, Any]) -> None:
    accuracy = []
    for whiten in (False, True):
        found = memory(whiten=whiten, **changes)
        found.remember(remembered(rows(), np.arange(N)))
        found.refresh(0)
        found.recall(np.arange(N), epoch=0)
        accuracy.append(found.metrics()["speaker_accuracy"])
    # k-means from random points merges some speakers whatever the rows
    assert accuracy[1] > accuracy[0] + 0.15 and accuracy[1] > (0.9 if changes["sampling"] == "nn" else 0.7)


def test_what_comes_after_the_refresh_is_compared_by_the_same_map() -> None:
    found = memory(whiten=True, sampling="nn", neighbours=1)
    found.remember(remembered(rows(), np.arange(N)))
    found.refresh(0)
    moved = rows()
    moved[0] = moved[200]  # utterance 0 sounds like the speaker of 200 from now on
    found.remember(remembered(moved, np.arange(1)))
    assert found.recall(np.array([0]), epoch=0).ids[0] == 200


@pytest.mark.parametrize("refreshed", [False, True])
def test_resumed_to_the_bit(refreshed: bool) -> None:
    whole = memory(whiten=True, sampling="nn", neighbours=3)
    whole.remember(remembered(rows(), np.arange(N)))
    if refreshed:
        whole.refresh(0)
        whole.remember(remembered(rows(1), np.arange(0, N, 3)))
    file = io.BytesIO()
    np.savez(file, **whole.state_dict())
    file.seek(0)
    resumed = memory(whiten=True, sampling="nn", neighbours=3)
    with np.load(file, allow_pickle=False) as state:
        resumed.load_state_dict(dict(state))
    for epoch in (1, 2):
        one, other = (m.recall(np.arange(N), epoch=epoch) for m in (whole, resumed))
        np.testing.assert_array_equal(one.ids, other.ids)
        assert {k: v for k, v in whole.refresh(epoch).items() if k != "seconds"} == {
            k: v for k, v in resumed.refresh(epoch).items() if k != "seconds"
        }
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], value, err_msg=name)


def test_centroids_are_not_whitened() -> None:
    with pytest.raises(ValueError, match="centroids of whitened references"):
        memory(whiten=True, sampling="centroid", positive_dim=D)
