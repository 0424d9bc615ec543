"""Supervised training: its loss is the cross-entropy of AAM logits; it says so where there are no speakers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rayssl.errors import ConfigError, CorpusError
from rayssl.methods.supervised import Supervised, SupervisedConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, batch_of, facts, random_views, views_config


def supervised(speakers: int = 3, **changes: float) -> Supervised:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    return Supervised(SupervisedConfig.model_validate(changes), encoder, speakers)


def test_loss_and_accuracy() -> None:
    method = supervised(margin=0.3, scale=20.0)
    assert [(s.name, s.seconds, s.recipe) for s in method.config.segments(views_config(), 0)] == [
        ("anchor", 0.2, "distort")
    ]
    out = method(random_views(("anchor",)))
    batch = batch_of(speakers=[0, 1, 2, 0, 1, 2])
    step = method.step(out, batch, None)
    cosines = torch.nn.functional.normalize(out["anchor"]) @ torch.nn.functional.normalize(method.head.weight).T
    logits = 20.0 * cosines
    for row, speaker in enumerate(batch.speakers.tolist()):
        logits[row, speaker] = 20.0 * torch.cos(torch.acos(cosines[row, speaker]) + 0.3)
    torch.testing.assert_close(step.loss, cross_entropy(logits, batch.speakers), rtol=1e-4, atol=1e-5)
    expected = (logits.argmax(1) == batch.speakers).float().mean()
    assert step.terms["train_accuracy"] == expected and step.remember is None
    step.loss.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in (method.head.weight, *method.encoder.parameters()))


@pytest.mark.parametrize("speakers", [0, 1])
def test_corpus_without_speakers(speakers: int) -> None:
    with pytest.raises(ConfigError, match=rf"'supervised' needs .* this one has {speakers} speakers; prepare it"):
        SupervisedConfig().check(facts(speakers=speakers))


def test_utterance_without_a_speaker() -> None:
    """A corpus may know some speakers only: one line, not an index error (or a device assertion)."""
    with pytest.raises(CorpusError) as caught:
        SupervisedConfig().check_rows(np.arange(6), np.array([0, 1, -1, 0, 1, 2]))
    assert "number 2 of the corpus has none" in str(caught.value) and "\n" not in str(caught.value)
    SupervisedConfig().check_rows(np.arange(2), np.array([0, 2]))
