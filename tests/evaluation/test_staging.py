"""The figures of sleep staging against scikit-learn, closed forms, and what must not be averaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import TypeAdapter
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from rayssl.data.nights.scores import NightScores, read_stages, write_stages
from rayssl.data.sources.nights import STAGES
from rayssl.errors import CorpusError
from rayssl.evaluation.hypnogram import difference, sleep_variables, variable_errors
from rayssl.evaluation.settings import AnyEvaluation, ClassificationConfig, StagingConfig, VerificationConfig
from rayssl.evaluation.staging import StagingResult, kappa, macro_f1, staging_line, staging_result
from tests.evaluation.nights import DEEP, LIGHT, REM, WAKE, certain, night


@pytest.fixture(scope="module")
def nights() -> list[NightScores]:
    return [night(k, subject=k // 2, epochs=400, gap=30 * (k % 3 == 0)) for k in range(10)]


@pytest.fixture(scope="module")
def result(nights: list[NightScores]) -> StagingResult:
    return staging_result(nights, STAGES, seed=1, resamples=200)


def pooled(nights: list[NightScores]) -> tuple[np.ndarray, np.ndarray]:
    truth = np.concatenate([each.truth for each in nights])
    predicted = np.concatenate([each.probabilities.argmax(axis=1) for each in nights])
    return truth[truth >= 0], predicted[truth >= 0]


def test_pooled_figures_are_those_of_scikit_learn(nights: list[NightScores], result: StagingResult) -> None:
    truth, predicted = pooled(nights)
    assert result.n == len(truth) and result.unscored == sum((each.truth < 0).sum() for each in nights) > 0
    assert result.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert result.kappa == pytest.approx(cohen_kappa_score(truth, predicted))
    assert result.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert result.confusion == confusion_matrix(truth, predicted).tolist()
    for key, values in zip(
        ("precision", "recall", "f1", "support"), precision_recall_fscore_support(truth, predicted), strict=True
    ):
        assert [getattr(each, key) for each in result.per_class] == pytest.approx(values.tolist())
    assert (result.nights, result.subjects, result.unscored_nights) == (10, 5, 0)


def test_nights_are_figured_on_their_own(nights: list[NightScores], result: StagingResult) -> None:
    assert [each.night for each in result.per_night] == [each.name for each in nights]
    for each, found in zip(nights, result.per_night, strict=True):
        truth, predicted = pooled([each])
        assert found.n == len(truth) and found.subject == each.subject
        assert found.kappa == pytest.approx(cohen_kappa_score(truth, predicted))
        assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
        if set(truth) == {0, 1, 2, 3}:
            assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
        else:
            assert found.macro_f1 is None


def test_merged_stages_are_merged_labels(nights: list[NightScores], result: StagingResult) -> None:
    truth, predicted = pooled(nights)
    for found, place in ((result.three_class, np.array([0, 1, 1, 2])), (result.two_class, np.array([0, 1, 1, 1]))):
        assert found.macro_f1 == pytest.approx(f1_score(place[truth], place[predicted], average="macro"))
        assert found.kappa == pytest.approx(cohen_kappa_score(place[truth], place[predicted]))
        assert found.accuracy == pytest.approx(accuracy_score(place[truth], place[predicted]))
        always = np.full(len(truth), np.bincount(place[truth]).argmax())
        assert found.majority.accuracy == pytest.approx(accuracy_score(place[truth], always))
        assert found.majority.macro_f1 == pytest.approx(f1_score(place[truth], always, average="macro"))
    assert result.three_class.names == ["Wake", "NREM", "REM"] and result.two_class.names == ["Wake", "Sleep"]


def test_majority_is_that_of_the_training_if_it_is_known(nights: list[NightScores], result: StagingResult) -> None:
    truth, _ = pooled(nights)
    always = np.full(len(truth), np.bincount(truth).argmax())
    assert always[0] == LIGHT and result.majority_of == "test"
    assert result.majority.macro_f1 == pytest.approx(f1_score(truth, always, average="macro"))
    assert result.majority.kappa == 0 and result.majority.accuracy == pytest.approx((truth == LIGHT).mean())
    other = staging_result(nights, STAGES, train_counts=[9, 2, 3, 1], resamples=0)
    assert [each.predicted for each in other.three_class.majority.per_class] == [len(truth), 0, 0]  # Wake 9, NREM 5
    assert [each.predicted for each in other.two_class.majority.per_class] == [len(truth), 0]  # Wake 9, Sleep 6
    assert other.majority_of == "training" and other.majority.accuracy == pytest.approx((truth == WAKE).mean())
    assert [each.train_count for each in other.per_class] == [9, 2, 3, 1]
    assert other.macro_f1 == result.macro_f1 and other.macro_f1_low is None and other.no_interval is not None


def test_a_stage_without_support_makes_macro_f1_invalid() -> None:
    perfect = certain("a", "s", [WAKE, LIGHT, DEEP, LIGHT], [WAKE, LIGHT, DEEP, LIGHT])
    found = staging_result([perfect], STAGES)
    assert found.macro_f1 is None and found.balanced_accuracy is None and found.majority.macro_f1 is None
    assert found.kappa == 1 and found.accuracy == 1 and "REM" in str(found.invalid)
    assert found.two_class.macro_f1 == 1 and found.three_class.macro_f1 is None
    line = staging_line(found)
    assert line.startswith("macro F1 invalid, kappa 1.000, accuracy 100.0%") and "no scored epoch is REM" in line
    assert "\n" not in line and "4 epochs of 1 night of 1 subject" in line
    assert found.no_interval == "there is only one subject"


def test_kappa_and_macro_f1_of_many_confusions_at_once() -> None:
    draw = np.random.default_rng([0])
    tables = draw.integers(0, 20, (50, 3, 3))
    for table, one, f1 in zip(tables, kappa(tables), macro_f1(tables), strict=True):
        truth, predicted = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices((3, 3)))
        assert one == pytest.approx(cohen_kappa_score(truth, predicted))
        assert f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert kappa(np.array([[5, 5], [5, 5]])) == 0 and kappa(np.diag([3, 4])) == 1 and kappa([[0, 4], [4, 0]]) == -1
    assert np.isnan(kappa([[9, 0], [0, 0]])) and np.isnan(macro_f1([[9, 0], [0, 0]]))


def test_intervals_draw_subjects_and_not_nights_or_epochs() -> None:
    """Copies of a subject's night say nothing new: the interval stays. As nights of other subjects they would."""
    few = [night(k, epochs=300) for k in range(6)]
    copied = [NightScores(f"{each.name}-{c}", each.subject, each.index, each.truth, each.probabilities)
              for each in few for c in range(8)]  # fmt: skip
    others = [NightScores(each.name, each.name, each.index, each.truth, each.probabilities) for each in copied]
    one, same, wrong = (staging_result(each, STAGES, resamples=400, seed=2) for each in (few, copied, others))
    for key in ("macro_f1", "kappa"):
        bounds = [getattr(one, f"{key}_{end}") for end in ("low", "high")]
        assert bounds[0] < getattr(one, key) < bounds[1]
        assert [getattr(same, f"{key}_{end}") for end in ("low", "high")] == pytest.approx(bounds)
        assert getattr(wrong, f"{key}_high") - getattr(wrong, f"{key}_low") < 0.6 * (bounds[1] - bounds[0])


