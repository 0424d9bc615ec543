"""MoCo v2 (Chen et al., 2020) for utterances: a query is compared with its key and with a queue of past keys.

A slowly moving average of the encoder makes the keys. As in MoCo's own paper, there is one direction: the anchor is the
query, the positive is the key. ``symmetric`` adds the other one.

A query and its key must not share statistics of batch normalisation: keys of the queue are of other batches, and a
query can tell by the statistics which key is its own. With several ranks ``shuffle`` helps, as published; on any number
of ranks ``key_statistics: average`` does.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rayssl import collectives
from rayssl.losses.infonce import infonce
from rayssl.methods.base import Batch, Outputs, Recall, Recalled, Step, View, Views, replaced
from rayssl.methods.pair import PairConfig, PairMethod
from rayssl.models.encoder import Encoder
from rayssl.models.queue import RowQueue
from rayssl.models.teacher import average, frozen_copy
from rayssl.random.draws_torch import uniform_torch
from rayssl.views.recipes import ViewsConfig

_SHUFFLE = 600  # the stream of draws of the order of keys


class MoCoConfig(PairConfig):
    """``temperature`` of InfoNCE (0.03 published for speakers). ``queue``: the number of negatives.

    The negatives are keys of past batches. ``momentum`` of the key encoder is constant. ``projector`` after both
    encoders; the default is none. The public code for speakers has ``symmetric``, ``shuffle`` without
    ``training.sync_batchnorm``, and ``enqueue: recalled``.
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
    symmetric: bool = False
    """Whether the positive is also a query, for the key of the anchor, with a second queue of such keys; the loss is
    the mean of both directions. It costs one more pass of each encoder. With SSPS an utterance stores both keys.
    """
    shuffle: bool = False
    """Whether the keys of a step are computed in another order, mixed over all ranks, so that batch normalisation tells
    nothing about which keys are on a query's rank. It is for several ranks without ``training.sync_batchnorm``, as
    published; one rank changes nothing.
    """
    enqueue: Literal["own", "recalled"] = "own"
    """Which keys enter the queue under SSPS: the ``own`` ones of the batch, or the ``recalled`` positives that replaced
    them, as in the public code. Recalled keys are up to an epoch old, and ``own`` ones in a shorter queue are younger:
    positives and negatives then also differ by age.
    """
    key_statistics: Literal["batch", "average"] = "batch"
    """Which statistics batch normalisation takes for keys: those of their ``batch``, as published, or the ``average``
    of the query encoder's running ones (EMAN: Cai et al., CVPR 2021). With ``average`` no key shares them with a query.
    """
    negatives: Literal["all", "others"] = "all"
    """Which keys of the queue are negatives of a query: ``all``, as published, or those of ``others``, without keys of
    the query's own utterance and, under SSPS, of the utterance that was sampled for it.
    """

    def positive_dim(self, embedding_dim: int) -> int:
        """The width of `MoCo.positives`: that of one key, or with ``symmetric`` of two."""
        return super().positive_dim(embedding_dim) * (1 + self.symmetric)


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
        self.other_queue = RowQueue(config.queue, self.embedding_dim) if config.symmetric else None
        # the utterance of each key
        self.ids = RowQueue(config.queue, 1, torch.int64) if config.negatives == "others" else None
        self.reads_statistics = config.key_statistics == "average"
        self._keys: Tensor | None = None  # the keys of the last global batch, which are not in the queue yet
        self._new_ids: Tensor | None = None  # and their utterances

    @property
    def reference_encoder(self) -> Encoder:
        """The key encoder: it changes more slowly, and it made the stored positives."""
        return self.key_encoder

    def forward(self, views: Views) -> Outputs:
        """``query`` from the anchor and, without gradient, ``key`` from the positive; ``[B, D_emb]``, float32.

        If ``symmetric``, also ``other_query`` from the positive and ``other_key`` from the anchor.
        """
        anchor, positive = views["anchor"], views["positive"]
        out = {"query": self._query(anchor)}
        if self.config.symmetric:
            out |= {"other_query": self._query(positive), "other_key": self._key(anchor)}
        return out | {"key": self._key(positive)}

    def _query(self, view: View) -> Tensor:
        query: Tensor = self.projector(self.encoder(view.wave, view.keys))
        return query.float()

    @torch.no_grad()
    def _key(self, view: View) -> Tensor:
        """The keys of ``view``, ``[B, D_emb]``. With ``shuffle``, each rank computes those of rows of all ranks.

        The order is drawn from the rows' own keys: it is the same on every rank, and again after a restart.
        """
        if not (self.config.shuffle and collectives.world() > 1 and self.key_encoder.training):
            return self._computed(view)
        assert view.keys is not None
        waves, keys = collectives.gather(view.wave), collectives.gather(view.keys)
        order = uniform_torch(keys, _SHUFFLE).argsort(stable=True)
        own = slice(collectives.rank() * len(view.wave), (collectives.rank() + 1) * len(view.wave))
        rows = collectives.gather(self._computed(View(waves[order[own]], keys[order[own]])))
        return rows[order.argsort()[own]]

    def train(self, mode: bool = True) -> MoCo:
        """Sets the mode of all parts; the makers of keys stay in eval mode if they use averaged statistics."""
        super().train(mode)
        if self.config.key_statistics == "average":
            self.key_encoder.eval()
            self.key_projector.eval()
        return self

    def _computed(self, view: View) -> Tensor:
        key: Tensor = self.key_projector(self.key_encoder(view.wave, view.keys))
        return key.float()

    def positives(self, out: Outputs) -> Tensor:
        """The keys; if ``symmetric``, ``[B, 2 D_emb]``: ``key`` and then ``other_key``."""
        return torch.cat([out["key"], out["other_key"]], dim=1) if self.config.symmetric else out["key"]

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """Recalled rows are the keys that queries are compared with. ``enqueue`` says which keys enter the queue."""
        rows = replaced(self.positives(out), recall)
        if recall.ids is not None:
            out = {**out, "sampled": recall.ids}
        if not self.config.symmetric:
            return {**out, "positive": rows}
        positive, other = rows.chunk(2, dim=1)
        return {**out, "positive": positive, "other_positive": other}

    def _negatives(self, queue: RowQueue, ids: Tensor, sampled: Tensor) -> Tensor:
        """Which keys of ``queue`` are negatives: bool ``[Q]``, or ``[B, Q]`` if the utterances of keys are known.

        ``ids [B]`` are the queries' utterances, ``sampled [B]`` those of their positives.
        """
        if self.ids is None:
            return queue.filled
        keys = self.ids.rows[:, 0]
        return queue.filled & (keys != ids[:, None]) & (keys != sampled[:, None])

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The negatives are the keys of past global batches. The keys of this batch enter the queue in `after_step`."""
        config = self.config
        positive = out.get("positive", out["key"])
        sampled = out.get("sampled", torch.full_like(batch.ids, -1))
        queue, filled = self.queue.rows, self._negatives(self.queue, batch.ids, sampled)
        loss = infonce(out["query"], positive, queue, filled=filled, temperature=config.temperature)
        kept = [positive if config.enqueue == "recalled" else out["key"]]
        if self.other_queue is not None:
            other = out.get("other_positive", out["other_key"])
            queue, filled = self.other_queue.rows, self._negatives(self.other_queue, batch.ids, sampled)
            back = infonce(out["other_query"], other, queue, filled=filled, temperature=config.temperature)
            loss = (loss + back) / 2
            kept.append(other if config.enqueue == "recalled" else out["other_key"])
        self._keys = collectives.gather(torch.cat(kept, dim=1).detach())
        if self.ids is not None:
            ids = torch.where(sampled >= 0, sampled, batch.ids) if config.enqueue == "recalled" else batch.ids
            self._new_ids = collectives.gather(ids[:, None])
        return Step(loss, {"infonce": loss.detach()})

    def after_step(self, progress: float) -> None:
        """Moves the key encoder and pushes the batch's keys; not earlier, because the backward pass reads the queue."""
        statistics = self.config.key_statistics == "average"
        average(self.key_encoder, self.encoder, self.config.momentum, statistics=statistics)
        average(self.key_projector, self.projector, self.config.momentum, statistics=statistics)
        if self._keys is not None:
            own, *other = self._keys.split(self.embedding_dim, dim=1)
            self.queue.push(own)
            if self.other_queue is not None:
                self.other_queue.push(*other)
            if self.ids is not None and self._new_ids is not None:
                self.ids.push(self._new_ids)
            self._keys = self._new_ids = None
