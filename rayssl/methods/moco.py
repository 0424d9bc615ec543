"""MoCo v2 (Chen et al., 2020) for utterances: a query is compared with its key and with a queue of past keys.

A slowly moving average of the encoder makes the keys. As published, there is one direction: the anchor is the query,
the positive is the key. With several ranks, set ``training.sync_batchnorm``. Otherwise a query can detect from the
statistics of batch normalisation which keys are on its rank; the published method shuffles the keys over ranks instead.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rayssl import collectives
from rayssl.losses.infonce import infonce
from rayssl.methods.base import Batch, Outputs, Recall, Recalled, Step, Views, replaced
from rayssl.methods.pair import PairConfig, PairMethod
from rayssl.models.encoder import Encoder
from rayssl.models.queue import RowQueue
from rayssl.models.teacher import average, frozen_copy
from rayssl.views.recipes import ViewsConfig


class MoCoConfig(PairConfig):
    """``temperature`` of InfoNCE (0.03 published for speakers). ``queue``: the number of negatives.

    The negatives are keys of past batches. ``momentum`` of the key encoder is constant. ``projector`` after both
    encoders; the default is none.
    """

    name: Literal["moco"] = "moco"
    """MoCo (He et al., 2020): an averaged encoder makes the keys; a queue of past keys holds the negatives."""
    temperature: float = Field(0.03, gt=0)
    """The temperature of InfoNCE, which divides cosine similarities. Lower values weigh the hardest negatives more;
    0.03 is published for speakers.
    """
    queue: int = Field(32768, ge=1)
    """The number of negatives: keys of past global batches. More negatives are harder, but older. Keep it well below
    the number of utterances, so that few negatives come from the anchor's own utterance.
    """
    momentum: float = Field(0.999, ge=0, le=1)
    """The momentum of the key encoder, from 0 to 1, constant over the training: it keeps this share of itself in each
    step. Raise it for long trainings, lower it (0.99) for a few thousand steps.
    """


class MoCo(PairMethod):
    """InfoNCE of each query over its own key and the queue. After training, the query encoder is used."""

    Config = MoCoConfig
    config: MoCoConfig
    reads_statistics = False

    def __init__(self, config: MoCoConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__(config, encoder, views)
        self.key_encoder = frozen_copy(self.encoder)
        self.key_projector = frozen_copy(self.projector)
        self.queue = RowQueue(config.queue, self.embedding_dim)
        self._keys: Tensor | None = None  # the keys of the last global batch, which are not in the queue yet

    @property
    def reference_encoder(self) -> Encoder:
        """The key encoder: it changes more slowly, and it made the stored positives."""
        return self.key_encoder

    def forward(self, views: Views) -> Outputs:
        """``query`` from the anchor and, without gradient, ``key`` from the positive; ``[B, D_emb]``, float32."""
        anchor, positive = views["anchor"], views["positive"]
        query = self.projector(self.encoder(anchor.wave, anchor.keys))
        with torch.no_grad():
            key = self.key_projector(self.key_encoder(positive.wave, positive.keys))
        return {"query": query.float(), "key": key.float()}

    def positives(self, out: Outputs) -> Tensor:
        """The keys."""
        return out["key"]

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """Recalled rows are the keys that queries are compared with. ``key`` stays: it will enter the queue."""
        return {**out, "positive": replaced(out["key"], recall)}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The negatives are the keys of past global batches. The keys of this batch enter the queue in `after_step`."""
        positive = out.get("positive", out["key"])
        queue, filled = self.queue.rows, self.queue.filled
        loss = infonce(out["query"], positive, queue, filled=filled, temperature=self.config.temperature)
        self._keys = collectives.gather(out["key"].detach())
        return Step(loss, {"infonce": loss.detach()})

    def after_step(self, progress: float) -> None:
        """Moves the key encoder and pushes the batch's keys; not earlier, because the backward pass reads the queue."""
        average(self.key_encoder, self.encoder, self.config.momentum)
        average(self.key_projector, self.projector, self.config.momentum)
        if self._keys is not None:
            self.queue.push(self._keys)
            self._keys = None