def test_interval_covers_the_mean_of_subjects_by_the_normal_approximation() -> None:
    """If all subjects have equally many epochs, kappa is nearly a mean over subjects, whose interval is known."""
    draw = np.random.default_rng([8])
    found = []
    for s in range(60):
        truth = np.tile([0, 1, 2, 3], 25)
        wrong = draw.random(100) < draw.uniform(0.1, 0.5)
        found.append(certain(f"n{s}", f"s{s}", truth.tolist(), np.where(wrong, (truth + 1) % 4, truth).tolist()))
    result = staging_result(found, STAGES, resamples=2000, seed=0)
    # truth is balanced, so kappa = (accuracy - 1/4) / (3/4) up to the predictions' shares, which hardly move
    each = np.array([one.accuracy for one in result.per_night])
    half = 1.96 * each.std() / np.sqrt(len(each)) / 0.75
    assert result.kappa_low is not None and result.kappa_high is not None and result.kappa is not None
    assert result.kappa_low == pytest.approx(result.kappa - half, abs=0.15 * half)
    assert result.kappa_high == pytest.approx(result.kappa + half, abs=0.15 * half)


def test_resamples_without_a_stage_do_not_count() -> None:
    """REM is only in one of four subjects: (3/4)^4 of the resamples lack it, and macro F1 is over the others."""
    sleepers = [certain(f"n{k}", f"s{k}", [0, 1, 2, 1], [0, 1, 2, 2]) for k in range(3)]
    dreamer = certain("n3", "s3", [0, 1, 2, 3], [0, 1, 2, 3])
    found = staging_result([*sleepers, dreamer], STAGES, resamples=4000)
    assert found.interval_absent == pytest.approx(0.75**4, abs=0.03)
    assert found.macro_f1_low is not None and found.kappa_low is not None
    many = [certain(f"m{k}", f"t{k}", [0, 1, 2, 1], [0, 1, 2, 2]) for k in range(12)]
    # 1/e of the resamples lack one subject of many; REM and Wake are in one each, so most resamples lack a stage
    rare = certain("d", "d", [1, 1, 2, 3], [1, 1, 2, 3])
    waker = certain("w", "w", [1, 0, 2, 2], [1, 0, 2, 2])
    asleep = [certain(each.name, each.subject, [1, 1, 2, 1], [1, 1, 2, 2]) for each in many]
    found = staging_result([*asleep, rare, waker], STAGES, resamples=1000)
    assert found.macro_f1 is not None and found.macro_f1_low is None and found.kappa_low is not None
    assert "macro_f1 is not defined in" in str(found.no_interval)


