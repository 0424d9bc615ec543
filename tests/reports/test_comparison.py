"""Runs side by side: what is a group, what differs, by how much; the page of real small trainings and of a sweep."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayssl import storage
from rayssl.cli import main
from rayssl.evaluation.verification import verification_result
from rayssl.reports.comparison import page as pages
from rayssl.reports.comparison import pictures, reading
from rayssl.reports.comparison.reading import ABSENT, Comparison, grouped
from rayssl.reports.run.reading import Record, Run
from rayssl.runs import origin
from tests import runs
from tests.reports.example_classes import write_class_run
from tests.reports.example_run import write_run
from tests.reports.test_page import Elements, needs_nothing_else, readable_without_seeing, text_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three trainings: SimCLR, and SSPS of two seeds of which the second has not been evaluated."""
    folder = tmp_path_factory.mktemp("trained")
    runs.write_corpus(folder / "corpus")
    found = []
    for name, method, seed in (("simclr-seed3", "simclr", 3), ("ssps-seed3", "ssps", 3), ("ssps-seed4", "ssps", 4)):
        over = {"name": "simclr", "temperature": 0.2} if method == "simclr" else None
        settings = runs.experiment(folder / name, folder / "corpus", f"seed={seed}", method=over)
        origin.record(settings, {})
        runs.fit(settings)
        found.append(settings.run)
        if seed == 3:
            draw = np.random.default_rng(len(found))
            same = np.arange(200) % 2
            speakers = (np.arange(200) % 20, (np.arange(200) + 1 - same) % 20)
            result = verification_result(draw.normal(same * 2.0, 1.0), same, *speakers, resamples=50)
            storage.write_text(f"{settings.run}/evaluation/result.json", result.model_dump_json())
    return found


def run_of(name: str, seed: int, eer: float | None = None, **config: Any) -> Run:
    results: list[Record] = [] if eer is None else [{"eer": eer, "trials": 10}]
    return Run(uri=f"/runs/{name}", config={"run": name, "seed": seed, **config}, results=results)


def eer(run: Run) -> Any:
    return reading.verification(run).get("eer")


def test_runs_that_differ_in_seeds_alone_are_a_group() -> None:
    split = {"labels": {"split": {"seed": 1}}}
    found = grouped([
        run_of("b-seed1", 1, lr=1.0), run_of("a-seed0", 0, lr=2.0), run_of("b-seed0", 0, lr=1.0),
        run_of("c", 0, lr=2, **split), run_of("d", 1, lr=2, labels={"split": {"seed": 2}}), Run(uri="/runs/e"),
        Run(uri="/runs/f"),
    ])  # fmt: skip
    assert [[run.name for run in group.runs] for group in found.groups] == [
        ["b-seed0", "b-seed1"], ["a-seed0"], ["c", "d"], ["e"], ["f"],
    ]  # fmt: skip
    assert [group.label for group in found.groups] == ["b", "a-seed0", "c and 1 more", "e", "f"]
    long = grouped([run_of("moco_long_s1", 1), run_of("moco_long_s2", 2)])
    assert [group.label for group in long.groups] == ["moco_long"]


def test_runs_that_go_on_from_others_of_their_seed_are_a_group() -> None:
    starts = [run_of(f"on-seed{s}", s, start=f"runs/first-seed{s}/checkpoints/step-100") for s in (1, 10)]
    (group,) = grouped(starts).groups
    assert group.label == "on"
    assert len(grouped([*starts, run_of("other", 2, start="runs/first-seed1/checkpoints/step-100")]).groups) == 2


def test_names_are_as_short_as_they_can_be() -> None:
    runs_ = [run_of("x/a", 0, k=1), run_of("y/a", 0, k=2), run_of("y/b", 0, k=3), run_of("z/bb", 0, k=4)]
    assert list(grouped(runs_).names().values()) == ["x/a", "y/a", "b", "bb"]


def test_differences_are_keys_that_differ_by_section() -> None:
    one = run_of("a", 0, method={"name": "ssps", "clusters": 4}, lr=1.0, same=[1])
    two = run_of("b", 1, method={"name": "moco", "queue": 8}, lr=1.0, same=[1])
    three = run_of("c", 2, method={"name": "moco", "queue": True}, lr=1, same=[1])
    assert reading.differences(grouped([one, two, three, Run(uri="/d")]).groups) == {
        "method.name": ["ssps", "moco", "moco", ABSENT],
        "method.clusters": [4, ABSENT, ABSENT, ABSENT],
        "method.queue": [ABSENT, 8, True, ABSENT],
        "lr": [1.0, 1.0, 1, ABSENT],
    }
    assert reading.differences(grouped([one]).groups) == {}


