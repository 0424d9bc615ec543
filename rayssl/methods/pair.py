"""What methods of two segments share: an anchor and a positive of each utterance, and a projector after the encoder."""

from __future__ import annotations

from torch import Tensor

from rayssl.methods.base import Method, MethodConfig, Outputs, Recall, replaced
from rayssl.models.encoder import Encoder
from rayssl.models.heads import Projector, ProjectorConfig
from rayssl.views.recipes import Recipe, Segment, ViewsConfig


class PairConfig(MethodConfig):
    """``projector`` after the encoder, by default none."""

    projector: ProjectorConfig = ProjectorConfig()

    @property
    def pair_recipe(self) -> Recipe:
        """What both segments go through."""
        return "distort"

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """Anchor and positive, each with draws of its own for the recipe."""
        return tuple(
            Segment(name=name, seconds=views.segment_s, recipe=self.pair_recipe, disjoint=views.disjoint)
            for name in ("anchor", "positive")
        )

    def positive_dim(self, embedding_dim: int) -> int:
        """D_emb of `PairMethod.positives`."""
        return self.projector.outputs(embedding_dim)


class PairMethod(Method):
    """Two distorted segments of each utterance; SSPS replaces the second one's embedding, ``positive``."""

    def __init__(self, config: PairConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = Projector(config.projector, encoder.embedding_dim)
        self.embedding_dim = self.projector.outputs

    def positives(self, out: Outputs) -> Tensor:
        """The second segments' embeddings."""
        return out["positive"]

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """The recalled row takes the positive's place in every part of the loss."""
        return {**out, "positive": replaced(out["positive"], recall)}
