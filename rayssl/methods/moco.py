"""MoCo v2 (Chen et al., 2020) for utterances: queries against keys of a slowly moving encoder and a queue of past keys.

As published in one direction: the anchor is the query, the positive the key. Keys of one batch normalise together, so
with several ranks set ``training.sync_batchnorm`` (in place of the published shuffling), lest statistics tell a query
which keys share its rank.
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
    """``temperature`` of InfoNCE (0.03 published for speakers); ``queue``: negatives, the keys of past batches;
    ``momentum`` of the key encoder, constant; ``projector`` after both encoders, by default none.
    """

    name: Literal["moco"] = "moco"
    temperature: float = Field(0.03, gt=0)
    queue: int = Field(32768, ge=1)
    momentum: float = Field(0.999, ge=0, le=1)


class MoCo(PairMethod):
    """InfoNCE of queries over their own key and the queue; what survives training is the query encoder."""

    Config = MoCoConfig
    config: MoCoConfig

    def __init__(self, config: MoCoConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__(config, encoder, views)
        self.key_encoder = frozen_copy(self.encoder)
        self.key_projector = frozen_copy(self.projector)
        self.queue = RowQueue(config.queue, self.embedding_dim)
        self._keys: Tensor | None = None  # of all ranks' last batch, not yet in the queue

    @property
    def reference_encoder(self) -> Encoder:
        """The key encoder: the more even one, and the one that the remembered positives are of."""
        return self.key_encoder

    def forward(self, views: Views) -> Outputs:
        """``query`` of the anchor and, without gradient, ``key`` of the positive; ``[B, D_emb]``, float32."""
        anchor, positive = views["anchor"], views["positive"]
        query = self.projector(self.encoder(anchor.wave, anchor.keys))
        with torch.no_grad():
            key = self.key_projector(self.key_encoder(positive.wave, positive.keys))
        return {"query": query.float(), "key": key.float()}

    def positives(self, out: Outputs) -> Tensor:
        """The keys."""
        return out["key"]

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row is the key that a query is compared with; ``key`` stays what the queue will be fed with."""
        return {**out, "positive": replaced(out["key"], recall)}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """Negatives are the keys of past batches of all ranks; this batch's own join them in `after_step`."""
        positive = out.get("positive", out["key"])
        queue, filled = self.queue.rows, self.queue.filled
        loss = infonce(out["query"], positive, queue, filled=filled, temperature=self.config.temperature)
        self._keys = collectives.gather(out["key"].detach())
        return Step(loss, {"infonce": loss.detach()})

    def after_step(self, progress: float) -> None:
        """Moves the key encoder and puts the batch's keys into the queue: only now, for backward reads the queue."""
        average(self.key_encoder, self.encoder, self.config.momentum)
        average(self.key_projector, self.projector, self.config.momentum)
        if self._keys is not None:
            self.queue.push(self._keys)
            self._keys = None