def test_differences_of_figures_are_of_the_same_seeds() -> None:
    """Base 10, 12, 14 of seeds 0 to 2; other 11, 15, 30 of seeds 1 to 3: -1 and +1 are the pairs."""
    base = [run_of(f"base-seed{s}", s, value, k=0) for s, value in enumerate((10.0, 12.0, 14.0))]
    other = [run_of(f"other-seed{s}", s, value, k=1) for s, value in zip((1, 2, 3, 4), (11, 15, 30, None), strict=True)]
    apart = [run_of("apart", 9, 20.0, k=2)]
    first, second, third = grouped([*base, *other, *apart]).groups
    found = reading.spread(second, eer)
    assert found is not None and (found.count, found.mean) == (3, pytest.approx(56 / 3))
    assert found.deviation == pytest.approx(np.std([11, 15, 30], ddof=1))
    gap = reading.difference(second, first, eer)
    assert gap is not None and (gap.count, gap.mean, gap.paired) == (2, 0, True)
    assert gap.difference(1) == "+0.0 ± 1.4 (n=2)"
    gap = reading.difference(third, first, eer)
    assert gap is not None and not gap.paired and gap.difference(1) == "+8.0 *"
    assert reading.difference(third, grouped([run_of("x", 0)]).groups[0], eer) is None
    (twice,) = grouped([run_of("e1", 0, 10.5, k=3), run_of("e2", 0, 11.5, k=3)]).groups
    gap = reading.difference(twice, first, eer)
    assert gap is not None and (gap.count, gap.mean, gap.deviation) == (1, 1.0, None)


def test_time_passes_over_pauses() -> None:
    """Started at 100 s and again at 1000 s after the line of 130 s; what is between is no training."""

    def start(seconds: int) -> Record:
        return {"time": f"1970-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"}

    lines = [{"kind": "step", "step": k, "time": t, "loss": 1.0} for k, t in enumerate((110, 130, 1010, 1030))]
    run = Run(uri="/r", metrics=lines, origin={"starts": [start(100), start(1000), start(2000), {"time": "?"}, 5]})
    steps, seconds, _ = reading.curve(run, "loss")
    assert steps.tolist() == [0, 1, 2, 3] and seconds.tolist() == [10, 30, 40, 60]
    assert reading.curve(Run(uri="/r", metrics=lines), "loss")[1].tolist() == [0, 20, 900, 920]


def test_metrics_that_are_compared() -> None:
    def run(name: str, **values: float) -> Run:
        lines = [{"kind": "step", "step": k, "time": k, **{n: v * k for n, v in values.items()}} for k in range(3)]
        return Run(uri=name, metrics=lines)

    same = grouped([run("a", loss=1, ntxent=1, lr=1, own=2, utterances_per_s=3), run("b", loss=2, ntxent=2, term=1)])
    assert reading.common_metrics(same) == ["loss"]  # ntxent is nothing but the loss
    more = grouped([*same.runs, run("c", loss=1, ntxent=0.5, term=1, utterances_per_s=1)])
    assert reading.common_metrics(more) == ["loss", "ntxent", "term", "utterances_per_s"]
    still = grouped([run("a", loss=1, rejected=0), run("b", loss=1, rejected=0)])
    assert reading.common_metrics(still) == ["loss"]  # what never changes says nothing


