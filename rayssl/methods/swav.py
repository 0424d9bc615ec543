"""SwAV (Caron et al., 2020) for utterances: each view predicts the prototypes that the other view is assigned to."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from rayssl import collectives
from rayssl.losses.swav import swav
from rayssl.methods.base import Batch, Outputs, Recall, Recalled, Step, Views, embed_together, replaced
from rayssl.methods.pair import PairConfig, PairMethod
from rayssl.models.encoder import Encoder
from rayssl.models.heads import ProjectorConfig, Prototypes
from rayssl.models.queue import RowQueue
from rayssl.views.recipes import ViewsConfig


class SwAVConfig(PairConfig):
    """``prototypes`` of unit length after the ``projector``; frozen for the first ``freeze_epochs``.

    Codes are made by ``iterations`` of Sinkhorn-Knopp at ``epsilon``, predictions at ``temperature``. ``queue``: how
    many past embeddings of each view take part in the codes from ``queue_start_epoch`` (from 0) on, for global batches
    that are small beside the number of prototypes (3840 and 15 published for batches of 256); 0 for none.
    """

    name: Literal["swav"] = "swav"
    projector: ProjectorConfig = ProjectorConfig(sizes=[2048, 128])
    prototypes: int = Field(3000, ge=2)
    freeze_epochs: int = Field(1, ge=0)
    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, gt=0)
    iterations: int = Field(3, ge=1)
    queue: int = Field(0, ge=0)
    queue_start_epoch: int = Field(15, ge=0)


class SwAV(PairMethod):
    """Swapped prediction over two views, with codes over the global batch."""

    Config = SwAVConfig
    config: SwAVConfig

    def __init__(self, config: SwAVConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__(config, encoder, views)
        self.prototypes = Prototypes(self.embedding_dim, config.prototypes)
        # each row of an anchor and its positive
        self.queue = RowQueue(config.queue, 2 * self.embedding_dim) if config.queue else None
        self._rows: Tensor | None = None  # of all ranks' last batch, not yet in the queue

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D_emb]`` of unit length, float32."""
        names = ("anchor", "positive")
        embeddings = embed_together(self.encoder, [views[name] for name in names])
        return {
            name: normalize(self.projector(embedding).float(), dim=1)
            for name, embedding in zip(names, embeddings, strict=True)
        }

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row takes part as the positive did: its code is what the anchor predicts, and it predicts the
        anchor's, which moves the prototypes alone. ``own`` stays what the queue will be fed with.
        """
        return {**out, "positive": replaced(out["positive"], recall), "own": out["positive"]}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """Every rank makes the codes of the whole batch, from everybody's embeddings: no sums go between ranks."""
        config, a, b = self.config, out["anchor"], out["positive"]
        keys, counted = collectives.gather(torch.cat([a, b], dim=1).detach()), None
        if self.queue is not None and batch.epoch >= config.queue_start_epoch:
            self._rows = collectives.gather(torch.cat([a, out.get("own", b)], dim=1).detach())
            counted = torch.cat([self.queue.filled.new_ones(len(keys)), self.queue.filled])
            keys = torch.cat([keys, self.queue.rows])
        with torch.no_grad():
            keys_a, keys_b = (self.prototypes(rows) for rows in keys.chunk(2, dim=1))
        loss = swav(
            self.prototypes(a),
            self.prototypes(b),
            keys_a=keys_a,
            keys_b=keys_b,
            offset=collectives.rank() * len(a),
            temperature=config.temperature,
            epsilon=config.epsilon,
            iterations=config.iterations,
            counted=counted,
        )
        return Step(loss, {"swav": loss.detach()})

    def before_update(self, epoch: int) -> None:
        """Keeps the prototypes where they are in the first epochs, while embeddings still have no structure."""
        if epoch < self.config.freeze_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Brings the prototypes back to unit length and puts the batch's embeddings into the queue.

        The scores know their directions only, but with growing rows a step would turn them less and less.
        """
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
        if self.queue is not None and self._rows is not None:
            self.queue.push(self._rows)
            self._rows = None
