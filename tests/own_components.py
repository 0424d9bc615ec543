"""What an installed package might register."""

from __future__ import annotations

from torch import Tensor, nn

from rayssl.models.base import Backbone, BackboneConfig


class Tunes(Backbone):
    class Config(BackboneConfig):
        embedding_dim: int = 8
        width: int = 4

    def __init__(self, config: Config, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, config.embedding_dim)

    def forward(self, features: Tensor) -> Tensor:
        embedding: Tensor = self.layer(features.mean(-1))
        return embedding
