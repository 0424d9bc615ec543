"""Classifiers on frozen embeddings, to see how well classes separate: a linear probe, neighbours, shares of labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController

from rayssl.evaluation.scoring import unit_rows
from rayssl.random.draws import fold, keys_np, uniform_np

Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

L2 = (1.0, 0.1, 0.01, 0.001, 0.0001)  # strongest first
_L2_UNCHOSEN = 0.01  # used if no class has a second row to choose the strength with
_ITERATIONS = 200
_THREADS = 4
_HELD, _SHARES = 31, 32  # the purposes of random draws
_BLOCK_BYTES = 64 << 20  # the most bytes of cosines at once


def linear_probe(train_x: Float32, train_y: ArrayLike, test_x: Float32, *, seed: int, l2: Sequence[float] = L2) -> Ints:
    """Classifies the test embeddings by multinomial logistic regression on the training embeddings.

    Embeddings are standardised with the mean and the deviation of the training rows. The regression minimises the mean
    cross-entropy plus ``l2 / 2 * |W|^2``, with at most 200 iterations on at most 4 threads. It does not weight classes.

    The strength is chosen among ``l2``: a fifth of the training rows is held out, and the strength with the least
    cross-entropy on them, averaged over classes, wins. Rows are held out by class: one row of a class of two to seven,
    and none of a class of one. The final fit uses all training rows.

    Args:
        train_x: training embeddings ``[n, D]``.
        train_y: their classes ``[n]``, integers from 0.
        test_x: test embeddings ``[m, D]``.
        seed: of the rows that are held out.
        l2: the strengths to choose from, above 0.

    Returns:
        Classes ``[m]`` of the test embeddings.

    Raises:
        ValueError: there are fewer than two classes, or no rows; a row has no label (below 0); or embeddings are not
            finite or do not fit.
    """
    data = _checked(train_x, train_y, test_x, "a linear probe")
    chosen, _ = _chosen_fit(data, seed, l2)
    with _few_threads():
        return data.classes[np.asarray(chosen.predict(data.test), np.int64)]


@dataclass(frozen=True)
class LinearProbe:
    """The weights of a linear probe for K classes. All arrays are float64, except int64 ``classes [K]``.

    The score of class ``classes[k]`` for an embedding e is ``weight[k] . (e - mean) / deviation + bias[k]``, with
    ``weight [K, D]``, ``bias [K]``, ``mean [D]`` and ``deviation [D]``. ``l2`` is the strength that was chosen.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    classes: Ints
    l2: float

    @property
    def penalty(self) -> float:
        """The p of ``p / 2 * |weight|^2``, which was minimised with the mean cross-entropy.

        Of two classes it is twice ``l2``: the regression has a single vector for them, here halved to both rows.
        """
        return self.l2 * (2 if len(self.classes) == 2 else 1)

    def surprise(self, x: Float32, y: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
        """The cross-entropy ``[n]`` of embeddings ``x [n, D]`` of classes ``y [n]``, all of them among ``classes``.

        Scores are divided by ``temperature``, which does not change what is predicted.
        """
        scores = (np.asarray(x, np.float64) - self.mean) / self.deviation @ self.weight.T + self.bias
        scores /= temperature
        column = np.searchsorted(self.classes, np.ravel(np.asarray(y)))
        return np.asarray(logsumexp(scores, axis=1) - scores[np.arange(len(scores)), column], np.float64)


def fit_linear_probe(train_x: Float32, train_y: ArrayLike, *, seed: int, l2: Sequence[float] = L2) -> LinearProbe:
    """The weights with which `linear_probe` classifies; arguments and errors as there."""
    data = _checked(train_x, train_y, train_x, "a linear probe")
    model, strength = _chosen_fit(data, seed, l2)
    weight, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weight) == 1:  # of two classes: the log odds of the second one
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearProbe(weight, bias, data.mean, data.deviation, data.classes, strength)


def held_out(labels: Ints, seed: int) -> NDArray[np.bool_]:
    """Which rows choose the strength: a fifth of each class, and at least one row of a class with two or more."""
    place, size = _places(labels, seed, _HELD)
    return (size > 1) & (place < np.maximum(1, np.floor(size / 5 + 0.5)))


def knn(train_x: Float32, train_y: ArrayLike, test_x: Float32, *, k: int = 20, temperature: float = 0.07) -> Ints:
    """Classes ``[m]`` of ``test_x [m, D]`` by a vote of the ``k`` training rows with the highest cosines.

    ``train_x [n, D]`` have the classes ``train_y [n]``. A neighbour's vote weighs ``exp(cosine / temperature)`` (Wu et
    al., CVPR 2018, section 3.4). Of classes with equal votes, the lowest number wins. With fewer than ``k`` training
    rows, all of them vote. Raises what `linear_probe` raises, and `ValueError` for embeddings that are zero.
    """
    data = _checked(train_x, train_y, test_x, "a vote of neighbours")
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and temperature above 0, got {k} and {temperature}")
    known, asked = unit_rows(train_x, len(data.labels)), unit_rows(test_x, len(data.test))
    k = min(k, len(known))
    winners = np.empty(len(asked), np.int64)
    block = max(1, _BLOCK_BYTES // (4 * max(len(known), len(data.classes))))
    with _few_threads():
        for start in range(0, len(asked), block):
            cosines = asked[start : start + block] @ known.T
            nearest = np.argpartition(cosines, len(known) - k, axis=1)[:, len(known) - k :]
            values = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
            weights = np.exp((values - values.max(axis=1, keepdims=True)) / temperature)
            votes = np.zeros((len(cosines), len(data.classes)))
            np.add.at(votes, (np.arange(len(cosines))[:, None], data.labels[nearest]), weights)
            winners[start : start + block] = votes.argmax(axis=1)
    return data.classes[winners]


def label_shares(y: ArrayLike, shares: Sequence[float] = (0.01, 0.1, 0.2, 1.0), *, seed: int) -> dict[float, Ints]:
    """For each of ``shares`` in (0, 1], the sorted rows of ``y [n]`` whose labels may be used.

    Each class gives its share of rows, rounded to the nearest number, and at least one. The rows of a smaller share
    are among those of a larger one. Rows without a label (below 0) are left out. Raises `ValueError` if no row has a
    label.
    """
    labels = np.ravel(np.asarray(y))
    known = labels >= 0
    if not known.any():
        raise ValueError(f"label shares: none of {len(labels)} rows has a label")
    if not len(shares) or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"label shares must lie in (0, 1], got {list(shares)}")
    place, size = _places(labels, seed, _SHARES)
    return {share: np.flatnonzero(known & (place < np.maximum(1, np.floor(share * size + 0.5)))) for share in shares}


