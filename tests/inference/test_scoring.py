"""Scores of pairs of plain files, and the threshold that an evaluation gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import rayssl
from rayssl.cli import main
from rayssl.inference.scoring import eer_threshold, threshold_of
from rayssl.runs.reading import find
from rayssl.runtime.evaluation.evaluate import evaluate
from tests.runs import experiment, tone, write_corpus, write_run, write_trials


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    write_corpus(folder / "corpus")
    write_trials(folder / "trials.txt", 12)
    how = f"evaluation={{corpus: {folder}/corpus, trials: {folder}/trials.txt}}"
    write_run(experiment(folder / "run", folder / "corpus", how))
    write_run(experiment(folder / "other", folder / "corpus", how))
    evaluate(str(folder / "run"), local=True)
    for k in range(4):
        soundfile.write(folder / f"{k}.wav", tone(k, k % 2, 8000), 16000)
    return folder


def lines(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    capsys.readouterr()
    assert main(["score", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_threshold_at_the_equal_error_rate() -> None:
    """Misses and false alarms are the closest there; a score at the threshold is accepted."""
    assert eer_threshold([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]) == 0.8
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000)
    scores = rng.normal(0, 1, 4000) + 2 * labels
    value = eer_threshold(scores, labels)
    miss, alarm = np.mean(scores[labels == 1] < value), np.mean(scores[labels == 0] >= value)
    assert abs(miss - alarm) < 1e-3 and abs(value - 1) < 0.1


def test_a_pair_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = home / "0.wav", home / "2.wav"
    found, after = lines(capsys, home / "run", a, b)
    threshold = threshold_of(find(str(home / "run")))
    assert threshold is not None and threshold.trials == 66
    wanted = rayssl.load(home / "run", device="cpu").score(a, b)
    side = "the same speaker" if wanted >= threshold.value else "different speakers"
    assert found == f"{wanted:.4f}  {a}  {b}  ({side}: {threshold.text()})"
    assert after.startswith(f"next: rayssl embed {home}/run {a}")
    (line,) = lines(capsys, home / "run", a, b, "--json")
    assert json.loads(line) == {
        "score": wanted, "a": str(a), "b": str(b), "threshold": threshold.value, "same": side == "the same speaker",
    }  # fmt: skip


def test_without_an_evaluation_there_is_no_hint(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, after = lines(capsys, home / "other", home / "0.wav", home / "1.wav")
    assert found.endswith("/1.wav") and after.startswith(f"next: rayssl evaluate {home}/other")


def test_a_list_of_pairs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "pairs.txt").write_text("1 0.wav 2.wav\n0 0.wav 1.wav\n")
    first, second, summary, _ = lines(capsys, home / "other", "--trials", home / "pairs.txt", "--root", home)
    assert first.split()[1:] == ["1", "0.wav", "2.wav"] and second.split()[1:] == ["0", "0.wav", "1.wav"]
    assert summary.startswith(f"{home}/pairs.txt: EER ") and "over 2 trials (1 of the same speaker)" in summary


def test_mistakes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        ([home / "0.wav"], "give two audio files, or a list of pairs with --trials"),
        ([home / "0.wav", home / "no.wav"], "no.wav: no such file"),
        ([home / "0.wav", home / "trials.txt"], "trials.txt: unreadable"),
        (["--trials", home / "trials.txt"], "utt001: no such file"),
    ):
        assert main(["score", str(home / "run"), *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error, error
