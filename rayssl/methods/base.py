"""The seam between a method and the loop: what goes in, what comes out, what is remembered.

A method has two halves. Its `MethodConfig` says, without a network, what the method needs of a job: segments, labels, a
memory. Its `Method` is an `nn.Module` whose ``forward`` is what DDP wraps; ``step`` gathers over ranks, calls the pure
losses and says what the memory shall keep. It never touches the memory itself, so that the loop can ask for the recall
of the next batch while this one is still being computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from rayssl.batches.selection import Role
from rayssl.errors import ConfigError
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.models.encoder import Encoder
from rayssl.registry import ComponentConfig, Configurable
from rayssl.views.recipes import Segment, ViewsConfig

Outputs: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class View:
    """One segment of each utterance of a batch, on the training device.

    ``wave`` float32 ``[B, T]`` in [-1, 1]; ``keys`` int64 ``[B]`` seed the random masks, or None for a view of recipe
    ``none``.
    """

    wave: Tensor
    keys: Tensor | None


Views: TypeAlias = dict[str, View]


@dataclass(frozen=True)
class Classes:
    """The classes of a split: ``names [C]`` and how many ``labelled [C]`` clips each has."""

    names: tuple[str, ...]
    labelled: tuple[int, ...]


@dataclass(frozen=True)
class JobFacts:
    """What a method is told of its job: sizes, and settings of other parts. No network is needed to know them.

    ``corpus``: its URI, for messages; ``utterances``, ``speakers``, ``recordings``: how many it has; ``classes``: those
    of the split in ``labels.split``; ``embedding_dim`` D of the encoder, ``joined``: whether it is two encoders side by
    side. ``batch``: utterances of a step, of all ranks.
    """

    corpus: str
    utterances: int
    speakers: int
    recordings: int
    views: ViewsConfig
    embedding_dim: int
    batch: int
    seed: int = 0
    joined: bool = False
    classes: Classes | None = None


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch: ``ids`` int64 ``[B]``; labels int64 ``[B]``, -1 where unknown.

    ``truth [B]``: the labels that the method is not given, for metrics only. ``step``: optimiser steps done before.
    ``labelled``: the batch of the labelled stream, where the method has one.
    """

    ids: Tensor
    speakers: Tensor
    recordings: Tensor
    labels: Tensor
    epoch: int
    truth: Tensor
    step: int = 0
    labelled: Batch | None = None


@dataclass(frozen=True)
class Recall:
    """What the memory gives for a batch: ``rows`` ``[B, D]`` of other utterances, valid where ``found [B]``."""

    rows: Tensor
    found: Tensor


@dataclass(frozen=True)
class Remember:
    """What the memory shall keep of a batch: ``references`` ``[B, D_repr]``, ``positives`` ``[B, D_emb]``, or None."""

    references: Tensor | None
    positives: Tensor | None


@dataclass(frozen=True)
class ClassRecall:
    """What a memory of classes gives: ``prototypes [C, D]``, valid where ``present [C]``, and the ``histogram [C]`` of
    the predictions in the last closed window of steps.
    """

    prototypes: Tensor
    present: Tensor
    histogram: Tensor


@dataclass(frozen=True)
class ClassRemember:
    """What a memory of classes shall keep: ``features [B, D]`` with their ``labels [B]``; ``counts [C]`` predicted."""

    features: Tensor | None = None
    labels: Tensor | None = None
    counts: Tensor | None = None


Recalled: TypeAlias = Recall | ClassRecall
Remembered: TypeAlias = Remember | ClassRemember


