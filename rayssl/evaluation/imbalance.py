"""Classification figures that a large class cannot dominate, from true and predicted classes.

Class c has n_c test rows; p_c rows are predicted as c; h_c rows are both. Then recall is h_c / n_c, precision is
h_c / p_c, and F1 is 2 h_c / (n_c + p_c). All rates are fractions in [0, 1], never percent. A figure that would be 0 / 0
is None and is left out of every mean: the recall of a class without test rows, and all three figures if that class is
never predicted either. A class that has test rows but is never predicted has precision 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_matrix

from rayssl.schema import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 1 << 22  # the most weights in RAM in the bootstrap: resamples of a block * groups, or * classes


class ClassFigures(Config):
    """One class: it has ``support`` rows in the test set, and ``train_count`` labelled rows for training if known."""

    name: str
    support: int
    predicted: int
    recall: float | None
    precision: float | None
    f1: float | None
    train_count: int | None = None


class ClassificationResult(Config):
    """The figures of one classifier on one test set.

    ``confusion[i][j]`` counts the rows of class i that are predicted as j. ``head`` names the classifier ("linear",
    "knn", "finetune", "model"), and ``share`` the share of the training labels that it had. ``interval_over`` is what
    was resampled for the interval, "groups" or "rows". ``interval_absent`` is the share of resamples in which some
    class had no row. The fields of the interval are None if there is none.
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
    """Computes all figures from ``truth [n]`` and ``predicted [n]``: integers in [0, C), with C ``names`` of classes.

    Balanced accuracy is the mean of the recalls of the classes that occur in the test set, and the geometric mean is
    over the same recalls. Macro F1 is the mean over the classes that occur or are predicted, as in scikit-learn.
    ``many``, ``medium`` and ``few`` are the mean recalls of the head, middle and tail third of all classes by falling
    ``train_counts [C]``, with ties in the order of ``names``. If 3 does not divide C, the first thirds are larger.
    Without counts, or with C < 3, there are no thirds. The interval is that of `balanced_accuracy_interval`; with
    ``resamples`` 0 there is none. ``head``, ``share`` and ``checkpoint`` are copied into the result.

    Raises `ValueError` if there are no rows, if classes are out of range, or if lengths do not fit.
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
    """Percentile interval of the balanced accuracy, by bootstrap.

    With ``groups`` each resample draws groups with replacement, and takes all rows of each. Use speakers or recordings:
    rows of one group are not independent. Without groups it draws rows. Every resample averages over all classes of the
    test set. A class without rows in a resample keeps its recall of the whole test set there: its uncertainty is then
    missing, so that the interval is too narrow if the returned share is large.

    ``truth [n]`` and ``predicted [n]`` are integers from 0; ``groups [n]`` are integers or strings. Returns ``(low,
    high)`` and the share of resamples that lacked some class. Raises `ValueError` if there are no rows, if lengths do
    not fit, or if there are fewer than two groups.
    """
    true, found = np.ravel(truth).astype(np.int64), np.ravel(predicted).astype(np.int64)
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be positive and level lie in (0, 1), got {resamples} and {level}")
    if not len(true) or len(true) != len(found):
        raise ValueError(f"an interval needs rows, got {len(true)} true and {len(found)} predicted classes")
    present, column = np.unique(true, return_inverse=True)
    classes = len(present)
    cells = 2 * column + (true == found)  # two cells for each class: its wrong rows, and its right ones
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
        if by_group is None:  # only the counts of the cells matter, so rows need not be drawn one by one
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
        raise ValueError(f"{what}: no rows; an empty test set has no figures")
    if not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"{what}: classes must be integers, got {found.dtype}")
    bad = np.flatnonzero((found < 0) | (found >= count))
    if len(bad):
        raise ValueError(
            f"{what}: {len(bad)} of {len(found)} classes lie outside 0..{count - 1}, "
            f"first {found[bad[0]]} at row {bad[0]}"
        )
    return found.astype(np.int64)
