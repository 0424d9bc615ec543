"""The last line of a verb names the next command."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from rayssl.cli.advice import say_next, trains_on
from rayssl.cli.start import default_out

ROOT = Path(__file__).parents[1]


def test_the_command_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    say_next(argparse.Namespace(), "train", "my runs/a.yaml", "training.epochs=3", note="why")
    assert capsys.readouterr().out == "next: rayssl train 'my runs/a.yaml' training.epochs=3    (why)\n"
    for name in ("quiet", "json"):
        say_next(argparse.Namespace(**{name: True}), "train", "a.yaml")
        assert capsys.readouterr().out == ""


def test_the_experiment_beside_a_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    corpora = {"train": "runs/synthetic/train", "test": "runs/synthetic/test"}
    assert trains_on("configs/synthetic_prepare.yaml", corpora) == ["configs/synthetic_ssps.yaml"]
    words = trains_on("configs/words_prepare.yaml", {"train": "runs/words/train"})
    assert words[0] == "configs/words_classifier.yaml" and "configs/words_daso.yaml" in words
    assert trains_on("configs/synthetic_prepare.yaml", {"train": "elsewhere"}) == []
    assert trains_on("s3://bucket/prepare.yaml", corpora) == []
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "other.yaml").write_text("corpus: {uri: x}\nencoder: {}\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    monkeypatch.chdir(tmp_path)
    assert trains_on("prepare.yaml", {"train": "x"}) == ["other.yaml"]


@pytest.mark.parametrize(
    ("recordings", "out"),
    [("a/b", "runs/b"), ("a/b/", "runs/b"), ("list.csv", "runs/list"), ("s3://bucket/pre/fix/", "runs/fix")],
)
def test_where_the_files_go(recordings: str, out: str) -> None:
    assert default_out(recordings) == out
