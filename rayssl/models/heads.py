"""The layers between the encoder and a loss: projectors and classifiers."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rayssl.models.norm import BatchNorm1d
from rayssl.schema import Config


class ProjectorConfig(Config):
    """A projector. ``sizes`` are the widths of its linear layers; empty means no projector.

    Every layer but the last has batch normalisation (``batch_norm``) and ReLU. The last layer has a bias if
    ``last_bias`` is true.
    """

    sizes: list[int] = Field(default_factory=list)
    """The widths of the projector's linear layers, the last one being the output; an empty list means no projector."""
    batch_norm: bool = True
    """Whether every layer but the last has batch normalisation before its ReLU."""
    last_bias: bool = True
    """Whether the last layer has a bias. VICReg leaves it out: its loss does not depend on it."""

    def outputs(self, inputs: int) -> int:
        """The width of the output, if the input has the width ``inputs``."""
        return self.sizes[-1] if self.sizes else inputs


class Projector(nn.Module):
    """A multilayer perceptron, ``[B, inputs]`` to ``[B, outputs]``; the identity if ``sizes`` is empty."""

    def __init__(self, config: ProjectorConfig, inputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for position, size in enumerate(config.sizes):
            last = position == len(config.sizes) - 1
            layers.append(nn.Linear(width, size, bias=config.last_bias if last else not config.batch_norm))
            if not last:
                layers += [BatchNorm1d(size)] if config.batch_norm else []
                layers.append(nn.ReLU())
            width = size
        self.layers = nn.Sequential(*layers)
        self.outputs = width

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.layers(x)
        return projected


class Prototypes(nn.Module):
    """The cosine similarity to trained prototypes: ``[B, inputs]`` of unit length to ``[B, count]``, float32 at least.

    It is a linear layer without bias, and each row of its weight is divided by its length. That is weight normalisation
    (Salimans and Kingma, 2016) with all gains fixed at 1, so the gains are not parameters. Only the directions of the
    rows matter.
    """

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, inputs))
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)  # rows of length 0.58, as in a linear layer

    def forward(self, x: Tensor) -> Tensor:
        # Cosines are divided by temperatures of a few hundredths: a step of bfloat16 near 1 would become 0.1 in a logit
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            return F.linear(x, F.normalize(self.weight.to(x.dtype)))


class DinoHeadConfig(Config):
    """The sizes of DINO's head.

    ``hidden``: the widths of the layers with GELU. ``bottleneck``: the width of the layer after them, whose output has
    unit length. ``prototypes``: the number of outputs. ``batch_norm`` adds batch normalisation before each GELU, as in
    public code for speech; the original has none.
    """

    hidden: list[Annotated[int, Field(ge=1)]] = [2048, 2048]
    """The widths of the layers with GELU; an empty list leaves only the bottleneck."""
    bottleneck: int = Field(256, ge=1)
    """The width of the layer before the prototypes, whose output has unit length."""
    prototypes: int = Field(65536, ge=2)
    """The number of prototypes, which is the number of outputs. 65,536 is published for millions of images; small
    corpora do better with a few hundred or thousand.
    """
    batch_norm: bool = True
    """Whether there is batch normalisation before each GELU, as in public code for speech; the original has none."""


class DinoBottleneck(nn.Module):
    """The part of `DinoHead` before the prototypes: `bottleneck`, ``[B, inputs]`` to ``[B, bottleneck]``."""

    def __init__(self, config: DinoHeadConfig, inputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for size in config.hidden:
            layers.append(nn.Linear(width, size, bias=not config.batch_norm))
            layers += [BatchNorm1d(size)] if config.batch_norm else []
            layers.append(nn.GELU())
            width = size
        layers.append(nn.Linear(width, config.bottleneck))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers)

    def bottleneck(self, x: Tensor) -> Tensor:
        """``[B, inputs]`` to ``[B, bottleneck]`` of unit length, float32 at least."""
        y: Tensor = self.layers(x)
        return F.normalize(y if y.dtype == torch.float64 else y.float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """`bottleneck`."""
        return self.bottleneck(x)


class DinoHead(DinoBottleneck):
    """DINO's head (Caron et al., ICCV 2021) in two parts: `bottleneck`, and `prototypes` applied to its output.

    ``head(x)`` is ``prototypes(bottleneck(x))``: ``[B, inputs]`` to ``[B, prototypes]``.
    """

    def __init__(self, config: DinoHeadConfig, inputs: int) -> None:
        super().__init__(config, inputs)
        self.prototypes = Prototypes(config.bottleneck, config.prototypes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.prototypes(self.bottleneck(x))
        return logits


class Classifier(nn.Module):
    """A linear layer to logits, ``[B, inputs]`` to ``[B, classes]``, in float32 at least.

    Initial weights have a standard deviation of 0.01 and biases are 0, so the first predictions are almost uniform.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        # bfloat16 is too coarse for thresholds on probabilities and for margins between classes
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.linear(x if x.dtype == torch.float64 else x.float())
            return logits


class AamHead(nn.Module):
    """Additive angular margin (Deng et al., CVPR 2019, Eq. 3): embeddings to logits for a cross-entropy.

    ``theta`` is the angle between an embedding and the weight of a class, ``margin`` is in radians. The logit of the
    target class is ``scale * cos(theta + margin)``; every other logit is ``scale * cos(theta)``. If ``theta + margin``
    exceeds pi, the target's cosine is replaced by ``cos(theta) - margin * sin(margin)``, which still falls with theta.
    With ``easy_margin`` the target has no margin if ``cos(theta) <= 0``. Angles are computed in float32 at least.
    """

    def __init__(
        self, embedding_dim: int, classes: int, *, margin: float = 0.2, scale: float = 30.0, easy_margin: bool = False
    ) -> None:
        super().__init__()
        self.margin, self.scale, self.easy_margin = margin, scale, easy_margin
        self.weight = nn.Parameter(torch.empty(classes, embedding_dim))
        nn.init.xavier_normal_(self.weight)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """``cos(theta)`` for all classes, ``[B, classes]``, without margin and scale."""
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
            return F.linear(F.normalize(x), F.normalize(self.weight))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """``embeddings [B, D]`` and ``labels [B]`` int64 in 0..classes-1 (else an error) to logits ``[B, classes]``."""
        cosines = self.cosines(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            target = cosines.gather(1, labels[:, None])
            sine = (1.0 - target.square()).clamp_min(1e-12).sqrt()
            shifted = target * math.cos(self.margin) - sine * math.sin(self.margin)
            if self.easy_margin:
                shifted = torch.where(target > 0.0, shifted, target)
            else:
                fallback = target - self.margin * math.sin(self.margin)
                shifted = torch.where(target >= -math.cos(self.margin), shifted, fallback)
            return self.scale * cosines.scatter(1, labels[:, None], shifted)
