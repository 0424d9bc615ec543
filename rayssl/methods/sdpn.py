"""SDPN (Chen et al., ICASSP 2025, arXiv 2308.02774) for utterances, without negatives.

From a short distorted crop of an utterance, the student predicts the prototypes to which the teacher, an average of the
student, assigns a longer undistorted one. Teacher and student share the prototypes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rayssl import collectives
from rayssl.losses.sdpn import balanced, decorrelation, koleo, prediction, unevenness
from rayssl.methods.base import (
    Batch,
    MethodConfig,
    Outputs,
    Recall,
    Recalled,
    Step,
    Views,
    embed_together,
    replaced,
)
from rayssl.methods.dino import Branch, Distilled
from rayssl.models.encoder import Encoder
from rayssl.models.heads import DinoBottleneck, DinoHeadConfig, Prototypes
from rayssl.views.recipes import Segment, ViewsConfig


class SDPNHeadConfig(DinoHeadConfig):
    """The sizes of the layers between the encoder and the prototypes, and the number of prototypes."""

    prototypes: int = Field(1024, ge=2)
    """The number of prototypes, which student and teacher share. 1024 are published for the 5,994 speakers of
    VoxCeleb2; smaller corpora do with fewer.
    """


class SDPNConfig(MethodConfig):
    """One global crop of ``views.segment_s`` seconds without distortion, and ``locals`` distorted crops of ``local_s``.

    The teacher sees the global crop and the student the local ones. ``iterations`` of Sinkhorn-Knopp make the teacher's
    codes from its distributions over the prototypes. ``entropy_weight``, ``diversity_weight`` and ``dimension_weight``
    are those of three terms against collapse. ``evaluate``: whose encoder is evaluated and exported. Under SSPS, the
    memory stores the output of the teacher's bottleneck, and the current prototypes are applied to a recalled one.
    """

    name: Literal["sdpn"] = "sdpn"
    """SDPN (Chen et al., 2025): from short crops, a student predicts the prototypes of its average for a clean one."""
    locals: int = Field(4, ge=1)
    """The number of local crops, which the student sees. Each costs a pass with gradient."""
    local_s: float = Field(2.0, gt=0)
    """The length in seconds of a local crop; shorter than ``views.segment_s``."""
    head: SDPNHeadConfig = SDPNHeadConfig()
    """The layers between the encoder and the prototypes."""
    student_temperature: float = Field(0.1, gt=0)
    """The temperature of the student's softmax over prototypes; 0.1 is published."""
    teacher_temperature: float = Field(0.025, gt=0)
    """The temperature of the teacher's softmax; below that of the student, so that targets are sharp. 0.025 is
    published, as 0.1 with a sharpening of 0.25.
    """
    iterations: int = Field(3, ge=1)
    """The number of Sinkhorn-Knopp iterations that balance the teacher's codes; 3 are published. More make the use of
    the prototypes more equal.
    """
    entropy_weight: float = Field(1.0, ge=0)
    """The weight of the term that makes the student use all prototypes; 1 is published. Watch ``unevenness``: near
    log(prototypes), a single prototype wins everywhere.
    """
    diversity_weight: float = Field(0.1, ge=0)
    """The weight of the paper's diversity regularisation (KoLeo), which pushes each embedding away from the nearest one
    of the batch; 0.1 is published.
    """
    dimension_weight: float = Field(0.0, ge=0)
    """The weight of a term that makes the dimensions of the embedding uncorrelated and equally wide, of the kind that
    arXiv 2505.13826 adds; 0 is off, as in the public code.
    """
    teacher_momentum: float = Field(0.996, ge=0, le=1)
    """The share of itself that the teacher keeps in a step, from 0 to 1. It rises from this value to 1 as half a cosine
    over the training. 0.996 is published; lower it for short trainings.
    """
    evaluate: Literal["teacher", "student"] = "teacher"
    """Whose encoder is evaluated and exported, that of the ``teacher``, as published, or of the ``student``."""

    @classmethod
    def trial_settings(cls) -> dict[str, Any]:
        """A head of a few thousand weights."""
        return {"head": {"hidden": [32], "bottleneck": 16, "prototypes": 64}}

    @property
    def crops(self) -> tuple[str, ...]:
        """The names of the local crops."""
        return tuple(f"local{number + 1}" for number in range(self.locals))

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The global crop as it is, then the local ones, distorted."""
        crops = (
            Segment(name=name, seconds=self.local_s, recipe="distort", disjoint=views.disjoint) for name in self.crops
        )
        return (Segment(name="global", seconds=views.segment_s, disjoint=views.disjoint), *crops)

    def positive_dim(self, embedding_dim: int) -> int:
        """The width of `SDPN.positives`."""
        return self.head.bottleneck

    def projection(self, embedding_dim: int) -> tuple[str, nn.Module] | None:
        """The bottleneck of the branch that ``evaluate`` chooses, of unit length."""
        return f"{self.evaluate}.head.", DinoBottleneck(self.head, embedding_dim)

    def positive_segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The global crop."""
        return self.segments(views, epoch)[:1]


