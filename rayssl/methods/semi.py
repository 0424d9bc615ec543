"""Shared by methods with few labels: a labelled and an unlabelled stream, a classifier and its average.

One pass embeds the labelled views, the weak views and the strong views together. So batch normalisation uses all three,
as in the public code of FixMatch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayssl import collectives
from rayssl.batches.selection import Role
from rayssl.errors import ConfigError
from rayssl.losses.balance import adjusted_cross_entropy, log_prior
from rayssl.losses.pseudolabel import consistency
from rayssl.methods.base import Batch, Classes, JobFacts, Method, MethodConfig, Outputs, Step, View, Views
from rayssl.models.encoder import Encoder
from rayssl.models.heads import Classifier
from rayssl.models.teacher import average, frozen_copy, warmed_momentum
from rayssl.views.recipes import Segment, ViewsConfig


class LabelledMethodConfig(MethodConfig):
    """Shared settings of methods with a classifier.

    ``ema``: the momentum of the averaged model. ``evaluate``: whose predictions are evaluated, those of the ``average``
    or of the ``online`` model. ``adjust``: tau of the logit adjustment by the class frequencies of the labelled
    utterances; 0 means no adjustment.
    """

    ema: float = Field(0.999, ge=0, lt=1)
    """The momentum of the averaged model, from 0 to below 1: the share of itself that it keeps in a step. It begins
    lower and rises to this value. 0 makes it equal to the trained model.
    """
    evaluate: Literal["average", "online"] = "average"
    """Whose predictions are evaluated and exported: those of the ``average`` model or of the trained one (``online``).
    """
    adjust: float = Field(0.0, ge=0)
    """The strength tau of the logit adjustment by the class frequencies of the labelled utterances (Menon et al.,
    2021); 0 for none, 1 for the balanced error. Use it when classes are of unequal size.
    """

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` if the split has fewer than two classes."""
        names = () if facts.classes is None else facts.classes.names
        if len(names) < 2:
            raise ConfigError(
                "method.name: classification needs a split with at least two labelled classes, this one has "
                f"{len(names)}; name one in labels.split that `rayssl prepare` has made"
            )

    def build(self, encoder: Encoder, facts: JobFacts) -> Labelled:
        """See `MethodConfig.build`."""
        made: Labelled = self._make(encoder, facts.classes)
        return made


class SemiConfig(LabelledMethodConfig):
    """``weight`` (lambda_u) of the pseudo-labels' loss; ``threshold``: the minimum confidence of a pseudo-label."""

    weight: float = Field(1.0, ge=0)
    """The weight lambda_u of the loss of the pseudo-labelled clips beside that of the labelled ones; 0 ignores them."""
    threshold: float = Field(0.95, ge=0, le=1)
    """The least confidence, from 0 to 1, of a pseudo-label that is learnt. Lower it if few are confident (``confident``
    in the metrics), raise it if many are wrong.
    """

    role: ClassVar[Role] = "unlabelled"

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The weak and the strong view of unlabelled utterances, cut at independent positions."""
        return (
            Segment(name="weak", seconds=views.segment_s, recipe="weak"),
            Segment(name="strong", seconds=views.segment_s, recipe="strong"),
        )

    def labelled_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """One weak view of labelled utterances."""
        return (Segment(name="labelled", seconds=views.segment_s, recipe="weak"),)


class ClassifierModel(nn.Module):
    """An encoder and a classifier: the trained model, or its average."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = Classifier(encoder.embedding_dim, classes)


class Labelled(Method):
    """A classifier for the classes of a split, its average, and the loss of labelled rows."""

    config: LabelledMethodConfig

    def __init__(self, config: LabelledMethodConfig, encoder: Encoder, classes: Classes) -> None:
        super().__init__()
        self.config = config
        self.classes, self.class_names = classes, classes.names
        self.model = ClassifierModel(encoder, len(classes.names))
        self.average = frozen_copy(self.model).eval()
        # not saved: it follows from the split, and a value in a checkpoint could contradict the split
        self.register_buffer("log_prior", log_prior(torch.tensor(classes.labelled)), persistent=False)
        self._updates = 0  # the first `step` sets it
        kept = "average" if config.evaluate == "average" else "model"
        self.encoder_prefix, self.head_prefix = f"{kept}.encoder.", f"{kept}.classifier."

    log_prior: Tensor

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The encoder that ``evaluate`` chooses."""
        return self.average.encoder if self.config.evaluate == "average" else self.model.encoder

    def train(self, mode: bool = True) -> Labelled:
        """Sets the mode of all but the average. The average stays in eval mode and follows the running statistics."""
        super().train(mode)
        self.average.eval()
        return self

    def embedded(self, views: list[View]) -> list[Tensor]:
        """The embeddings of views, ``[B_i, D]`` each, in one pass if all have the same length. B_i may differ."""
        if len({view.wave.shape[1] for view in views}) > 1 or len({view.keys is None for view in views}) > 1:
            return [self.model.encoder(view.wave, view.keys) for view in views]
        keys = None if views[0].keys is None else torch.cat([view.keys for view in views if view.keys is not None])
        rows: Tensor = self.model.encoder(torch.cat([view.wave for view in views]), keys)
        return list(rows.split([len(view.wave) for view in views]))

    def labelled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy ``L_cls`` of ``logits [B, C]``, with logit adjustment if ``adjust`` is not 0."""
        if self.config.adjust:
            return adjusted_cross_entropy(logits, labels, log_prior=self.log_prior, tau=self.config.adjust)
        return cross_entropy(logits, labels)

    def after_step(self, progress: float) -> None:
        """Moves the average. Its momentum at step t is ``min(1 - 1 / (t + 1), ema)``."""
        average(self.average, self.model, warmed_momentum(self._updates, self.config.ema), statistics=True)

    def _began(self, batch: Batch) -> None:
        self._updates = batch.step


