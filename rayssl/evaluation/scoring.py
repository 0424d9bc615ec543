"""Scores of verification trials from embeddings: cosine, and its adaptive symmetric normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rayssl.data.trials import Trial
from rayssl.errors import CorpusError

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_BLOCK_BYTES = 64 << 20  # the most bytes of a temporary array


def score_trials(trials: Sequence[Trial], names: Sequence[str], embeddings: Float32) -> Float32:
    """Cosine ``[n]`` in [-1, 1] of each trial, from ``embeddings [U, D]`` of the utterances ``names [U]``.

    Raises `CorpusError` if trials name utterances that have no embedding, and `ValueError` if ``embeddings`` do not
    fit ``names`` or are not finite.
    """
    enrol, test = trial_rows(trials, names)
    rows = unit_rows(embeddings, len(names))
    scores = np.empty(len(enrol), np.float32)
    block = max(1, _BLOCK_BYTES // (8 * max(1, rows.shape[1])))
    for start in range(0, len(enrol), block):
        part = slice(start, start + block)
        scores[part] = np.einsum("nd,nd->n", rows[enrol[part]], rows[test[part]])
    return np.clip(scores, -1, 1, out=scores)


def centred(embeddings: Float32, others: Float32) -> Float32:
    """``embeddings [U, D]`` less the mean of ``others [N, D]``: the direction that all utterances share says nothing.

    Raises `ValueError` if the dimensions differ, or ``others`` are none or not finite.
    """
    if len(others) == 0 or others.shape[1:] != embeddings.shape[1:]:
        raise ValueError(f"centring needs embeddings [N, {embeddings.shape[1]}], got shape {list(others.shape)}")
    mean = others.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("centring: some embeddings of the corpus are NaN or infinite")
    return np.asarray(embeddings - mean, np.float32)


def as_norm(
    scores: Float32,
    trials: Sequence[Trial],
    names: Sequence[str],
    embeddings: Float32,
    cohort: Float32,
    *,
    top: int = 200,
) -> Float32:
    """Adaptive s-norm of the cosine scores of trials.

    ``s' = ((s - mu_e) / sigma_e + (s - mu_t) / sigma_t) / 2``. Here mu and sigma (population) are over the ``top``
    highest cosines with the cohort: mu_e and sigma_e those of the enrolment utterance, mu_t and sigma_t those of the
    test utterance.

    Args:
        scores: cosines ``[n]`` from `score_trials`.
        trials: the n trials.
        names: names ``[U]`` of the embedded utterances.
        embeddings: ``[U, D]``.
        cohort: impostor embeddings ``[C, D]``, at least two.
        top: see above; the whole cohort if C is smaller.

    Returns:
        Normalised scores ``[n]``, not bounded.

    Raises:
        CorpusError: trials name utterances that have no embedding.
        ValueError: embeddings do not fit or are not finite, or the cohort has fewer than two rows, or no spread.
    """
    enrol, test = trial_rows(trials, names)
    rows = unit_rows(embeddings, len(names))
    impostors = unit_rows(cohort, len(cohort))
    if len(impostors) < 2 or top < 2:
        raise ValueError(f"score normalisation needs a cohort and a top of at least 2, got {len(impostors)} and {top}")
    if impostors.shape[1] != rows.shape[1]:
        raise ValueError(f"cohort embeddings have {impostors.shape[1]} dimensions, those of the trials {rows.shape[1]}")
    used, place = np.unique(np.concatenate([enrol, test]), return_inverse=True)
    mean, spread = _cohort_statistics(rows[used], impostors, min(top, len(impostors)))
    enrol, test = place[: len(enrol)], place[len(enrol) :]
    values = scores.astype(np.float64)
    normed = ((values - mean[enrol]) / spread[enrol] + (values - mean[test]) / spread[test]) / 2
    return normed.astype(np.float32)


def trial_rows(trials: Sequence[Trial], names: Sequence[str]) -> tuple[Ints, Ints]:
    """For each trial, the rows ``[n]`` in ``names`` of its enrolment and of its test utterance.

    Raises `CorpusError` with the number of utterances that are not among ``names``, and the first of them.
    """
    row = {name: index for index, name in enumerate(names)}
    if len(row) != len(names):
        raise CorpusError(f"{len(names) - len(row)} utterance names occur twice among the embeddings; names are unique")
    unknown = list(dict.fromkeys(name for trial in trials for name in (trial.enrol, trial.test) if name not in row))
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:3])
        example = f" (embedded names look like '{names[0]}')" if len(names) else ""
        raise CorpusError(
            f"trials: {len(unknown)} utterances have no embedding, first {shown}{example}; "
            "give the corpus that the trial list was made for"
        )
    return (
        np.fromiter((row[trial.enrol] for trial in trials), np.int64, len(trials)),
        np.fromiter((row[trial.test] for trial in trials), np.int64, len(trials)),
    )


def unit_rows(embeddings: Float32, count: int) -> Float32:
    """``embeddings [U, D]`` with rows scaled to length 1.

    Raises `ValueError` if U is not ``count``, or if a row is zero or not finite.
    """
    matrix = np.asarray(embeddings, np.float32)
    if matrix.ndim != 2 or len(matrix) != count:
        raise ValueError(f"expected embeddings [{count}, D], got shape {list(matrix.shape)}")
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise ValueError(f"{len(bad)} of {count} embeddings are zero, NaN or infinite, first at row {bad[0]}")
    return np.asarray(matrix / norms, np.float32)


def _cohort_statistics(rows: Float32, impostors: Float32, top: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation ``[U]`` of the ``top`` highest cosines of each row with the impostors."""
    mean, spread = np.empty(len(rows)), np.empty(len(rows))
    block = max(1, _BLOCK_BYTES // (4 * len(impostors)))
    for start in range(0, len(rows), block):
        cosines = rows[start : start + block] @ impostors.T
        cut = len(impostors) - top
        highest = np.partition(cosines, cut, axis=1)[:, cut:].astype(np.float64) if cut else cosines.astype(np.float64)
        mean[start : start + block] = highest.mean(axis=1)
        spread[start : start + block] = highest.std(axis=1)
    if spread.min(initial=np.inf) < 1e-6:
        raise ValueError("the cohort's highest scores do not differ for some utterance; use a more varied cohort")
    return mean, spread
