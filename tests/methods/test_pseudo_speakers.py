"""Pseudo-speakers: rounds, a classifier from centroids, the gate and the corrected labels, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from rayssl.errors import ConfigError
from rayssl.experiment.job import resolve
from rayssl.losses.gate import threshold
from rayssl.methods.base import Recall, Views
from rayssl.methods.pseudo_speakers import PseudoSpeakers, PseudoSpeakersConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, PSEUDO_METHOD, batch_of, experiment, facts, random_views, views_config, write_corpus

LABELS = torch.tensor([[2.0], [0.0], [1.0], [1.0], [0.0], [2.0]])
FOUND = torch.tensor([True, True, True, True, False, True])


def config(**changes: object) -> PseudoSpeakersConfig:
    return PseudoSpeakersConfig.model_validate({"clusters": 3, "round_epochs": 4, "gate_after": 1, **changes})


def method(**changes: object) -> PseudoSpeakers:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    made = config(**{"correct_after": 2, **changes}).build(encoder, facts(utterances=9))
    return made


def views(*names: str) -> Views:
    given = random_views(names)
    return given


def centroids() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(model: PseudoSpeakers, embeddings: Tensor, labels: Tensor) -> Tensor:
    """The losses of AAM-softmax, with the margin on the angle of the label."""
    cosines = normalize(embeddings) @ normalize(model.head.weight).T
    angles = torch.acos(cosines) + 0.2 * torch.nn.functional.one_hot(labels, 3)
    return cross_entropy(30.0 * torch.cos(angles), labels, reduction="none")


def test_rounds() -> None:
    """Four epochs each: clustered before the first, gated from the second on, corrected from the third on."""
    given, names = config(correct_after=2), []
    for epoch in range(8):
        names.append([s.name for s in given.segments(views_config(), epoch)])
        fills = [(s.name, s.seconds, s.recipe) for s in given.fill_segments(views_config(), epoch)]
        assert fills == ([("reference", 0.3, "none")] if epoch in (0, 4) else [])
        assert given.clusters_before(epoch) == (epoch in (0, 4)) and given.recalls(epoch)
        assert given.gates(epoch) == (epoch not in (0, 4))
    assert names == [["anchor"], ["anchor"], ["anchor", "clean"], ["anchor", "clean"]] * 2
    assert [s.name for s in config(gate="none", correct_after=1).segments(views_config(), 3)] == ["anchor"]
    assert [s.name for s in config(correct_after=None).segments(views_config(), 3)] == ["anchor"]


def test_a_round_begins_with_the_centroids() -> None:
    model = method()
    model.losses.fill_(3.0)
    assert list(model.begin_epoch(4, centroids)) == [model.head.weight]
    assert torch.equal(model.head.weight, torch.from_numpy(centroids())) and model.head.weight.requires_grad
    assert (model.losses == -1).all() and model.limit == math.inf
    assert list(model.begin_epoch(5, None)) == []


def test_a_random_classifier_is_another_one_in_each_round_and_the_same_again() -> None:
    model, weights = method(classifier="random"), []
    for epoch in (0, 4, 4):
        model.begin_epoch(epoch, None)
        weights.append(model.head.weight.detach().clone())
    assert not torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])


def test_the_limit_is_of_the_losses_of_the_epoch_before() -> None:
    model = method()
    model.begin_epoch(0, centroids)
    losses = torch.tensor([0.1, 0.12, 0.09, 0.11, 0.1, 5.0, 6.0, 5.5, -1.0])
    model.losses.copy_(losses)
    model.begin_epoch(1, None)
    assert model.limit == math.inf  # fewer than ten losses say nothing
    many = PseudoSpeakers(model.config, model.encoder, facts(utterances=27))
    many.losses.copy_(losses.repeat(3))
    many.begin_epoch(1, None)
    assert many.limit == pytest.approx(threshold(losses.repeat(3).numpy())) and 0.12 < many.limit < 5.0
    mostly = PseudoSpeakers(config(gate_keeps=0.8), many.encoder, facts(utterances=27))
    mostly.losses.copy_(losses.repeat(3))
    mostly.begin_epoch(1, None)
    assert mostly.limit == pytest.approx(5.5), "20 of 24 known losses: 15 low ones, and 5.0 and 5.5"
    fixed = method(gate="threshold", gate_loss=0.7)
    fixed.begin_epoch(0, centroids)
    assert fixed.limit == math.inf
    fixed.begin_epoch(1, None)
    assert fixed.limit == pytest.approx(0.7)


def test_loss_of_labels_that_are_kept() -> None:
    """Summed over the rows with a label and a loss below the limit, divided by all rows; the memory gets nothing."""
    model = method()
    out = model(views("anchor"))
    rows = rows_of(model, out["anchor"], LABELS[:, 0].long())
    limit = rows[FOUND].sort().values[2].item() + 1e-3
    model.limit.fill_(limit)
    kept = FOUND & (rows <= limit)
    assert kept.sum() == 3
    step = model.step(out, batch_of(), Recall(LABELS, FOUND))
    torch.testing.assert_close(step.loss, rows[kept].sum() / 6, rtol=1e-4, atol=1e-5)
    assert step.terms["kept"] == 0.5 and step.terms["corrected"] == 0 and step.remember is None
    expected = torch.where(FOUND, rows, -1.0).detach()
    torch.testing.assert_close(model.losses, torch.cat([expected, torch.full((3,), -1.0)]), rtol=1e-4, atol=1e-5)
    step.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_labels_that_are_left_out_are_corrected_where_the_model_is_sure() -> None:
    model = method(correct_above=0.6)
    out = model(views("anchor", "clean"))
    assert not out["clean"].requires_grad
    with torch.no_grad():  # six undistorted segments whose probabilities are known
        model.head.weight.copy_(torch.eye(16)[:3])
        out["clean"] = torch.eye(16)[[0, 0, 1, 2, 2, 9]]  # the last one is as far from each class
    labels = LABELS[:, 0].long()
    rows = rows_of(model, out["anchor"], labels)
    model.limit.fill_(0.0)
    sure = torch.tensor([True] * 5 + [False])  # e^10 / (e^10 + 2), and a third
    step = model.step(out, batch_of(), Recall(LABELS, FOUND))
    guessed = rows_of(model, out["anchor"], torch.tensor([0, 0, 1, 2, 2, 0]))
    torch.testing.assert_close(step.loss, guessed[sure].sum() / 6, rtol=1e-4, atol=1e-5)
    assert step.terms["corrected"] == pytest.approx(5 / 6) and step.terms["kept"] == 0
    torch.testing.assert_close(model.losses[:6], torch.where(FOUND, rows, -1.0).detach(), rtol=1e-4, atol=1e-5)
    model.limit.fill_(math.inf)  # what is kept is not corrected; an utterance without a cluster is
    step = model.step(out, batch_of(), Recall(LABELS, FOUND))
    expected = (rows[FOUND].sum() + guessed[4]) / 6
    torch.testing.assert_close(step.loss, expected, rtol=1e-4, atol=1e-5)


def test_impossible_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classifier: centroids of whitened references"):
        config(whiten=True)
    with pytest.raises(ValueError, match="correct_after=1 is below gate_after=2"):
        config(gate_after=2, correct_after=1)
    with pytest.raises(ValueError, match="merged_from=2 clusters cannot be merged into clusters=3"):
        config(merged_from=2)
    for key in ("clusters", "merged_from"):
        with pytest.raises(ConfigError, match=f"{key}=10: c has only 9 utterances"):
            config(**{key: 10}).memory(facts(utterances=9))
    assert config(merged_from=9).memory(facts(utterances=9)).merged_from == 9
    write_corpus(tmp_path / "corpus", (9, 8))
    with pytest.raises(ConfigError, match=r"overlapped: method\.name=pseudo_speakers would learn"):
        resolve(experiment(tmp_path, tmp_path / "corpus", "memory.clustering=overlapped", method=PSEUDO_METHOD))
    with pytest.raises(ConfigError, match=r"training\.epoch_steps: pseudo_speakers"):
        experiment(tmp_path, tmp_path / "corpus", "training.epoch_steps=2", method=PSEUDO_METHOD)
