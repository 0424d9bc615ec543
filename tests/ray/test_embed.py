"""`rayssl embed` on actors: stopped by damaged audio, resumed, and the same as evaluation's embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayssl.cli import main
from rayssl.runs.reading import find
from rayssl.runtime.embedding.actors import embed, matrix
from tests.runs import experiment, write_corpus, write_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def test_stopped_and_gone_on_with(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYSSL_KEEP_RAY", "1")
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    write_corpus(corpus, (9, 14, 4))
    run = write_run(experiment(tmp_path / "run", corpus))
    verb = ["embed", str(run), str(corpus), str(out), "--actors", "2"]
    sound = (corpus / "shards/00002.parquet").read_bytes()
    (corpus / "shards/00002.parquet").write_bytes(sound[:-9])
    assert main(verb) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"rayssl embed: {corpus}/shards/00002.parquet: damaged, or not a Parquet file")
    (corpus / "shards/00002.parquet").write_bytes(sound)
    (out / "00001.parquet").unlink(missing_ok=True)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert main(verb) == 0
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert sorted(after) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert {name: after[name] for name in before} == before
    source = find(str(run))
    table = embed(source.experiment, source.uri, str(corpus), normalise=False)
    found = pq.read_table(out)
    assert found["name"].equals(table["name"])
    np.testing.assert_array_equal(matrix(found), matrix(table))
