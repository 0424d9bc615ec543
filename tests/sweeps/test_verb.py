"""`rayssl sweep` before Ray starts: what would be tried, and mistakes on one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rayssl.cli import main
from rayssl.sweeps import points
from tests.sweeps.plans import plan, write_sweep


def test_dry_run_prints_the_points_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sweep(tmp_path)
    assert main(["sweep", config, "--dry-run", "trials=2", "training.epochs=6"]) == 0
    first, second = points.drawn(plan(tmp_path).config)[:2]
    assert capsys.readouterr().out.splitlines()[:-1] == [
        f"trial {index}  method.clusters={point['method.clusters']} "
        f"method.over.temperature={point['method.over.temperature']}"
        for index, point in enumerate((first, second))
    ]
    assert not (tmp_path / "sweep").exists()


def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_sweep(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    for override, part in (
        ("method.cluster=3", "did you mean 'clusters'"),
        ("space={method.cluster: {choices: [3]}}", "space: unknown key 'method.cluster'; did you mean 'clusters'"),
        ("metric=err", "did you mean 'eer'"),
        ("search=optuna", "pip install 'rayssl[sweep]'"),
    ):
        assert main(["sweep", config, override, "--dry-run"]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and printed.err.startswith("rayssl sweep: ") and printed.out == ""
        assert part in printed.err, printed.err
