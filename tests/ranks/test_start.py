"""``encoder.start_from`` with two ranks: rank 0 reads the weights, and both begin with them, averages too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runs import DINO_METHOD, build, experiment, write_corpus, write_run

pytestmark = pytest.mark.ranks


def _started(rank: int, world: int, home: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        # only rank 0 can read the weights
        start = f"encoder.start_from={home}/first" if rank == 0 else "encoder.start_from=/nowhere"
        settings = experiment(Path(folder), Path(home) / "corpus", start, f"ray.workers={world}", method=DINO_METHOD)
        return {name: value.numpy() for name, value in build(settings).state.method.state_dict().items()}


def test_both_ranks_begin_with_them(ranks: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    first = experiment(tmp_path / "first", tmp_path / "corpus", "seed=8")
    write_run(first)
    two, one = ranks(_started, str(tmp_path), world=2), _started(0, 1, str(tmp_path))
    for name, value in one.items():
        for each in two:
            np.testing.assert_array_equal(each[name], value, err_msg=name)
