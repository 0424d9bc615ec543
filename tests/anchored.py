"""A method that contrasts with rows of the memory of classes: the class-balanced anchors on their way through the loop.

Labelled utterances whose id is divisible by 3 are given as unknown, like epochs of sleep that nobody scored, so that
ranks store different numbers of rows. ``step`` returns nothing to remember: the memory gets one call in a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rayssl import collectives
from rayssl.memory.classes.settings import ClassSettings
from rayssl.methods.base import Batch, ClassRecall, ClassRemember, JobFacts, Outputs, Recalled, Step
from rayssl.methods.daso import Prototypical, PrototypicalConfig

# queues of three that go round within nine steps, of which the two newest rows are anchors
ANCHORED_METHOD: dict[str, Any] = {"name": "tests.anchored:Anchored", "threshold": 0.3, "ema": 0.8, "queue": 3}


class AnchoredConfig(PrototypicalConfig):
    """``anchors`` of each class."""

    anchors: int = 2

    def memory(self, facts: JobFacts) -> ClassSettings:
        return replace(super().memory(facts), anchors=self.anchors)


class Anchored(Prototypical):
    Config = AnchoredConfig
    config: AnchoredConfig

    def consult(self, out: Outputs, batch: Batch) -> ClassRemember:
        assert batch.labelled is not None
        labels = torch.where(batch.labelled.ids % 3 == 0, -1, batch.labelled.labels)
        return ClassRemember(out["labelled_average"], labels)

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        assert isinstance(recall, ClassRecall) and not recall.rows.requires_grad
        soft = out["weak"].detach().softmax(dim=1)
        step = self.pseudo_step(out, batch, soft)
        contrast = self.contrast(collectives.gather(out["strong_rows"]), collectives.gather(soft), recall)
        terms = {**step.terms, "contrast": contrast.detach(), "filled": recall.filled.sum().float()}
        return Step(step.loss + contrast, terms, None, step.counts)

    def contrast(self, rows: Tensor, soft: Tensor, recall: ClassRecall) -> Tensor:
        """-1/(M N) sum over anchors m and rows i of soft[i, class of m] log softmax_i(m . i / 0.5), on each rank."""
        valid = torch.arange(recall.rows.shape[1], device=rows.device) < recall.filled[:, None]
        similar = normalize(recall.rows, dim=2) @ normalize(rows, dim=1).T
        each = -(soft.T[:, None] * (similar / 0.5).log_softmax(dim=2)).mean(dim=2)
        return (each * valid).sum() / valid.sum().clamp_min(1)
