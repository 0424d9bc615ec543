"""SwAV (Caron et al., 2020) for utterances: each view predicts the prototypes to which the other view is assigned."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from rayssl import collectives
from rayssl.losses.swav import swav
from rayssl.methods.base import Batch, Outputs, Recall, Recalled, Step, Views, replaced
from rayssl.methods.pair import SiameseConfig, SiameseMethod
from rayssl.models.encoder import Encoder
from rayssl.models.heads import ProjectorConfig, Prototypes
from rayssl.models.queue import RowQueue
from rayssl.views.recipes import ViewsConfig


class SwAVConfig(SiameseConfig):
    """``prototypes``: how many of unit length follow the ``projector``. They are frozen for ``freeze_epochs`` epochs.

    Codes are made by ``iterations`` of Sinkhorn-Knopp with ``epsilon``; predictions use ``temperature``. ``queue``: the
    number of past embeddings of each view that take part in the codes from epoch ``queue_start_epoch`` (from 0) on; 0
    for none. Use a queue if the global batch is small compared with the number of prototypes (published: 3840 and epoch
    15 for batches of 256).
    """

    name: Literal["swav"] = "swav"
    """SwAV (Caron et al., 2020): each view predicts the prototypes to which the other view is assigned."""
    projector: ProjectorConfig = ProjectorConfig(sizes=[2048, 128])
    """The layers between the encoder and the prototypes. The last width is the dimension of the prototypes."""
    prototypes: int = Field(3000, ge=2)
    """The number of trained prototypes of unit length; 3000 are published for the 1000 classes of ImageNet. Smaller
    corpora do with fewer.
    """
    freeze_epochs: int = Field(1, ge=0)
    """The number of first epochs in which the prototypes keep their initial values, because embeddings have no
    structure yet.
    """
    temperature: float = Field(0.1, gt=0)
    """The temperature of the predictions' softmax over prototypes; 0.1 is published."""
    epsilon: float = Field(0.05, gt=0)
    """How soft the codes are: Sinkhorn-Knopp starts from ``exp(scores / epsilon)``. Lower values make harder codes;
    0.05 is published.
    """
    iterations: int = Field(3, ge=1)
    """The number of Sinkhorn-Knopp iterations; 3 are published. More make the use of the prototypes more equal."""
    queue: int = Field(0, ge=0)
    """The number of past embeddings of each view that take part in the codes; 0 for none. Use a queue if the global
    batch is small compared with the number of prototypes (published: 3840 for batches of 256).
    """
    queue_start_epoch: int = Field(15, ge=0)
    """The first epoch, from 0, in which the queue is used; before, embeddings change too fast. 15 is published."""


class SwAV(SiameseMethod):
    """Swapped prediction of two views, with codes of the global batch."""

    Config = SwAVConfig
    config: SwAVConfig
    reads_statistics = False

    def __init__(self, config: SwAVConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__(config, encoder, views)
        self.prototypes = Prototypes(self.embedding_dim, config.prototypes)
        # a row holds the embeddings of an anchor and its positive
        self.queue = RowQueue(config.queue, 2 * self.embedding_dim) if config.queue else None
        self._rows: Tensor | None = None  # the rows of the last global batch, which are not in the queue yet

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D_emb]`` of unit length, float32."""
        embeddings = zip(("anchor", "positive"), self.embedded(views), strict=True)
        return {name: normalize(self.projector(embedding).float(), dim=1) for name, embedding in embeddings}

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """Recalled rows replace the positives: the anchor predicts their codes, and they predict the anchor's code. The
        second prediction has a gradient for the prototypes only. ``own`` is kept: it will enter the queue.
        """
        return {**out, "positive": replaced(out["positive"], recall), "own": out["positive"]}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """Every rank computes the codes of the whole global batch from all embeddings, without sums over ranks."""
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
        """Freezes the prototypes in the first epochs, because embeddings have no structure yet."""
        if epoch < self.config.freeze_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Brings the prototypes back to unit length, and pushes the batch's embeddings into the queue.

        The scores depend only on the directions of the prototypes. But if their rows grew, a step would turn them less.
        """
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
        if self.queue is not None and self._rows is not None:
            self.queue.push(self._rows)
            self._rows = None
