"""Verification figures against closed forms, brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import norm
from sklearn.metrics import roc_curve

from rayssl.evaluation.verification import (
    _hull_eer,
    _stairs,
    bootstrap_interval,
    det_curve,
    eer,
    min_dcf,
    nearest_eer,
    verification_result,
)


def gaussian_trials(count: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng([seed])
    labels = (np.arange(count) % 2).astype(np.int8)
    return draw.normal(size=count) + shift * labels, labels


def speaker_trials(speakers: int, seed: int, spread: float = 0.5) -> tuple[np.ndarray, ...]:
    """Every speaker has its own ease, so trials of one speaker are dependent."""
    draw = np.random.default_rng([seed])
    ease = draw.normal(scale=spread, size=speakers)
    enrol, test, labels = [], [], []
    for a in range(speakers):
        for b in range(speakers):
            for _ in range(8 if a == b else 1):
                enrol.append(a), test.append(b), labels.append(int(a == b))
    first, second, kinds = np.array(enrol), np.array(test), np.array(labels)
    scores = draw.normal(size=len(kinds)) + np.where(kinds == 1, 2 + 2 * ease[first], -ease[first] - ease[second])
    return scores, kinds, first, second


@pytest.mark.parametrize(
    ("targets", "nontargets", "expected"),
    [
        ([3.0, 2.0], [1.0, 0.0], 0.0),  # separated
        ([1.0, 1.0], [1.0, 1.0], 0.5),  # no information
        ([0.0], [1.0], 0.5),  # worse than chance: accept at random instead
        ([2.0, 0.0], [1.0, -1.0], 1 / 4),  # hull edge from (P_fa, P_miss) = (0, 1/2) to (1/2, 0)
        ([3.0, 2.0, 0.0], [1.0, -1.0, -2.0], 1 / 6),  # (0, 1/3) to (1/3, 0)
        ([2.0], [3.0, 1.0, 0.0], 1 / 4),  # (0, 1) to (1/3, 0)
    ],
)
def test_eer_closed_forms(targets: list[float], nontargets: list[float], expected: float) -> None:
    assert eer(targets, nontargets) == pytest.approx(expected, abs=1e-12)


def test_eer_gaussian_matches_theory() -> None:
    scores, labels = gaussian_trials(200_000, 2.0, 0)
    assert eer(scores[labels == 1], scores[labels == 0]) == pytest.approx(norm.cdf(-1.0), abs=0.002)


@pytest.mark.parametrize("seed", range(5))
def test_eer_agrees_with_sklearn_roc(seed: int) -> None:
    scores, labels = gaussian_trials(4000, 1.0 + seed / 2, seed)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    crossing = np.argmax(fpr >= 1 - tpr)
    reference = (fpr[crossing] + 1 - tpr[crossing]) / 2
    ours = eer(scores[labels == 1], scores[labels == 0])
    assert reference - 0.005 < ours <= reference + 1 / 4000


@pytest.mark.parametrize("seed", range(6))
def test_hull_eer_is_the_minimax_of_the_staircase(seed: int) -> None:
    """Reference: the linear programme `min v` over mixtures of thresholds with P_fa <= v and P_miss <= v."""
    draw = np.random.default_rng([seed])
    scores, labels = draw.integers(0, 15, 60).astype(float), draw.integers(0, 2, 60)
    scores += labels * 3
    false_alarm, miss, _ = det_curve(scores, labels)
    count = len(miss)
    bounds = np.stack([np.append(false_alarm, -1), np.append(miss, -1)])
    solved = linprog(
        np.append(np.zeros(count), 1), A_ub=bounds, b_ub=[0, 0], A_eq=[np.append(np.ones(count), 0)], b_eq=[1]
    )
    assert eer(scores[labels == 1], scores[labels == 0]) == pytest.approx(solved.fun, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_nearest_eer_is_that_of_public_toolkits(seed: int) -> None:
    """Rising thresholds one trial at a time, and the first of the nearest points. No two scores are equal."""
    draw = np.random.default_rng([seed])
    count = (30, 400, 4001)[seed % 3]
    labels = (draw.random(count) < 0.3).astype(int)
    scores = draw.normal(size=count) + 1.5 * labels
    false_alarm, miss = [1.0], [0.0]
    for k in range(1, count + 1):
        refused = labels[np.argsort(scores)[:k]]
        miss.append(refused.sum() / labels.sum())
        false_alarm.append(1 - (k - refused.sum()) / (count - labels.sum()))
    rates = np.array([false_alarm, miss])
    expected = rates[:, np.round(np.abs(rates[0] - rates[1]), 12).argmin()].max()
    ours = nearest_eer(scores[labels == 1], scores[labels == 0])
    assert ours == pytest.approx(expected, abs=1e-12)
    assert eer(scores[labels == 1], scores[labels == 0]) <= ours + 1e-12


@pytest.mark.parametrize(
    ("targets", "nontargets", "nearest", "hull"),
    [
        ([3.0, 2.0], [1.0, 0.0], 0, 0),
        ([1.0], [1.0], 1, 1 / 2),
        ([2.0, 0.0], [1.0, -1.0], 1 / 2, 1 / 4),
        ([0.0], [1.0], 1, 1 / 2),
    ],
)
def test_both_rules(targets: list[float], nontargets: list[float], nearest: float, hull: float) -> None:
    """A staircase of few steps: the hull goes between its points. Tied trials are accepted together."""
    assert nearest_eer(targets, nontargets) == pytest.approx(nearest)
    assert eer(targets, nontargets) == pytest.approx(hull)


def test_eer_ignores_monotone_maps_and_order() -> None:
    scores, labels = gaussian_trials(500, 1.5, 3)
    expected = eer(scores[labels == 1], scores[labels == 0])
    shuffled = np.random.default_rng([1]).permutation(500)
    mapped, kinds = np.exp(scores)[shuffled], labels[shuffled]
    assert eer(mapped[kinds == 1], mapped[kinds == 0]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p_target", [0.01, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("c_miss", [1.0, 10.0])
def test_min_dcf_is_the_least_over_all_thresholds(p_target: float, c_miss: float) -> None:
    scores, labels = gaussian_trials(300, 2.0, 7)
    scores = np.round(scores, 1)  # ties
    costs = []
    for threshold in [*scores, np.inf]:
        accepted = scores >= threshold
        miss = np.mean(~accepted[labels == 1])
        false_alarm = np.mean(accepted[labels == 0])
        costs.append(c_miss * p_target * miss + (1 - p_target) * false_alarm)
    expected = min(costs) / min(c_miss * p_target, 1 - p_target)
    assert min_dcf(scores, labels, p_target, c_miss=c_miss) == pytest.approx(expected, abs=1e-12)


def test_min_dcf_limits() -> None:
    assert min_dcf([2, 1], [1, 0], 0.01) == 0
    assert min_dcf([1, 2], [1, 0], 0.01) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="p_target"):
        min_dcf([1, 2], [1, 0], 1.0)


def test_det_curve_moves_tied_scores_together() -> None:
    false_alarm, miss, thresholds = det_curve([1.0, 1.0, 0.0, 2.0], [1, 0, 0, 1])
    assert thresholds.tolist() == [np.inf, 2.0, 1.0, 0.0]
    assert false_alarm.tolist() == [0, 0, 0.5, 1]
    assert miss.tolist() == [1, 0.5, 0, 0]


def test_weights_equal_repeated_trials() -> None:
    draw = np.random.default_rng([5])
    scores, labels = gaussian_trials(120, 1.0, 5)
    times = draw.integers(0, 4, 120)
    weighted = _hull_eer(*_stairs(scores, labels).rates(times[None].astype(float)))[0]
    repeated, kinds = np.repeat(scores, times), np.repeat(labels, times)
    assert weighted == pytest.approx(eer(repeated[kinds == 1], repeated[kinds == 0]), abs=1e-12)


def test_many_weightings_at_once_equal_one_by_one() -> None:
    scores, labels = gaussian_trials(200, 1.0, 6)
    weights = np.random.default_rng([6]).integers(0, 3, (20, 200)).astype(float)
    stairs = _stairs(scores, labels)
    singly = [_hull_eer(*stairs.rates(row[None]))[0] for row in weights]
    np.testing.assert_allclose(_hull_eer(*stairs.rates(weights)), singly, atol=1e-15)


def test_weightings_without_a_kind_have_no_eer() -> None:
    rates = _stairs([2.0, 1.0, 0.0], [1, 0, 0]).rates(np.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 0]]))
    assert np.isnan(_hull_eer(*rates)).tolist() == [True, True, False]


def test_bootstrap_interval_is_repeatable_and_holds_the_estimate() -> None:
    scores, labels, first, second = speaker_trials(30, 0)
    low, high = bootstrap_interval(scores, labels, first, second, resamples=200, seed=1)
    assert (low, high) == bootstrap_interval(scores, labels, first, second, resamples=200, seed=1)
    assert (low, high) != bootstrap_interval(scores, labels, first, second, resamples=200, seed=2)
    assert 0 <= low < eer(scores[labels == 1], scores[labels == 0]) < high <= 0.5
    inner = bootstrap_interval(scores, labels, first, second, resamples=200, seed=1, level=0.5)
    assert low < inner[0] < inner[1] < high
    named = bootstrap_interval(
        scores, labels, [f"id{a:03}" for a in first], [f"id{b:03}" for b in second], resamples=200, seed=1
    )
    assert named == (low, high)


def test_bootstrap_width_is_the_spread_between_draws_of_speakers() -> None:
    """The interval should be about as wide as EERs scatter over fresh sets of speakers; over trials it would not."""
    estimates, widths = [], []
    for seed in range(40):
        scores, labels, first, second = speaker_trials(24, 100 + seed)
        estimates.append(eer(scores[labels == 1], scores[labels == 0]))
        if seed < 10:
            low, high = bootstrap_interval(scores, labels, first, second, resamples=100, seed=0)
            widths.append(high - low)
    ratio = np.mean(widths) / (2 * 1.96 * np.std(estimates))
    assert 0.8 < ratio < 1.2  # resampling trials gives about a third, weights m_s m_s of targets a quarter too much


def test_verification_result_gathers_the_figures() -> None:
    scores, labels, first, second = speaker_trials(12, 3)
    result = verification_result(scores, labels, first, second, seed=0, resamples=50, norm="as-norm", checkpoint="c")
    assert (result.trials, result.targets, result.norm, result.checkpoint) == (len(labels), 96, "as-norm", "c")
    assert result.eer_low is not None and result.eer_high is not None
    assert result.eer_low < result.eer < result.eer_high
    assert result.eer_nearest == nearest_eer(scores[labels == 1], scores[labels == 0])
    assert result.min_dcf_001 == min_dcf(scores, labels, 0.01)
    assert result.min_dcf_005 == min_dcf(scores, labels, 0.05)
    assert verification_result(scores, labels).eer_low is None


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, np.nan], [1, 0], "1 of 2 scores are NaN or infinite, first at trial 1"),
        ([0.1, np.inf], [1, 0], "NaN or infinite"),
        ([0.1, 0.2], [1, 1], "need target and non-target trials, got 2 and 0"),
        ([], [], "need target and non-target trials, got 0 and 0"),
        ([0.1, 0.2], [1, 2], "labels must be 1"),
        ([0.1, 0.2], [1], "2 scores but 1 labels"),
    ],
)
def test_unusable_trials_are_refused(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        det_curve(scores, labels)
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(scores, labels, labels, labels, seed=0)


def test_bootstrap_refuses_what_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two speakers"):
        bootstrap_interval([1, 0], [1, 0], ["a", "a"], ["a", "a"], seed=0)
    with pytest.raises(ValueError, match="2 trials but 1 enrolment"):
        bootstrap_interval([1, 0], [1, 0], ["a"], ["a", "b"], seed=0)
    # the only target is of one speaker among many, and is mostly not drawn together with the only non-target
    with pytest.raises(ValueError, match="have both kinds of trial"):
        bootstrap_interval([1, 0], [1, 0], ["a", "b"], ["a", "c"], seed=0, resamples=100)
