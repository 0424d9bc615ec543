"""The bench of planning: its line, and that memory is bounded."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from rayssl.data import corpus, planning
from rayssl.data.corpus import PreparedCorpusConfig
from tests.bench import plan_prepare


@pytest.mark.parametrize("more", [[], ["--join"], ["--conditions", "2"]])
def test_it_prints_one_line(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_prepare.main(["--utterances", "2000", "--recordings", "90", "--parts", "3", "--folder", str(tmp_path), *more])
    (line,) = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert (figures["utterances"], figures["renderings"]) == (2000, 4000 if "--conditions" in more else 2000)
    assert min(figures[key] for key in ("seconds", "cpu_seconds", "peak_rss_bytes", "units")) > 0
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in Arrow take less than three runs at any time; all rows together would take more than eight."""
    monkeypatch.setattr(planning, "_STEP_BYTES", 1 << 19)
    source = plan_prepare.MadeUpConfig(utterances=100_000, recordings=1000, speakers=100)
    settings = PreparedCorpusConfig.model_validate({"source": source, "out": str(tmp_path / "out")})
    before, held = pa.total_allocated_bytes(), list[int]()
    run = 1 << 20
    plan = corpus.plan(settings, 0, tell=lambda what, count: held.append(pa.total_allocated_bytes()), run_bytes=run)
    assert plan.sources == 100_000
    assert max(held) - before < 3 * run
    assert sum(path.stat().st_size for path in tmp_path.rglob("units-*")) > 8 * run
