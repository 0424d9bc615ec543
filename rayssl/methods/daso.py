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
from rayssl.methods.base import Batch, Classes, ClassRecall, ClassRemember, Outputs, Recalled, Step, Views
from rayssl.methods.semi import SemiConfig, SemiSupervised
from rayssl.models.encoder import Encoder
from rayssl.views.recipes import ViewsConfig


class DASOConfig(SemiConfig):
    """DASO over FixMatch; with ``adjust`` also over logit adjustment.

    ``queue`` (L): features of each class that its prototype is the mean of; ``prototype_temperature`` (T_proto; above
    .2 the paper's accuracy collapses); ``blend_temperature`` (T_dist: 1.5 where the labelled and the unlabelled classes
    are distributed alike, .3 where not); ``align`` (lambda_align); ``warmup_steps`` with FixMatch's own pseudo-labels
    and without alignment; ``window`` of steps over which predictions are counted.
    """

    name: Literal["daso"] = "daso"
    queue: int = Field(256, ge=1)
    prototype_temperature: float = Field(0.05, gt=0)
    blend_temperature: float = Field(1.5, gt=0)
    align: float = Field(1.0, ge=0)
    warmup_steps: int = Field(5000, ge=0)
    window: int = Field(100, ge=1)


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

    def __init__(self, config: DASOConfig, encoder: Encoder, views: ViewsConfig, classes: Classes) -> None:
        super().__init__(config, encoder, views, classes)
        self.knobs = config

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss, and which class each weak view was given, confident or not: what the histogram counts."""
        assert isinstance(recall, ClassRecall)
        knobs, present = self.knobs, recall.present
        pseudo = p = out["weak"].detach().softmax(dim=1)
        aligned = p.new_zeros(())
        q = self.semantic(out["weak_rows"].detach(), recall, knobs.prototype_temperature).softmax(dim=1)
        if batch.step >= knobs.warmup_steps and bool(present.any()):
            weights = blend_weights(recall.histogram.to(p.dtype), temperature=knobs.blend_temperature)
            pseudo = blend(p, q, weights)
            strong = self.semantic(out["strong_rows"], recall, knobs.prototype_temperature)
            aligned = alignment(strong, q, present)
        step = self.pseudo_step(out, batch, pseudo)
        assert step.counts is not None
        return Step(
            step.loss + knobs.align * aligned,
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
