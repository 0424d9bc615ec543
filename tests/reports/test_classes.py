"""Pictures of classification results draw what the records say, in one order of classes, at any number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from rayssl.evaluation.imbalance import classification_result
from rayssl.reports.run import classes as module
from rayssl.reports.run.classes import (
    accuracy_over_time,
    class_bars,
    class_rows,
    confusion_picture,
    draw_cells,
    efficiency_curve,
    train_counts,
)
from rayssl.reports.run.reading import Run
from tests.reports.test_figures import words


def record(truth: list[int], predicted: list[int], names: list[str], counts: list[int] | None, **more: Any) -> Any:
    result = classification_result(truth, predicted, names, train_counts=counts, resamples=0, **more)
    return json.loads(result.model_dump_json())


def test_classes_are_in_the_order_of_their_training_rows(class_run: Path) -> None:
    result = json.loads((class_run / "evaluation/result.json").read_text())[0]
    counts = [row["train_count"] for row in class_rows(result)]
    assert counts == sorted(counts, reverse=True) != [row["train_count"] for row in result["per_class"]]
    assert list(train_counts(result).values()) == counts
    names = list(train_counts(result))
    for picture in (class_bars(result), confusion_picture(result)):
        found = words(str(picture))
        assert [word for word in found if word in names][:7] == names


def test_confusion_shows_rounded_shares_of_each_row_and_the_most_frequent_errors_first() -> None:
    """a: 3 of 4 right, 1 as b; b: all of 3 right; c: 199 of 200 as a. Rare c comes last by its training rows."""
    truth, predicted = [0] * 4 + [1] * 3 + [2] * 200, [0, 0, 0, 1] + [1] * 3 + [0] * 199 + [2]
    found = words(str(confusion_picture(record(truth, predicted, ["a", "b", "c"], [9, 5, 1]))))
    assert [word for word in found if word.isdigit()] == ["75", "25", "100", "100"]
    assert found.count("<1") == 1
    assert [word for word in found if " as " in word] == ["c as a", "a as b"]


def test_large_matrices_have_no_numbers_and_too_many_classes_no_names() -> None:
    for count, named in ((13, True), (61, False)):
        truth = list(range(count)) * 2
        found = words(str(confusion_picture(record(truth, truth, [f"k{c}" for c in range(count)], None))))
        assert "100" not in found and ("k12" in found) == named
        assert any(word.endswith(f"({count}, too many to name)") for word in found) != named


def test_bars_say_the_mean_recall_of_each_third_and_mark_what_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    result = record([0, 0, 1, 2], [0, 1, 1, 0], ["a", "b", "c", "d"], [9, 5, 3, 1])
    found = words(str(class_bars(result)))
    assert "many: recall 75.0 %" in found and "medium: recall 0.0 %" in found
    assert not any(word.startswith("few") for word in found), "the tail third has no test rows"
    marked: list[int] = []
    plot = module.Canvas.figure

    def watched(canvas: Any, *arguments: Any, **more: Any) -> Any:
        figure, axes = plot(canvas, *arguments, **more)
        original = np.ravel(axes)[-1].plot
        np.ravel(axes)[-1].plot = lambda x, *rest, **look: (marked.append(len(x)), original(x, *rest, **look))
        return figure, axes

    monkeypatch.setattr(module.Canvas, "figure", watched)
    class_bars(result)
    assert marked == 2 * [1, 1], "d has neither recall nor precision"


def test_bars_without_training_counts_keep_the_order_and_say_nothing_of_thirds() -> None:
    found = words(str(class_bars(record([0, 1, 2], [0, 1, 2], ["z", "y", "x"], None))))
    assert [word for word in found if word in "xyz"] == ["z", "y", "x"]
    assert not any("recall" in word or "Labelled" in word for word in found)


def test_names_are_text_and_long_ones_are_cut() -> None:
    result = record([0, 1], [1, 1], ["$x$", "n" * 40], None)
    for picture in (class_bars(result), confusion_picture(result)):
        assert "$x$" in words(str(picture)) and "n" * 17 + "…" in words(str(picture))


def test_efficiency_needs_two_shares_of_one_head_and_ignores_other_results() -> None:
    base = {"balanced_accuracy": 0.5, "balanced_accuracy_low": 0.4, "balanced_accuracy_high": None}
    one = [{**base, "head": "linear", "share": 0.1}, {**base, "head": "knn", "share": 1.0}]
    odd = [{**base, "head": "linear", "share": None}, {**base, "head": "tree", "share": 1.0}, base]
    assert efficiency_curve([*one, *odd]) is None
    found = words(str(efficiency_curve([*one, *odd, {**base, "head": "linear", "share": 0.015}])))
    assert {"1.5 %", "10 %", "100 %", "Linear probe", "Nearest neighbours"} <= set(found)
    assert "Fine-tuned" not in found


@pytest.mark.parametrize(("longest", "unit"), [(100, "s"), (1000, "min"), (20_000, "h")])
def test_time_is_in_a_unit_that_can_be_read(longest: float, unit: str) -> None:
    lines: list[dict[str, Any]] = [{"kind": "probe", "seconds": s, "accuracy": 0.5} for s in (1, longest)]
    assert f"Training time ({unit})" in words(str(accuracy_over_time(Run("r", metrics=lines))))
    assert accuracy_over_time(Run("r", metrics=lines[:1])) is None


def test_cells_of_one_strength_are_one_path_and_zeros_none() -> None:
    axes = Figure().subplots()
    values = np.array([[0.0, 0.5, 0.5], [1.0, 0.501, np.nan]])
    draw_cells(axes, values, "#0072B2")
    strengths = {round(patch.get_facecolor()[3], 3): len(patch.get_path().vertices) // 5 for patch in axes.patches}
    assert strengths == {0.5: 3, 1.0: 1}
    draw_cells(axes, values, np.array([["#0072B2"] * 3, ["#D55E00"] * 3]), undefined="#888888")
    assert len(axes.patches) == 2 + 4


@pytest.mark.parametrize(
    "damage",
    [
        {"per_class": None},
        {"per_class": [1, 2]},
        {"per_class": [{"recall": 1}]},
        {"per_class": []},
        {"confusion": [[1]]},
        {"confusion": [[1, "x"], [0, 1]]},
        {"confusion": [[1, -1], [0, 1]]},
        {"confusion": None},
        {},
    ],
)
def test_damaged_records_are_not_drawn(damage: dict[str, Any]) -> None:
    result = record([0, 1], [0, 1], ["a", "b"], [2, 1]) | damage if damage else {}
    if "confusion" not in damage:
        assert class_bars(result) is None
    assert confusion_picture(result) is None
