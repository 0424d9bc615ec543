"""Classification figures against scikit-learn, closed forms and draws of new test sets."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from rayssl.evaluation.imbalance import balanced_accuracy_interval, classification_result


def names(count: int) -> list[str]:
    return [f"c{index}" for index in range(count)]


def predictions(seed: int, count: int = 400, classes: int = 6, right: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng([seed])
    truth = draw.choice(classes, count, p=np.arange(classes, 0, -1) / np.arange(1, classes + 1).sum())
    return truth, np.where(draw.random(count) < right, truth, draw.integers(0, classes, count))


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    truth, predicted = predictions(seed)
    result = classification_result(truth, predicted, names(6), resamples=0, head="linear", share=0.1, checkpoint="c")
    assert (result.n, result.head, result.share, result.checkpoint) == (400, "linear", 0.1, "c")
    assert result.accuracy == pytest.approx((truth == predicted).mean())
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert result.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert result.confusion == confusion_matrix(truth, predicted).tolist()
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted)
    assert [c.recall for c in result.per_class] == pytest.approx(recall)
    assert [c.precision for c in result.per_class] == pytest.approx(precision)
    assert [c.f1 for c in result.per_class] == pytest.approx(f1)
    assert [c.support for c in result.per_class] == support.tolist()
    assert [c.predicted for c in result.per_class] == np.bincount(predicted, minlength=6).tolist()
    assert result.geometric_mean == pytest.approx(np.prod(recall) ** (1 / 6))
    assert result.balanced_accuracy_low is result.interval_over is result.many is None


def test_classes_without_rows_and_never_predicted_have_defined_figures_and_no_warning() -> None:
    """c2 is never predicted, c3 only predicted, c4 neither; expected means are scikit-learn's."""
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 3, 1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = classification_result(truth, predicted, names(5), resamples=20, train_counts=[9, 5, 3, 2, 1])
    figures = {c.name: (c.recall, c.precision, c.f1) for c in result.per_class}
    assert figures["c0"] == (0.5, 0.5, 0.5) and figures["c1"] == (1, 1, 1)
    assert figures["c2"] == (0, 0, 0) and figures["c3"] == (None, 0, 0) and figures["c4"] == (None, None, None)
    assert result.balanced_accuracy == pytest.approx(0.5)
    assert result.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert result.geometric_mean == 0
    assert (result.many, result.medium, result.few) == (0.75, 0, None)


def test_geometric_mean_does_not_underflow_with_many_classes() -> None:
    truth = np.repeat(np.arange(500), 100)
    predicted = np.where(np.arange(50_000) % 100 == 0, truth, (truth + 1) % 500)
    result = classification_result(truth, predicted, names(500), resamples=0)
    assert result.geometric_mean == pytest.approx(0.01)


@pytest.mark.parametrize(("classes", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [2, 2, 1]), (10, [4, 3, 3])])
def test_thirds_follow_training_counts_and_not_the_order_of_names(classes: int, sizes: list[int]) -> None:
    rank = np.random.default_rng([classes]).permutation(classes)  # rank[c]: 0 for the largest class
    truth = np.repeat(np.arange(classes), 20)
    hit = np.tile(np.arange(20), classes) < np.repeat(rank, 20)  # recall rank / 20
    predicted = np.where(hit, truth, (truth + 1) % classes)
    result = classification_result(
        truth, predicted, names(classes), train_counts=(1000 - 10 * rank).tolist(), resamples=0
    )
    expected = [part.mean() / 20 for part in np.split(np.arange(classes), np.cumsum(sizes)[:2])]
    assert [result.many, result.medium, result.few] == pytest.approx(expected)
    assert [c.train_count for c in result.per_class] == (1000 - 10 * rank).tolist()


def test_two_classes_have_no_thirds() -> None:
    result = classification_result([0, 1], [0, 1], names(2), train_counts=[2, 1], resamples=0)
    assert result.many is result.medium is result.few is None


