"""The figures of sleep staging: macro F1 and Cohen's kappa, pooled and by night, with intervals over subjects.

From the confusion ``T [C, C]`` (``T[i][j]``: epochs of stage i predicted as j) with N epochs, support n_i = sum_j T_ij
and predictions p_j = sum_i T_ij::

    F1_i = 2 T_ii / (n_i + p_i),  macro F1 = mean_i F1_i
    kappa = (p_o - p_e) / (1 - p_e),  p_o = sum_i T_ii / N,  p_e = sum_i n_i p_i / N^2

A stage without support makes macro F1 and balanced accuracy None, and the reason is given: they are never a mean over
the other stages. Kappa is None if p_e = 1. Unscored epochs are left out everywhere. All rates are fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayssl.data.nights.scores import NightScores
from rayssl.errors import CorpusError
from rayssl.evaluation.hypnogram import SleepVariables, VariableError, difference, sleep_variables, variable_errors
from rayssl.evaluation.imbalance import ClassFigures, classification_result
from rayssl.schema import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 1 << 22  # the most weights in RAM in the bootstrap: resamples of a block * subjects


class StageFigures(Config):
    """The figures of one classifier of ``n`` epochs into the stages ``names [C]``, pooled over all epochs.

    ``confusion[i][j]``: the epochs of stage i that are predicted as j. ``invalid`` says why ``macro_f1`` and
    ``balanced_accuracy`` are None.
    """

    names: list[str]
    n: int
    macro_f1: float | None
    kappa: float | None
    accuracy: float
    balanced_accuracy: float | None
    invalid: str | None = None
    per_class: list[ClassFigures]
    confusion: list[list[int]]


class ComparedFigures(StageFigures):
    """Figures with intervals, and those of a classifier that always says the most frequent stage (``majority``).

    The bounds ``*_low`` and ``*_high`` are 95 % intervals, resampled over subjects, or None with the reason in
    ``no_interval``. ``interval_absent``: the share of resamples in which a stage had no epoch; they do not count for
    macro F1.
    """

    macro_f1_low: float | None = None
    macro_f1_high: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None
    interval_absent: float | None = None
    no_interval: str | None = None
    majority: StageFigures


class NightFigures(Config):
    """One night, over its ``n`` scored epochs. ``error`` is predicted - scored.

    ``macro_f1`` is None for a night that lacks a stage, which is common. ``kappa`` is None if both hypnograms have the
    same single stage.
    """

    night: str
    subject: str
    n: int
    macro_f1: float | None
    kappa: float | None
    accuracy: float
    scored: SleepVariables
    predicted: SleepVariables
    error: SleepVariables


class StagingResult(ComparedFigures):
    """The figures of a model on a corpus of nights.

    ``nights`` and ``subjects`` have scored epochs; ``unscored`` epochs have no truth and ``unscored_nights`` only such
    epochs. ``majority_of``: the baseline's most frequent stage is that of the "training" or of the "test" epochs.
    ``three_class`` and ``two_class``: the same predictions with stages merged, Wake/NREM/REM and Wake/Sleep.
    ``variables``: the errors of the sleep variables over nights.
    """

    task: Literal["staging"] = "staging"
    checkpoint: str | None = None
    nights: int
    subjects: int
    unscored: int
    unscored_nights: int
    majority_of: Literal["training", "test"]
    three_class: ComparedFigures
    two_class: ComparedFigures
    variables: list[VariableError]
    per_night: list[NightFigures]


def staging_result(
    nights: Sequence[NightScores],
    names: Sequence[str],
    *,
    train_counts: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    checkpoint: str | None = None,
) -> StagingResult:
    """All figures of ``nights``, whose probabilities are of the stages ``names [C]``, with "Wake" and "REM" in them.

    ``train_counts [C]``: the labelled training epochs of each stage, for the majority baseline; without it the
    baseline knows the test set's own shares, which favours it. ``resamples``: of the interval; 0 for no interval.

    Raises `CorpusError` if no epoch is scored, and `ValueError` if lengths do not fit or a night occurs twice.
    """
    _check(nights, names, train_counts)
    scored = [night for night in nights if (night.truth >= 0).any()]
    if not scored:
        raise CorpusError(f"none of {len(nights)} nights has a scored epoch: there is nothing to compare with")
    pairs = [(night.truth[night.truth >= 0], night.predicted[night.truth >= 0]) for night in scored]
    truth, predicted = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    tables = np.stack([_confusion(*pair, len(names)) for pair in pairs])
    subjects, owner = np.unique([night.subject for night in scored], return_inverse=True)
    by_subject = np.zeros((len(subjects), len(names), len(names)), np.int64)
    np.add.at(by_subject, owner, tables)
    per_night = [_night(*each, names) for each in zip(scored, tables, strict=True)]
    draws = (resamples, seed)
    known = by_subject.sum(axis=(0, 2)) if train_counts is None else np.asarray(train_counts)

    def merged(stages: Sequence[str]) -> ComparedFigures:
        """A stage whose name is not among ``stages`` is part of the second one (NREM, or Sleep)."""
        place = np.array([stages.index(name) if name in stages else 1 for name in names])
        into = np.eye(len(stages), dtype=np.int64)[place]  # [C, K]
        return _compared(place[truth], place[predicted], stages, known @ into, into.T @ by_subject @ into, draws)

    counts = None if train_counts is None else [int(count) for count in train_counts]
    return StagingResult(
        **_compared(truth, predicted, names, known, by_subject, draws, counts).model_dump(),
        checkpoint=checkpoint,
        nights=len(scored),
        subjects=len(subjects),
        unscored=int(sum((night.truth < 0).sum() for night in nights)),
        unscored_nights=len(nights) - len(scored),
        majority_of="test" if train_counts is None else "training",
        three_class=merged(("Wake", "NREM", "REM")),
        two_class=merged(("Wake", "Sleep")),
        variables=variable_errors([night.scored for night in per_night], [night.predicted for night in per_night]),
        per_night=per_night,
    )


def staging_line(result: StagingResult) -> str:
    """The figures in one line."""
    majority = result.majority
    found = "invalid" if result.macro_f1 is None else f"{result.macro_f1:.1%}"
    if result.macro_f1_low is not None and result.macro_f1_high is not None:
        found += f" [{100 * result.macro_f1_low:.1f}, {100 * result.macro_f1_high:.1f}]"
    agreement = "undefined" if result.kappa is None else f"{result.kappa:.3f}"
    if result.kappa_low is not None:
        agreement += f" [{result.kappa_low:.3f}, {result.kappa_high:.3f}]"
    base = "invalid" if majority.macro_f1 is None else f"{majority.macro_f1:.1%}"
    reason = "" if result.invalid is None else f"; invalid: {result.invalid}"
    return (
        f"macro F1 {found}, kappa {agreement}, accuracy {result.accuracy:.1%} over {result.n} epochs of "
        f"{_counted(result.nights, 'night')} of {_counted(result.subjects, 'subject')} (majority baseline: macro F1 "
        f"{base}, kappa {'undefined' if majority.kappa is None else '0'}, accuracy {majority.accuracy:.1%}){reason}"
    )


def kappa(confusion: ArrayLike) -> Floats:
    """Cohen's kappa of confusions ``[..., C, C]``, float64 ``[...]``; NaN where it is not defined. See the module."""
    table = np.asarray(confusion, np.float64)
    total = np.maximum(table.sum(axis=(-2, -1)), 1)
    observed = np.trace(table, axis1=-2, axis2=-1) / total
    expected = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / total**2
    left = 1 - expected
    return np.asarray(np.divide(observed - expected, left, out=np.full(left.shape, np.nan), where=left > 1e-12))


