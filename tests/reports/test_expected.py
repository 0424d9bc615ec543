"""The band of some seeds: what it holds, and how a run is drawn on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayssl.cli import main
from rayssl.errors import ConfigError
from rayssl.reports.run import expected
from rayssl.reports.run.page import render, write_report
from rayssl.reports.run.reading import Run

METHOD = {"name": "simclr", "temperature": 0.1}


def run(seed: int, *, epochs: int = 4, shift: float = 0.0, **method: Any) -> Run:
    """A run whose loss falls by one an epoch, from 10 and its seed on."""
    lines = [
        {"kind": "epoch", "epoch": n, "step": 5 * n, "loss": 10 + seed - n + shift, "utterances_per_s": 9.0, "time": n}
        for n in range(1, epochs + 1)
    ]
    lines += [{"kind": "validate", "epoch": 2, "step": 10, "pseudo_eer": 0.2 + seed / 100}]
    return Run(
        uri=f"runs/{seed}",
        config={"run": f"runs/{seed}", "seed": seed, "corpus": {"uri": f"/at/{seed}"}, "method": {**METHOD, **method}},
        origin={"argv": ["rayssl", "train", "configs/simclr.yaml"], "commit": "0123456789abc", "seed": seed},
        metrics=lines,
    )


def test_a_band_is_the_least_and_the_most_of_the_epochs_that_all_runs_have() -> None:
    band = expected.band_of([run(1), run(3, epochs=3), run(2)])
    assert (band.config, band.seeds) == ("simclr.yaml", [1, 3, 2])
    assert {*band.figures} == {"loss", "pseudo_eer"}  # neither the speed nor a time
    loss = band.figures["loss"]
    assert (loss.epoch, loss.low, loss.high) == ([1, 2, 3], [10, 9, 8], [12, 11, 10])
    assert band.figures["pseudo_eer"].high == [0.23]
    assert band.settings == {"method.name": "simclr", "method.temperature": 0.1}


def test_runs_of_a_band_differ_in_the_seed_alone() -> None:
    with pytest.raises(ConfigError, match=r"^runs/2: differs from runs/1 in method\.temperature, not in the seed"):
        expected.band_of([run(1), run(2, temperature=0.2)])
    with pytest.raises(ConfigError, match="at least two seeds"):
        expected.band_of([run(1)])
    with pytest.raises(ConfigError, match="no figure of an epoch is in all runs"):
        expected.band_of([run(1), replace(run(2), metrics=[])])


def test_a_run_is_drawn_on_its_band() -> None:
    band = expected.band_of([run(1), run(3)])
    section = expected.section(run(2), band)
    said = str(section)
    assert "2 of 2 figures lie in the band of 2 seeds (simclr.yaml, 012345678)" in said
    assert "other settings" not in said
    off = str(expected.section(run(2, shift=5.0, temperature=0.2), band))
    assert "1 of 2 figures" in off and "'above'" in off and "method.temperature" in off
    newer = run(2, merged=0)
    assert "method.merged" in str(expected.section(newer, band))
    newer = replace(newer, origin={**newer.origin, "origins": {"method.merged": "default"}})
    assert "other settings" not in str(expected.section(newer, band))
    page = render(run(2), band=band)
    assert "Against the expected course" in page and "Training loss: the run and the band" in page
    assert "Against the expected course" not in render(run(2))
    later = expected.section(replace(run(2), metrics=[]), band)
    assert "no figure at an epoch of the band yet" in str(later)


def test_the_band_beside_the_configuration_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2, 3):
        each = run(seed)
        folder = tmp_path / "runs" / str(seed)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(json.dumps(each.config))
        (folder / "origin.json").write_text(json.dumps(each.origin))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in each.metrics))
    assert main(["report", "runs/1", "runs/3", "--band", "configs/bands/simclr.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        "configs/bands/simclr.json: the least and the most of 2 figures, over the seeds [1, 3]",
        "next: rayssl report runs/1 --against configs/bands/simclr.json",
    ]
    assert "Against the expected course" in Path(write_report("runs/2")).read_text()
    (tmp_path / "other.json").write_text("[1]")
    assert main(["report", "runs/2", "--against", "other.json"]) == 2
    assert "other.json" in capsys.readouterr().err
