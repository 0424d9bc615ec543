"""DASO (Oh, Kim and Kweon, CVPR 2022): pseudo-labels blended, by class, from a linear and a prototype classifier.

The linear classifier prefers the classes with many labels. The prototypes are means of equally many features of each
class, so they prefer the rare classes. If the linear classifier predicts a class that was predicted often in recent
steps, the prototypes have more weight; for a rare class the linear classifier has. The memory keeps the prototypes and
the histogram of predictions. There is one memory for the whole job; it is saved and resumed.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rayssl.losses.pseudolabel import alignment, blend, blend_weights, semantic_logits
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import Batch, ClassRecall, ClassRemember, JobFacts, Outputs, Recalled, Step, Views
from rayssl.methods.semi import SemiConfig, SemiSupervised, class_counts


class PrototypicalConfig(SemiConfig):
    """Shared by methods with a memory of classes.

    ``queue`` (L): the number of features of each class that the memory keeps. ``window``: the number of steps over
    which predictions are counted.
    """

    queue: int = Field(256, ge=1)
    """The number L of labelled features of each class that the memory keeps; the prototype of a class is their mean."""
    window: int = Field(100, ge=1)
    """The number of past steps over which predictions are counted for each class."""

    def memory(self, facts: JobFacts) -> ClassSettings:
        """One prototype for each class, from features of the encoder."""
        assert facts.classes is not None
        return ClassSettings(
            classes=len(facts.classes.names), dim=facts.embedding_dim, length=self.queue, window=self.window
        )


class DASOConfig(PrototypicalConfig):
    """DASO on top of FixMatch; with ``adjust`` also on top of logit adjustment.

    - ``queue`` (L): the prototype of a class is the mean of this many features.
    - ``prototype_temperature`` (T_proto): above 0.2 the accuracy in the paper collapses.
    - ``blend_temperature`` (T_dist): 1.5 if the labelled and the unlabelled utterances have the same distribution over
      classes, 0.3 if not.
    - ``align`` (lambda_align): the weight of the alignment loss.
    - ``warmup_steps``: first steps with the pseudo-labels of FixMatch and without alignment.
    - ``window``: the number of steps over which predictions are counted.
    """

    name: Literal["daso"] = "daso"
    """DASO (Oh et al., 2022): pseudo-labels blended, by class, from a linear and a prototype classifier, for rare
    classes.
    """
    prototype_temperature: float = Field(0.05, gt=0)
    """The temperature T_proto of the cosines to prototypes; 0.05 is published. Above 0.2 the accuracy in the paper
    collapses.
    """
    blend_temperature: float = Field(1.5, gt=0)
    """The temperature T_dist that makes the blend depend on how often a class was predicted: 1.5 if the labelled and
    the unlabelled clips have the same distribution over classes, 0.3 if not, as published. The lower it is, the fewer
    classes are left to the prototypes. Try both: in short trainings on generated words 1.5 was better also where the
    distributions differ.
    """
    align: float = Field(1.0, ge=0)
    """The weight lambda_align of the loss that aligns the strong view with the prototypes; 0 turns it off."""
    warmup_steps: int = Field(5000, ge=0)
    """The number of first steps with the pseudo-labels of FixMatch and without alignment; 5000 are published. Lower it
    for short trainings.
    """


class Prototypical(SemiSupervised):
    """Semi-supervised methods with a memory of labelled features, which the averaged encoder computes.

    If ``rows_of`` has the labelled view, they are the features of the trained encoder instead.
    """

    def forward(self, views: Views) -> Outputs:
        """As `SemiSupervised.forward`, plus ``labelled_average [B, D]``, embeddings by the average, not normalised."""
        out = super().forward(views)
        if "labelled" in views and "labelled" not in self.rows_of:
            with torch.no_grad():
                # in eval mode, so that a prototype depends neither on the other rows of the batch nor on the rank
                out["labelled_average"] = self.average.encoder(views["labelled"].wave, None)
        return out

    def consult(self, out: Outputs, batch: Batch) -> ClassRemember:
        """The labelled features. They enter the queues of their classes before the prototypes are computed (step 1)."""
        assert batch.labelled is not None
        rows = out["labelled_rows"].detach() if "labelled" in self.rows_of else out["labelled_average"]
        return ClassRemember(rows, batch.labelled.labels)

    def semantic(self, rows: Tensor, recall: ClassRecall, temperature: float) -> Tensor:
        """Logits ``[B, C]``, from the cosines to the prototypes; -inf for a class without a prototype."""
        return semantic_logits(rows, recall.prototypes, recall.present, temperature=temperature)


class DASO(Prototypical):
    """L = L_cls + weight L_u + align L_align (Eq. 8), with pseudo-labels as in Eq. 5."""

    Config = DASOConfig
    config: DASOConfig

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss, and the counts of the pseudo-labels, confident or not, for the memory's histogram."""
        assert isinstance(recall, ClassRecall)
        config, present = self.config, recall.present
        pseudo = p = out["weak"].detach().softmax(dim=1)
        aligned = p.new_zeros(())
        q = self.semantic(out["weak_rows"].detach(), recall, config.prototype_temperature).softmax(dim=1)
        if batch.step >= config.warmup_steps:
            weights = blend_weights(recall.histogram.to(p.dtype), temperature=config.blend_temperature)
            pseudo = torch.where(present.any(), blend(p, q, weights), p)  # without a prototype, q says nothing
            strong = self.semantic(out["strong_rows"], recall, config.prototype_temperature)
            aligned = alignment(strong, q, present)
        step = self.pseudo_step(out, batch, pseudo)
        assert step.counts is not None
        return Step(
            step.loss + config.align * aligned,
            {**step.terms, "align": aligned.detach()},
            ClassRemember(counts=step.counts["predicted"]),
            # counted from the first step on: they show which of the two classifiers is right more often
            step.counts
            | {"right_linear": self._right(p, batch), "right_semantic": self._right(q, batch) * present.any()},
        )

    def _right(self, labels: Tensor, batch: Batch) -> Tensor:
        """For each class, the number of rows whose prediction in ``labels [B, C]`` is right; int64 ``[C]``."""
        found = labels.argmax(dim=1)
        return class_counts(found, found == batch.truth, len(self.classes.names))
