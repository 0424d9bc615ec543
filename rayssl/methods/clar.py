"""CLAR (Al-Tahan and Mohsenzadeh, AISTATS 2021): contrastive learning of audio, with or without labels.

Two views of a clip attract each other, and all other clips repel them. If labels are known, a classifier learns from
the same pass. The cross form contrasts the embedding of the waveform by one encoder with the embedding of its
time-frequency plane by another encoder.
"""

from __future__ import annotations

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
from rayssl.views.recipes import Recipe, ViewsConfig


class CLARConfig(PairConfig):
    """``temperature`` of NT-Xent; ``recipe`` of both views.

    ``labels: none`` is CLAR's self-supervised form. ``cross_entropy`` is the semi-supervised form: NT-Xent of all rows,
    plus the cross-entropy of the labelled rows in both views. ``supcon`` (Khosla et al., 2020) replaces both losses;
    the positives of a labelled row are all rows of its class. The public code has ``cross_entropy_over: sum`` and
    ``classifier_on: projection``. ``cross``: the anchors go through the first encoder, the
    positives through the second one, ``encoder.beside``.
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
    cross_entropy_over: Literal["mean", "sum"] = "mean"
    """Whether the cross-entropy of the labelled rows is the ``mean`` of the two views, or their ``sum``, as in the
    public code, which gives labels twice the weight. For ``labels`` ``cross_entropy``.
    """
    classifier_on: Literal["encoder", "projection"] = "encoder"
    """What the classifier sees: the embedding of the ``encoder``, or the ``projection`` that the contrastive loss
    compares, as in the public code. With ``projection``, ``rayssl evaluate`` has no classifier of the method, only
    probes.
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

    def check(self, facts: JobFacts) -> None:
        """Raises `ConfigError` if ``cross`` lacks a second encoder, or ``labels`` lacks a split with two classes."""
        if self.cross != facts.joined:
            raise ConfigError(
                "method.cross: the cross form needs a second encoder in encoder.beside, and two encoders need the "
                "cross form; give both or neither"
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

        With a classifier also ``anchor_logits``, ``positive_logits`` ``[B, C]``.
        """
        pair = [views["anchor"], views["positive"]]
        if self.other_projector is None:
            rows = embed_together(self.encoder, pair)
            anchor, positive = rows
            out = {"anchor": self.projector(anchor), "positive": self.projector(positive)}
        else:
            rows, (anchor, positive) = self._crossed(pair)
            out = {"anchor": self.projector(anchor), "positive": self.other_projector(positive)}
        if self.classifier is not None:
            on_encoder = self.config.classifier_on == "encoder"
            seen = rows if on_encoder else [out["anchor"], out["positive"]]
            logits = self.classifier(torch.cat(seen)).chunk(2)
            out |= {"anchor_logits": logits[0], "positive_logits": logits[1]}
        return out

    def _crossed(self, pair: list[View]) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
        """The whole embeddings of both views, if a classifier needs them, and the two halves that are contrasted."""
        encoder = self.encoder
        assert isinstance(encoder, Joined)
        if self.classifier is None or self.config.classifier_on == "projection":
            return [], (encoder.first(pair[0].wave, pair[0].keys), encoder.second(pair[1].wave, pair[1].keys))
        rows = embed_together(encoder, pair)
        width = encoder.first.embedding_dim
        return rows, (rows[0][:, :width], rows[1][:, width:])

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The contrastive loss over the global batch, plus the classifier's loss over its labelled rows."""
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
        loss = ntxent(a, b, keys_a=keys_a, keys_b=keys_b, offset=offset, temperature=temperature)
        terms = {"ntxent": loss.detach()}
        if self.classifier is not None:
            logits = torch.cat([out["anchor_logits"], out["positive_logits"]])
            supervised, accuracy = self._classified(logits, batch.labels)
            if self.config.cross_entropy_over == "sum":
                supervised = (
                    2 * supervised
                )  # both views have the same labelled rows: twice the mean is the sum of means
            loss = loss + supervised
            terms |= {"supervised": supervised.detach(), "train_accuracy": accuracy}
        return Step(loss, terms)

    def _classified(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy over the labelled rows of all ranks in both views, and the accuracy."""
        twice = torch.cat([labels, labels])
        known = twice >= 0
        # rows without a label get class 0 and weight 0, so that shapes do not depend on the data
        each = cross_entropy(logits, twice.clamp_min(0), reduction="none") * known
        right = (logits.detach().argmax(dim=1) == twice) & known
        count = known.sum()
        return global_mean(each.sum(), count), global_mean(right.sum().float(), count)
