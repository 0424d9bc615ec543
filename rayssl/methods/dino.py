"""DINO (Caron et al., ICCV 2021) for utterances, without negatives.

From any crop of an utterance, the student predicts the output of the teacher for another, longer crop. The teacher is
an average of the student.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

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
from rayssl.models.heads import DinoBottleneck, DinoHead, DinoHeadConfig
from rayssl.models.teacher import average, frozen_copy, momentum_at
from rayssl.views.recipes import Segment, ViewsConfig

Head = TypeVar("Head", bound=DinoBottleneck)

_GLOBALS = ("global1", "global2")
_TEACHER = ("teacher1", "teacher2")


class DINOConfig(MethodConfig):
    """Two global crops of ``views.segment_s`` seconds and ``locals`` local crops of ``local_s`` seconds.

    The student sees all crops, the teacher only the global ones. ``teacher_momentum`` rises to 1 as half a cosine over
    the training. The prototypes keep their initial values for ``freeze_epochs``. ``evaluate``: whose encoder is
    evaluated and exported.

    ``store``: what SSPS stores of an utterance. ``bottleneck`` is the output of the teacher's bottleneck; after a
    recall the current prototypes are applied to it. ``output`` is the logits at the time of storing (a row of 65,536
    values is 256 KiB).
    """

    name: Literal["dino"] = "dino"
    """DINO (Caron et al., 2021): a student predicts the output of its average, the teacher, for longer crops; no
    negatives.
    """
    locals: int = Field(4, ge=0)
    """The number of local crops, which only the student sees, besides two global crops of ``views.segment_s`` seconds.
    Each costs a pass of the student.
    """
    local_s: float = Field(2.0, gt=0)
    """The length in seconds of a local crop; shorter than ``views.segment_s``."""
    head: DinoHeadConfig = DinoHeadConfig()
    """The layers between the encoder and the prototypes."""
    student_temperature: float = Field(0.1, gt=0)
    """The temperature of the student's softmax; above that of the teacher."""
    teacher_temperature: float = Field(0.04, gt=0)
    """The temperature of the teacher's softmax. Lower values sharpen its targets and act against uniform outputs. Watch
    ``teacher_entropy``: near log(prototypes) or near 0, nothing is learnt.
    """
    teacher_momentum: float = Field(0.996, ge=0, le=1)
    """The share of itself that the teacher keeps in a step, from 0 to 1. It rises from this value to 1 as half a cosine
    over the training. 0.996 is published; lower it for short trainings.
    """
    centre_momentum: float = Field(0.9, ge=0, lt=1)
    """The momentum of the centre, the moving average of the teacher's logits that keeps one prototype from winning
    everywhere. Lower it if there are few steps.
    """
    freeze_epochs: int = Field(1, ge=0)
    """The number of first epochs in which the prototypes keep their initial values; it steadies the beginning."""
    store: Literal["bottleneck", "output"] = "bottleneck"
    """What SSPS stores of an utterance. ``bottleneck`` is the output of the teacher's bottleneck; after a recall the
    current prototypes are applied to it. ``output`` is the logits at the time of storing (65,536 values are 256 KiB).
    """
    evaluate: Literal["teacher", "student"] = "teacher"
    """Whose encoder is evaluated and exported, that of the ``teacher`` or of the ``student``. The teacher is usually
    better.
    """

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A head of a few thousand weights."""
        return {"head": {"hidden": [32], "bottleneck": 16, "prototypes": 64}}

    @property
    def crops(self) -> tuple[str, ...]:
        """The names of the segments, the global ones first."""
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
        """The width of `DINO.positives`."""
        return self.head.bottleneck if self.store == "bottleneck" else self.head.prototypes

    def projection(self, embedding_dim: int) -> tuple[str, nn.Module] | None:
        """The bottleneck of the branch that ``evaluate`` chooses, of unit length."""
        return f"{self.evaluate}.head.", DinoBottleneck(self.head, embedding_dim)

    def positive_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The first global crop."""
        return self.segments(views, epoch)[:1]


