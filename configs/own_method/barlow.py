"""Barlow Twins (Zbontar et al., ICML 2021) as a method of one's own: what rayssl asks of a file outside of it.

Two views of an utterance should agree in every dimension of their embedding, and no dimension repeat another: the
cross-correlation ``C [D, D]`` of both views over the global batch is drawn to the identity.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from rayssl import collectives
from rayssl.methods.base import Batch, Outputs, Recalled, Step, Views, embed_together
from rayssl.methods.pair import PairConfig, PairMethod
from rayssl.models.heads import ProjectorConfig


def barlow(a: Tensor, b: Tensor, *, redundancy: float) -> Tensor:
    """``sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2`` (Eq. 1) of ``a, b [N, D]``."""
    a, b = ((x - x.mean(0)) * torch.rsqrt(x.var(0, correction=0) + 1e-5) for x in (a.float(), b.float()))
    c = a.T @ b / len(a)
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + redundancy * (c.square().sum() - diagonal.square().sum())


class BarlowTwins(PairMethod):
    """The pair's segments, and what SSPS may put in the positive's place, are those of `PairMethod`."""

    class Config(PairConfig):
        """What `rayssl keys configs/own_method/barlow.py:BarlowTwins` shows."""

        projector: ProjectorConfig = ProjectorConfig(sizes=[256, 256, 256], last_bias=False)
        """The layers between the encoder and the loss."""
        redundancy: float = Field(0.005, ge=0)
        """Lambda, the weight of what is off the diagonal of the correlation; 0.005 is published."""

    config: Config

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D]``."""
        anchor, positive = embed_together(self.encoder, [views["anchor"], views["positive"]])
        return {"anchor": self.projector(anchor), "positive": self.projector(positive)}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """Gathered with gradient: a correlation is one of all ranks' rows."""
        a, b = collectives.gather(out["anchor"]), collectives.gather(out["positive"])
        loss = barlow(a, b, redundancy=self.config.redundancy)
        return Step(loss, {"barlow": loss.detach()})