class SDPN(Distilled[DinoBottleneck]):
    """Cross-entropy of the student's distributions over shared prototypes against balanced codes of the teacher.

    The teacher is a copy of the student's encoder and bottleneck at the start, and then their moving average. It has no
    gradient. It runs in training mode, as published. The prototypes are trained by the student's loss alone.
    """

    Config = SDPNConfig
    config: SDPNConfig
    reads_statistics = False

    def __init__(self, config: SDPNConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__(config, Branch(encoder, DinoBottleneck(config.head, encoder.embedding_dim)))
        self.prototypes = Prototypes(config.head.bottleneck, config.head.prototypes)

    def forward(self, views: Views) -> Outputs:
        """``teacher [B, bottleneck]`` of unit length; of each local crop the student's cosines to the prototypes
        ``[B, K]`` by its name, and its embedding ``[B, D]`` by ``<name>_embedding``.
        """
        embeddings = embed_together(self.student.encoder, [views[name] for name in self._crops])
        cosines = self.prototypes(self.student.head.bottleneck(torch.cat(embeddings))).chunk(len(self._crops))
        out = dict(zip(self._crops, cosines, strict=True))
        out |= {f"{name}_embedding": rows for name, rows in zip(self._crops, embeddings, strict=True)}
        with torch.no_grad():
            return out | {"teacher": self.positives_of(views)}

    def positives(self, out: Outputs) -> Tensor:
        """The teacher's output for the global crop."""
        return out["teacher"]

    def positives_of(self, views: Views) -> Tensor:
        """`positives` without computing the student."""
        rows: Tensor = self.teacher([views["global"]])[0]
        return rows

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row replaces the teacher's output, so it takes part in the balance of the codes."""
        return {**out, "teacher": replaced(out["teacher"], recall)}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """Every rank computes the codes and the terms against collapse from the rows of the whole global batch."""
        config, rows = self.config, len(out["teacher"])
        offset = collectives.rank() * rows
        with torch.no_grad():
            keys = self.prototypes(collectives.gather(out["teacher"].detach()))
        codes = balanced(keys, temperature=config.teacher_temperature, iterations=config.iterations)
        codes = codes[offset : offset + rows]
        students = torch.stack([out[name] for name in self._crops])
        found = prediction(students, codes, temperature=config.student_temperature)
        use = unevenness(collectives.sum_over_ranks(found.mean) / collectives.world())
        loss = found.loss + config.entropy_weight * use
        doubt = -torch.special.xlogy(codes, codes).sum(dim=1).mean()
        terms = {"sdpn": found.loss, "unevenness": use, "teacher_entropy": doubt}
        for name, weight, value in self._spread(out, offset):
            loss = loss + weight * value
            terms[name] = value
        return Step(loss, {name: value.detach() for name, value in terms.items()})

    def _spread(self, out: Outputs, offset: int) -> list[tuple[str, float, Tensor]]:
        """The terms on the student's embeddings whose weight is not 0: name, weight, and the sum over the crops."""
        config = self.config
        if not (config.diversity_weight or config.dimension_weight):
            return []
        own = [out[f"{name}_embedding"] for name in self._crops]
        keys = collectives.gather(torch.cat(own, dim=1)).chunk(len(own), dim=1)  # one message for all crops
        terms = []
        if config.diversity_weight:
            values = [koleo(rows, all_rows, offset=offset) for rows, all_rows in zip(own, keys, strict=True)]
            terms.append(("diversity", config.diversity_weight, torch.stack(values).sum()))
        if config.dimension_weight:
            values = [decorrelation(all_rows) for all_rows in keys]
            terms.append(("decorrelation", config.dimension_weight, torch.stack(values).sum()))
        return terms