def macro_f1(confusion: ArrayLike) -> Floats:
    """Macro F1 of confusions ``[..., C, C]``, float64 ``[...]``; NaN where a stage has no support. See the module."""
    table = np.asarray(confusion, np.float64)
    support, given = table.sum(axis=-1), table.sum(axis=-2)
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    f1 = (2 * hits / np.maximum(support + given, 1)).mean(axis=-1)
    return np.asarray(np.where((support > 0).all(axis=-1), f1, np.nan))


def _compared(
    truth: Ints,
    predicted: Ints,
    names: Sequence[str],
    known: Ints,
    by_subject: Ints,
    draws: tuple[int, int],
    counts: Sequence[int] | None = None,
) -> ComparedFigures:
    """The figures of the predictions, and of the stage that is the most frequent by ``known [C]`` (ties: the first).

    ``by_subject [S, C, C]``: the confusions of the subjects; ``draws``: resamples and seed of the interval.
    """
    majority = _figures(truth, np.full(len(truth), known.argmax()), names, counts)
    bounds = _intervals(by_subject, *draws)
    return ComparedFigures(**_figures(truth, predicted, names, counts).model_dump(), **bounds, majority=majority)


def _figures(truth: Ints, predicted: Ints, names: Sequence[str], counts: Sequence[int] | None) -> StageFigures:
    found = classification_result(truth, predicted, names, train_counts=counts, resamples=0)
    table = np.array(found.confusion)
    lacking = [each.name for each in found.per_class if not each.support]
    reason = f"no scored epoch is {' or '.join(lacking)}, and a mean over the other stages would mislead"
    return StageFigures(
        names=list(names),
        n=found.n,
        macro_f1=_defined(macro_f1(table)),
        kappa=_defined(kappa(table)),
        accuracy=found.accuracy,
        balanced_accuracy=None if lacking else found.balanced_accuracy,
        invalid=reason if lacking else None,
        per_class=found.per_class,
        confusion=found.confusion,
    )


