"""SimCLR (Chen et al., 2020) for utterances: two distorted segments of one utterance attract, all others repel."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from rayssl import collectives
from rayssl.losses.ntxent import ntxent
from rayssl.methods.base import Batch, Method, Outputs, Recall, Step, Views, embed_together, replaced
from rayssl.models.encoder import Encoder
from rayssl.models.heads import Projector, ProjectorConfig
from rayssl.schema import Config
from rayssl.views.recipes import Segment, ViewsConfig


class SimCLRConfig(Config):
    """``temperature`` of NT-Xent (0.03 published for speakers); ``projector`` after the encoder, by default none."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(0.03, gt=0)
    projector: ProjectorConfig = ProjectorConfig()

    def positive_dim(self, embedding_dim: int) -> int:
        """D_emb of `SimCLR.positives`."""
        return self.projector.outputs(embedding_dim)


class SimCLR(Method):
    """NT-Xent (SSPS paper, Eq. 1) over anchors and positives of the global batch."""

    def __init__(self, config: SimCLRConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__()
        self.config = config
        self.views = views
        self.encoder = encoder
        self.projector = Projector(config.projector, encoder.embedding_dim)
        self.embedding_dim = self.projector.outputs

    def segments(self, epoch: int) -> tuple[Segment, ...]:
        """Anchor and positive, both distorted."""
        views = self.views
        return tuple(
            Segment(name=name, seconds=views.segment_s, distort=True, disjoint=views.disjoint)
            for name in ("anchor", "positive")
        )

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D_emb]``."""
        anchor, positive = embed_together(self.encoder, [views["anchor"], views["positive"]])
        return {"anchor": self.projector(anchor), "positive": self.projector(positive)}

    def positives(self, out: Outputs) -> Tensor:
        """The second segments' embeddings."""
        return out["positive"]

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row is an anchor and everybody's negative too: the loss stays symmetric."""
        return {**out, "positive": replaced(out["positive"], recall)}

    def step(self, out: Outputs, batch: Batch, recall: Recall | None) -> Step:
        """Every other row of the global batch, anchors and positives alike, is a negative."""
        a, b = out["anchor"], out["positive"]
        keys_a, keys_b = collectives.gather(a), collectives.gather(b)
        offset = collectives.rank() * len(a)
        loss = ntxent(a, b, keys_a=keys_a, keys_b=keys_b, offset=offset, temperature=self.config.temperature)
        return Step(loss, {"ntxent": loss.detach()})
