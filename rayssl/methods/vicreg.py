"""VICReg (Bardes, Ponce and LeCun, 2022) for utterances: views agree, no dimension is constant or repeats another."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayssl import collectives
from rayssl.losses.vicreg import vicreg
from rayssl.methods.base import Batch, Outputs, Recalled, Step, Views, embed_together
from rayssl.methods.pair import PairConfig, PairMethod
from rayssl.models.heads import ProjectorConfig


class VICRegConfig(PairConfig):
    """Coefficients of the three terms as `rayssl.losses.vicreg` defines them (1, 1 and 0.04 published for speakers).

    The ``projector``'s last layer has no bias, as published: nothing in the loss of two views would hold it anywhere.
    """

    name: Literal["vicreg"] = "vicreg"
    projector: ProjectorConfig = ProjectorConfig(sizes=[2048, 2048, 2048], last_bias=False)
    invariance: float = Field(25.0, ge=0)
    variance: float = Field(25.0, ge=0)
    covariance: float = Field(1.0, ge=0)


class VICReg(PairMethod):
    """Invariance of two views, variance and covariance over the global batch."""

    Config = VICRegConfig
    config: VICRegConfig

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D_emb]``, float32: also where ranks exchange them."""
        anchor, positive = embed_together(self.encoder, [views["anchor"], views["positive"]])
        return {"anchor": self.projector(anchor).float(), "positive": self.projector(positive).float()}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """Statistics are of the rows of all ranks, gathered with gradient."""
        config, a, b = self.config, out["anchor"], out["positive"]
        terms = vicreg(a, b, keys_a=collectives.gather(a), keys_b=collectives.gather(b))
        loss = config.invariance * terms.invariance
        loss = loss + config.variance * terms.variance + config.covariance * terms.covariance
        return Step(loss, {name: term.detach() for name, term in terms._asdict().items()})