@dataclass(frozen=True)
class Step:
    """``loss`` is this rank's scalar; the training loss is its mean over ranks. ``terms`` are for the metrics only.

    ``counts``: whole numbers by class, int64 ``[C]``, which an epoch adds up over steps and ranks.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    remember: Remembered | None = None
    counts: dict[str, Tensor] | None = None


class MethodConfig(ComponentConfig):
    """The settings of a method, and what it needs of a job. Everything here is asked before there is a network."""

    #: Which rows of a split the method's own stream has.
    role: ClassVar[Role] = "all"

    @property
    def label(self) -> str:
        """The method in the labels of metrics."""
        return self.short_name

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The segments cut from every utterance in ``epoch`` (from 0)."""
        raise NotImplementedError

    def labelled_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """Those cut from the utterances of the labelled stream, under names of their own; none, no such stream."""
        return ()

    def fill_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """Those for `Method.fill`, which a pass of inference calls before ``epoch``; none, no pass."""
        return ()

    @property
    def learns_labels(self) -> bool:
        """Whether it needs a split in ``labels.split``."""
        return self.role != "all"

    def recalls(self, epoch: int) -> bool:
        """Whether `Method.step` uses a recall of the memory of utterances in ``epoch``."""
        return False

    def remembers(self, epoch: int) -> bool:
        """Whether `Method.step` returns something for the memory of utterances in ``epoch``."""
        return False

    @property
    def clusters_references(self) -> bool:
        """Whether its memory is clustered, and so could be while training goes on."""
        return False

    @property
    def starts_from(self) -> str | None:
        """A run, or a checkpoint, whose weights `Method.pretrained` begins with."""
        return None

    def for_trial(self) -> MethodConfig:
        """The same for a trial of two epochs over a few dozen utterances."""
        return self

    def memory(self, facts: JobFacts) -> MemorySettings | ClassSettings | None:
        """The memory that it needs, if any; where and in which precision it is kept is the job's to add.

        Raises `ConfigError` for one that the corpus cannot fill.
        """
        return None

    def positive_dim(self, embedding_dim: int) -> int:
        """D_emb of `Method.positives`; raises `ConfigError` for a method that says nothing of its positives."""
        raise ConfigError(
            f"method.over.name={self.name}: says nothing of its positives (positive_dim, and positives and "
            "with_positives of the method), so that SSPS cannot replace them; choose another method"
        )

    def positive_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """Those of `segments` that `Method.positives_of` needs."""
        return self.segments(views, epoch)

    def check_training(self, *, epochs: int, epoch_steps: int, labels: bool) -> None:
        """Raises ValueError, naming the key, for a training that the method does not go with.

        ``epoch_steps``: 0 where an epoch is a pass over the corpus; ``labels``: whether ``labels`` is given.
        """

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` or `CorpusError` for a corpus, split or encoder that the method cannot use."""

    def build(self, encoder: Encoder, facts: JobFacts) -> Method:
        """The method over ``encoder``: an instance of the class that has these settings as its ``Config``."""
        made: Method = self._make(encoder, facts.views)
        return made


class Method(nn.Module, Configurable):
    """Base of all methods; ``encoder`` is what survives training, ``config`` what it was made from."""

    config: MethodConfig
    encoder: Encoder

    #: Where the encoder's entries are in the method's ``state_dict``.
    encoder_prefix: str = "encoder."
    #: The same for the classifier over the encoder's embeddings, None without one.
    head_prefix: str | None = None
    #: Of what `Step.counts` counts.
    class_names: tuple[str, ...] = ()

    def forward(self, views: Views) -> Outputs:
        """Embeddings of the views, ``[B, D]`` each."""
        raise NotImplementedError

    def consult(self, out: Outputs, batch: Batch) -> ClassRemember:
        """What the memory shall know before it answers `step`'s question, where it is one of classes."""
        raise NotImplementedError

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss of this rank's batch."""
        raise NotImplementedError

    def positives(self, out: Outputs) -> Tensor:
        """``[B, D_emb]``: of each utterance, what SSPS may give to another one as its positive. Not detached."""
        raise NotImplementedError

    def positives_of(self, views: Views) -> Tensor:
        """`positives` of a pass of inference, which fills the memory of SSPS and needs nothing else."""
        return self.positives(self(views))

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The outputs with the recalled rows, detached, in place of `positives` where ``recall.found`` (Eq. 6)."""
        raise NotImplementedError

    @property
    def reference_encoder(self) -> Encoder:
        """What computes the references that SSPS clusters: the encoder, or its average where there is one."""
        return self.encoder

    @property
    def pretrained(self) -> nn.Module:
        """The part that takes the weights of `MethodConfig.starts_from`."""
        return self

    def before_update(self, epoch: int) -> None:
        """Called between backward and the optimiser's step, for instance to freeze a layer."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step, for instance to move an average teacher.

        ``progress``: the part of the whole training's steps that is done, above 0 and at most 1.
        """

    def fill(self, views: Views) -> Remember:
        """What the memory shall know of a batch before the epoch begins; see `MethodConfig.fill_segments`."""
        raise NotImplementedError


def replaced(own: Tensor, recall: Recall) -> Tensor:
    """``own [B, D]`` with the recalled rows, without gradient, where there are any."""
    return torch.where(recall.found[:, None], recall.rows.detach().to(own.dtype), own)


def embed_together(encoder: Encoder, views: list[View]) -> list[Tensor]:
    """Embeddings of several distorted views, in one pass where their lengths agree.

    One pass gives batch normalisation the statistics of all views together, which is the published SimCLR.
    """
    if len({view.wave.shape[1] for view in views}) > 1 or any(view.keys is None for view in views):
        return [encoder(view.wave, view.keys) for view in views]
    waves = torch.cat([view.wave for view in views])
    keys = torch.cat([view.keys for view in views if view.keys is not None])
    return list(encoder(waves, keys).chunk(len(views)))
