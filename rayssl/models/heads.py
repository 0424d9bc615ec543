"""What stands between the encoder and a loss: projectors and classifiers."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.norm import BatchNorm1d
from rayssl.schema import Config


class ProjectorConfig(Config):
    """Widths of the layers, the last one without normalisation or ReLU; no ``sizes`` means no projector."""

    sizes: list[int] = Field(default_factory=list)
    batch_norm: bool = True

    def outputs(self, inputs: int) -> int:
        """The width of what comes out."""
        return self.sizes[-1] if self.sizes else inputs


class Projector(nn.Module):
    """A multilayer perceptron ``[B, inputs]`` to ``[B, outputs]``; the identity for empty ``sizes``."""

    def __init__(self, config: ProjectorConfig, inputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for position, size in enumerate(config.sizes):
            last = position == len(config.sizes) - 1
            layers.append(nn.Linear(width, size, bias=last or not config.batch_norm))
            if not last:
                layers += [BatchNorm1d(size)] if config.batch_norm else []
                layers.append(nn.ReLU())
            width = size
        self.layers = nn.Sequential(*layers)
        self.outputs = width

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.layers(x)
        return projected


class AamHead(nn.Module):
    """Additive angular margin (Deng et al., CVPR 2019, Eq. 3): embeddings to logits for a cross-entropy.

    With ``theta`` between an embedding and a class weight, the target's logit is ``scale * cos(theta + margin)`` and
    any other's ``scale * cos(theta)``. Where ``theta + margin`` would pass pi, the target's is continued by
    ``cos(theta) - margin * sin(margin)``, which keeps falling; ``easy_margin`` instead leaves it without margin where
    ``cos(theta) <= 0``. Angles are computed in float32 at least.
    """

    def __init__(
        self, embedding_dim: int, classes: int, *, margin: float = 0.2, scale: float = 30.0, easy_margin: bool = False
    ) -> None:
        super().__init__()
        self.margin, self.scale, self.easy_margin = margin, scale, easy_margin
        self.weight = nn.Parameter(torch.empty(classes, embedding_dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """``embeddings [B, D]``, ``labels [B]`` int64 in 0..classes-1 (else an error) to ``[B, classes]``."""
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
            cosines = F.linear(F.normalize(x), F.normalize(self.weight))
            target = cosines.gather(1, labels[:, None])
            sine = (1.0 - target.square()).clamp_min(1e-12).sqrt()
            shifted = target * math.cos(self.margin) - sine * math.sin(self.margin)
            if self.easy_margin:
                shifted = torch.where(target > 0.0, shifted, target)
            else:
                fallback = target - self.margin * math.sin(self.margin)
                shifted = torch.where(target >= -math.cos(self.margin), shifted, fallback)
            return self.scale * cosines.scatter(1, labels[:, None], shifted)