class SemiSupervised(Labelled):
    """Methods with a stream of labelled utterances and a stream of unlabelled ones, with weak and strong views."""

    config: SemiConfig
    #: The views whose embeddings `forward` gives as ``<view>_rows``.
    rows_of: tuple[str, ...] = ("weak", "strong")

    def forward(self, views: Views) -> Outputs:
        """``labelled``, ``weak``, ``strong``: logits ``[B, C]``; ``weak_rows``, ``strong_rows``: embeddings."""
        names = [name for name in ("labelled", "weak", "strong") if name in views]
        rows = dict(zip(names, self.embedded([views[name] for name in names]), strict=True))
        logits = self.model.classifier(torch.cat(list(rows.values()))).split([len(row) for row in rows.values()])
        out = dict(zip(names, logits, strict=True))
        return out | {f"{name}_rows": rows[name] for name in self.rows_of if name in rows}

    def pseudo_step(self, out: Outputs, batch: Batch, pseudo: Tensor, confident: Tensor | None = None) -> Step:
        """``L_cls + weight L_u``. The pseudo-labels ``pseudo [B, C]`` are distributions over classes, without gradient.

        ``L_u`` is the cross-entropy of the strong views against the argmax of rows whose maximum reaches the threshold,
        or of rows that are ``confident [B]`` (bool), if this is given.
        """
        assert batch.labelled is not None
        self._began(batch)
        confidence, targets = pseudo.max(dim=1)
        confident = confidence >= self.config.threshold if confident is None else confident
        supervised = self.labelled_loss(out["labelled"], batch.labelled.labels)
        unsupervised = consistency(out["strong"], targets, confident)
        accuracy = (out["labelled"].detach().argmax(1) == batch.labelled.labels).float().mean()
        terms = {
            "supervised": supervised.detach(),
            "pseudo": unsupervised.detach(),
            "confident": confident.float().mean(),
            "train_accuracy": accuracy,
        }
        counts = pseudo_counts(targets, confident, batch.truth, len(self.classes.names))
        return Step(supervised + self.config.weight * unsupervised, terms, counts=counts)


def pseudo_counts(
    targets: Tensor, confident: Tensor, truth: Tensor, classes: int, counted: Tensor | None = None
) -> dict[str, Tensor]:
    """Counts of this rank's pseudo-labels ``targets [B]`` for each class, int64 ``[C]`` each.

    ``predicted``: all of them; ``confident``: the confident ones; ``right``: those equal to the truth; ``truth``: the
    rows that truly have the class. A row with unknown truth (-1) is counted in the first two only. Rows without
    ``counted [B]`` (default: with it) are left out.
    """
    rows = torch.ones_like(confident) if counted is None else counted
    return {
        "predicted": class_counts(targets, rows, classes),
        "confident": class_counts(targets, rows & confident, classes),
        "right": class_counts(targets, rows & (targets == truth), classes),
        "truth": class_counts(truth, rows, classes),
    }


def class_counts(labels: Tensor, counted: Tensor, classes: int) -> Tensor:
    """How many of ``labels [B]`` with ``counted [B]`` are of each class, int64 ``[C]``; -1 is of none.

    By comparison: `torch.bincount` and an index by a mask would make the host wait for the device.
    """
    each = labels[:, None] == torch.arange(classes, device=labels.device)
    return (each & counted[:, None]).sum(dim=0)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's part of a mean over the rows of all ranks: W times its ``total``, divided by the global ``count``.

    The training loss is the mean over ranks. So the mean of the results over ranks is the mean over all rows. The
    result is 0, with gradient 0, if no rank has a row.
    """
    everywhere = collectives.sum_over_ranks(count.to(total.dtype))
    return total * collectives.world() / everywhere.clamp_min(1)
