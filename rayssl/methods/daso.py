"""DASO (Oh, Kim and Kweon, CVPR 2022): pseudo-labels blended from a linear and a prototype classifier, by class.

The linear classifier leans to the labelled majority, the prototypes, of as many features of each class, to the
minorities; a class that was predicted often of late gets the prototypes' answer, a rare one the linear one's.
Prototypes and the histogram of predictions are the memory's: one for the whole job, saved and resumed.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from rayssl.losses.pseudolabel import alignment, blend, blend_weights, semantic_logits
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import Batch, ClassRecall, ClassRemember, JobFacts, Outputs, Recalled, Step, Views
from rayssl.methods.semi import SemiConfig, SemiSupervised


class PrototypicalConfig(SemiConfig):
    """What methods with a memory of classes share: the ``queue`` (L) of features of each class, and the ``window`` of
    steps over which predictions are counted.
    """

    queue: int = Field(256, ge=1)
    window: int = Field(100, ge=1)

    def memory(self, facts: JobFacts) -> ClassSettings:
        """One prototype of each class, over features of the encoder."""
        assert facts.classes is not None
        return ClassSettings(
            classes=len(facts.classes.names), dim=facts.embedding_dim, length=self.queue, window=self.window
        )


class DASOConfig(PrototypicalConfig):
    """DASO over FixMatch; with ``adjust`` also over logit adjustment.

    ``queue`` (L): features of each class that its prototype is the mean of; ``prototype_temperature`` (T_proto; above
    .2 the paper's accuracy collapses); ``blend_temperature`` (T_dist: 1.5 where the labelled and the unlabelled classes
    are distributed alike, .3 where not); ``align`` (lambda_align); ``warmup_steps`` with FixMatch's own pseudo-labels
    and without alignment; ``window`` of steps over which predictions are counted.
    """

    name: Literal["daso"] = "daso"
    prototype_temperature: float = Field(0.05, gt=0)
    blend_temperature: float = Field(1.5, gt=0)
    align: float = Field(1.0, ge=0)
    warmup_steps: int = Field(5000, ge=0)


class Prototypical(SemiSupervised):
    """Semi-supervised methods whose memory keeps features of labelled clips, made by the averaged encoder."""

    def forward(self, views: Views) -> Outputs:
        """As `SemiSupervised.forward`, and ``labelled_average [B, D]``: the average's embeddings, not normalised."""
        out = super().forward(views)
        if "labelled" in views:
            with torch.no_grad():
                # in eval mode: a prototype depends neither on the batch around a clip nor on its rank
                out["labelled_average"] = self.average.encoder(views["labelled"].wave, None)
        return out

    def consult(self, out: Outputs, batch: Batch) -> ClassRemember:
        """The labelled features, which enter their classes' queues before the prototypes are asked for (step 1)."""
        assert batch.labelled is not None
        return ClassRemember(out["labelled_average"], batch.labelled.labels)

    def semantic(self, rows: Tensor, recall: ClassRecall, temperature: float) -> Tensor:
        """Logits ``[B, C]`` of cosines to the prototypes; -inf for a class that has none yet."""
        return semantic_logits(rows, recall.prototypes, recall.present, temperature=temperature)


class DASO(Prototypical):
    """L = L_cls + weight L_u + align L_align (Eq. 8), with pseudo-labels as in Eq. 5."""

    Config = DASOConfig
    config: DASOConfig

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss, and which class each weak view was given, confident or not: what the histogram counts."""
        assert isinstance(recall, ClassRecall)
        config, present = self.config, recall.present
        pseudo = p = out["weak"].detach().softmax(dim=1)
        aligned = p.new_zeros(())
        q = self.semantic(out["weak_rows"].detach(), recall, config.prototype_temperature).softmax(dim=1)
        if batch.step >= config.warmup_steps and bool(present.any()):
            weights = blend_weights(recall.histogram.to(p.dtype), temperature=config.blend_temperature)
            pseudo = blend(p, q, weights)
            strong = self.semantic(out["strong_rows"], recall, config.prototype_temperature)
            aligned = alignment(strong, q, present)
        step = self.pseudo_step(out, batch, pseudo)
        assert step.counts is not None
        return Step(
            step.loss + config.align * aligned,
            {**step.terms, "align": aligned.detach()},
            ClassRemember(counts=step.counts["predicted"]),
            # which of the two classifiers to believe is what the blend is about, from the first step on
            step.counts
            | {"right_linear": self._right(p, batch), "right_semantic": self._right(q, batch) * present.any()},
        )

    def _right(self, labels: Tensor, batch: Batch) -> Tensor:
        """How many rows of each class ``labels [B, C]`` are right about; int64 ``[C]``."""
        found = labels.argmax(dim=1)
        return torch.bincount(found[found == batch.truth], minlength=len(self.classes.names))