def test_figures_ignore_the_order_of_rows_and_follow_a_renaming_of_classes() -> None:
    truth, predicted = predictions(9)
    first = classification_result(truth, predicted, names(6), resamples=0)
    turned = np.random.default_rng([1]).permutation(400)
    assert classification_result(truth[turned], predicted[turned], names(6), resamples=0) == first
    renamed = classification_result(5 - truth, 5 - predicted, names(6)[::-1], resamples=0)
    assert renamed.per_class == first.per_class[::-1]
    assert renamed.macro_f1 == pytest.approx(first.macro_f1)


def test_interval_is_repeatable_and_holds_the_estimate() -> None:
    truth, predicted = predictions(2)
    once = classification_result(truth, predicted, names(6), resamples=300, seed=1)
    assert once == classification_result(truth, predicted, names(6), resamples=300, seed=1)
    assert once != classification_result(truth, predicted, names(6), resamples=300, seed=2)
    assert once.balanced_accuracy_low is not None and once.balanced_accuracy_high is not None
    assert once.balanced_accuracy_low < once.balanced_accuracy < once.balanced_accuracy_high
    assert (once.interval_over, once.interval_absent) == ("rows", 0)
    grouped = classification_result(truth, predicted, names(6), groups=[f"s{i % 40}" for i in range(400)], resamples=99)
    assert grouped.interval_over == "groups"


def test_rows_as_groups_of_one_give_the_interval_of_rows() -> None:
    truth, predicted = predictions(3)
    rows = balanced_accuracy_interval(truth, predicted, resamples=4000, seed=0)
    ones = balanced_accuracy_interval(truth, predicted, groups=np.arange(400), resamples=4000, seed=0)
    assert rows == pytest.approx(ones, abs=0.005)


def speakers(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 speakers of 25 rows; how easy a speaker is differs, so that rows of one speaker are dependent."""
    draw = np.random.default_rng([seed])
    who = np.repeat(np.arange(40), 25)
    truth = draw.integers(0, 3, len(who))
    right = draw.random(len(who)) < draw.beta(2, 1, 40)[who]
    return truth, np.where(right, truth, (truth + 1) % 3), who


def test_interval_over_speakers_is_as_wide_as_figures_scatter_between_draws_of_speakers() -> None:
    estimates, wide, narrow = [], [], []
    for seed in range(200):
        truth, predicted, who = speakers(seed)
        estimates.append(balanced_accuracy_score(truth, predicted))
        if seed < 20:
            for widths, groups in ((wide, who), (narrow, None)):
                low, high, _ = balanced_accuracy_interval(truth, predicted, groups=groups, resamples=200, seed=0)
                widths.append(high - low)
    scatter = 2 * 1.96 * np.std(estimates)
    assert 0.85 < np.mean(wide) / scatter < 1.15
    assert np.mean(narrow) / scatter < 0.6


def test_a_class_that_a_resample_lacks_keeps_its_recall_and_is_counted() -> None:
    """99 right rows of one class, one wrong row of another: dropping it would raise the upper end to 1."""
    truth, predicted = np.append(np.zeros(99, int), 1), np.zeros(100, int)
    low, high, absent = balanced_accuracy_interval(truth, predicted, resamples=2000, seed=0)
    assert (low, high) == (0.5, 0.5)
    assert absent == pytest.approx(0.99**100, abs=0.04)


@pytest.mark.parametrize(
    ("truth", "predicted", "counts", "message"),
    [
        ([], [], None, "truth: no rows"),
        ([0, 1], [0], None, "2 true classes but 1 predicted"),
        ([0, 3], [0, 0], None, r"truth: 1 of 2 classes lie outside 0..1, first 3 at row 1"),
        ([0, 1], [0, -1], None, "predicted: 1 of 2 classes lie outside"),
        ([0.5, 1], [0, 1], None, "classes must be integers"),
        ([0, 1], [0, 1], [1], "2 class names but 1 training counts"),
    ],
)
def test_unusable_rows_are_refused(truth: list[int], predicted: list[int], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_result(truth, predicted, names(2), train_counts=counts)


def test_interval_refuses_a_single_group() -> None:
    with pytest.raises(ValueError, match="at least two groups, got 2 rows in 1; groups=None resamples rows"):
        balanced_accuracy_interval([0, 1], [0, 1], groups=["a", "a"], seed=0)