@dataclass(frozen=True)
class _Data:
    """The standardised embeddings ``train [n, D]`` and ``test [m, D]``; ``labels [n]`` index ``classes [K]``.

    ``mean [D]`` and ``deviation [D]`` are those of the training embeddings.
    """

    train: Float32
    labels: Ints
    test: Float32
    classes: Ints
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def _checked(train_x: Float32, train_y: ArrayLike, test_x: Float32, what: str) -> _Data:
    train, test, given = np.asarray(train_x, np.float32), np.asarray(test_x, np.float32), np.ravel(np.asarray(train_y))
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or not train.shape[1]:
        raise ValueError(f"{what} needs embeddings [n, D] and [m, D], got {list(train.shape)} and {list(test.shape)}")
    if len(given) != len(train):
        raise ValueError(f"{what}: {len(train)} training embeddings but {len(given)} labels")
    if not len(train) or not len(test):
        raise ValueError(f"{what} needs training and test rows, got {len(train)} and {len(test)}")
    for name, rows in (("training", train), ("test", test)):
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ValueError(f"{what}: {len(bad)} {name} embeddings are NaN or infinite, first at row {bad[0]}")
    unlabelled = np.flatnonzero(given < 0)
    if len(unlabelled):
        raise ValueError(f"{what}: {len(unlabelled)} training rows have no label, first row {unlabelled[0]}")
    classes, labels = np.unique(given.astype(np.int64), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{what} needs at least two classes, but all training rows are of class {classes[0]}")
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    deviation[deviation <= 1e-6 * np.abs(mean)] = 1  # a dimension that is constant up to rounding is not scaled
    return _Data(
        ((train - mean) / deviation).astype(np.float32),
        labels,
        ((test - mean) / deviation).astype(np.float32),
        classes,
        mean,
        deviation,
    )


def _chosen_fit(data: _Data, seed: int, l2: Sequence[float]) -> tuple[LogisticRegression, float]:
    """The regression of all training rows with the best of the strengths ``l2``, and that strength."""
    if not len(l2) or min(l2) <= 0:
        raise ValueError(f"l2: expected strengths above 0, got {list(l2)}")
    held = held_out(data.labels, seed)
    strength = _L2_UNCHOSEN if len(l2) > 1 else l2[0]
    with _few_threads():
        if held.any() and len(l2) > 1:
            strength = _best_strength(data, held, sorted(l2, reverse=True))
        return _fit(data.train, data.labels, strength), strength


def _best_strength(data: _Data, held: NDArray[np.bool_], strengths: Sequence[float]) -> float:
    """The strength (of falling ones) whose fit to the other rows has the least cross-entropy on the ``held [n]`` rows.

    Every class weighs the same. Accuracy is not used: it moves in steps of a row, which says little with few labels.
    """
    truth = data.labels[held]
    support = np.bincount(truth, minlength=len(data.classes))
    best, least = strengths[0], np.inf
    model = None
    for strength in strengths:
        model = _fit(data.train[~held], data.labels[~held], strength, model)
        likelihood = model.predict_proba(data.train[held])[np.arange(len(truth)), truth]
        surprise = -np.log(np.maximum(likelihood, 1e-30))
        entropy = float((surprise / support[truth]).sum())
        if entropy < least:
            best, least = strength, entropy
    return best


def _fit(x: Float32, y: Ints, strength: float, start: LogisticRegression | None = None) -> LogisticRegression:
    """The fitted model. ``start``, fitted with the strength before, begins near the solution."""
    model = start or LogisticRegression(max_iter=_ITERATIONS, warm_start=True)
    model.set_params(C=1 / (strength * len(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # iterations are limited on purpose
        return model.fit(x, y)


def _places(labels: NDArray[np.generic], seed: int, purpose: int) -> tuple[Ints, Ints]:
    """For each row ``[n]``, its place in a random order of its class, and the number of rows of that class."""
    drawn = uniform_np(keys_np(fold(seed, purpose), np.arange(len(labels))), 0)
    _, column, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((drawn, column))
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - first
    return place, sizes[column]


@contextmanager
def _few_threads() -> Iterator[None]:
    """A context with at most `_THREADS` threads of BLAS and of OpenMP, and never more than before."""
    pools = ThreadpoolController()
    counts: dict[str, int] = {}
    for pool in pools.info():
        counts[pool["user_api"]] = min(_THREADS, pool["num_threads"], counts.get(pool["user_api"], _THREADS))
    with pools.limit(limits=counts):
        yield