@pytest.mark.long
def test_real_trainings(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *trained, "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"1 simclr-seed3 +\d+\.\d\d \[\d", printed) and re.search(r"2 ssps .*[+-]\d.* \(n=1\)", printed)
    assert f"ssps-seed4 has not been evaluated: rayssl evaluate {trained[2]}" in printed
    assert printed.endswith(f"{page}\nnext: python -m webbrowser {page}\n")
    text = text_of(page.read_text())
    hardware = json.loads((Path(trained[1]) / "origin.json").read_text())["hardware"]
    assert hardware["parameters"] >= hardware["trainable"] > 1000 and hardware["ranks"] == 1
    assert {"cpu", "cores", "memory_gb", "device"} <= hardware.keys()
    assert f"{hardware['parameters'] / 1e6:,.2f} M" in text
    lines = [json.loads(line) for line in (Path(trained[1]) / "metrics.jsonl").read_text().splitlines()]
    assert any("cluster_median" in line for line in lines if line["kind"] == "epoch")
    assert "3 runs compared" in text and "in 2 groups" in text and "has not been evaluated" in text
    assert "method.over.name - simclr" in text and "method.clusters - 4" in text and "corpus.uri" not in text
    for title in ("Speaker verification", "Configuration: what differs", "Training"):
        assert title in text
    assert "Classification" not in text
    for label in ("Training loss", "Throughput (utterances/s)", "Time since the start (s)", "seeds)"):
        assert label in page.read_text()


def test_page_needs_nothing_else_and_escapes(tmp_path: Path) -> None:
    """Of runs with verification and with classification, one with markup in its configuration."""
    folders = [write_run(tmp_path / "v<i>1", epochs=4, steps=20), write_class_run(tmp_path / "c1", epochs=4)]
    page = pages.render(reading.read_comparison([str(folder) for folder in folders]))
    needs_nothing_else(page)
    readable_without_seeing(page)
    assert "i" not in {tag for tag, _ in Elements(page).elements}
    text = text_of(page)
    assert "Speaker verification" in text and "Classification" in text and "The model's own" in text
    assert "<b>bold</b>" in text  # of the notes, as text
    assert page.count("Geometric mean %") >= 1 and "Recall" in page


def test_a_sweep_of_thirteen(tmp_path: Path) -> None:
    """Every group has its own colour and line, and settings stand in rows."""
    first = write_class_run(tmp_path / "trial_00", epochs=3)
    for number in range(1, 13):
        folder = shutil.copytree(first, tmp_path / f"trial_{number:02}")
        config = yaml.safe_load((first / "config.yaml").read_text())
        config["method"]["threshold"] = number / 20
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    comparison = reading.read_comparison([str(tmp_path / f"trial_{number:02}") for number in range(13)])
    assert len({(group.colour, group.line) for group in comparison.groups}) == 13
    page = pages.render(comparison)
    assert "Group method.threshold" in text_of(page) and "13 trial_12" in text_of(page)
    which = reading.classifiers(comparison)[0]
    cells = pictures.recall_picture(comparison, which)
    assert cells is not None and "13 trial_12" in cells.wide.replace("  ", " ")
    assert pages.summary(comparison).count("\n") >= 13


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=4, steps=5, evaluated=False)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "training": {"epochs": 10}}))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/metrics.jsonl").write_text("")
    comparison = reading.read_comparison([str(folder), str(tmp_path / "bare"), f"{folder}/"])
    assert len(comparison.runs) == 2
    told = reading.missing(comparison)
    assert ("run is not trained to its end: epoch 3 of 10", "rayssl train configs/ssps.yaml seed=7 method.clusters=512"
            ' \'notes=<b> it\'"\'"\'s\'') in told  # fmt: skip
    assert ("run has not been evaluated", f"rayssl evaluate {folder}") in told
    assert [text for text, _ in told if text.startswith("bare")] == [
        "bare has no usable config.yaml: how it differs is not known",
        "bare has no usable origin.json: commit and number of ranks are not known",
        "bare has logged no training steps (metrics.jsonl)",
        "bare has not been evaluated",
    ]
    assert "No two runs have a metric in common" in pages.render(comparison)


def test_results_of_other_trials_are_not_passed_off_as_comparable() -> None:
    page = pages.render(grouped([run_of("a", 0, 0.1, k=1), run_of("b", 0, 0.2, k=2)]))
    assert "same trials" not in page
    other = run_of("c", 0, 0.2, k=2)
    other.results[0]["trials"] = 20
    assert "Not all runs were scored on the same trials" in pages.render(grouped([run_of("a", 0, 0.1), other]))
    assert pages.render(Comparison([])).startswith("<!DOCTYPE html>")


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", epochs=2, steps=5, evaluated=False)
    page = tmp_path / "page.html"
    assert main(["report", str(run), str(tmp_path / "none"), "--out", str(page)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"rayssl report: {tmp_path}/none: no run here") and printed.err.count("\n") == 1
    assert not page.exists()


def test_one_run_has_its_own_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", epochs=2, steps=5, evaluated=False)
    assert main(["report", str(run)]) == 0
    printed, following = capsys.readouterr().out.splitlines()
    assert printed == f"{run}/report.html" and (run / "report.html").exists()
    assert following.startswith(f"next: rayssl embed {run} ")
    assert main(["report", str(run), "--out", str(tmp_path / "own.html")]) == 0
    assert (tmp_path / "own.html").read_text() == (run / "report.html").read_text()


@pytest.mark.s3
def test_runs_and_page_in_the_object_store(s3_server: Any, tmp_path: Path) -> None:
    bucket = s3_server.bucket("rayssl-compare")
    for name, seed in (("a-seed1", 1), ("a-seed2", 2)):
        local = write_run(tmp_path / name, epochs=2, steps=5, seed=seed)
        for file in (path for path in local.rglob("*") if path.is_file()):
            storage.write_bytes(f"{bucket}/{name}/{file.relative_to(local)}", file.read_bytes())
    assert main(["report", f"{bucket}/a-seed1", f"{bucket}/a-seed2", "--out", f"{bucket}/page.html"]) == 0
    assert "2 runs compared" in storage.read_text(f"{bucket}/page.html")
    assert json.loads(storage.read_text(f"{bucket}/a-seed1/origin.json"))["commit"] in storage.read_text(
        f"{bucket}/page.html"
    )
