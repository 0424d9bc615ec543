"""Speaker classification with an additive angular margin: the upper bound for self-supervised methods."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from torch.nn.functional import cross_entropy

from rayssl.errors import ConfigError, CorpusError
from rayssl.methods.base import Batch, JobFacts, Method, MethodConfig, Outputs, Recalled, Step, Views
from rayssl.models.encoder import Encoder
from rayssl.models.heads import AamHead
from rayssl.views.recipes import Segment, ViewsConfig


class SupervisedConfig(MethodConfig):
    """AAM-softmax: ``margin`` in radians; the cosines are multiplied by ``scale``."""

    name: Literal["supervised"] = "supervised"
    """Supervised: speaker classification with AAM-softmax, the upper bound for self-supervised methods."""
    margin: float = Field(0.2, ge=0, lt=1.5)
    """The angular margin of AAM-softmax in radians, added to the angle of the true speaker; 0 is a plain cosine
    softmax, and 0.2 is usual.
    """
    scale: float = Field(30.0, gt=0)
    """The factor that multiplies cosines before the softmax; 30 is usual. Too low a value cannot reach a small loss
    with many speakers.
    """

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """One distorted segment."""
        return (Segment(name="anchor", seconds=views.segment_s, recipe="distort"),)

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` if the corpus has fewer than two speakers."""
        if facts.speakers < 2:
            raise ConfigError(
                "method.name: 'supervised' needs a corpus with speaker labels, this one has "
                f"{facts.speakers} speakers; prepare it with speakers, or choose a self-supervised method"
            )

    def check_rows(self, ids: np.ndarray, speakers: np.ndarray) -> None:
        """Raises `CorpusError` for an utterance without a speaker."""
        unknown = ids[speakers < 0]
        if len(unknown):
            raise CorpusError(
                f"method.name: 'supervised' needs a speaker for every utterance, but number {unknown[0]} of the corpus "
                "has none; prepare it with speakers, or choose a self-supervised method"
            )

    def build(self, encoder: Encoder, facts: JobFacts) -> Supervised:
        """See `MethodConfig.build`."""
        return Supervised(self, encoder, facts.speakers)


class Supervised(Method):
    """Cross-entropy over the training speakers. Every utterance of the corpus must have a speaker."""

    Config = SupervisedConfig
    config: SupervisedConfig
    reads_statistics = False

    def __init__(self, config: SupervisedConfig, encoder: Encoder, speakers: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = AamHead(encoder.embedding_dim, speakers, margin=config.margin, scale=config.scale)

    def forward(self, views: Views) -> Outputs:
        """``anchor`` ``[B, D]``."""
        return {"anchor": self.encoder(views["anchor"].wave, views["anchor"].keys)}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The mean cross-entropy of the margin logits."""
        logits = self.head(out["anchor"], batch.speakers)
        loss = cross_entropy(logits.float(), batch.speakers)
        accuracy = (logits.detach().argmax(1) == batch.speakers).float().mean()
        return Step(loss, {"aam": loss.detach(), "train_accuracy": accuracy})
