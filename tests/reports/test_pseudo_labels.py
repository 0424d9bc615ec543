"""Pictures of pseudo-labels draw the logged counts, whatever is empty in them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from rayssl.reports.run.pseudo_labels import (
    _mean,
    _ratio,
    bias_picture,
    pseudo_curves,
    pseudo_map,
    sorted_classes,
    source_curves,
)
from rayssl.reports.run.reading import PseudoLabels
from tests.reports.test_figures import words


def counts(classes: int, epochs: int, seed: int = 0) -> PseudoLabels:
    draw = np.random.default_rng([seed])
    truth = np.tile(draw.integers(5, 50, classes), (epochs, 1))
    right = draw.binomial(truth, 0.6)
    predicted = right + draw.integers(0, 9, right.shape)
    names = [f"k{c}" for c in range(classes)]
    return PseudoLabels(names, np.arange(epochs) + 3, predicted, draw.binomial(predicted, 0.5), right, truth)


def test_classes_are_sorted_by_labelled_rows_or_else_by_true_ones() -> None:
    pseudo = counts(5, 3)
    labelled = {"k0": 1, "k1": 9, "k2": 5, "k3": 7, "k4": 3}
    found = sorted_classes(pseudo, labelled)
    assert found.names == ["k1", "k3", "k2", "k4", "k0"]
    assert (found.right == pseudo.right[:, [1, 3, 2, 4, 0]]).all()
    by_truth = sorted_classes(pseudo, {"k0": 1})
    assert (np.diff(by_truth.truth[-1]) <= 0).all()


def test_last_precision_and_recall_stand_beside_the_map() -> None:
    pseudo = PseudoLabels(
        ["a", "b", "c"], np.array([0, 1]), predicted=np.array([[9, 1, 0], [4, 5, 0]]),
        confident=np.zeros((2, 3), int), right=np.array([[1, 1, 0], [3, 1, 0]]), truth=np.array([[6, 3, 2]] * 2),
    )  # fmt: skip
    found = words(str(pseudo_map(pseudo)))
    assert [word for word in found if word.endswith("%") or word == "-"] == ["75 %", "20 %", "-", "50 %", "33 %", "0 %"]
    assert found.count("a") == 2


@pytest.mark.parametrize(("classes", "titles"), [(6, ["many", "medium", "few"]), (2, ["k0", "k1"])])
def test_sources_are_drawn_where_a_method_blends(classes: int, titles: list[str]) -> None:
    pseudo = counts(classes, 3)
    assert source_curves(pseudo) is None
    blended = replace(pseudo, linear=pseudo.right // 2, semantic=pseudo.right)
    found = words(str(source_curves(sorted_classes(blended, {}))))
    assert [title for title in titles if title not in found] == [] and {"linear", "prototypes", "used"} <= set(found)
    assert source_curves(replace(blended, truth=blended.truth * 0)) is None


@pytest.mark.long
def test_many_classes_are_pooled_and_many_epochs_thinned() -> None:
    found = words(str(pseudo_map(counts(150, 200))))
    assert "1 to 3" in found and "149 to 150" in found and "k0" not in found
    assert "3" in found  # the first epoch's tick
    assert len(str(pseudo_map(counts(20, 500)))) < 350_000


@pytest.mark.parametrize(("classes", "legend"), [(6, ["many", "medium", "few"]), (2, ["k0", "k1"]), (1, ["k0"])])
def test_curves_are_of_thirds_or_of_the_few_classes(classes: int, legend: list[str]) -> None:
    found = words(str(pseudo_curves(counts(classes, 4))))
    assert [word for word in found if word in {"many", "medium", "few", "k0", "k1"}] == legend
    assert {"Precision", "Recall", "Above the threshold"} <= set(found)


def test_bias_shows_first_middle_and_last_epoch_as_far_as_there_are() -> None:
    for epochs, shown in ((9, [3, 7, 11]), (2, [3, 4]), (1, [3])):
        found = words(bias_picture(counts(5, epochs)))
        assert [word for word in found if word.startswith("Pseudo")] == [f"Pseudo-labels, epoch {e}" for e in shown]
        assert "True share" in found and "Given / true" in found


def test_without_truth_only_what_was_given_is_drawn() -> None:
    pseudo = counts(5, 4)
    blind = PseudoLabels(
        pseudo.names, pseudo.epoch, pseudo.predicted, pseudo.confident, 0 * pseudo.right, 0 * pseudo.truth
    )
    assert pseudo_map(blind) is None
    assert "Precision" not in words(str(pseudo_curves(blind))) and "Above the threshold" in words(
        str(pseudo_curves(blind))
    )
    assert "True share" not in words(bias_picture(blind)) and "Given / true" not in words(bias_picture(blind))


@pytest.mark.long
def test_empty_classes_and_epochs_are_drawn_without_a_warning() -> None:
    pseudo = counts(5, 4)
    for part in (pseudo.predicted, pseudo.confident, pseudo.right):
        part[0] = 0
        part[:, 2] = 0
    pseudo.truth[:, 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pseudo_curves(pseudo) and pseudo_map(pseudo) and bias_picture(pseudo)
        pseudo.predicted[:] = 0
        assert pseudo_curves(pseudo) and pseudo_map(pseudo) and "1/32" in words(bias_picture(pseudo))


def test_one_epoch_has_no_learning_curves() -> None:
    assert pseudo_curves(counts(5, 1)) is None and pseudo_map(counts(5, 1)) is None


def test_ratios_and_means_leave_out_what_is_undefined() -> None:
    values = _ratio(np.array([[1, 0, 3]]), np.array([[2, 0, 3]]))
    assert values[0, [0, 2]].tolist() == [0.5, 1] and np.isnan(values[0, 1])
    assert _mean(values).tolist() == [0.75] and np.isnan(_mean(values[:, 1:2])).all()
