"""SSPS (Lepage and Dehak, Interspeech 2025): positives of another utterance, found by clustering a global memory.

The wrapped method trains alone up to ``start_epoch``. One epoch earlier the memory begins to fill; from ``start_epoch``
on, each epoch begins with one k-means over the references of the whole corpus, and a positive is replaced by the
remembered embedding of an utterance that the clustering says is of the same speaker. Where nothing can be sampled the
ordinary positive stays.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch.nn.functional import normalize

from rayssl import storage
from rayssl.clustering.result import Mode
from rayssl.errors import ConfigError
from rayssl.memory.utterances.settings import MemorySettings, Sampling
from rayssl.methods.base import (
    Batch,
    JobFacts,
    Method,
    MethodConfig,
    Outputs,
    Recall,
    Recalled,
    Remember,
    Step,
    View,
    Views,
)
from rayssl.methods.registry import AnyMethod
from rayssl.methods.simclr import SimCLRConfig
from rayssl.models.encoder import Encoder
from rayssl.views.recipes import Segment, ViewsConfig


class SSPSConfig(MethodConfig):
    """``over``: the method whose positives are replaced; ``start_epoch``: the first epoch (from 0) that replaces them.

    Sampling (``sampling: cluster``): with ``neighbours`` M = 0 an utterance of the anchor's own cluster (Eq. 3), with
    M >= 1 one of a cluster drawn among the M with the nearest centroids, the own excluded (Eq. 4-5). ``clusters`` is
    K; choose it so that utterances per recording < N/K < utterances per speaker. ``centroid`` gives the chosen
    cluster's centroid itself, ``nn`` one of the M utterances with the nearest references, without clusters. ``speaker``
    draws from the true speaker's other recordings: no method, for it needs the labels, but the bound to compare with.
    ``queue`` is |Q'| (0: every utterance); keep it at 4 K or more, or a third of the anchors find nothing.
    ``skip_empty`` draws only among clusters that have an utterance in the queue. ``whiten``: references are clustered
    and compared after whitening (not in the paper; it helps where the encoder is still poor). ``iterations`` of k-means
    at each epoch; ``kmeans: exact`` is Lloyd's, ``fast`` looks at fewer centroids and moves clusters to where one is
    missing (up to 256 clusters both are the same). ``warm_start``: each clustering begins with the last centroids.

    ``references: rolling`` keeps the reference computed when an utterance was last trained on, so that those of one
    clustering come from the weights of a whole epoch; ``fill`` computes all of them anew, with the same weights, in a
    pass of inference before each clustering. ``start_from``: a run's folder or checkpoint of the method of ``over``
    whose weights to begin with; one pass fills the memory and SSPS begins in the first epoch (``start_epoch: 0``).
    """

    name: Literal["ssps"]
    over: AnyMethod = SimCLRConfig()
    start_epoch: int = Field(0, ge=0)
    start_from: str | None = None
    references: Literal["rolling", "fill"] = "rolling"
    sampling: Sampling = "cluster"
    clusters: int = Field(0, ge=0)
    neighbours: int = Field(1, ge=0)
    queue: int = Field(0, ge=0)
    skip_empty: bool = False
    whiten: bool = False
    iterations: int = Field(10, ge=1)
    kmeans: Mode = "fast"
    warm_start: bool = False

    @model_validator(mode="after")
    def _possible(self) -> SSPSConfig:
        if self.sampling in ("cluster", "centroid") and self.clusters < 2:
            raise ValueError(f"sampling: {self.sampling} needs clusters (K) of at least 2; set method.clusters")
        if self.sampling == "nn" and self.neighbours < 1:
            raise ValueError("sampling: nn draws among the M nearest; set method.neighbours to at least 1")
        if self.sampling == "centroid" and self.whiten:
            raise ValueError("sampling: centroid gives positives that whitening has moved; leave out method.whiten")
        if self.warm_start and (self.whiten or self.sampling not in ("cluster", "centroid")):
            raise ValueError(
                "warm_start: the last centroids are no start where nothing is clustered, nor for whitened references, "
                "which have other axes each time; leave out method.warm_start"
            )
        if (self.start_epoch == 0) != (self.start_from is not None):
            raise ValueError(
                "SSPS begins either at an epoch of this training (method.start_epoch of 1 or more) or with the weights "
                "of another run (method.start_from, without start_epoch): give one of them"
            )
        return self

    @property
    def label(self) -> str:
        """With what it wraps: ``ssps/simclr``."""
        return f"{self.name}/{self.over.label}"

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """It samples in the second epoch."""
        return {"over": {"name": "simclr", "temperature": 0.2}, "start_epoch": 1, "clusters": 4}

    def for_trial(self) -> SSPSConfig:
        """It begins with fresh weights and samples in the second epoch."""
        few = {"clusters": min(self.clusters, 4), "neighbours": min(self.neighbours, 3), "queue": 0}
        changes = {"over": self.over.for_trial(), "start_epoch": 1, "start_from": None, **few}
        return self.model_copy(update=changes)

    def located(self) -> SSPSConfig:
        """See `ComponentConfig.located`."""
        start = self.start_from and storage.absolute(self.start_from)
        return self.model_copy(update={"over": self.over.located(), "start_from": start})

    def recalls(self, epoch: int) -> bool:
        """From ``start_epoch`` on."""
        return epoch >= self.start_epoch

    def remembers(self, epoch: int) -> bool:
        """One epoch earlier, so that every utterance has a reference when the first clustering begins."""
        return epoch >= self.start_epoch - 1

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The wrapped method's segments and, where references roll, the longer undistorted reference."""
        segments = self.over.segments(views, epoch)
        if self.remembers(epoch) and self.references == "rolling":
            segments += (_reference_segment(views),)
        return segments

    def fill_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """Reference and positives where nothing has been remembered yet, the reference where only that is renewed."""
        if epoch == 0 and self.start_from is not None:
            return (*self.over.positive_segments(views, epoch), _reference_segment(views))
        return (_reference_segment(views),) if self.recalls(epoch) and self.references == "fill" else ()

    @property
    def clusters_references(self) -> bool:
        """Where it samples by clusters."""
        return self.sampling in ("cluster", "centroid")

    @property
    def starts_from(self) -> str | None:
        """``start_from``."""
        return self.start_from

    def check_training(self, *, epochs: int, epoch_steps: int, labels: bool) -> None:
        """SSPS must start before the training ends, and remembers a whole corpus, pass by pass."""
        if self.over.learns_labels:
            raise ValueError(
                f"method.over.name={self.over.name}: learns from labels of a split, and SSPS remembers the whole "
                "corpus; choose a method without labels"
            )
        if labels:
            raise ValueError("labels: SSPS remembers the whole corpus, not what a split has of it; leave it out")
        if epoch_steps:
            raise ValueError("training.epoch_steps: SSPS clusters between passes over the corpus; leave it out")
        if self.start_epoch >= epochs:
            raise ValueError(
                f"method.start_epoch={self.start_epoch} is not before training.epochs={epochs}: "
                "SSPS would never start; lower the one or raise the other"
            )
        self.over.check_training(epochs=epochs, epoch_steps=epoch_steps, labels=labels)

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` for a method without positives; see `MethodConfig.check`."""
        self.over.check(facts)
        self.over.positive_dim(facts.embedding_dim)

    def memory(self, facts: JobFacts) -> MemorySettings:
        """References of every utterance and a queue of positives; raises `ConfigError` where they do not fit."""
        # before the first clustering: the last rows of an epoch are left out, but not of a pass that fills the memory
        whole = self.references == "fill" or self.start_from is not None
        seen = facts.utterances - (0 if whole else facts.utterances % facts.batch)
        if self.sampling == "speaker" and not (facts.speakers and facts.recordings):
            raise ConfigError(f"method.sampling=speaker: {facts.corpus} has no labels of speaker and recording")
        if self.clusters_references and not self.neighbours < self.clusters <= seen:
            raise ConfigError(
                f"method.clusters={self.clusters} must be above method.neighbours={self.neighbours} and at most the "
                f"{seen} of {facts.utterances} utterances of {facts.corpus} in an epoch of batches of {facts.batch}"
            )
        dim, width = facts.embedding_dim, self.over.positive_dim(facts.embedding_dim)
        if self.sampling == "centroid" and width != dim:
            raise ConfigError(
                f"method.sampling=centroid: centroids have the encoder's {dim} dimensions, positives of "
                f"{self.over.name} {width}; leave out its projector, or sample otherwise"
            )
        return MemorySettings(
            utterances=facts.utterances,
            reference_dim=dim,
            positive_dim=width,
            queue=self.queue or facts.utterances,
            clusters=max(1, self.clusters),
            neighbours=self.neighbours,
            sampling=self.sampling,
            iterations=self.iterations,
            kmeans=self.kmeans,
            seed=facts.seed,
            skip_empty=self.skip_empty,
            whiten=self.whiten,
            warm_start=self.warm_start,
        )

    def build(self, encoder: Encoder, facts: JobFacts) -> SSPS:
        """See `MethodConfig.build`."""
        return SSPS(self, self.over.build(encoder, facts))


def _reference_segment(views: ViewsConfig) -> Segment:
    return Segment(name="reference", seconds=views.reference_s)


class SSPS(Method):
    """Wraps ``base``, which says what its positives are and how others take their place, detached (Eq. 6)."""

    Config = SSPSConfig
    config: SSPSConfig

    def __init__(self, config: SSPSConfig, base: Method) -> None:
        super().__init__()
        self.config = config
        self.base = base
        self.encoder_prefix = "base." + base.encoder_prefix

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The wrapped method's encoder."""
        return self.base.encoder

    @property
    def pretrained(self) -> Method:
        """The wrapped method."""
        return self.base

    @torch.no_grad()
    def fill(self, views: Views) -> Remember:
        """References and, where the base method's segments are there, its positives."""
        alone = set(views) == {"reference"}
        positives = None if alone else self.base.positives_of(views)
        return Remember(self._reference(views["reference"]), positives)

    def forward(self, views: Views) -> Outputs:
        """The base method's outputs, and ``reference`` ``[B, D_repr]`` where the batch has one."""
        out = dict(self.base(views))
        if "reference" in views:
            out["reference"] = self._reference(views["reference"])
        return out

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The base method's loss with replaced positives; remembers this batch's own, never the replacing rows."""
        own = self.base.positives(out)
        assert recall is None or isinstance(recall, Recall)
        if recall is not None:
            out = self.base.with_positives(out, recall)
        step = self.base.step(out, batch, None)
        remember = Remember(out.get("reference"), own.detach()) if self.config.remembers(batch.epoch) else None
        return Step(step.loss, step.terms, remember)

    def before_update(self, epoch: int) -> None:
        """The base method's."""
        self.base.before_update(epoch)

    def after_step(self, progress: float) -> None:
        """The base method's."""
        self.base.after_step(progress)

    @torch.no_grad()
    def _reference(self, view: View) -> torch.Tensor:
        """L2-normalised, without gradient, batch normalisation in eval mode and its running statistics untouched."""
        encoder = self.base.reference_encoder
        training = [module for module in encoder.modules() if module.training]
        encoder.eval()
        embedding = encoder(view.wave, None)
        for module in training:  # one by one: a part that was frozen in eval mode stays so
            module.training = True
        return normalize(embedding.float(), dim=1)
