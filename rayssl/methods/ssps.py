"""SSPS (Lepage and Dehak, Interspeech 2025): positives from other utterances, found by clustering a global memory.

Before ``start_epoch`` the wrapped method trains as usual; in the last epoch before it, the memory is filled. From
``start_epoch`` on, each epoch begins with one k-means over the references of the whole corpus. Then the positive of an
utterance is replaced by the stored embedding of another utterance which, by the clustering, has the same speaker. If no
such utterance is found, the usual positive stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn
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
    """The settings of SSPS.

    - ``over``: the method whose positives are replaced.
    - ``start_epoch``: the first epoch (from 0) in which they are replaced.
    - ``start_from``: instead of ``start_epoch``, the folder or a checkpoint of a run of the method in ``over``. The
      training begins with its weights, a pass fills the memory, and SSPS begins in the first epoch.
    - ``sampling``: ``cluster`` draws an utterance from the anchor's own cluster if ``neighbours`` M is 0 (Eq. 3), else
      from one of the M other clusters with the nearest centroids (Eq. 4-5). ``centroid`` takes the centroid of that
      cluster. ``nn`` draws one of the M utterances with the nearest references, without clusters. ``speaker`` draws
      from other recordings of the true speaker; it needs labels, so it is an upper bound and not a method.
    - ``clusters``: K. Choose it so that utterances per recording < N/K < utterances per speaker.
    - ``merged_from``: k-means makes so many clusters first, and Ward's criterion merges them into K (not in the paper).
    - ``queue``: |Q'|; 0 means all utterances. With less than 4 K about a third of the anchors find no positive.
    - ``skip_empty``: draws only among clusters that have an utterance in the queue.
    - ``whiten``: references are clustered and compared after whitening (not in the paper; a poor encoder needs it).
    - ``iterations``: of k-means in each epoch. ``kmeans``: ``exact`` is Lloyd's; ``fast`` compares with fewer centroids
      and relocates clusters to regions that lack one (up to 256 clusters both are the same).
    - ``warm_start``: each clustering starts from the last centroids.
    - ``references``: with ``rolling`` an utterance's reference is computed when it is trained on, so the references of
      a clustering come from the changing weights of an epoch. With ``fill`` a pass before each clustering computes all
      of them again with the same weights.
    """

    name: Literal["ssps"]
    """SSPS (Lepage and Dehak, 2025): another method, whose positives come from other utterances found by clustering."""
    over: AnyMethod = SimCLRConfig()
    """The method whose positives are replaced: simclr, moco, dino, swav, vicreg, sdpn, clar, or one of your own. Its
    keys are those of ``method`` with that name.
    """
    start_epoch: int = Field(0, ge=0)
    """The first epoch, from 0, in which positives are replaced; the epochs before train the method in ``over`` as
    usual. 1 or more, unless ``start_from`` is given. Start when the encoder is already good: the loss then jumps,
    because positives become harder.
    """
    start_from: str | None = None
    """Instead of ``start_epoch``: the folder of a run of the method in ``over``, or one of its checkpoints. The
    training begins with its weights, a pass fills the memory, and SSPS begins in the first epoch.
    """
    references: Literal["rolling", "fill"] = "rolling"
    """With ``rolling`` an utterance's reference is computed when it is trained on, so the references of a clustering
    come from the changing weights of an epoch. With ``fill`` a pass before each clustering computes all of them again
    with the same weights, which costs time.
    """
    sampling: Sampling = "cluster"
    """Where a positive comes from. ``cluster``: an utterance of the anchor's own cluster if ``neighbours`` is 0 (Eq.
    3), else of one of the nearest other clusters (Eq. 4-5). ``centroid``: the centroid of that cluster. ``nn``: one of
    the nearest references, without clusters. ``speaker``: another recording of the true speaker, an upper bound that
    needs labels.
    """
    clusters: int = Field(0, ge=0)
    """The number of clusters K. Choose it so that utterances per recording < N/K < utterances per speaker, with N
    utterances in the corpus. Needed for ``sampling`` ``cluster`` and ``centroid``; 0 otherwise.
    """
    merged_from: int = Field(0, ge=0)
    """The number of smaller clusters that k-means makes first; Ward's criterion then merges them into ``clusters``. 0
    leaves this out. Not in the paper. Two to four times ``clusters`` finds much purer clusters where each has few
    utterances; the cost grows with the square of this number. With ``whiten``, each clustering then also says how many
    clusters it suggests, which is about the number of speakers.
    """
    neighbours: int = Field(1, ge=0)
    """The number M of nearest other clusters (or, with ``nn``, of nearest utterances) that a positive is drawn from. 0
    draws from the anchor's own cluster. More cross recordings more often, and hit other speakers more often.
    """
    queue: int = Field(0, ge=0)
    """The number of stored embeddings |Q'| that positives are taken from; 0 stores all utterances. With fewer than 4 K
    about a third of the anchors find no positive. Lower it to save memory.
    """
    skip_empty: bool = False
    """Whether only clusters are drawn that have an utterance in the queue, so that fewer anchors stay without a
    positive.
    """
    whiten: bool = False
    """Whether references are whitened before they are clustered and compared. Not in the paper; with a poor encoder
    SSPS gains only with it (`configs/README.md`).
    """
    iterations: int = Field(10, ge=1)
    """The most iterations of k-means in each epoch; the fast mode stops earlier when little is gained."""
    kmeans: Mode = "fast"
    """``exact`` is Lloyd's algorithm. ``fast`` compares with fewer centroids and moves clusters to regions that lack
    one. Up to 256 clusters both are the same.
    """
    warm_start: bool = False
    """Whether each clustering starts from the last centroids instead of random points. It saves iterations, and
    clusters change less from epoch to epoch.
    """

    @model_validator(mode="after")
    def _possible(self) -> SSPSConfig:
        if self.sampling in ("cluster", "centroid") and self.clusters < 2:
            raise ValueError(f"sampling: {self.sampling} needs clusters (K) of at least 2; set method.clusters")
        if self.sampling == "nn" and self.neighbours < 1:
            raise ValueError("sampling: nn draws among the M nearest; set method.neighbours to at least 1")
        if self.sampling == "centroid" and self.whiten:
            raise ValueError(
                "sampling: centroid needs centroids in the encoder's axes, and whitening changes the axes; "
                "leave out method.whiten"
            )
        if self.merged_from and self.merged_from < self.clusters:
            raise ValueError(
                f"merged_from={self.merged_from} clusters cannot be merged into clusters={self.clusters}; raise "
                "method.merged_from, or leave it out"
            )
        if self.warm_start and self.merged_from:
            raise ValueError(
                "warm_start: k-means makes merged_from clusters, and the last centroids are fewer; leave out "
                "method.warm_start"
            )
        if self.warm_start and (self.whiten or self.sampling not in ("cluster", "centroid")):
            raise ValueError(
                "warm_start: needs sampling by clusters without method.whiten, because the axes of whitened references "
                "change each time; leave out method.warm_start"
            )
        if (self.start_epoch == 0) != (self.start_from is not None):
            raise ValueError(
                "SSPS begins either at an epoch of this training (method.start_epoch of 1 or more) or with the weights "
                "of another run (method.start_from, without start_epoch): give one of them"
            )
        return self

    @property
    def label(self) -> str:
        """The label with that of the wrapped method: ``ssps/simclr``."""
        return f"{self.name}/{self.over.label}"

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """SSPS over SimCLR with few clusters, from the second epoch on."""
        return {"over": {"name": "simclr", "temperature": 0.2}, "start_epoch": 1, "clusters": 4}

    def for_trial(self) -> SSPSConfig:
        """A copy that starts from random weights, has few clusters, and replaces positives from the second epoch on."""
        sizes = {"clusters": min(self.clusters, 4), "merged_from": min(self.merged_from, 6)}
        sizes |= {"neighbours": min(self.neighbours, 3), "queue": 0}
        changes = {"over": self.over.for_trial(), "start_epoch": 1, "start_from": None, **sizes}
        return self.model_copy(update=changes)

    def located(self) -> SSPSConfig:
        """See `ComponentConfig.located`."""
        start = self.start_from and storage.absolute(self.start_from)
        return self.model_copy(update={"over": self.over.located(), "start_from": start})

    @property
    def loss_changes_after(self) -> int:
        """``start_epoch``: from there on positives come from other utterances."""
        return self.start_epoch

    def recalls(self, epoch: int) -> bool:
        """True from ``start_epoch`` on."""
        return epoch >= self.start_epoch

    def remembers(self, epoch: int) -> bool:
        """True one epoch earlier, so that every utterance has a reference when the first clustering begins."""
        return epoch >= self.start_epoch - 1

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The segments of the wrapped method and, for rolling references, the longer, undistorted reference."""
        segments = self.over.segments(views, epoch)
        if self.remembers(epoch) and self.references == "rolling":
            segments += (_reference_segment(views),)
        return segments

    def fill_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The reference, if ``references: fill``. With ``start_from``, before epoch 0: reference and positives."""
        if epoch == 0 and self.start_from is not None:
            return (*self.over.positive_segments(views, epoch), _reference_segment(views))
        return (_reference_segment(views),) if self.recalls(epoch) and self.references == "fill" else ()

    def projection(self, embedding_dim: int) -> tuple[str, nn.Module] | None:
        """That of the wrapped method."""
        found = self.over.projection(embedding_dim)
        return None if found is None else ("base." + found[0], found[1])

    @property
    def clusters_references(self) -> bool:
        """True if ``sampling`` uses clusters."""
        return self.sampling in ("cluster", "centroid")

    @property
    def starts_from(self) -> str | None:
        """``start_from``."""
        return self.start_from

    def check_training(self, *, epochs: int, epoch_steps: int, labels: bool) -> None:
        """Raises ValueError if SSPS would start after the training, or if an epoch is not a pass over the corpus."""
        if self.over.learns_labels:
            raise ValueError(
                f"method.over.name={self.over.name}: learns from the labels of a split, but SSPS remembers the whole "
                "corpus; choose a method without labels"
            )
        if labels:
            raise ValueError("labels: SSPS remembers the whole corpus, not the utterances of a split; leave it out")
        if epoch_steps:
            raise ValueError("training.epoch_steps: SSPS clusters between passes over the corpus; leave it out")
        if self.start_epoch >= epochs:
            raise ValueError(
                f"method.start_epoch={self.start_epoch} is not before training.epochs={epochs}: "
                "SSPS would never start; lower the first or raise the second"
            )
        self.over.check_training(epochs=epochs, epoch_steps=epoch_steps, labels=labels)

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` if the wrapped method does not define its positives; see `MethodConfig.check`."""
        self.over.check(facts)
        self.over.positive_dim(facts.embedding_dim)

    def memory(self, facts: JobFacts) -> MemorySettings:
        """The references of all utterances and a queue of positives; raises `ConfigError` if clusters do not fit."""
        # the utterances with a reference at the first clustering: a training epoch leaves out its last rows, but a pass
        # that fills the memory does not
        whole = self.references == "fill" or self.start_from is not None
        seen = facts.utterances - (0 if whole else facts.utterances % facts.batch)
        if self.sampling == "speaker" and not (facts.speakers and facts.recordings):
            raise ConfigError(f"method.sampling=speaker: {facts.corpus} has no labels of speaker and recording")
        if self.clusters_references and not self.neighbours < self.clusters <= seen:
            raise ConfigError(
                f"method.clusters={self.clusters} must be above method.neighbours={self.neighbours}, and at most the "
                f"{seen} of {facts.utterances} utterances of {facts.corpus} in an epoch of batches of {facts.batch}"
            )
        if self.clusters_references and self.merged_from > seen:
            raise ConfigError(
                f"method.merged_from={self.merged_from} must be at most the {seen} of {facts.utterances} utterances of "
                f"{facts.corpus} in an epoch of batches of {facts.batch}"
            )
        dim, width = facts.embedding_dim, self.over.positive_dim(facts.embedding_dim)
        if self.sampling == "centroid" and width != dim:
            raise ConfigError(
                f"method.sampling=centroid: centroids have the encoder's {dim} dimensions, positives of "
                f"{self.over.name} have {width}; leave out its projector, or choose another sampling"
            )
        return MemorySettings(
            utterances=facts.utterances,
            reference_dim=dim,
            positive_dim=width,
            queue=self.queue or facts.utterances,
            clusters=max(1, self.clusters),
            neighbours=self.neighbours,
            merged_from=self.merged_from if self.clusters_references else 0,
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
    """Wraps the method ``base``, and replaces its positives by recalled ones, detached (Eq. 6)."""

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
        """References and, if the segments of the base method are given, its positives."""
        alone = set(views) == {"reference"}
        positives = None if alone else self.base.positives_of(views)
        return Remember(self._reference(views["reference"]), positives)

    def forward(self, views: Views) -> Outputs:
        """The outputs of the base method, and ``reference [B, D_repr]`` if the batch has this segment."""
        out = dict(self.base(views))
        if "reference" in views:
            out["reference"] = self._reference(views["reference"])
        return out

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The base method's loss with replaced positives. The memory stores the batch's own ones, not recalled ones."""
        own = self.base.positives(out)
        assert recall is None or isinstance(recall, Recall)
        if recall is not None:
            out = self.base.with_positives(out, recall)
        step = self.base.step(out, batch, None)
        remember = Remember(out.get("reference"), own.detach()) if self.config.remembers(batch.epoch) else None
        return Step(step.loss, step.terms, remember)

    def begin_epoch(self, epoch: int, centroids: Callable[[], np.ndarray] | None) -> Sequence[nn.Parameter]:
        """Calls the base method, which has no memory of its own."""
        return self.base.begin_epoch(epoch, None)

    def before_update(self, epoch: int) -> None:
        """Calls the base method."""
        self.base.before_update(epoch)

    def after_step(self, progress: float) -> None:
        """Calls the base method."""
        self.base.after_step(progress)

    @torch.no_grad()
    def _reference(self, view: View) -> torch.Tensor:
        """L2-normalised references, without gradient, in eval mode: running statistics are used and do not change."""
        encoder = self.base.reference_encoder
        training = [module for module in encoder.modules() if module.training]
        encoder.eval()
        embedding = encoder(view.wave, None)
        for module in training:  # one by one, so that a part that was frozen in eval mode stays in eval mode
            module.training = True
        return normalize(embedding.float(), dim=1)
