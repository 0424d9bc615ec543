"""Cosine scores and adaptive s-norm against naive loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayssl.data.trials import Trial, read
from rayssl.errors import CorpusError
from rayssl.evaluation import scoring
from rayssl.evaluation.scoring import as_norm, centred, score_trials


def listed(enrol: list[str], test: list[str]) -> list[Trial]:
    return [Trial(0, a, b) for a, b in zip(enrol, test, strict=True)]


NAMES = [f"u{index}" for index in range(12)]


def some(seed: int, rows: int = 12, dim: int = 7) -> np.ndarray:
    return np.random.default_rng([seed]).normal(size=(rows, dim)).astype(np.float32)


def pairs(seed: int, count: int) -> list[Trial]:
    draw = np.random.default_rng([seed, count])
    return listed([NAMES[i] for i in draw.integers(0, 12, count)], [NAMES[i] for i in draw.integers(0, 12, count)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float)))


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_scores_are_cosines(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", block_bytes)
    embeddings, trials = some(0), pairs(0, 30)
    scores = score_trials(trials, NAMES, embeddings)
    rows = dict(zip(NAMES, embeddings, strict=True))
    expected = [cosine(rows[a], rows[b]) for _, a, b in trials]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_scores_stay_within_range_and_ignore_length() -> None:
    embeddings = some(1) * np.logspace(-3, 3, 12, dtype=np.float32)[:, None]
    scores = score_trials(listed(NAMES, NAMES), NAMES, embeddings)
    assert scores.max() <= 1
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_trials_are_those_of_a_list_on_disk(tmp_path: Path) -> None:
    (tmp_path / "trials.txt").write_text("1 u0 u0\n0 u0 u1\n")
    embeddings = some(0)
    scores = score_trials(read(str(tmp_path / "trials.txt")), NAMES, embeddings)
    np.testing.assert_allclose(scores, [1, cosine(embeddings[0], embeddings[1])], atol=1e-6)


def test_no_trials_have_no_scores() -> None:
    assert score_trials(listed([], []), NAMES, some(0)).shape == (0,)


def test_unknown_utterances_are_named_and_counted() -> None:
    with pytest.raises(CorpusError, match=r"3 utterances have no embedding, first 'x', 'y', 'z' .*look like 'u0'"):
        score_trials(listed(["u0", "x", "y", "x"], ["u1", "u1", "z", "z"]), NAMES, some(0))


def test_repeated_names_are_refused() -> None:
    with pytest.raises(CorpusError, match="1 utterance names occur twice"):
        score_trials(listed(["u0"], ["u0"]), ["u0", "u0"], some(0, rows=2))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_embeddings_without_direction_are_refused(value: float) -> None:
    embeddings = some(0)
    embeddings[3] = value
    with pytest.raises(ValueError, match="first at row 3"):
        score_trials(pairs(0, 3), NAMES, embeddings)


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
@pytest.mark.parametrize("top", [2, 5, 20, 500])
def test_as_norm_is_the_naive_loop(top: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", block_bytes)
    embeddings, cohort, trials = some(2), some(3, rows=20), pairs(2, 25)
    plain = score_trials(trials, NAMES, embeddings)
    rows = dict(zip(NAMES, embeddings, strict=True))
    expected = []
    for score, (_, a, b) in zip(plain, trials, strict=True):
        sides = []
        for name in (a, b):
            highest = sorted((cosine(rows[name], other) for other in cohort), reverse=True)[:top]
            sides.append((score - np.mean(highest)) / np.std(highest))
        expected.append(sum(sides) / 2)
    got = as_norm(plain, trials, NAMES, embeddings, cohort, top=top)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def test_as_norm_is_symmetric() -> None:
    embeddings, cohort, trials = some(2), some(3, rows=20), pairs(4, 25)
    swapped = [Trial(0, b, a) for _, a, b in trials]
    plain = score_trials(trials, NAMES, embeddings)
    one = as_norm(plain, trials, NAMES, embeddings, cohort, top=5)
    np.testing.assert_allclose(one, as_norm(plain, swapped, NAMES, embeddings, cohort, top=5), rtol=1e-6)


def test_as_norm_refuses_a_useless_cohort() -> None:
    embeddings, trials = some(2), pairs(2, 5)
    plain = score_trials(trials, NAMES, embeddings)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        as_norm(plain, trials, NAMES, embeddings, some(3, rows=1))
    with pytest.raises(ValueError, match="do not differ"):
        as_norm(plain, trials, NAMES, embeddings, np.repeat(some(3, rows=1), 4, axis=0))
    with pytest.raises(ValueError, match="5 dimensions, those of the trials 7"):
        as_norm(plain, trials, NAMES, embeddings, some(3, rows=4, dim=5))


def test_centring_takes_away_what_all_embeddings_share() -> None:
    """Speakers that differ little beside a large common part are told apart after it is gone."""
    embeddings, others, trials = some(2), some(3, rows=200), pairs(2, 25)
    common = np.full(embeddings.shape[1], 50, np.float32)
    got = score_trials(trials, NAMES, centred(embeddings + common, others + common))
    expected = score_trials(trials, NAMES, embeddings - others.mean(axis=0))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert score_trials(trials, NAMES, embeddings + common).min() > 0.99


def test_centring_refuses_a_useless_corpus() -> None:
    embeddings = some(2)
    for others, message in (
        (some(3, rows=0), "got shape"),
        (some(3, rows=4, dim=5), r"got shape \[4, 5\]"),
        (np.full_like(embeddings, np.nan), "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            centred(embeddings, others)
