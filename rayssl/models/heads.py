"""What stands between the encoder and a loss: projectors and classifiers."""

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
    """Widths of the layers, the last one without normalisation or ReLU, and without bias where ``last_bias`` is false;
    no ``sizes`` means no projector.
    """

    sizes: list[int] = Field(default_factory=list)
    batch_norm: bool = True
    last_bias: bool = True

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
    """Cosines to learnt directions: ``[B, inputs]`` of unit length to ``[B, count]``, float32 at least.

    A linear layer without bias whose rows are divided by their length: weight normalisation (Salimans and Kingma,
    2016) with every gain fixed at 1, which is therefore no parameter here. Only the rows' directions matter.
    """

    def __init__(self, inputs: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, inputs))
        nn.init.uniform_(self.weight, -(inputs**-0.5), inputs**-0.5)  # of length 0.58, as a linear layer's rows

    def forward(self, x: Tensor) -> Tensor:
        # Divided by temperatures of a few hundredths, bfloat16's steps near 1 would be steps of 0.1 in the logits
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            return F.linear(x, F.normalize(self.weight.to(x.dtype)))


class DinoHeadConfig(Config):
    """``hidden`` layers with GELU (``batch_norm`` before it, as in public code for speech; the original has none), then
    ``bottleneck`` values of unit length, then ``prototypes``.
    """

    hidden: list[Annotated[int, Field(ge=1)]] = [2048, 2048]
    bottleneck: int = Field(256, ge=1)
    prototypes: int = Field(65536, ge=2)
    batch_norm: bool = True


class DinoHead(nn.Module):
    """DINO's head in two parts (Caron et al., ICCV 2021): `bottleneck` and, over its rows, `prototypes`.

    Calling the head is ``prototypes(bottleneck(x))``: ``[B, inputs]`` to ``[B, prototypes]``.
    """

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
        self.prototypes = Prototypes(config.bottleneck, config.prototypes)

    def bottleneck(self, x: Tensor) -> Tensor:
        """``[B, inputs]`` to ``[B, bottleneck]`` of unit length, float32 at least."""
        y: Tensor = self.layers(x)
        return F.normalize(y if y.dtype == torch.float64 else y.float(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.prototypes(self.bottleneck(x))
        return logits


class Classifier(nn.Module):
    """A linear layer to logits, ``[B, inputs]`` to ``[B, classes]``, in float32 at least.

    Weights start at a deviation of 0.01 and biases at 0: training begins from an almost uniform prediction.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        # Thresholds on probabilities and margins between classes are finer than bfloat16's steps
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.linear(x if x.dtype == torch.float64 else x.float())
            return logits


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
