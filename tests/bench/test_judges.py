"""`rayssl bench judges`: figures without labels against the true error rate, over stored checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rayssl.bench.judges import correlations, table
from rayssl.cli.__main__ import main
from tests import runs


def test_rank_correlations_of_planted_points() -> None:
    """Over all points, inside runs, and among the last checkpoints of runs: three different answers."""
    points = [
        {"run": run, "epoch": epoch, "eer": 0.5 - 0.1 * run - 0.01 * epoch, "rank": 3.0 * run - epoch, "flat": 1.0}
        for run in range(4)
        for epoch in (1, 2, 3)
    ]
    found = correlations(points)
    assert found["rank"]["within"] == pytest.approx(1.0) and found["rank"]["within_n"] == 4
    assert found["rank"]["among"] == pytest.approx(-1.0) and found["rank"]["among_n"] == 4
    assert -1 < found["rank"]["all"] < 0 and found["rank"]["all_n"] == 12  # type: ignore[operator]
    assert found["flat"] == {"all": None, "all_n": 12, "within": None, "within_n": 0, "among": None, "among_n": 4}
    assert "+1.00 (n=4)" in table(found) and "-1.00 (n=4)" in table(found)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    runs.write_corpus(corpus)
    lines = [f"{int(a % 4 == b % 4)} utt{a:03d} utt{b:03d}\n" for a in range(0, 30, 3) for b in range(a + 1, a + 5)]
    (tmp_path / "trials.txt").write_text("".join(lines))
    more = (f"evaluation.corpus={corpus}", f"evaluation.trials={tmp_path / 'trials.txt'}")
    run = runs.experiment(tmp_path / "run", corpus, "training.checkpoints.milestones=[1, 2]", *more)
    runs.fit(run)
    Path(run.run, "config.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    assert main(["bench", "judges", run.run, "--utterances", "20", "--segment-s", "0.2", "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    figures = json.loads(out[-1])
    assert [point["epoch"] for point in figures["checkpoints"]] == [1, 2, 3]
    names = {"pseudo_eer", "effective_rank", "objective", "empty_clusters", "cluster_largest", "stability", "loss"}
    assert figures["correlation"].keys() == names
    assert figures["correlation"]["pseudo_eer"]["all_n"] == 3 and figures["correlation"]["stability"]["all"] is None
    assert out[0].startswith("Spearman")


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "judges", str(tmp_path)]) == 2
    assert "neither a run nor a sweep" in capsys.readouterr().err