def test_order_of_nights_and_names_of_subjects_do_not_matter(nights: list[NightScores], result: StagingResult) -> None:
    turned = staging_result(nights[::-1], STAGES, seed=1, resamples=0)
    assert (turned.macro_f1, turned.kappa, turned.confusion) == (result.macro_f1, result.kappa, result.confusion)


def test_sleep_variables_in_closed_form() -> None:
    stages = [WAKE] * 20 + [LIGHT] * 40 + [WAKE] * 6 + [DEEP] * 30 + [REM] * 10 + [LIGHT] * 4 + [WAKE] * 10
    found = sleep_variables(stages, np.arange(120), STAGES)
    assert found.tst == 0.5 * 84 and found.efficiency == 84 / 120 and found.latency == 10
    assert found.waso == 0.5 * 16  # with the ten after the final awakening
    assert found.rem_latency == 0.5 * 76
    assert found.waso == 0.5 * 120 - found.latency - found.tst  # AASM: recording time - latency - TST


def test_missing_epochs_are_time_for_latencies_and_nothing_for_sums() -> None:
    found = sleep_variables([WAKE, WAKE, LIGHT, WAKE, REM], [0, 1, 10, 11, 21], STAGES)
    assert (found.tst, found.efficiency, found.latency, found.waso, found.rem_latency) == (1.0, 0.4, 5.0, 0.5, 5.5)


def test_what_a_night_does_not_have_is_none() -> None:
    awake = sleep_variables([WAKE, WAKE], [0, 1], STAGES)
    assert (awake.tst, awake.efficiency, awake.latency, awake.waso, awake.rem_latency) == (0, 0, None, None, None)
    asleep = sleep_variables([LIGHT, DEEP], [0, 1], STAGES)
    assert (asleep.latency, asleep.waso, asleep.rem_latency) == (0, 0, None)
    assert difference(asleep, awake).latency is None and difference(asleep, awake).tst == 1.0
    with pytest.raises(ValueError, match="need epochs"):
        sleep_variables([], [], STAGES)


def test_errors_of_variables_are_over_nights_that_have_both() -> None:
    first, second = [LIGHT] * 10 + [REM] * 2, [WAKE] * 4 + [LIGHT] * 8
    scored = [sleep_variables(each, np.arange(12), STAGES) for each in (first, first, second)]
    predicted = [sleep_variables(each, np.arange(12), STAGES) for each in (second, first, first)]
    by_name = {each.name: each for each in variable_errors(scored, predicted)}
    rem, tst = by_name["rem_latency"], by_name["tst"]
    assert (rem.nights, rem.only_scored, rem.only_predicted, rem.mae, rem.bias) == (1, 1, 1, 0.0, 0.0)
    assert (tst.nights, tst.bias, tst.mae) == (3, 0.0, pytest.approx(4 / 3))
    assert by_name["latency"].mae == pytest.approx(4 / 3)


def test_both_sides_are_compared_on_the_same_epochs() -> None:
    found = staging_result([certain("n", "s", [-1, 0, 1, -1, 3], [1, 0, 1, 3, 3])], STAGES).per_night[0]
    assert found.n == 3 and found.predicted == found.scored and found.scored.rem_latency == 1.0
    assert found.scored.tst == 1.0 and found.error.tst == 0


