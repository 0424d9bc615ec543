"""A second stage: the clusters of the whole corpus are pseudo-speakers, which AAM-softmax learns to tell apart.

Each round begins with a pass that computes a reference of every utterance, one clustering in the memory, and a new
classifier. Later in the round, a gate leaves out the utterances whose loss says that their label is wrong
(`rayssl.losses.gate`), and those of them that the model is sure of get its own prediction as label (label correction of
DLG-LC: Han et al., Interspeech 2022, arXiv 2208.01928).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from rayssl import collectives
from rayssl.clustering.result import Mode
from rayssl.errors import ConfigError
from rayssl.losses.gate import threshold
from rayssl.memory.utterances.settings import MemorySettings
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
    Views,
)
from rayssl.models.encoder import Encoder
from rayssl.models.heads import AamHead
from rayssl.random.draws import fold
from rayssl.views.recipes import Segment, ViewsConfig


class PseudoSpeakersConfig(MethodConfig):
    """Rounds of ``round_epochs`` epochs, each with its own ``clusters`` as classes of AAM-softmax.

    ``gate``: ``mixture`` finds a threshold before each epoch from the losses of the epoch before, ``threshold`` uses
    ``gate_loss``, ``none`` keeps all labels. It begins ``gate_after`` epochs after a round has begun; labels are
    corrected from ``correct_after`` epochs on. The encoder should be trained already: see ``encoder.start_from``.
    """

    name: Literal["pseudo_speakers"] = "pseudo_speakers"
    """Pseudo-speakers: the clusters of the corpus are classes for AAM-softmax, in rounds; start from a trained
    encoder.
    """
    clusters: int = Field(ge=2)
    """The number of clusters K, which are the classes. More than there are speakers is better than fewer."""
    round_epochs: int = Field(15, ge=1)
    """The number of epochs of a round. Each round computes new references, clusters them, and begins with a new
    classifier.
    """
    classifier: Literal["centroids", "random"] = "centroids"
    """The first weights of a round's classifier: the ``centroids`` of the clusters, or ``random`` ones. With centroids
    the classifier is right from the first step on.
    """
    margin: float = Field(0.2, ge=0, lt=1.5)
    """The angular margin of AAM-softmax in radians; 0 is a plain cosine softmax."""
    scale: float = Field(30.0, gt=0)
    """The factor that multiplies cosines before the softmax; 30 is usual."""
    gate: Literal["mixture", "threshold", "none"] = "mixture"
    """How labels are left out. ``mixture``: those whose loss is above a threshold that a mixture of two Gaussians gives
    before each epoch. ``threshold``: those with a loss above ``gate_loss``. ``none``: none.
    """
    gate_loss: float = Field(1.0, gt=0)
    """The loss above which a label is left out, for ``gate: threshold`` alone."""
    gate_keeps: float = Field(0.5, ge=0, le=1)
    """The least share of the labels that ``gate: mixture`` keeps. While the classifier is poor, most losses are high,
    and the mixture would leave out nearly all labels.
    """
    gate_after: int = Field(4, ge=1)
    """The number of epochs at the beginning of a round in which all labels are kept, because the loss says nothing
    before the classifier is trained.
    """
    correct_after: int | None = Field(8, ge=1)
    """The number of epochs of a round after which labels that were left out are replaced by the model's own
    predictions; not below ``gate_after``. Null never replaces any, and saves a pass of the undistorted segment.
    """
    correct_above: float = Field(0.5, gt=0, lt=1)
    """The least probability, for the undistorted segment, of a prediction that replaces a label."""
    correct_temperature: float = Field(0.1, gt=0)
    """What the cosines to the classes are divided by for that probability. Lower values make the model sure earlier."""
    whiten: bool = False
    """Whether references are whitened before they are clustered. It helps with a poor encoder, and needs ``classifier:
    random``.
    """
    iterations: int = Field(10, ge=1)
    """The most iterations of k-means; the fast mode stops earlier when little is gained."""
    merged_from: int = Field(0, ge=0)
    """The number of smaller clusters that k-means makes first; Ward's criterion then merges them into ``clusters``. 0
    leaves this out. Two to four times ``clusters`` finds much purer clusters where each has few utterances; the cost
    grows with the square of this number. With ``whiten``, the clustering then also says how many clusters it suggests,
    which is about the number of speakers.
    """
    kmeans: Mode = "fast"
    """``exact`` is Lloyd's algorithm. ``fast`` compares with fewer centroids and moves clusters to regions that lack
    one. Up to 256 clusters both are the same.
    """

    @model_validator(mode="after")
    def _possible(self) -> PseudoSpeakersConfig:
        if self.whiten and self.classifier == "centroids":
            raise ValueError(
                "classifier: centroids of whitened references are in other axes than the embedding; set "
                "method.classifier=random, or leave out method.whiten"
            )
        if self.merged_from and self.merged_from < self.clusters:
            raise ValueError(
                f"merged_from={self.merged_from} clusters cannot be merged into clusters={self.clusters}; raise "
                "method.merged_from, or leave it out"
            )
        if self.correct_after is not None and self.gate != "none" and self.correct_after < self.gate_after:
            raise ValueError(
                f"correct_after={self.correct_after} is below gate_after={self.gate_after}: no label is left out "
                "before; raise method.correct_after"
            )
        return self

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """Few clusters."""
        return {"clusters": 4}

    def for_trial(self) -> PseudoSpeakersConfig:
        """A copy with few clusters, and a second epoch in which labels are left out and corrected."""
        changes = {"clusters": min(self.clusters, 4), "merged_from": min(self.merged_from, 6), "gate_after": 1}
        return self.model_copy(update=changes | ({} if self.correct_after is None else {"correct_after": 1}))

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """One distorted segment and, where labels are corrected, one that is as it was recorded."""
        anchor = Segment(name="anchor", seconds=views.segment_s, recipe="distort")
        return (anchor, Segment(name="clean", seconds=views.segment_s)) if self.corrects(epoch) else (anchor,)

    def fill_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The reference, before each round."""
        return (Segment(name="reference", seconds=views.reference_s),) if self.clusters_before(epoch) else ()

    def gates(self, epoch: int) -> bool:
        """Whether labels are left out in ``epoch``."""
        return self.gate != "none" and epoch % self.round_epochs >= self.gate_after

    def corrects(self, epoch: int) -> bool:
        """Whether labels that are left out can be replaced in ``epoch``."""
        return self.gates(epoch) and self.correct_after is not None and epoch % self.round_epochs >= self.correct_after

    def recalls(self, epoch: int) -> bool:
        """True: the memory says the cluster of each utterance."""
        return True

    def remembers(self, epoch: int) -> bool:
        """True, though nothing is remembered in a step: so the labels of a step are asked for during the one before."""
        return True

    def clusters_before(self, epoch: int) -> bool:
        """True at the beginning of a round."""
        return epoch % self.round_epochs == 0

    @property
    def clusters_references(self) -> bool:
        """True."""
        return True

    def check_training(self, *, epochs: int, epoch_steps: int, labels: bool) -> None:
        """Raises ValueError if an epoch is not a pass over the whole corpus."""
        if labels:
            raise ValueError("labels: pseudo_speakers clusters the whole corpus, not the utterances of a split")
        if epoch_steps:
            raise ValueError("training.epoch_steps: pseudo_speakers clusters between passes over the corpus; leave it")

    def memory(self, facts: JobFacts) -> MemorySettings:
        """The references of all utterances, whose clusters are asked for; raises `ConfigError` for too many."""
        for key in ("clusters", "merged_from"):
            if getattr(self, key) > facts.utterances:
                raise ConfigError(
                    f"method.{key}={getattr(self, key)}: {facts.corpus} has only {facts.utterances} utterances; lower "
                    "it"
                )
        return MemorySettings(
            utterances=facts.utterances,
            reference_dim=facts.embedding_dim,
            positive_dim=1,
            queue=1,
            clusters=self.clusters,
            merged_from=self.merged_from,
            sampling="label",
            iterations=self.iterations,
            kmeans=self.kmeans,
            seed=facts.seed,
            whiten=self.whiten,
        )

    def build(self, encoder: Encoder, facts: JobFacts) -> PseudoSpeakers:
        """See `MethodConfig.build`."""
        return PseudoSpeakers(self, encoder, facts)


