"""A sweep's YAML: what is wrong with it is found before anything starts, and each trial is an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.errors import ConfigError
from rayssl.schema import override
from rayssl.sweeps.config import assignments, split_overrides, text
from tests.sweeps.plans import SPACE, plan


def test_a_trial_is_the_base_with_its_point_in_a_folder_of_its_own(tmp_path: Path) -> None:
    made = plan(tmp_path, "training.batch=32", overrides=["training.epochs=4"])
    run = made.run(7)
    experiment = made.experiment({"method.clusters": 8, "method.over.temperature": 0.07}, run)
    assert run == f"{tmp_path}/sweep/trials/0007" == experiment.run
    assert (experiment.method.clusters, experiment.method.over.temperature) == (8, 0.07)  # type: ignore[union-attr]
    assert (experiment.training.epochs, experiment.training.batch) == (4, 32)
    assert made.rungs(experiment) == [1, 2, 4]
    assert made.rungs(made.experiment({"training.epochs": 2}, run)) == [1, 2]


def test_overrides_are_of_the_sweep_or_of_all_trials() -> None:
    given = ["trials=3", "training.epochs=2", "scheduler.reduction=4", "corpus.uri=x", "seed=1", "trails=2"]
    assert split_overrides(given) == (
        ["trials=3", "scheduler.reduction=4", "seed=1", "trails=2"],
        ["training.epochs=2", "corpus.uri=x"],
    )


def changed(**domains: Any) -> dict[str, Any]:
    return {"space": {key.replace("__", "."): domain for key, domain in domains.items()}}


MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (changed(method__cluster={"choices": [3]}), ("space", "unknown key 'method.cluster'", "did you mean 'clusters'")),
    (changed(methd__clusters={"choices": [3]}), ("unknown key 'methd'", "did you mean 'method'")),
    (changed(method__clusters={"choices": [8, "many"]}), ("'method.clusters'", "integer", "got 'many'")),
    (changed(method__clusters={"low": -1, "high": 4, "integer": True}), ("'method.clusters'", "got -1")),
    (changed(seed__x={"choices": [1]}), ("'seed' holds a value",)),
    (changed(method__clusters={"low": 4, "high": 2}), ("low=4 is not below high=2",)),
    (changed(method__clusters={"low": 0, "high": 2, "log": True}), ("log: low=0 must be above 0",)),
    (changed(method__clusters={"low": 0.5, "high": 2, "integer": True}), ("whole numbers",)),
    (changed(method__clusters={"chioces": [1]}), ("space.method.clusters.choices", "required")),
    (changed(run={"choices": ["a"]}), ("run", "folder of its own")),
    ({"metric": "err"}, ("metric: 'err'", "did you mean 'eer'")),
    ({"metric": "kappa"}, ("'kappa' is no figure", "there are eer")),
    ({"metric": "balanced_accuracy"}, ("'balanced_accuracy' is no figure", "eer")),
    ({"mode": "least"}, ("'mode'", "'min' or 'max'")),
    ({"trials": None}, ("trials", "how many")),
    ({"search": "grid"}, ("grid needs choices", "method.over.temperature")),
    ({"search": "bayes"}, ("'search'", "optuna")),
    ({"scheduler": {"name": "asha", "rungs": [2, 1]}}, ("[2, 1] do not rise",)),
    ({"scheduler": {"name": "asha", "rungs": [1, 3]}}, ("scheduler.rungs: 3", "training.epochs=3")),
    ({"scheduler": {"name": "hyperband"}}, ("scheduler.name", "'asha', 'fifo', 'pbt'")),
    ({"scheduler": {"name": "pbt", "every": 3}}, ("scheduler.every=3", "training.epochs=3")),
    ({"scheduler": {"name": "pbt", "every": 1}, "search": "optuna"}, ("pbt needs all points at its start",)),
    ({"scheduler": {"name": "pbt", "every": 1}, "trials": 1}, ("pbt needs several trials",)),
    ({"scheduler": {"name": "pbt", "every": 1}, **changed(training__epochs={"choices": [3]})}, ("equally long",)),
    ({"base": "absent.yaml"}, ("absent.yaml", "no such file")),
    ({"overrides": ["training.epoch=2"]}, ("unknown key 'training.epoch'", "did you mean 'epochs'")),
    ({"trails": 3}, ("unknown key 'trails'", "did you mean 'trials'")),
]


@pytest.mark.parametrize(("changes", "parts"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_one_line_that_names_it(tmp_path: Path, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises((ConfigError, OSError)) as raised:
        plan(tmp_path, **changes)
    line = str(raised.value)
    assert "\n" not in line
    assert [part for part in parts if part not in line] == [], line


def test_values_that_only_go_together_are_left_to_the_trial(tmp_path: Path) -> None:
    """start_epoch=3 is refused with the base's three epochs, and possible with the six of another choice."""
    space = {"method.start_epoch": {"choices": [1, 3]}, "training.epochs": {"choices": [3, 6]}}
    made = plan(tmp_path, space=space)
    assert made.experiment({"method.start_epoch": 3, "training.epochs": 6}, made.run(0)).training.epochs == 6
    with pytest.raises(ConfigError, match="SSPS would never start"):
        made.experiment({"method.start_epoch": 3, "training.epochs": 3}, made.run(0))


def test_loss_needs_no_evaluation(tmp_path: Path) -> None:
    assert not plan(tmp_path, "evaluation=null", metric="loss").evaluated
    with pytest.raises(ConfigError, match="'eer' needs an evaluation"):
        plan(tmp_path, "evaluation=null")


@pytest.mark.parametrize("value", [3, 0.25, 1e-05, 2.5e-07, 1e21, True, None, "a: b", [1, 2], {"x": 1e-06}])
def test_a_value_is_the_same_after_it_was_an_override(value: Any) -> None:
    got = override({}, assignments({"a.b": value}))["a"]["b"]
    assert got == value or isinstance(value, dict)  # a number inside a mapping may come back as text, which is read
    assert "\n" not in text(value)


def test_space_of_the_tests_is_taken(tmp_path: Path) -> None:
    made = plan(tmp_path)
    assert set(made.config.space) == set(SPACE) and made.evaluated


def test_a_sweep_over_nights_knows_their_figures(tmp_path: Path) -> None:
    nights = ["evaluation={task: staging, corpus: c}"]
    for metric in ("macro_f1", "kappa"):
        assert plan(tmp_path, *nights, metric=metric, mode="max").evaluated
    with pytest.raises(ConfigError, match=r"'eer' is no figure .* there are macro_f1, kappa"):
        plan(tmp_path, *nights)


def test_a_sweep_may_search_by_validation(tmp_path: Path) -> None:
    """It evaluates nothing then; each rung must have a validation."""
    validate = "training.validate={metric: pseudo_eer, also: [effective_rank]}"
    assert not plan(tmp_path, validate, metric="validate/pseudo_eer").evaluated
    assert not plan(tmp_path, validate, "evaluation=null", metric="validate/effective_rank", mode="max").evaluated
    with pytest.raises(ConfigError, match=r"needs training\.validate, and .* has none"):
        plan(tmp_path, metric="validate/pseudo_eer")
    with pytest.raises(ConfigError, match=r"'validate/eer' is no figure .*; there are validate/pseudo_eer, "):
        plan(tmp_path, validate, metric="validate/eer")
    with pytest.raises(ConfigError, match="is not known after epoch 1, where trials are judged"):
        plan(tmp_path, validate, "training.validate.every_epochs=2", metric="validate/pseudo_eer")