def test_nights_without_scoring_are_counted_and_left_out(nights: list[NightScores], result: StagingResult) -> None:
    blind = certain("blind", "x", [-1] * 5, [0] * 5)
    found = staging_result([*nights, blind], STAGES, seed=1, resamples=200)
    assert (found.unscored_nights, found.unscored) == (1, result.unscored + 5)
    assert (found.macro_f1_low, found.nights, found.subjects) == (result.macro_f1_low, 10, 5)
    with pytest.raises(CorpusError, match="none of 1 nights has a scored epoch"):
        staging_result([blind], STAGES)


def test_the_line_and_the_record(result: StagingResult) -> None:
    line = staging_line(result)
    assert line.startswith(f"macro F1 {result.macro_f1:.1%} [") and f"kappa {result.kappa:.3f} [" in line
    assert f"over {result.n} epochs of 10 nights of 5 subjects (majority baseline: macro F1 " in line
    assert line.endswith(f", kappa 0, accuracy {result.majority.accuracy:.1%})")
    record = json.loads(json.dumps(result.model_dump(mode="json")))
    assert record["task"] == "staging" and StagingResult(**record) == result


def test_mistakes_are_named(nights: list[NightScores]) -> None:
    with pytest.raises(ValueError, match=f"night {nights[0].name} occurs twice"):
        staging_result([nights[0], nights[1], nights[0]], STAGES)
    with pytest.raises(ValueError, match="4 probabilities, 3 stages"):
        staging_result(nights, ("Wake", "NREM", "REM"))
    with pytest.raises(ValueError, match="4 stages but 3 training counts"):
        staging_result(nights, STAGES, train_counts=[1, 2, 3])
    with pytest.raises(ValueError, match="Wake and REM"):
        staging_result(nights, ("W", "N1", "N2", "R"))
    for index, truth, rows, message in (
        ([0, 0], [0, 0], np.ones((2, 4)), "do not rise"),
        ([0, 1], [0, 4], np.ones((2, 4)), r"stages must lie in 0\.\.3"),
        ([0, 1], [0, 1], np.full((2, 4), np.nan), "NaN"),
        ([0, 1], [0], np.ones((2, 4)), "2 indices, 1 stages"),
    ):
        with pytest.raises(ValueError, match=f"night n: .*{message}"):
            NightScores("n", "s", np.array(index), np.array(truth), rows)


def test_the_table_of_stages_returns_the_nights(nights: list[NightScores]) -> None:
    table = write_stages(nights)
    assert table.column_names == ["night", "subject", "index", "truth", "predicted", "wake", "light", "deep", "rem"]
    kinds = [str(field.type) for field in table.schema]
    assert kinds == ["string", "string", "int32", "int8", "int8", *["float"] * 4]
    shuffled = table.take(np.random.default_rng([0]).permutation(table.num_rows))
    for found in (read_stages(table), sorted(read_stages(shuffled), key=lambda each: each.name)):
        for one, other in zip(nights, found, strict=True):
            assert (one.name, one.subject) == (other.name, other.subject)
            for key in ("index", "truth", "probabilities", "predicted"):
                left, right = getattr(one, key), getattr(other, key)
                assert left.dtype == right.dtype and np.array_equal(left, right), key
    assert read_stages(write_stages([])) == []
    with pytest.raises(CorpusError, match=r"lacks predicted; run 'rayssl evaluate' again"):
        read_stages(table.drop_columns(["predicted"]))
    with pytest.raises(ValueError, match="4 probabilities, 2 stages"):
        write_stages(nights, ("Wake", "REM"))


def test_settings_are_one_of_three_tasks() -> None:
    def read(given: dict[str, object]) -> object:
        return TypeAdapter(AnyEvaluation).validate_python(given)

    found = read({"task": "staging", "corpus": "nights"})
    assert isinstance(found, StagingConfig) and (found.stride, found.batch, found.actors) == (20, 8, 1)
    assert found.located().corpus.endswith("/nights") and found.located().corpus.startswith("/")
    assert isinstance(read({"task": "classification", "corpus": "c"}), ClassificationConfig)
    assert isinstance(read({"corpus": "c", "trials": "t"}), VerificationConfig)
    with pytest.raises(ValueError, match="stride"):
        read({"task": "staging", "corpus": "nights", "stride": 0})
