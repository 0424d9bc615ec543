"""CLAR (Al-Tahan and Mohsenzadeh, AISTATS 2021): contrastive learning of audio, with or without labels.

Two views of a clip attract each other, and all other clips repel them. If labels are known, a classifier learns from
the same pass. The cross form contrasts the embedding of the waveform by one encoder with the embedding of its
time-frequency plane by another encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rayssl import collectives
from rayssl.errors import ConfigError
from rayssl.losses.ntxent import ntxent
from rayssl.losses.supcon import supcon
from rayssl.methods.base import Batch, Classes, JobFacts, Outputs, Recalled, Step, View, Views, embed_together
from rayssl.methods.pair import PairConfig, PairMethod
from rayssl.methods.semi import global_mean
from rayssl.models.encoder import Encoder, Joined
from rayssl.models.heads import Classifier, Projector, ProjectorConfig
from rayssl.views.recipes import Recipe, Segment, ViewsConfig

LABELLED = ("labelled_anchor", "labelled_positive")  # the views of the labelled stream


class CLARConfig(PairConfig):
    """``temperature`` of NT-Xent; ``recipe`` of both views.

    ``labels: none`` is CLAR's self-supervised form. ``cross_entropy`` is the semi-supervised form: NT-Xent of all rows,
    plus the cross-entropy of the labelled rows in both views. ``labels_from`` says whether these are the labelled ones
    among the rows of NT-Xent, as published, or a labelled stream's. ``supcon`` (Khosla et al., 2020) replaces both
    losses; the positives of a labelled row are all rows of its class. The public code has ``cross_entropy_over: sum``
    and ``classifier_on: projection``. ``negatives: other_classes`` is ours. ``cross``: the anchors go through the first
    encoder, the positives through the second one, ``encoder.beside``.
    """

    name: Literal["clar"] = "clar"
    """CLAR (Al-Tahan and Mohsenzadeh, 2021): contrastive learning of sounds, with or without labels, or across two
    encoders.
    """
    projector: ProjectorConfig = ProjectorConfig(sizes=[512, 512, 512, 128])
    """The layers between the encoder and the contrastive loss."""
    temperature: float = Field(0.5, gt=0)
    """The temperature of NT-Xent or SupCon, which divides cosine similarities; 0.5 is published."""
    recipe: Recipe = "strong"
    """The recipe of ``views`` that distorts both segments. ``strong`` is off until its parts have a ``p``."""
    labels: Literal["none", "cross_entropy", "supcon"] = "none"
    """``none`` is the self-supervised form. ``cross_entropy`` adds the cross-entropy of the labelled rows. ``supcon``
    (Khosla et al., 2020) replaces both losses: the positives of a labelled row are all rows of its class. The last two
    need ``labels.split``.
    """
    labels_from: Literal["batch", "stream"] = "batch"
    """Where the labelled clips of ``labels`` ``cross_entropy`` come from. ``batch``, as published: the labelled ones
    among the ``training.batch`` clips of a step, which are few where few clips are labelled. ``stream``: each step has
    ``training.batch / labels.ratio`` labelled clips more, in two views, which are classified and not contrasted.
    """
    cross_entropy_over: Literal["mean", "sum"] = "mean"
    """Whether the cross-entropy of the labelled rows is the ``mean`` of the two views, or their ``sum``, as in the
    public code, which gives labels twice the weight. For ``labels`` ``cross_entropy``.
    """
    classifier_on: Literal["encoder", "projection"] = "encoder"
    """What the classifier sees: the embedding of the ``encoder``, or the ``projection`` that the contrastive loss
    compares, as in the public code. With ``projection``, ``rayssl evaluate`` has no classifier of the method, only
    probes.
    """
    negatives: Literal["all", "other_classes"] = "all"
    """Which clips repel a clip in the contrastive loss: ``all`` others, as published, also those of its class; or
    those of ``other_classes``: without the others that are surely of its class, by their labels or by what the
    classifier predicts so far (see ``certainty``). Not published. For ``labels`` ``cross_entropy``. Try it where there
    are few classes, so that many of the others are of the clip's own class.
    """
    certainty: float = Field(0.7, gt=0, le=1)
    """For ``negatives`` ``other_classes``: the least probability, above 0 and at most 1, of a prediction that counts.
    A negative is left out if both clips are predicted to be of one class with so much certainty. A label is certain.
    """
    cross: bool = False
    """Whether the first segment goes through the encoder and the second one through ``encoder.beside``, for example one
    on samples and one on a spectrum. Needs ``encoder.beside``.
    """

    @property
    def pair_recipe(self) -> Recipe:
        """``recipe``."""
        return self.recipe

    @property
    def learns_labels(self) -> bool:
        """True unless ``labels`` is ``none``."""
        return self.labels != "none"

    def projection(self, embedding_dim: int) -> tuple[str, nn.Module] | None:
        """The projector; None for ``cross``, whose two encoders have one each."""
        return None if self.cross else super().projection(embedding_dim)

    @property
    def streams_labels(self) -> bool:
        """Whether there is a labelled stream."""
        return self.labels == "cross_entropy" and self.labels_from == "stream"

    def labelled_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The two views of the labelled stream, if there is one; cut and distorted as the others."""
        if not self.streams_labels:
            return ()
        return tuple(
            segment.model_copy(update={"name": name})
            for segment, name in zip(self.segments(views, epoch), LABELLED, strict=True)
        )

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` if ``cross`` lacks a second encoder, or the labels cannot be used as asked."""
        if self.cross != facts.joined:
            raise ConfigError(
                "method.cross: the cross form needs a second encoder in encoder.beside, and two encoders need the "
                "cross form; give both or neither"
            )
        if self.labels_from == "stream" and self.labels != "cross_entropy":
            raise ConfigError(
                f"method.labels_from=stream: its clips are classified, which method.labels={self.labels} does not do; "
                "set method.labels=cross_entropy, or leave out method.labels_from"
            )
        if self.negatives == "other_classes" and self.labels != "cross_entropy":
            raise ConfigError(
                f"method.negatives=other_classes: asks a classifier, and method.labels={self.labels} has none; set "
                "method.labels=cross_entropy, or leave out method.negatives"
            )
        if self.labels != "none" and (facts.classes is None or len(facts.classes.names) < 2):
            raise ConfigError(
                f"method.labels={self.labels}: needs a split with at least two labelled classes in labels.split; "
                "name one that `rayssl prepare` has made, or leave out method.labels"
            )

    def build(self, encoder: Encoder, facts: JobFacts) -> CLAR:
        """See `MethodConfig.build`."""
        return CLAR(self, encoder, facts.views, facts.classes)


class CLAR(PairMethod):
    """NT-Xent (Eq. 1) over the global batch and, with labels, a classifier of the encoder's embeddings (Eq. 3)."""

    Config = CLARConfig
    config: CLARConfig
    reads_statistics = False

    def __init__(self, config: CLARConfig, encoder: Encoder, views: ViewsConfig, classes: Classes | None) -> None:
        super().__init__(config, encoder, views)
        self.class_names = () if classes is None else classes.names
        self.other_projector: Projector | None = None
        if isinstance(encoder, Joined):
            self.projector = Projector(config.projector, encoder.first.embedding_dim)
            self.other_projector = Projector(config.projector, encoder.second.embedding_dim)
        self.classifier: Classifier | None = None
        if config.labels == "cross_entropy" and classes is not None:
            on_encoder = config.classifier_on == "encoder"
            width = encoder.embedding_dim if on_encoder else self.projector.outputs
            self.classifier = Classifier(width, len(classes.names))
            self.head_prefix = "classifier." if on_encoder else None

    def forward(self, views: Views) -> Outputs:
        """``anchor``, ``positive``: projections ``[B, D_emb]``.

        With a classifier also ``anchor_logits``, ``positive_logits`` ``[B', C]``, of both views of the rows whose
        labels are learnt: those of the labelled stream, if there is one, else all. With ``negatives: other_classes``
        also ``predicted [B, C]``, the probabilities of the classes, without gradient.
        """
        pair = [views["anchor"], views["positive"]]
        extra = [views[name] for name in LABELLED if name in views]
        rows, known = self._embedded(pair, extra)
        out = dict(zip(("anchor", "positive"), self._projected(rows), strict=True))
        if self.classifier is not None:
            if self.config.classifier_on == "projection":
                known = self._projected(known) if extra else list(out.values())
            logits = self.classifier(torch.cat(known)).chunk(2)
            out |= {"anchor_logits": logits[0], "positive_logits": logits[1]}
            if self.config.negatives == "other_classes":
                out["predicted"] = self._predicted(rows, out, logits if not extra else None)
        return out

    @torch.no_grad()
    def _predicted(self, rows: list[Tensor], out: Outputs, logits: Sequence[Tensor] | None) -> Tensor:
        """The probabilities ``[B, C]`` of the contrasted rows, the mean of both views; of ``logits`` if there are any.

        In the cross form a classifier of embeddings sees those of both encoders, one of each view.
        """
        assert self.classifier is not None
        if logits is None:
            on_encoder = self.config.classifier_on == "encoder"
            seen = rows if on_encoder else [out["anchor"], out["positive"]]
            if on_encoder and self.other_projector is not None:
                seen = [torch.cat(rows, dim=1)]
            logits = [self.classifier(view) for view in seen]
        return torch.stack([each.float().softmax(dim=1) for each in logits]).mean(dim=0)

    def _embedded(self, pair: list[View], extra: list[View]) -> tuple[list[Tensor], list[Tensor]]:
        """The two embeddings that are contrasted, and the two that a classifier sees, those of ``extra`` if given.

        In the cross form, the contrasted views go through one encoder each. So do those for a classifier that sees
        projections; one that sees embeddings needs both encoders for both views.
        """
        encoder = self.encoder
        if not isinstance(encoder, Joined):
            rows = embed_together(encoder, pair + extra)
            return rows[:2], rows[-2:]
        on_encoder = self.classifier is not None and self.config.classifier_on == "encoder"
        if on_encoder and not extra:
            whole = embed_together(encoder, pair)
            width = encoder.first.embedding_dim
            return [whole[0][:, :width], whole[1][:, width:]], whole
        apart = [extra if on_encoder else extra[:1], extra if on_encoder else extra[1:]]
        first, *one = embed_together(encoder.first, [pair[0], *apart[0]])
        second, *other = embed_together(encoder.second, [pair[1], *apart[1]])
        known = [torch.cat(both, dim=1) for both in zip(one, other, strict=True)] if on_encoder else [*one, *other]
        return [first, second], known

    def _projected(self, pair: list[Tensor]) -> list[Tensor]:
        """The projections of an anchor and a positive; in the cross form each encoder has its own projector."""
        other = self.projector if self.other_projector is None else self.other_projector
        return [self.projector(pair[0]), other(pair[1])]

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The contrastive loss over the global batch, plus the classifier's loss over the labelled rows."""
        a, b = out["anchor"], out["positive"]
        keys_a, keys_b = collectives.gather(a), collectives.gather(b)
        offset, temperature = collectives.rank() * len(a), self.config.temperature
        if self.config.labels == "supcon":
            everyone = collectives.gather(batch.labels)
            loss = supcon(
                a,
                b,
                batch.labels,
                keys_a=keys_a,
                keys_b=keys_b,
                key_labels=everyone,
                offset=offset,
                temperature=temperature,
            )
            return Step(loss, {"supcon": loss.detach()})
        alike = self._alike(out["predicted"], batch.labels) if "predicted" in out else None
        loss = ntxent(a, b, keys_a=keys_a, keys_b=keys_b, offset=offset, temperature=temperature, left_out=alike)
        terms = {"ntxent": loss.detach()}
        if self.classifier is not None:
            logits = torch.cat([out["anchor_logits"], out["positive_logits"]])
            labels = batch.labels if batch.labelled is None else batch.labelled.labels
            supervised, accuracy = self._classified(logits, labels)
            if self.config.cross_entropy_over == "sum":
                supervised = (
                    2 * supervised
                )  # both views have the same labelled rows: twice the mean is the sum of means
            loss = loss + supervised
            terms |= {"supervised": supervised.detach(), "train_accuracy": accuracy}
        return Step(loss, terms)

    def _alike(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Whether two clips are surely of one class, bool ``[B, W*B]``: this rank's and those of all ranks.

        ``predicted [B, C]`` are probabilities. A label (not -1 in ``labels [B]``) takes their place.
        """
        probability, predicted_class = predicted.max(dim=1)
        surely = torch.where(probability >= self.config.certainty, predicted_class, -1)
        own = torch.where(labels >= 0, labels, surely)[:, None]
        return (own >= 0) & (own == collectives.gather(own).T)

    def _classified(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy over the labelled rows of all ranks in both views, and the accuracy."""
        twice = torch.cat([labels, labels])
        known = twice >= 0
        # rows without a label get class 0 and weight 0, so that shapes do not depend on the data
        each = cross_entropy(logits, twice.clamp_min(0), reduction="none") * known
        right = (logits.detach().argmax(dim=1) == twice) & known
        count = known.sum()
        return global_mean(each.sum(), count), global_mean(right.sum().float(), count)
