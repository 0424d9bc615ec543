"""`rayssl bench kmeans`: the made-up points, the figures, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rayssl.bench.kmeans import KMeansCase, measure, points, table
from rayssl.cli import main
from rayssl.errors import UserError


def test_points() -> None:
    x, labels = points(KMeansCase(4000, 128, 10, spread=1.0, seed=3))
    assert x.dtype == np.float16
    assert x.shape == (4000, 128)
    rows = x.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)
    centres = np.stack([rows[labels == k].mean(axis=0) for k in range(10)])
    own = (rows * (centres / np.linalg.norm(centres, axis=1, keepdims=True))[labels]).sum(axis=1)
    assert own.mean() == pytest.approx(2**-0.5, abs=0.02)
    assert np.array_equal(x, points(KMeansCase(4000, 128, 10, spread=1.0, seed=3))[0])
    noise = points(KMeansCase(4000, 128, 10, data="noise"))[0].astype(np.float32)
    assert np.linalg.norm(noise.mean(axis=0)) < 0.05


def test_figures_with_a_comparison() -> None:
    figures = measure(KMeansCase(9_000, 64, 600, mode="fast", compare=1000, iterations=3))
    assert figures["compared_clusters"] == 512
    assert 7_400 < float(figures["compared_rows"]) < 8_000
    assert float(figures["objective_compared"]) > 0.98 * float(figures["objective_exact"])
    assert figures["empty"] == 0
    assert float(figures["nmi"]) > 0.9
    assert min(float(figures[name]) for name in ("seconds", "seconds_exact", "peak_bytes")) > 0
    text = table(figures)
    assert "9,000" in text
    assert "GiB" in text
    assert len(text.splitlines()) == len(figures)


def test_whole_comparison_and_none() -> None:
    figures = measure(KMeansCase(600, 16, 10, data="noise", compare=10**6, iterations=2))
    assert figures["compared_rows"] == 600
    assert figures["objective_exact"] == figures["objective_compared"] == figures["objective"]
    assert {"nmi", "seconds_exact", "peak_device_bytes"} & figures.keys() == set()
    assert "objective_exact" not in measure(KMeansCase(60, 16, 10, iterations=1))


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench kmeans --rows 500 --dim 16 --clusters 8 --mode exact --device cpu --seed 1 --iterations 2"
    assert main([*command.split(), "--compare", "--json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])
    assert {"seconds", "objective", "objective_exact", "empty", "peak_bytes", "nmi"} <= figures.keys()
    assert (figures["rows"], figures["seed"], figures["compare"]) == (500, 1, 50_000)
    assert len(printed) == len(figures) + 1
    assert main(command.split()) == 0
    figure, following = capsys.readouterr().out.splitlines()[-2:]
    assert figure.startswith("peak_bytes")
    assert following == "next: rayssl bench memory --rows 500 --dim 16 --clusters 8"


@pytest.mark.parametrize(
    ("job", "line"),
    [
        (KMeansCase(10, 4, 11), "--clusters 11 must lie in 1..10"),
        (KMeansCase(10, 4, 2, iterations=0), "--iterations"),
        (KMeansCase(10, 4, 2, device="cuda"), "no GPU here; use --device cpu"),
    ],
)
def test_jobs_that_cannot_be(job: KMeansCase, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=line):
        measure(job)


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kmeans", "--rows", "5", "--clusters", "6"]) == 2
    assert capsys.readouterr().err.startswith("rayssl bench: --clusters 6 must lie in 1..5")
