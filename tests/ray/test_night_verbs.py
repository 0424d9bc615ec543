"""Nights on actors: the same stages, figures and embeddings as in one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import rayssl
from rayssl.cli import main
from rayssl.runs.reading import find
from rayssl.runtime.embedding.actors import embed, matrix

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def test_stages_and_figures(
    ray_cluster: Any, night_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two actors share three nights."""
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    run = Path(shutil.copytree(night_folder / "run", tmp_path / "run"))
    wanted = rayssl.evaluate(run, local=True)
    stages = pq.read_table(run / "evaluation/stages.parquet")
    capsys.readouterr()
    assert main(["evaluate", str(run), "evaluation.actors=2"]) == 0
    line = capsys.readouterr().out.splitlines()[-2]
    assert f"macro F1 {wanted.macro_f1:.1%} [" in line and f"kappa {wanted.kappa:.3f} [" in line
    found = pq.read_table(run / "evaluation/stages.parquet")
    assert found.drop_columns(["wake", "light", "deep", "rem"]).equals(
        stages.drop_columns(["wake", "light", "deep", "rem"])
    )
    for name in ("wake", "light", "deep", "rem"):
        np.testing.assert_allclose(found[name].to_numpy(), stages[name].to_numpy(), rtol=0, atol=1e-6)


def test_embeddings(ray_cluster: Any, night_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    assert main(["embed", f"{night_folder}/run", f"{night_folder}/mel", str(tmp_path), "--actors", "2"]) == 0
    source = find(f"{night_folder}/run")
    table = embed(source.experiment, source.uri, f"{night_folder}/mel", normalise=False, local=True)
    found = pq.read_table(tmp_path)
    assert found["name"].equals(table["name"])
    np.testing.assert_allclose(matrix(found), matrix(table), rtol=0, atol=1e-5)
