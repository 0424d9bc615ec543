"""Shared by methods with two segments: an anchor and a positive of each utterance, and a projector."""

from __future__ import annotations

from torch import Tensor, nn

from rayssl.methods.base import Method, MethodConfig, Outputs, Recall, Views, embed_together, replaced
from rayssl.models.encoder import Encoder
from rayssl.models.heads import Projector, ProjectorConfig
from rayssl.views.recipes import Recipe, Segment, ViewsConfig


class PairConfig(MethodConfig):
    """``projector`` after the encoder; the default is none."""

    projector: ProjectorConfig = ProjectorConfig()
    """The layers between the encoder and the loss; by default none. After training only the encoder is used."""

    @property
    def pair_recipe(self) -> Recipe:
        """The recipe of both segments."""
        return "distort"

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The anchor and the positive. Each has its own draws for the recipe."""
        return tuple(
            Segment(name=name, seconds=views.segment_s, recipe=self.pair_recipe, disjoint=views.disjoint)
            for name in ("anchor", "positive")
        )

    def positive_dim(self, embedding_dim: int) -> int:
        """The width of `PairMethod.positives`."""
        return self.projector.outputs(embedding_dim)

    def projection(self, embedding_dim: int) -> tuple[str, nn.Module] | None:
        """The projector."""
        return ("projector.", Projector(self.projector, embedding_dim)) if self.projector.sizes else None


class SiameseConfig(PairConfig):
    """``one_pass``: whether both segments go through the encoder together."""

    one_pass: bool = True
    """Whether both segments go through the encoder in one pass, so that batch normalisation takes the statistics of
    both together. With false each has a pass of its own, as in the public code for speakers.
    """


class PairMethod(Method):
    """Two distorted segments of each utterance. SSPS replaces the embedding of the second one, ``positive``."""

    def __init__(self, config: PairConfig, encoder: Encoder, views: ViewsConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.projector = Projector(config.projector, encoder.embedding_dim)
        self.embedding_dim = self.projector.outputs

    def positives(self, out: Outputs) -> Tensor:
        """The embeddings of the second segments."""
        return out["positive"]

    def with_positives(self, out: Outputs, recall: Recall) -> Outputs:
        """Recalled rows replace the positives in every part of the loss."""
        return {**out, "positive": replaced(out["positive"], recall)}


class SiameseMethod(PairMethod):
    """A pair whose two segments go through the same encoder, with gradient."""

    config: SiameseConfig

    def embedded(self, views: Views) -> tuple[Tensor, Tensor]:
        """The embeddings ``[B, D]`` of anchor and positive, in one pass or in two."""
        pair = [views["anchor"], views["positive"]]
        if self.config.one_pass:
            anchor, positive = embed_together(self.encoder, pair)
        else:
            anchor, positive = (self.encoder(view.wave, view.keys) for view in pair)
        return anchor, positive
