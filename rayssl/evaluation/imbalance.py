"""Classification figures that a large class cannot dominate, from true and predicted classes.

With n_c the test rows of class c, p_c the rows predicted as c and h_c the rows that are both: recall h_c / n_c,
precision h_c / p_c, F1 2 h_c / (n_c + p_c). All rates are fractions in [0, 1], never percent. What would be 0 / 0 is
None and enters no mean: the recall of a class without test rows, and all three figures of one that is never predicted
either. A class that has test rows but is never predicted has precision 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix

from rayssl.schema import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 1 << 22  # weights held at once by the bootstrap: resamples in a block * groups, or * classes


class ClassFigures(Config):
    """One class: ``support`` rows in the test set, and ``train_count`` labelled rows in the training set if known."""

    name: str
    support: int
    predicted: int
    recall: float | None
    precision: float | None
    f1: float | None
    train_count: int | None = None


class ClassificationResult(Config):
    """The figures of one classifier on one test set; ``confusion[i][j]`` counts rows of class i predicted as j.

    ``head`` says whose predictions they are ("linear", "knn", "finetune", "model"), ``share`` which share of the
    training labels it had. ``interval_over`` is what was resampled, "groups" or "rows", and ``interval_absent`` the
    share of resamples in which some class had no row. All of these are None where there is no interval.
    """

    head: str
    share: float | None = None
    n: int
    accuracy: float
    balanced_accuracy: float
    balanced_accuracy_low: float | None = None
    balanced_accuracy_high: float | None = None
    interval_over: str | None = None
    interval_absent: float | None = None
    geometric_mean: float
    macro_f1: float
    many: float | None = None
    medium: float | None = None
    few: float | None = None
    per_class: list[ClassFigures]
    confusion: list[list[int]]
    checkpoint: str | None = None


def classification_result(
    truth: ArrayLike,
    predicted: ArrayLike,
    names: Sequence[str],
    *,
    train_counts: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    groups: ArrayLike | None = None,
    checkpoint: str | None = None,
    head: str = "model",
    share: float | None = None,
) -> ClassificationResult:
    """All figures from ``truth [n]`` and ``predicted [n]``, integers in [0, C), where C is the length of ``names``.

    Balanced accuracy is the mean, geometric mean the geometric one, of the recalls of classes that occur in the test
    set; macro F1 is the mean over classes that occur in it or are predicted (scikit-learn's). ``many``, ``medium`` and
    ``few`` are mean recalls of the head, middle and tail third of all classes by falling ``train_counts [C]``, ties in
    the order of ``names``; the first thirds are the larger ones where C is no multiple of 3. Without counts, or with
    C < 3, they are absent. The interval is `balanced_accuracy_interval`'s, absent with ``resamples`` 0.

    Raises `ValueError` for no rows, classes out of range, or lengths that do not fit.
    """
    true, found = _classes(truth, "truth", len(names)), _classes(predicted, "predicted", len(names))
    if len(true) != len(found):
        raise ValueError(f"{len(true)} true classes but {len(found)} predicted ones")
    if train_counts is not None and len(train_counts) != len(names):
        raise ValueError(f"{len(names)} class names but {len(train_counts)} training counts")
    table = np.bincount(true * len(names) + found, minlength=len(names) ** 2).reshape(len(names), len(names))
    support, given, hits = table.sum(axis=1), table.sum(axis=0), np.diagonal(table)
    recalls = _ratios(hits, support)
    occurring = recalls[support > 0]
    f1 = _ratios(2 * hits, support + given)
    low = high = absent = over = None
    if resamples:
        low, high, absent = balanced_accuracy_interval(true, found, groups=groups, resamples=resamples, seed=seed)
        over = "rows" if groups is None else "groups"
    thirds = _thirds(recalls, train_counts) if train_counts is not None else (None, None, None)
    return ClassificationResult(
        head=head,
        share=share,
        n=len(true),
        accuracy=float(hits.sum() / len(true)),
        balanced_accuracy=float(occurring.mean()),
        balanced_accuracy_low=low,
        balanced_accuracy_high=high,
        interval_over=over,
        interval_absent=absent,
        geometric_mean=float(np.exp(np.log(occurring).mean())) if occurring.all() else 0.0,
        macro_f1=float(f1[support + given > 0].mean()),
        many=thirds[0],
        medium=thirds[1],
        few=thirds[2],
        per_class=_per_class(names, table, train_counts),
        confusion=table.tolist(),
        checkpoint=checkpoint,
    )


def balanced_accuracy_interval(
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Percentile interval ``(low, high)`` of balanced accuracy, and the share of resamples that lacked some class.

    Drawn again with replacement are the ``groups [n]`` (speakers, recordings: rows of one are not independent), each
    with all its rows; without groups the rows. Every resample averages over the same classes, those of the test set:
    one that has no row in a resample keeps its recall from the whole test set there. Its own uncertainty is then
    missing, so that the interval is too narrow where the returned share is large.

    Classes are integers from 0, groups integers or strings. Raises `ValueError` for no rows, lengths that do not fit,
    or fewer than two groups.
    """
    true, found = np.ravel(truth).astype(np.int64), np.ravel(predicted).astype(np.int64)
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be positive and level lie in (0, 1), got {resamples} and {level}")
    if not len(true) or len(true) != len(found):
        raise ValueError(f"an interval needs rows, got {len(true)} true and {len(found)} predicted classes")
    present, column = np.unique(true, return_inverse=True)
    classes = len(present)
    cells = 2 * column + (true == found)  # rows of one class that are wrong, and that are right
    whole = np.bincount(cells, minlength=2 * classes)
    fallback = whole[1::2] / (whole[0::2] + whole[1::2])
    by_group, count = None, classes
    if groups is not None:
        known, group = np.unique(np.ravel(groups), return_inverse=True)
        if len(group) != len(true) or len(known) < 2:
            raise ValueError(
                f"an interval over groups needs the group of each of {len(true)} rows and at least two groups, got "
                f"{len(group)} rows in {len(known)}; groups=None resamples rows"
            )
        ones = np.ones(len(true), np.int64)
        by_group, count = coo_matrix((ones, (group, cells)), shape=(len(known), 2 * classes)).tocsr(), len(known)

    draw = np.random.default_rng([seed, count])
    found_means, lacking = [], 0
    block = max(1, _BLOCK // max(count, 2 * classes))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        if by_group is None:  # counts of the cells are all that rows drawn one by one would leave
            drawn = draw.multinomial(len(true), whole / len(true), size=size)
        else:
            drawn = draw.multinomial(count, np.full(count, 1 / count), size=size) @ by_group
        support = drawn[:, 0::2] + drawn[:, 1::2]
        recalls = np.where(support > 0, drawn[:, 1::2] / np.maximum(support, 1), fallback)
        found_means.append(recalls.mean(axis=1))
        lacking += int((support == 0).any(axis=1).sum())
    low, high = np.quantile(np.concatenate(found_means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high), lacking / resamples


def _per_class(names: Sequence[str], table: Ints, train_counts: Sequence[int] | None) -> list[ClassFigures]:
    support, given, hits = table.sum(axis=1), table.sum(axis=0), np.diagonal(table)
    recall, f1 = _ratios(hits, support), _ratios(2 * hits, support + given)
    precision = np.where((given == 0) & (support > 0), 0.0, _ratios(hits, given))
    return [
        ClassFigures(
            name=name,
            support=int(support[c]),
            predicted=int(given[c]),
            recall=_defined(recall[c]),
            precision=_defined(precision[c]),
            f1=_defined(f1[c]),
            train_count=None if train_counts is None else int(train_counts[c]),
        )
        for c, name in enumerate(names)
    ]


def _thirds(recalls: Floats, train_counts: Sequence[int]) -> tuple[float | None, ...]:
    """Mean of the defined ``recalls [C]`` in the head, middle and tail third of the classes by ``train_counts [C]``."""
    if len(recalls) < 3:
        return None, None, None
    order = np.argsort(-np.asarray(train_counts, np.int64), kind="stable")
    parts = [recalls[third][np.isfinite(recalls[third])] for third in np.array_split(order, 3)]
    return tuple(float(part.mean()) if len(part) else None for part in parts)


def _ratios(above: Ints, below: Ints) -> Floats:
    """``above / below [C]``, NaN where both are 0."""
    return np.asarray(np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0))


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _classes(values: ArrayLike, what: str, count: int) -> Ints:
    found = np.ravel(np.asarray(values))
    if not len(found):
        raise ValueError(f"{what}: no rows; there is nothing to measure on an empty test set")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{what}: classes must be integers, got {found.dtype}")
    bad = np.flatnonzero((found < 0) | (found >= count))
    if len(bad):
        raise ValueError(
            f"{what}: {len(bad)} of {len(found)} classes lie outside 0..{count - 1}, "
            f"first {found[bad[0]]} at row {bad[0]}"
        )
    return found.astype(np.int64)
