"""Training on the labelled utterances only: the baseline for methods that also use unlabelled ones."""

from __future__ import annotations

from typing import ClassVar, Literal

from rayssl.batches.selection import Role
from rayssl.methods.base import Batch, Outputs, Recalled, Step, Views
from rayssl.methods.semi import Labelled, LabelledMethodConfig
from rayssl.views.recipes import Recipe, Segment, ViewsConfig


class ClassifierConfig(LabelledMethodConfig):
    """``recipe``: how the labelled utterances are distorted; one of the recipes of ``views``."""

    name: Literal["classifier"] = "classifier"
    """Classifier: cross-entropy on the labelled utterances only, the baseline of the semi-supervised methods."""
    recipe: Recipe = "weak"
    """The recipe of ``views`` that distorts labelled utterances; ``none`` leaves them as they are."""

    role: ClassVar[Role] = "labelled"

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """One view of each labelled utterance."""
        return (Segment(name="labelled", seconds=views.segment_s, recipe=self.recipe),)


class ClassifierMethod(Labelled):
    """Cross-entropy over the classes of a split, with or without logit adjustment."""

    Config = ClassifierConfig
    config: ClassifierConfig
    reads_statistics = False

    def forward(self, views: Views) -> Outputs:
        """``labelled``: logits ``[B, C]``."""
        return {"labelled": self.model.classifier(self.embedded([views["labelled"]])[0])}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """``L_cls``."""
        self._began(batch)
        loss = self.labelled_loss(out["labelled"], batch.labels)
        accuracy = (out["labelled"].detach().argmax(1) == batch.labels).float().mean()
        return Step(loss, {"supervised": loss.detach(), "train_accuracy": accuracy})