def _night(night: NightScores, table: Ints, names: Sequence[str]) -> NightFigures:
    known = night.truth >= 0
    scored = sleep_variables(night.truth[known], night.index[known], names)
    predicted = sleep_variables(night.predicted[known], night.index[known], names)
    return NightFigures(
        night=night.name,
        subject=night.subject,
        n=int(known.sum()),
        macro_f1=_defined(macro_f1(table)),
        kappa=_defined(kappa(table)),
        accuracy=float(np.trace(table) / table.sum()),
        scored=scored,
        predicted=predicted,
        error=difference(predicted, scored),
    )


def _intervals(by_subject: Ints, resamples: int, seed: int, level: float = 0.95) -> dict[str, float | str | None]:
    """The bounds of macro F1 and kappa for `ComparedFigures`, by bootstrap over ``by_subject [S, C, C]``.

    Epochs of a night, and nights of a subject, are not independent. So each resample draws S subjects with replacement
    and takes all epochs of each. A resample in which a figure is not defined does not count for it; a figure that is
    not defined in half of them has no interval.
    """
    if not resamples:
        return {"no_interval": "not asked for (resamples: 0)"}
    count, classes = by_subject.shape[:2]
    if count < 2:
        return {"no_interval": "there is only one subject"}
    draw = np.random.default_rng([seed, count])
    flat, found = by_subject.reshape(count, -1), []
    block = max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        times = draw.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        tables = (times @ flat).reshape(-1, classes, classes)
        found.append(np.stack([macro_f1(tables), kappa(tables)]))
    values = np.concatenate(found, axis=1)
    bounds: dict[str, float | str | None] = {"interval_absent": float(np.isnan(values[0]).mean())}
    for name, each in zip(("macro_f1", "kappa"), values, strict=True):
        usable = each[np.isfinite(each)]
        if 2 * len(usable) > resamples:
            low, high = np.quantile(usable, [(1 - level) / 2, (1 + level) / 2])
            bounds |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        else:
            bounds["no_interval"] = f"{name} is not defined in {np.isnan(each).mean():.0%} of the resamples"
    return bounds


def _check(nights: Sequence[NightScores], names: Sequence[str], train_counts: Sequence[int] | None) -> None:
    if not {"Wake", "REM"} <= set(names):
        raise ValueError(f"the stages must have Wake and REM, got {', '.join(names)}")
    if train_counts is not None and len(train_counts) != len(names):
        raise ValueError(f"{len(names)} stages but {len(train_counts)} training counts")
    known = [night.name for night in nights]
    twice = next((name for name in known if known.count(name) > 1), None) if len(set(known)) < len(known) else None
    if twice is not None:
        raise ValueError(f"night {twice} occurs twice; every night is scored once")
    for night in nights:
        if night.probabilities.shape[1] != len(names):
            raise ValueError(f"night {night.name}: {night.probabilities.shape[1]} probabilities, {len(names)} stages")


def _confusion(truth: Ints, predicted: Ints, classes: int) -> Ints:
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _defined(value: Floats) -> float | None:
    return float(value) if np.isfinite(value) else None


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
