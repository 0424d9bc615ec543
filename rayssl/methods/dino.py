"""DINO (Caron et al., ICCV 2021) for utterances: a student predicts from any crop what its averaged teacher makes of
another, longer one; no negatives.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rayssl import collectives
from rayssl.losses.dino import dino, entropy, mean_logits, moved_centre
from rayssl.methods.base import (
    Batch,
    Method,
    MethodConfig,
    Outputs,
    Recall,
    Recalled,
    Step,
    View,
    Views,
    embed_together,
    replaced,
)
from rayssl.models.encoder import Encoder
from rayssl.models.heads import DinoHead, DinoHeadConfig
from rayssl.models.teacher import average, frozen_copy, momentum_at
from rayssl.views.recipes import Segment, ViewsConfig

_GLOBALS = ("global1", "global2")
_TEACHER = ("teacher1", "teacher2")


class DINOConfig(MethodConfig):
    """Two global crops of ``views.segment_s``, which the teacher sees too, and ``locals`` local ones of ``local_s``.

    ``teacher_momentum`` rises to 1 along half a cosine over the training. The prototypes keep their initial values for
    ``freeze_epochs``. ``evaluate``: whose encoder the run's embeddings come from.

    ``store``: what SSPS remembers of an utterance: the teacher's ``bottleneck``, over which a recall applies the
    prototypes of its own day, or the ``output``, the logits as they were (a row of 65,536 values is 256 KiB).
    """

    name: Literal["dino"] = "dino"
    locals: int = Field(4, ge=0)
    local_s: float = Field(2.0, gt=0)
    head: DinoHeadConfig = DinoHeadConfig()
    student_temperature: float = Field(0.1, gt=0)
    teacher_temperature: float = Field(0.04, gt=0)
    teacher_momentum: float = Field(0.996, ge=0, le=1)
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    freeze_epochs: int = Field(1, ge=0)
    store: Literal["bottleneck", "output"] = "bottleneck"
    evaluate: Literal["teacher", "student"] = "teacher"

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A head of a few thousand weights."""
        return {"head": {"hidden": [32], "bottleneck": 16, "prototypes": 64}}

    @property
    def crops(self) -> tuple[str, ...]:
        """Names of the segments, the global ones first."""
        return (*_GLOBALS, *(f"local{number + 1}" for number in range(self.locals)))

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The global crops, then the local ones, all distorted."""
        return tuple(
            Segment(
                name=name,
                seconds=views.segment_s if name in _GLOBALS else self.local_s,
                recipe="distort",
                disjoint=views.disjoint,
            )
            for name in self.crops
        )

    def positive_dim(self, embedding_dim: int) -> int:
        """D_emb of `DINO.positives`."""
        return self.head.bottleneck if self.store == "bottleneck" else self.head.prototypes

    def positive_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The first global crop."""
        return self.segments(views, epoch)[:1]


class Branch(nn.Module):
    """Encoder and head: the student, or the teacher."""

    def __init__(self, encoder: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, views: list[View]) -> list[Tensor]:
        """The head's bottleneck of each view, ``[B, bottleneck]``; views of one length go through in one pass."""
        rows: dict[int, Tensor] = {}
        for length in dict.fromkeys(view.wave.shape[1] for view in views):
            numbers = [number for number, view in enumerate(views) if view.wave.shape[1] == length]
            embedded = torch.cat(embed_together(self.encoder, [views[number] for number in numbers]))
            rows |= zip(numbers, self.head.bottleneck(embedded).chunk(len(numbers)), strict=True)
        return [rows[number] for number in range(len(views))]


class DINO(Method):
    """Cross-entropy (SSPS paper, Eq. 2) of the student's crops against the teacher's global ones.

    The teacher starts as the student and follows it as an average; it trains nothing itself, and runs in training mode
    on the distorted crops, as published. ``centre`` is the average of its logits over the global batches so far.
    """

    Config = DINOConfig
    config: DINOConfig
    centre: Tensor

    def __init__(self, config: DINOConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Branch(encoder, DinoHead(config.head, encoder.embedding_dim))
        self.teacher = frozen_copy(self.student)
        self.register_buffer("centre", torch.zeros(config.head.prototypes))
        self.encoder_prefix = f"{config.evaluate}.encoder."
        self._crops = config.crops

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The one that ``evaluate`` names."""
        return self.teacher.encoder if self.config.evaluate == "teacher" else self.student.encoder

    @property
    def reference_encoder(self) -> Encoder:
        """The teacher's, whatever is evaluated."""
        return self.teacher.encoder

    def forward(self, views: Views) -> Outputs:
        """The student's logits ``[B, K]`` under the crops' names; ``teacher1``, ``teacher2`` as they are stored."""
        crops = [views[name] for name in self._crops]
        logits = self.student.head.prototypes(torch.cat(self.student(crops)))
        out = dict(zip(self._crops, logits.chunk(len(crops)), strict=True))
        with torch.no_grad():
            rows = self.teacher(crops[: len(_GLOBALS)])
            if self.config.store == "output":
                rows = [self.teacher.head.prototypes(row) for row in rows]
        return out | dict(zip(_TEACHER, rows, strict=True))

    def positives(self, out: Outputs) -> Tensor:
        """What the teacher makes of the first global crop."""
        return out["teacher1"]

    def positives_of(self, views: Views) -> Tensor:
        """Without the student and the other crops."""
        rows: Tensor = self.teacher([views[_GLOBALS[0]]])[0]
        if self.config.store == "output":
            rows = self.teacher.head.prototypes(rows)
        return rows

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row takes the place of both the teacher's crops, and so enters the centre twice."""
        return {**out, **{name: replaced(out[name], recall) for name in _TEACHER}}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss under the centre of the batches before; then the centre takes in this one, of all ranks."""
        config = self.config
        teachers = [self._logits(out[name]) for name in _TEACHER]
        students = [out[name] for name in self._crops]
        loss = dino(
            students,
            teachers,
            centre=self.centre,
            student_temperature=config.student_temperature,
            teacher_temperature=config.teacher_temperature,
        )
        doubt = entropy(teachers, centre=self.centre, temperature=config.teacher_temperature)
        mean = collectives.sum_over_ranks(mean_logits(teachers)) / collectives.world()
        self.centre.copy_(moved_centre(self.centre, mean, momentum=config.centre_momentum))
        return Step(loss, {"dino": loss.detach(), "teacher_entropy": doubt})

    def before_update(self, epoch: int) -> None:
        """Without a gradient the optimiser leaves the prototypes, their decay included, as they are."""
        if epoch < self.config.freeze_epochs:
            self.student.head.prototypes.weight.grad = None

    def after_step(self, progress: float) -> None:
        """The teacher follows the student."""
        average(self.teacher, self.student, momentum_at(progress, self.config.teacher_momentum))

    @torch.no_grad()
    def _logits(self, stored: Tensor) -> Tensor:
        if self.config.store == "output":
            return stored
        logits: Tensor = self.teacher.head.prototypes(stored)
        return logits
