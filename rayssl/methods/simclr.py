"""SimCLR (Chen et al., 2020) for utterances: two distorted segments of an utterance attract each other.

The segments of all other utterances repel them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayssl import collectives
from rayssl.losses.ntxent import ntxent
from rayssl.methods.base import Batch, Outputs, Recalled, Step, Views
from rayssl.methods.pair import SiameseConfig, SiameseMethod


class SimCLRConfig(SiameseConfig):
    """``temperature`` of NT-Xent (0.03 published for speakers); ``projector`` after the encoder, none by default."""

    name: Literal["simclr"] = "simclr"
    """SimCLR (Chen et al., 2020): two distorted segments of an utterance attract each other, all others repel them."""
    temperature: float = Field(0.03, gt=0)
    """The temperature of NT-Xent, which divides cosine similarities. Lower values weigh the hardest negatives more;
    0.03 is published for speakers, 0.1 to 0.5 are usual for images.
    """


class SimCLR(SiameseMethod):
    """NT-Xent (SSPS paper, Eq. 1) over anchors and positives of the global batch."""

    Config = SimCLRConfig
    config: SimCLRConfig
    reads_statistics = False

    def forward(self, views: Views) -> Outputs:
        """``anchor`` and ``positive`` ``[B, D_emb]``."""
        anchor, positive = self.embedded(views)
        return {"anchor": self.projector(anchor), "positive": self.projector(positive)}

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The negatives of a row are all other anchors and positives of the global batch, also recalled positives."""
        a, b = out["anchor"], out["positive"]
        keys_a, keys_b = collectives.gather(a), collectives.gather(b)
        offset = collectives.rank() * len(a)
        loss = ntxent(a, b, keys_a=keys_a, keys_b=keys_b, offset=offset, temperature=self.config.temperature)
        return Step(loss, {"ntxent": loss.detach()})
