"""`rayssl bench memory`: the figures for one actor and for several, and what cannot be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayssl.errors import UserError

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("shards", [1, 3])
def test_figures(ray_cluster: Any, tmp_path: Path, shards: int) -> None:
    from rayssl.runtime.bench.memory import MemoryCase, measure

    said: list[str] = []
    size = {"rows": 5_000, "dim": 16, "batch": 32, "ranks": 2, "calls": 4, "iterations": 2}
    job = MemoryCase(**size, shards=shards, relays=shards // 2, half=True, into=str(tmp_path))
    figures = measure(job, said.append)
    assert [line.split()[0] for line in said] == ["filling", "clustering", "exchanging", "saving", "restoring"]
    assert figures["restored_equal"] and figures["clusters"] == 125
    assert ("inside_ms_p50" in figures) == (shards == 1)
    positive = ("fill_rows_per_s", "exchange_ms_p50", "exchange_rows_per_s", "save_seconds", "restore_seconds")
    assert all(float(figures[name]) > 0 for name in positive)
    assert float(figures["state_bytes"]) > 5_000 * 16 * 2 * 2
    assert float(figures["store_bytes"]) == pytest.approx(5_000 * (16 * 2 * 2 + 5) / shards, rel=0.01)
    assert not list(tmp_path.rglob("*.npz")), "the state is taken away again"
    assert float(figures["peak_bytes"]) > float(figures["store_bytes"])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"batch": 33}, "--batch 33 must be a multiple of --ranks 2"),
        ({"batch": 6_000}, "at most --rows 5000"),
        ({"clusters": 1}, "--clusters 1 must lie in 2..5000"),
        ({"shards": 0}, "--shards must be at least 1"),
    ],
)
def test_what_cannot_be_measured(wrong: dict[str, int], text: str) -> None:
    from rayssl.runtime.bench.memory import MemoryCase, measure

    with pytest.raises(UserError, match=text):
        measure(MemoryCase(**{"rows": 5_000, "dim": 16, "batch": 32, "ranks": 2, **wrong}))
