"""The page of a sweep stands alone, shows every trial, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayssl.cli import main
from rayssl.errors import StorageError
from rayssl.reports.sweep.page import is_sweep, read_sweep, render_sweep, write_sweep_report
from rayssl.reports.sweep.pictures import Importance, importance, learning_curves, parallel, short
from tests.reports.example_sweep import SPACE, trials, write_sweep
from tests.reports.test_page import needs_nothing_else, readable_without_seeing, scripts, text_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "ssps")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    assert write_sweep_report(str(folder)) == f"{folder}/report.html"
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_page_stands_alone(page: str) -> None:
    needs_nothing_else(page)
    readable_without_seeing(page)


@pytest.mark.long
def test_page_shows_every_trial_and_the_best_configuration(page: str) -> None:
    text = text_of(page)
    for trial in trials(18):
        assert f" {trial['point']['method.over.temperature']} " in text
    assert page.count("<figcaption>") == 3
    for part in ("18 trials", "3 of them trained to the end", "stopped: place 3 of", "1 failed", "run: there",
                 "rayssl sweep configs/sweep_ssps.yaml", "At commit 0123abc", "--retry-failed"):  # fmt: skip
        assert part in text, part
    assert "Trial 1 (method.clusters=" in text and "the loss is <nan> at step 3" in text
    assert len(scripts(page)) == 1 and "<nan>" not in page and "gsc_<b>" not in page


@pytest.mark.long
def test_the_report_verb_knows_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_sweep(tmp_path / "small", count=3)  # too few for a forest
    assert is_sweep(str(folder)) and not is_sweep(str(folder.parent))
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}/report.html\nnext: rayssl train {folder}/best.yaml\n"
    assert "3 trials" in text_of((folder / "report.html").read_text(encoding="utf-8"))
    assert main(["report", str(folder), "--out", str(tmp_path / "own.html")]) == 0
    assert (tmp_path / "own.html").read_text() == (folder / "report.html").read_text()


def test_a_sweep_that_has_hardly_begun(tmp_path: Path) -> None:
    """No trial judged yet, then one: sentences instead of pictures."""
    none = [{**trial, "rungs": [], "epochs": 0, "value": None, "state": "running"} for trial in trials(2)]
    sweep = read_sweep(str(write_sweep(tmp_path / "a", trials=none, best=None)))
    text = text_of(render_sweep(sweep))
    assert "Nothing to draw before two trials" in text and "no trial has been judged" in text
    assert "2 trials of 18 planned" in text and "0 judged trials over 4 keys are too few" in text
    one = read_sweep(str(write_sweep(tmp_path / "b", trials=trials(18)[:1])))
    assert render_sweep(one).count("<figcaption>") == 1  # its learning curve


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"metric": 1}'])
def test_damaged_results_are_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "results.json").write_text(damage)
    with pytest.raises(StorageError, match=r"results\.json: not the results of a sweep; run 'rayssl sweep' again"):
        read_sweep(str(tmp_path))


@pytest.mark.long
def test_a_forest_finds_the_keys_that_matter() -> None:
    judged = [trial for trial in trials(60) if trial["rungs"]]
    found = importance(SPACE, judged)
    assert isinstance(found, Importance)
    assert found.keys[0] == "temperature" and found.share[0] > 0.6
    assert np.isclose(found.share.sum(), 1) and (found.share >= 0).all() and found.explained > 0.5
    assert "too few" in str(importance(SPACE, judged[:11]))
    same: list[Any] = [{**trial, "point": judged[0]["point"]} for trial in judged]
    assert isinstance(importance(SPACE, same), str)


def test_pictures_say_when_there_is_nothing_to_draw() -> None:
    judged = [trial for trial in trials(18) if trial["rungs"]]
    assert parallel(SPACE, judged[:1], "eer", "min", 0) is None
    once = [{**trial, "rungs": trial["rungs"][:1]} for trial in judged]
    assert learning_curves(once, "eer", "min", 0) is None
    equal = [{**trial, "value": 0.25} for trial in judged]
    assert "<svg" in str(parallel(SPACE, equal, "eer", "max", 0))
    odd = {"a$b": {"choices": [[1, 2], "x$y"]}, "n": {"choices": list(range(40))}}
    made = [{**t, "point": {"a$b": "x$y" if k % 2 else [1, 2], "n": k}} for k, t in enumerate(judged)]
    assert "x$y" in str(parallel(odd, made, "eer", "min", 0))


def test_keys_are_shortened_where_they_stay_apart() -> None:
    keys = ["method.queue", "method.over.queue", "method.clusters"]
    assert [short(key, keys) for key in keys] == ["method.queue", "method.over.queue", "clusters"]


def test_results_that_are_read_back_are_those_written(folder: Path) -> None:
    sweep = read_sweep(str(folder))
    assert sweep.trials == json.loads((folder / "results.json").read_text())["trials"]
    assert (sweep.metric, sweep.mode, sweep.name) == ("eer", "min", "ssps")