class Branch(nn.Module, Generic[Head]):
    """An encoder and a head: the student or the teacher."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, views: list[View]) -> list[Tensor]:
        """The bottleneck of each view, ``[B, bottleneck]``. Views of the same length go through in one pass."""
        rows: dict[int, Tensor] = {}
        for length in dict.fromkeys(view.wave.shape[1] for view in views):
            numbers = [number for number, view in enumerate(views) if view.wave.shape[1] == length]
            embedded = torch.cat(embed_together(self.encoder, [views[number] for number in numbers]))
            rows |= zip(numbers, self.head.bottleneck(embedded).chunk(len(numbers)), strict=True)
        return [rows[number] for number in range(len(views))]


class Distilled(Method, Generic[Head]):
    """A ``student`` that learns, and a ``teacher`` without gradient that is its moving average."""

    config: Any  # with evaluate and teacher_momentum
    student: Branch[Head]
    teacher: Branch[Head]

    def __init__(self, config: Any, student: Branch[Head]) -> None:
        super().__init__()
        self.config, self.student, self.teacher = config, student, frozen_copy(student)
        self.encoder_prefix = f"{config.evaluate}.encoder."
        self._crops = config.crops

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The encoder that ``evaluate`` chooses."""
        return self.teacher.encoder if self.config.evaluate == "teacher" else self.student.encoder

    @property
    def reference_encoder(self) -> Encoder:
        """The teacher's encoder, independent of ``evaluate``."""
        return self.teacher.encoder

    def after_step(self, progress: float) -> None:
        """The teacher follows the student."""
        average(self.teacher, self.student, momentum_at(progress, self.config.teacher_momentum))


class DINO(Distilled[DinoHead]):
    """Cross-entropy (SSPS paper, Eq. 2) of the student's outputs against the teacher's outputs for global crops.

    The teacher is a copy of the student at the start, and then its moving average. It has no gradient. It runs in
    training mode on the distorted crops, as published. ``centre`` is the moving average of its logits over the global
    batches.
    """

    Config = DINOConfig
    config: DINOConfig
    reads_statistics = False
    equal_on_ranks = ("centre",)
    centre: Tensor

    def __init__(self, config: DINOConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__(config, Branch(encoder, DinoHead(config.head, encoder.embedding_dim)))
        self.register_buffer("centre", torch.zeros(config.head.prototypes))

    def forward(self, views: Views) -> Outputs:
        """The student's logits ``[B, K]`` by crop; and ``teacher1``, ``teacher2`` in the form that ``store`` says."""
        crops = [views[name] for name in self._crops]
        logits = self.student.head.prototypes(torch.cat(self.student(crops)))
        out = dict(zip(self._crops, logits.chunk(len(crops)), strict=True))
        with torch.no_grad():
            rows = self.teacher(crops[: len(_GLOBALS)])
            if self.config.store == "output":
                rows = [self.teacher.head.prototypes(row) for row in rows]
        return out | dict(zip(_TEACHER, rows, strict=True))

    def positives(self, out: Outputs) -> Tensor:
        """The teacher's output for the first global crop."""
        return out["teacher1"]

    def positives_of(self, views: Views) -> Tensor:
        """`positives` without computing the student and the other crops."""
        rows: Tensor = self.teacher([views[_GLOBALS[0]]])[0]
        if self.config.store == "output":
            rows = self.teacher.head.prototypes(rows)
        return rows

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row replaces both outputs of the teacher, so it is counted twice in the centre."""
        return {**out, **{name: replaced(out[name], recall) for name in _TEACHER}}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss with the centre of the previous batches. Afterwards the centre is moved by this global batch."""
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
        uncertainty = entropy(teachers, centre=self.centre, temperature=config.teacher_temperature)
        mean = collectives.sum_over_ranks(mean_logits(teachers)) / collectives.world()
        self.centre.copy_(moved_centre(self.centre, mean, momentum=config.centre_momentum))
        return Step(loss, {"dino": loss.detach(), "teacher_entropy": uncertainty})

    def before_update(self, epoch: int) -> None:
        """Freezes the prototypes in the first epochs. Without a gradient they get no weight decay either."""
        if epoch < self.config.freeze_epochs:
            self.student.head.prototypes.weight.grad = None

    @torch.no_grad()
    def _logits(self, stored: Tensor) -> Tensor:
        if self.config.store == "output":
            return stored
        logits: Tensor = self.teacher.head.prototypes(stored)
        return logits
