"""VICReg (Bardes, Ponce and LeCun, 2022) for utterances: views agree, dimensions vary and are not correlated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayssl import collectives
from rayssl.losses.vicreg import vicreg
from rayssl.methods.base import Batch, Outputs, Recalled, Step, Views
from rayssl.methods.pair import SiameseConfig, SiameseMethod
from rayssl.models.heads import ProjectorConfig


class VICRegConfig(SiameseConfig):
    """The coefficients of the three terms of `rayssl.losses.vicreg` (1, 1 and 0.04 published for speakers).

    The last layer of the ``projector`` has no bias, as published, because the loss would not depend on it.
    """

    name: Literal["vicreg"] = "vicreg"
    """VICReg (Bardes et al., 2022): views agree, each dimension varies, and dimensions are not correlated; no
    negatives.
    """
    projector: ProjectorConfig = ProjectorConfig(sizes=[2048, 2048, 2048], last_bias=False)
    """The layers between the encoder and the loss. Wide ones help here; the last layer has no bias, as published."""
    invariance: float = Field(25.0, ge=0)
    """The weight of the squared distance between the two views (lambda in the paper): 25 for images, 1 published for
    speakers.
    """
    variance: float = Field(25.0, ge=0)
    """The weight of the term that keeps each dimension's deviation near 1 (mu): 25 for images, with ``variance_over:
    mean``; 1 published for speakers. Raise it if embeddings collapse.
    """
    variance_over: Literal["sum", "mean"] = "sum"
    """Whether the terms of the two views are added before ``variance`` weighs them (``sum``, published for speakers
    with 1), or averaged (``mean``, the authors' code, published for images with 25).
    """
    covariance: float = Field(1.0, ge=0)
    """The weight of the term that removes correlations between dimensions (nu): 1 for images, 0.04 published for
    speakers.
    """


class VICReg(SiameseMethod):
    """The invariance of two views, and variance and covariance over the global batch."""

    Config = VICRegConfig
    config: VICRegConfig
    reads_statistics = False

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D_emb]``, in float32 so that ranks exchange full precision."""
        anchor, positive = self.embedded(views)
        return {"anchor": self.projector(anchor).float(), "positive": self.projector(positive).float()}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss. Its statistics are those of the rows of all ranks, gathered with gradient."""
        config, a, b = self.config, out["anchor"], out["positive"]
        keys_a, keys_b = collectives.gather(a), collectives.gather(b)
        terms = vicreg(a, b, keys_a=keys_a, keys_b=keys_b, variance_mean=config.variance_over == "mean")
        loss = config.invariance * terms.invariance
        loss = loss + config.variance * terms.variance + config.covariance * terms.covariance
        return Step(loss, {name: term.detach() for name, term in terms._asdict().items()})
