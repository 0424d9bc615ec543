"""The interface between a method and the training loop: its inputs, its outputs, and what the memory stores.

A method has two parts. Its `MethodConfig` says, without a network, what the method needs: segments, labels, a memory.
Its `Method` is an `nn.Module`. DDP wraps its ``forward``. ``step`` gathers over ranks, calls the pure losses, and
returns what the memory should store. It never accesses the memory itself, so that the loop can request the recall for
the next batch while this batch is computed. A short method (`rayssl.methods.simclr` is another)::

    class Invariance(Method):
        class Config(MethodConfig):
            def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
                return tuple(Segment(name=name, seconds=views.segment_s, recipe="distort") for name in ("a", "b"))

        def __init__(self, config: Config, encoder: Encoder, views: ViewsConfig) -> None:
            super().__init__()
            self.config, self.encoder = config, encoder

        def forward(self, views: Views) -> Outputs:
            a, b = embed_together(self.encoder, [views["a"], views["b"]])
            return {"a": a, "b": b}

        def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
            return Step((out["a"] - out["b"]).square().mean())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from rayssl.batches.selection import Role
from rayssl.errors import ConfigError
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.utterances.settings import MemorySettings
from rayssl.methods.facts import Classes as Classes
from rayssl.methods.facts import JobFacts as JobFacts
from rayssl.models.encoder import Encoder
from rayssl.registry import ComponentConfig, Configurable
from rayssl.views.recipes import Segment, ViewsConfig

Outputs: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class View:
    """One segment of each utterance of a batch, on the training device, after its recipe.

    ``wave`` is float32 ``[B, T]`` in [-1, 1]; of a corpus of nights, pictures ``[B, N, F, frames]`` of the N epochs of
    each sequence (`rayssl.data.mel`). ``keys``, int64 ``[B]``, seed random draws such as the encoder's masks;
    they are None for the recipe ``none``.
    """

    wave: Tensor
    keys: Tensor | None


Views: TypeAlias = dict[str, View]


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch.

    - ``ids`` int64 ``[B]``: the ids of the utterances.
    - ``speakers``, ``recordings``, ``labels`` int64 ``[B]``: indices, -1 if unknown.
    - ``epoch``: from 0. ``step``: the number of optimiser steps done before, in the whole training.
    - ``truth`` int64 ``[B]``: the true labels, -1 if unknown. Only for metrics: a method must not learn from them.
    - ``labelled``: the batch of the labelled stream, if the method has one.

    If the streams give sequences of N epochs of sleep, B counts epochs: N of one sequence, then those of the next.
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
    """The memory's answer for a batch: ``rows [B, D]`` of other utterances. A row is valid if ``found [B]`` is true.

    ``ids`` int64 ``[B]``: the utterances that the rows are of; -1 where none was found, or the row is a centroid. None
    is -1 everywhere.
    """

    rows: Tensor
    found: Tensor
    ids: Tensor | None = None


@dataclass(frozen=True)
class Remember:
    """What the memory should store of a batch: ``references [B, D_repr]`` and ``positives [B, D_emb]``, or None."""

    references: Tensor | None
    positives: Tensor | None


@dataclass(frozen=True)
class ClassRecall:
    """The answer of a memory of classes.

    ``prototypes [C, D]``: a prototype is valid if ``present [C]`` is true. ``histogram [C]``: how often each class was
    predicted in the last completed window of steps. ``rows [C, A, D]``: the newest A = `ClassSettings.anchors` features
    of each class, the newest first; ``rows[c, k]`` is valid if ``k < filled[c]``, and zero otherwise. Without gradient,
    and the same on every rank (with ``memory.sync: strict``, the default).
    """

    prototypes: Tensor
    present: Tensor
    histogram: Tensor
    rows: Tensor
    filled: Tensor


@dataclass(frozen=True)
class ClassRemember:
    """What a memory of classes should store.

    ``features [B, D]`` with their ``labels [B]``, of which rows with the label -1 are not stored; and ``counts [C]``,
    how often each class was predicted.
    """

    features: Tensor | None = None
    labels: Tensor | None = None
    counts: Tensor | None = None


Recalled: TypeAlias = Recall | ClassRecall
Remembered: TypeAlias = Remember | ClassRemember


@dataclass(frozen=True)
class Step:
    """The result of `Method.step`.

    - ``loss``: the scalar loss of this rank. The training loss is its mean over ranks.
    - ``terms``: detached scalars by name, for metrics only.
    - ``remember``: what the memory should store; None for nothing.
    - ``counts``: int64 ``[C]`` by name, one count for each class. They are summed over the steps and ranks of an epoch.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    remember: Remembered | None = None
    counts: dict[str, Tensor] | None = None


