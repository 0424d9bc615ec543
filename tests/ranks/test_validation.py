"""Two ranks judge a model as one rank does, and a fault of one is told by both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayssl.errors import CorpusError
from rayssl.experiment.build import build_method
from rayssl.experiment.job import resolve
from rayssl.experiment.judging import RunJudge
from tests import runs

pytestmark = pytest.mark.ranks
FIGURES = ("pseudo_eer", "effective_rank", "eer", "accuracy", "objective")


def judged(rank: int, world: int, corpus: str) -> dict[str, float] | str:
    """The figures of a model whose running statistics differ on the ranks: those of rank 0 count."""
    trials = Path(corpus).parent / "trials.txt"
    validate = f"{{metric: eer, also: [{', '.join(FIGURES)}], corpus: {corpus}, trials: {trials}, utterances: 20}}"
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        run = runs.experiment(Path(folder), Path(corpus), f"training.validate={validate}")
        method = build_method(resolve(run))
        torch.manual_seed(rank)
        for name, buffer in method.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.1 * torch.randn_like(buffer)
        before = {name: value.clone() for name, value in method.state_dict().items()}
        state = torch.get_rng_state()
        assert run.training.validate is not None
        try:
            known = {"objective": 0.25} if rank == 0 else {}
            found = RunJudge(run.training.validate, run, torch.device("cpu")).figures(method, known)
        except CorpusError as error:
            return str(error)
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
        return found


def prepared(tmp_path: Path, corrupt: int | None = None) -> str:
    corpus = tmp_path / "corpus"
    runs.write_corpus(corpus, splits=runs.SPLITS, corrupt=corrupt)
    lines = [f"{int(a % 4 == b % 4)} utt{a:03d} utt{b:03d}\n" for a in range(0, 30, 3) for b in range(a + 1, a + 5)]
    (tmp_path / "trials.txt").write_text("".join(lines))
    return str(corpus)


def test_figures(ranks: Callable[..., Any], tmp_path: Path) -> None:
    corpus = prepared(tmp_path)
    one, other = ranks(judged, corpus)
    assert one == other and one.keys() == set(FIGURES)
    alone = judged(0, 1, corpus)
    assert isinstance(alone, dict) and one == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_a_fault_of_one_rank_is_told_by_both(ranks: Callable[..., Any], tmp_path: Path) -> None:
    """Utterance 1 is in the part of rank 0 alone."""
    one, other = ranks(judged, prepared(tmp_path, corrupt=1))
    assert one == other and "utterance 1" in one