class PseudoSpeakers(Method):
    """Cross-entropy over the clusters with an additive angular margin, for the labels that the gate lets through.

    ``losses [N]`` are the newest of each utterance in this round, -1 before the first; ``limit`` is the loss above
    which a label is left out now.
    """

    Config = PseudoSpeakersConfig
    config: PseudoSpeakersConfig
    reads_statistics = False
    equal_on_ranks = ("losses", "limit")
    losses: Tensor
    limit: Tensor

    def __init__(self, config: PseudoSpeakersConfig, encoder: Encoder, facts: JobFacts) -> None:
        super().__init__()
        self.config, self._seed = config, facts.seed
        self.encoder = encoder
        self.head = AamHead(encoder.embedding_dim, config.clusters, margin=config.margin, scale=config.scale)
        self.register_buffer("losses", torch.full((facts.utterances,), -1.0))
        self.register_buffer("limit", torch.tensor(torch.inf))

    @torch.no_grad()
    def fill(self, views: Views) -> Remember:
        """L2-normalised references."""
        return Remember(normalize(self.encoder(views["reference"].wave, None).float(), dim=1), None)

    @torch.no_grad()
    def begin_epoch(self, epoch: int, centroids: Callable[[], np.ndarray] | None) -> Sequence[nn.Parameter]:
        """A new classifier at the beginning of a round; the gate's limit for this epoch."""
        weight, renewed = self.head.weight, self.config.clusters_before(epoch)
        if renewed:
            weight.copy_(self._first_weights(epoch, centroids))
            self.losses.fill_(-1.0)
        self.limit.fill_(self._limit(epoch))
        return [weight] if renewed else []

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and, where labels are corrected, ``clean`` without gradient; ``[B, D]``."""
        out = {"anchor": self.encoder(views["anchor"].wave, views["anchor"].keys)}
        if "clean" in views:
            with torch.no_grad():
                out["clean"] = self.encoder(views["clean"].wave, None)
        return out

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The sum over kept and corrected rows, divided by the number of all rows."""
        assert isinstance(recall, Recall)
        labels = torch.where(recall.found, recall.rows[:, 0], 0.0).long()
        losses = self._losses(out["anchor"], labels)
        kept = recall.found & (losses.detach() <= self.limit)
        rows = torch.where(kept, losses, 0.0)
        corrected = torch.zeros_like(kept)
        if "clean" in out:
            with torch.no_grad():
                cosines = self.head.cosines(out["clean"])
                likely, guess = (cosines / self.config.correct_temperature).softmax(dim=1).max(dim=1)
            corrected = ~kept & (likely > self.config.correct_above)
            rows = rows + torch.where(corrected, self._losses(out["anchor"], guess), 0.0)
        with torch.no_grad():
            known = torch.where(recall.found, losses.detach(), -1.0)
            self.losses.index_copy_(0, collectives.gather(batch.ids), collectives.gather(known))
        loss = rows.mean()
        shares = {"kept": kept, "corrected": corrected}
        return Step(loss, {"aam": loss.detach(), **{name: rows.float().mean() for name, rows in shares.items()}})

    def _losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.head(embeddings, labels).float(), labels, reduction="none")

    def _first_weights(self, epoch: int, centroids: Callable[[], np.ndarray] | None) -> Tensor:
        """Of the classifier of the round that begins with ``epoch``; equal on all ranks."""
        if self.config.classifier == "centroids":
            assert centroids is not None
            return torch.tensor(centroids())  # those of an actor cannot be written to
        generator = torch.Generator().manual_seed(fold(self._seed, epoch))
        return nn.init.xavier_normal_(torch.empty(self.head.weight.shape), generator=generator)

    def _limit(self, epoch: int) -> float:
        """The loss above which labels are left out in ``epoch``; from rank 0, so that it is the same on all."""
        if not self.config.gates(epoch):
            return float("inf")
        if self.config.gate == "threshold":
            return self.config.gate_loss
        found = 0.0
        if collectives.rank() == 0:
            losses = self.losses.cpu().numpy()
            known = np.sort(losses[losses >= 0])
            least = math.ceil(self.config.gate_keeps * len(known))
            found = max(threshold(losses), float(known[least - 1]) if least else 0.0)
        return float(collectives.broadcast_object(found))