class MethodConfig(ComponentConfig):
    """The settings of a method, and what it needs. All methods of this class are called before a network exists.

    A subclass must implement `segments`. The defaults of all other methods mean: no labels, no memory.
    """

    #: Which rows of a split are in the method's own stream.
    role: ClassVar[Role] = "all"
    #: Whether the method learns from sequences of epochs of sleep. It then needs a corpus of nights.
    sequences: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """The method in the labels of metrics."""
        return self.short_name

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The segments to cut from every utterance in ``epoch`` (from 0). Their names are the keys of the views."""
        raise NotImplementedError

    def labelled_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The segments to cut from the utterances of the labelled stream. Empty: the method has no labelled stream.

        Their names must differ from those of `segments`.
        """
        return ()

    def fill_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The segments for `Method.fill` in the pass that fills the memory before ``epoch``. Empty: no such pass."""
        return ()

    @property
    def learns_labels(self) -> bool:
        """Whether the method needs a split in ``labels.split``."""
        return self.role != "all"

    def recalls(self, epoch: int) -> bool:
        """Whether `Method.step` needs a recall from the memory of utterances in ``epoch``."""
        return False

    def remembers(self, epoch: int) -> bool:
        """Whether `Method.step` returns something for the memory of utterances in ``epoch``."""
        return False

    def clusters_before(self, epoch: int) -> bool:
        """Whether the memory of utterances is clustered before ``epoch``; by default before each that recalls."""
        return self.recalls(epoch)

    @property
    def loss_changes_after(self) -> int:
        """The number of epochs after which the loss is another one, which cannot be compared with that before; or 0."""
        return 0

    @property
    def clusters_references(self) -> bool:
        """Whether the references in its memory are clustered (the clustering can then overlap with the training)."""
        return False

    @property
    def starts_from(self) -> str | None:
        """A run or a checkpoint that gives `Method.pretrained` its initial weights; None for random weights."""
        return None

    def for_trial(self) -> MethodConfig:
        """A copy with settings that fit a trial of two epochs over a few dozen utterances."""
        return self

    def memory(self, facts: JobFacts) -> MemorySettings | ClassSettings | None:
        """The settings of the memory that the method needs; None if it needs none.

        The job adds where the memory is kept and in which precision. Raises `ConfigError` if the corpus is too small
        for the memory, or lacks labels that it needs.
        """
        return None

    def positive_dim(self, embedding_dim: int) -> int:
        """D_emb, the width of `Method.positives`.

        Raises `ConfigError` if the method does not define its positives. Then SSPS cannot wrap it.
        """
        raise ConfigError(
            f"method.over.name={self.name}: SSPS cannot replace its positives, because it does not define "
            "Config.positive_dim, positives and with_positives; choose another method"
        )

    def projection(self, embedding_dim: int) -> tuple[str, nn.Module] | None:
        """The layers between an embedding and what the loss compares, with the prefix of their weights' names.

        The layers are new ones, for embeddings ``[B, embedding_dim]``; the names are those of `Method.state_dict`. None
        if there are none.
        """
        return None

    def positive_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The segments that `Method.positives_of` needs; a part of `segments`."""
        return self.segments(views, epoch)

    def check_training(self, *, epochs: int, epoch_steps: int, labels: bool) -> None:
        """Raises ValueError, which names the key, if the method does not fit the settings of the training.

        Args:
            epochs: ``training.epochs``.
            epoch_steps: ``training.epoch_steps``; 0 means that an epoch is a pass over the corpus.
            labels: whether the configuration has the key ``labels``.
        """

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` or `CorpusError` if the method cannot use the corpus, the split or the encoder."""

    def check_rows(self, ids: np.ndarray, speakers: np.ndarray) -> None:
        """Raises `CorpusError` if the method cannot learn from utterances of a batch.

        Called on the host before each step. `Method.step` must not look at values: the host would wait for the device.

        Args:
            ids: int64 ``[B]``, the ids of the utterances.
            speakers: int32 ``[B]``, their speakers, -1 if unknown.
        """

    def build(self, encoder: Encoder, facts: JobFacts) -> Method:
        """Makes the method from settings, ``encoder`` and ``facts.views``. Override it if its class needs more."""
        made: Method = self._make(encoder, facts.views)
        return made


class Method(nn.Module, Configurable):
    """The base of all methods.

    ``config`` holds the settings. ``encoder`` is the encoder that is evaluated, exported and used after training. A
    subclass must implement `forward` and `step`. `positives` and `with_positives` are needed under SSPS, `consult` with
    a memory of classes, and `fill` with a pass that fills the memory.
    """

    config: MethodConfig
    encoder: Encoder

    #: The prefix of the encoder's entries in the ``state_dict`` of the method.
    encoder_prefix: str = "encoder."
    #: The prefix of the classifier over the encoder's embeddings; None without a classifier.
    head_prefix: str | None = None
    #: The names of the classes that `Step.counts` counts.
    class_names: tuple[str, ...] = ()
    #: Whether `forward` reads running statistics of batch normalisation, that is, runs a part in eval mode.
    reads_statistics: bool = True

    def forward(self, views: Views) -> Outputs:
        """Computes everything that has a gradient, because DDP wraps this call: embeddings, projections, logits.

        Args:
            views: a `View` for each of `MethodConfig.segments` (and ``labelled_segments``), by name.

        Returns:
            Tensors by name, with B rows each. `step` gets them.
        """
        raise NotImplementedError

    def consult(self, out: Outputs, batch: Batch) -> ClassRemember:
        """What a memory of classes should store before it answers with the `ClassRecall` for `step`."""
        raise NotImplementedError

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss of this rank's batch.

        Args:
            out: the result of `forward`.
            batch: ids and labels of the same utterances.
            recall: the memory's answer for this batch; None without a memory, or if `MethodConfig.recalls` is false.

        Returns:
            A `Step`. For the same global batch, one rank and W ranks must have the same mean loss and gradient, so
            gather rows with `rayssl.collectives.gather`.
        """
        raise NotImplementedError

    def positives(self, out: Outputs) -> Tensor:
        """For each utterance, the row that SSPS may give to another utterance as its positive; ``[B, D_emb]``.

        Not detached: the caller does that.
        """
        raise NotImplementedError

    def positives_of(self, views: Views) -> Tensor:
        """`positives`, without gradient, in a pass that fills the memory of SSPS. Override it to compute only these."""
        return self.positives(self(views))

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The outputs, in which recalled rows replace `positives` if ``recall.found`` (Eq. 6); see `replaced`."""
        raise NotImplementedError

    @property
    def reference_encoder(self) -> Encoder:
        """The encoder that computes the references that SSPS clusters; the average, if the method has one."""
        return self.encoder

    @property
    def pretrained(self) -> nn.Module:
        """The module that gets the weights of `MethodConfig.starts_from`."""
        return self

    def begin_epoch(self, epoch: int, centroids: Callable[[], np.ndarray] | None) -> Sequence[nn.Parameter]:
        """Called on all ranks before the first step of ``epoch``, after a clustering.

        Args:
            epoch: from 0.
            centroids: asks for those of the clustering in use, float32 ``[K, D_repr]``; None without a memory of
                utterances. All ranks must call it, or none.

        Returns:
            The parameters that have got new values here. The optimiser forgets what it knows of them.
        """
        return ()

    def before_update(self, epoch: int) -> None:
        """Called between the backward pass and the optimiser's step, for example to freeze a layer."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step, for example to move the average of a teacher.

        ``progress`` is the share of the training's steps that are done, in (0, 1].
        """

    def fill(self, views: Views) -> Remember:
        """What the memory should store of a batch before the epoch begins; see `MethodConfig.fill_segments`."""
        raise NotImplementedError


def replaced(own: Tensor, recall: Recall) -> Tensor:
    """``own [B, D]``, in which a row is replaced by the recalled row, without gradient, if one was found."""
    return torch.where(recall.found[:, None], recall.rows.detach().to(own.dtype), own)


def embed_together(encoder: Encoder, views: list[View]) -> list[Tensor]:
    """The embeddings of several views, ``[B_i, D]`` each, in one pass if all are distorted and have the same length.

    In one pass, batch normalisation uses the statistics of all views together, as in the published SimCLR. B_i may
    differ.
    """
    if len({view.wave.shape[1] for view in views}) > 1 or any(view.keys is None for view in views):
        return [encoder(view.wave, view.keys) for view in views]
    waves = torch.cat([view.wave for view in views])
    keys = torch.cat([view.keys for view in views if view.keys is not None])
    return list(encoder(waves, keys).split([len(view.wave) for view in views]))
