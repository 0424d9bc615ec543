"""Speaker verification figures from scored trials: EER with its interval over speakers, minDCF, and the DET curve.

A trial is accepted if its score is at or above a threshold. The threshold falls past one distinct score at a time: this
gives the ROC staircase of points (P_fa, P_miss) from (0, 1) to (1, 0). Trials with tied scores move together. All
figures are computed from these points. Rates are fractions in [0, 1], never percent.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayssl.schema import Config

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 1 << 20  # the most weights in RAM in the bootstrap: resamples of a block * trials


class Result(Config):
    """The figures of one scored trial list. Without the ``speakers`` of the trials, which are counted, there is no
    interval. ``eer`` and its interval are on the ROC convex hull, ``eer_nearest`` is `nearest_eer`; results of an
    earlier rayssl have only the first.
    """

    eer: float
    eer_nearest: float | None = None
    eer_low: float | None = None
    eer_high: float | None = None
    min_dcf_001: float
    min_dcf_005: float
    trials: int
    targets: int
    speakers: int | None = None
    norm: str = "none"
    checkpoint: str | None = None


def eer(target_scores: ArrayLike, nontarget_scores: ArrayLike) -> float:
    """Equal error rate of ``target_scores [T]`` against ``nontarget_scores [N]``, on the ROC convex hull; in [0, 0.5].

    It is the value at which the lower-left convex hull of the ROC staircase crosses P_miss = P_fa. The hull is linear
    between its vertices: a random choice between two thresholds reaches any point of it. By duality
    ``EER = max_p min_threshold (p P_miss + (1 - p) P_fa)``. The value lies at or below the crossing of the staircase
    itself, by at most one step's height if the staircase is nearly convex. Scores worse than chance give 0.5. Raises
    `ValueError` if either side is empty or holds a NaN or an infinity.
    """
    targets, nontargets = np.ravel(target_scores), np.ravel(nontarget_scores)
    labels = np.concatenate([np.ones(len(targets), np.int8), np.zeros(len(nontargets), np.int8)])
    stairs = _stairs(np.concatenate([targets, nontargets]), labels)
    return float(_hull_eer(*stairs.rates(np.ones((1, len(labels)))))[0])


def nearest_eer(target_scores: ArrayLike, nontarget_scores: ArrayLike) -> float:
    """Equal error rate by the rule of public speaker toolkits: ``max(P_fa, P_miss)`` where they are nearest; in [0, 1].

    The point is one of the ROC staircase, without interpolation; of several points that are equally near, the one with
    the lowest threshold. Papers of speaker verification usually report this figure. It is never below `eer`. Raises
    `ValueError` as `eer` does.
    """
    targets, nontargets = np.ravel(target_scores), np.ravel(nontarget_scores)
    labels = np.concatenate([np.ones(len(targets), np.int8), np.zeros(len(nontargets), np.int8)])
    false_alarm, miss, _ = det_curve(np.concatenate([targets, nontargets]), labels)
    nearest = len(miss) - 1 - int(np.abs(false_alarm - miss)[::-1].argmin())
    return float(max(false_alarm[nearest], miss[nearest]))


def min_dcf(scores: ArrayLike, labels: ArrayLike, p_target: float, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Normalised minimum detection cost of ``scores [n]`` with ``labels [n]`` (1 target, 0 non-target); in [0, 1].

    ``min over thresholds (c_miss p P_miss + c_fa (1 - p) P_fa) / min(c_miss p, c_fa (1 - p))`` with ``p = p_target``.
    The cost is 1 for a system that accepts everything or rejects everything, whichever is cheaper. Raises `ValueError`
    for unusable trials, a ``p_target`` outside (0, 1), or a cost that is not above 0.
    """
    if not 0 < p_target < 1 or c_miss <= 0 or c_fa <= 0:
        raise ValueError(f"p_target must lie in (0, 1) and costs above 0, got {p_target}, {c_miss}, {c_fa}")
    false_alarm, miss, _ = det_curve(scores, labels)
    cost = c_miss * p_target * miss + c_fa * (1 - p_target) * false_alarm
    return float(cost.min() / min(c_miss * p_target, c_fa * (1 - p_target)))


