"""What a method's loss compares can be scored: the layers after the encoder, loaded from a checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import rayssl
from rayssl.errors import CheckpointError, ConfigError
from rayssl.evaluation.scoring import unit_rows
from rayssl.experiment.build import build_method
from rayssl.experiment.job import resolve
from rayssl.inference.encoder import Projection, load_encoder
from rayssl.runtime.embedding.actors import matrix
from rayssl.training import checkpoint
from tests.runs import (
    DINO_METHOD,
    MOCO_METHOD,
    SDPN_METHOD,
    SSPS_METHOD,
    SWAV_METHOD,
    VICREG_METHOD,
    experiment,
    write_corpus,
    write_run,
    write_trials,
)

SIZES = {"projector": {"sizes": [12, 7]}}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"name": "simclr", **SIZES},
    "moco": {**MOCO_METHOD, **SIZES},
    "swav": SWAV_METHOD,
    "vicreg": VICREG_METHOD,
    "dino": DINO_METHOD,
    "dino student": {**DINO_METHOD, "evaluate": "student"},
    "sdpn": SDPN_METHOD,
    "ssps over dino": {**SSPS_METHOD, "over": DINO_METHOD},
}


def compared(method: Any, wave: torch.Tensor) -> torch.Tensor:
    """The row that the loss compares, by the method's own modules."""
    method = getattr(method, "base", method).eval()
    if hasattr(method, "teacher"):
        branch = method.teacher if method.config.evaluate == "teacher" else method.student
        rows: torch.Tensor = branch.head.bottleneck(branch.encoder(wave, None))
        return rows
    projected: torch.Tensor = method.projector(method.encoder(wave, None))
    return projected


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("projection") / "corpus"
    write_corpus(path)
    write_trials(path.with_name("trials.txt"), 12)
    return path


@pytest.mark.parametrize("name", METHODS)
def test_it_is_what_the_method_compares(name: str, corpus: Path, tmp_path: Path) -> None:
    settings = experiment(tmp_path / "run", corpus, method=METHODS[name])
    uri = checkpoint.locate(str(write_run(settings)), "last")
    wave = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0)) / 10
    method = build_method(resolve(settings))
    method.load_state_dict(checkpoint.load(uri).state["method"])
    with torch.no_grad():
        expected = compared(method, wave)
    found = Projection(settings, uri)(load_encoder(settings, uri, 16000)(wave, None).numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_methods_without_layers_and_other_layers_are_told(corpus: Path, tmp_path: Path) -> None:
    settings = experiment(tmp_path / "run", corpus, method={"name": "simclr"})
    uri = checkpoint.locate(str(write_run(settings)), "last")
    with pytest.raises(ConfigError, match=r"evaluation\.embedding=projection: method\.name=simclr has no layers after"):
        Projection(settings, uri)
    other = experiment(tmp_path / "run", corpus, method=METHODS["simclr"])
    with pytest.raises(CheckpointError, match="the layers after the encoder are of another architecture: it lacks"):
        Projection(other, uri)


@pytest.mark.long
def test_an_evaluation_scores_it(corpus: Path, tmp_path: Path) -> None:
    """The stored embeddings are the compared rows, of unit length; centring and the cohort use them too."""
    settings = experiment(tmp_path / "run", corpus, "training.epochs=1", method=METHODS["vicreg"])
    rayssl.train(settings, local=True)
    places = {"evaluation.corpus": str(corpus), "evaluation.trials": str(corpus.with_name("trials.txt"))}
    how = {**places, "evaluation.centre.corpus": str(corpus), "evaluation.as_norm.cohort": str(corpus)}
    plain = rayssl.evaluate(settings.run, local=True, **places)
    rows = [matrix(pq.read_table(f"{settings.run}/evaluation/embeddings.parquet"))]
    result = rayssl.evaluate(settings.run, local=True, **how, **{"evaluation.embedding": "projection"})
    rows.append(matrix(pq.read_table(f"{settings.run}/evaluation/embeddings.parquet")))
    assert plain.norm == "none" and result.norm.startswith("projection, centred(")
    assert rows[0].shape[1] == settings.encoder.embedding_dim and rows[1].shape == (len(rows[0]), 8)
    np.testing.assert_allclose(unit_rows(rows[1], len(rows[1])), rows[1], rtol=1e-5)