def det_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The staircase of ``scores [n]``, ``labels [n]``: rising P_fa, falling P_miss and falling thresholds, each [k+1].

    ``k`` is the number of distinct scores. The first threshold is +inf: no trial is accepted. Raises `ValueError` for
    unusable trials.
    """
    stairs = _stairs(scores, labels)
    false_alarm, miss = stairs.rates(np.ones((1, len(stairs.order))))
    return false_alarm[0], miss[0], np.concatenate([[np.inf], stairs.thresholds])


class NoIntervalError(ValueError):
    """Trials of too few speakers for an interval."""


def bootstrap_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    enrol_speakers: ArrayLike,
    test_speakers: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of the EER by bootstrap over *speakers*, which are drawn with replacement.

    Trials that share a speaker are not independent: resampling trials would give far too narrow intervals. If speaker s
    is drawn ``m_s`` times, a trial between speakers s and t weighs ``m_s m_t``. A trial of s with itself weighs
    ``m_s``, since each copy of the speaker brings its own target trials once. (The square would nearly triple the
    targets' variance.) A resample without targets or without non-targets has no EER and is left out.

    All four arrays are ``[n]``, one entry for each trial; labels are 1 (target) or 0, and speakers are integers or
    strings. Returns ``(low, high)``. Raises `ValueError` for unusable trials, and its kind `NoIntervalError` for fewer
    than two speakers, or if more than half of the resamples have no EER.
    """
    stairs = _stairs(scores, labels)
    enrol, test = np.ravel(enrol_speakers), np.ravel(test_speakers)
    if len(enrol) != len(stairs.order) or len(test) != len(stairs.order):
        raise ValueError(f"{len(stairs.order)} trials but {len(enrol)} enrolment and {len(test)} test speakers")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples must be positive and level lie in (0, 1), got {resamples} and {level}")
    known, index = np.unique(np.concatenate([enrol, test]), return_inverse=True)
    if len(known) < 2:
        raise NoIntervalError("an interval over speakers needs trials of at least two speakers")
    first, second = index[: len(enrol)], index[len(enrol) :]
    same = first == second

    draw = np.random.default_rng([seed, len(known)])
    rates = []
    block = max(1, _BLOCK // len(enrol))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        times = draw.multinomial(len(known), np.full(len(known), 1 / len(known)), size=count).astype(np.float64)
        weights = times[:, first]
        weights *= np.where(same, 1.0, times[:, second])
        rates.append(_hull_eer(*stairs.rates(weights)))
    found = np.concatenate(rates)
    found = found[np.isfinite(found)]
    if len(found) * 2 < resamples:
        raise NoIntervalError(
            f"only {len(found)} of {resamples} resamples of {len(known)} speakers have both kinds of trial"
        )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verification_result(
    scores: ArrayLike,
    labels: ArrayLike,
    enrol_speakers: ArrayLike | None = None,
    test_speakers: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
    norm: str = "none",
    checkpoint: str | None = None,
) -> Result:
    """All figures of one scored trial list.

    Args:
        scores: ``[n]``.
        labels: ``[n]``, 1 for a target trial and 0 for a non-target one.
        enrol_speakers: see `bootstrap_interval`; None for no interval.
        test_speakers: see `bootstrap_interval`; None for no interval.
        seed: of the interval's draws.
        resamples: of the interval.
        norm: a name for the score normalisation.
        checkpoint: a name for the checkpoint.

    Raises:
        ValueError: trials are unusable.
    """
    values, kinds = np.ravel(scores), np.ravel(labels)
    low = high = speakers = None
    if enrol_speakers is not None and test_speakers is not None:
        speakers = len(np.unique(np.concatenate([np.ravel(enrol_speakers), np.ravel(test_speakers)])))
        # a list of a few trials has figures, but they say nothing of other speakers
        with suppress(NoIntervalError):
            low, high = bootstrap_interval(values, kinds, enrol_speakers, test_speakers, resamples=resamples, seed=seed)
    return Result(
        eer=eer(values[kinds == 1], values[kinds == 0]),
        eer_nearest=nearest_eer(values[kinds == 1], values[kinds == 0]),
        eer_low=low,
        eer_high=high,
        min_dcf_001=min_dcf(values, kinds, 0.01),
        min_dcf_005=min_dcf(values, kinds, 0.05),
        trials=len(values),
        targets=int((kinds == 1).sum()),
        speakers=speakers,
        norm=norm,
        checkpoint=checkpoint,
    )


@dataclass(frozen=True)
class _Stairs:
    """Trials sorted by falling score. One sorting serves all weightings of the bootstrap."""

    order: Ints  # [n] the trial at each place
    is_target: NDArray[np.bool_]  # [n] whether the trial at each place is a target
    last: Ints  # [k] the place of the last trial of each distinct score
    thresholds: Floats  # [k] the distinct scores, falling

    def rates(self, weights: Floats) -> tuple[Floats, Floats]:
        """P_fa and P_miss ``[R, k+1]`` for trial weights ``[R, n]``. A row is NaN if one kind of trial has weight 0."""
        placed = weights[:, self.order]
        targets = np.cumsum(placed * self.is_target, axis=1)
        others = np.cumsum(placed * ~self.is_target, axis=1)
        nothing = np.zeros((len(weights), 1))
        with np.errstate(invalid="ignore"):
            accepted = np.concatenate([nothing, targets[:, self.last]], axis=1) / targets[:, -1:]
            false_alarm = np.concatenate([nothing, others[:, self.last]], axis=1) / others[:, -1:]
        return false_alarm, 1 - accepted


def _stairs(scores: ArrayLike, labels: ArrayLike) -> _Stairs:
    values = np.asarray(scores, np.float64).ravel()
    kinds = np.asarray(labels).ravel()
    if len(values) != len(kinds):
        raise ValueError(f"{len(values)} scores but {len(kinds)} labels")
    unusable = int((~np.isfinite(values)).sum())
    if unusable:
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{unusable} of {len(values)} scores are NaN or infinite, first at trial {first}")
    if not np.isin(kinds, (0, 1)).all():
        raise ValueError("labels must be 1 (target) or 0 (non-target)")
    targets = int((kinds == 1).sum())
    if targets == 0 or targets == len(kinds):
        raise ValueError(f"need target and non-target trials, got {targets} and {len(kinds) - targets}")
    order = np.argsort(-values, kind="stable")
    placed = values[order]
    last = np.flatnonzero(np.append(placed[1:] != placed[:-1], True))
    return _Stairs(order, kinds[order] == 1, last, placed[last])


def _hull_eer(false_alarm: Floats, miss: Floats) -> Floats:
    """EER ``[R]`` of the convex hulls of R staircases ``[R, k]``; NaN where the rates are NaN.

    It looks only for the hull edge that crosses the diagonal. It starts with the chord between an end above and an end
    below the diagonal. In each round it takes the staircase point furthest beyond the chord, and of the two new chords
    keeps the one that crosses the diagonal. It ends when no point lies beyond. A round is one vectorised pass; there
    are about as many rounds as the hull has vertices near the diagonal.
    """
    rows = np.arange(len(miss))
    left, right = np.zeros(len(miss), np.int64), np.full(len(miss), miss.shape[1] - 1, np.int64)
    active = np.isfinite(false_alarm[:, -1]) & np.isfinite(miss[:, 0])
    while active.any():
        todo = rows[active]
        x0, y0 = false_alarm[todo, left[todo]], miss[todo, left[todo]]
        down, along = y0 - miss[todo, right[todo]], false_alarm[todo, right[todo]] - x0
        below = (x0[:, None] - false_alarm[todo]) * down[:, None] + (y0[:, None] - miss[todo]) * along[:, None]
        best = below.argmax(axis=1)
        beyond = below[np.arange(len(todo)), best] > 1e-14
        above_diagonal = miss[todo, best] >= false_alarm[todo, best]
        left[todo[beyond & above_diagonal]] = best[beyond & above_diagonal]
        right[todo[beyond & ~above_diagonal]] = best[beyond & ~above_diagonal]
        active[todo[~beyond]] = False
    x0, y0 = false_alarm[rows, left], miss[rows, left]
    x1, y1 = false_alarm[rows, right], miss[rows, right]
    gap = (y0 - x0) - (y1 - x1)
    with np.errstate(invalid="ignore"):
        return np.where(gap > 0, x0 + (x1 - x0) * (y0 - x0) / np.where(gap > 0, gap, 1), x0) + 0 * gap
