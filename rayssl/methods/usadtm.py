"""USADTM (Han et al., NeurIPS 2020): pseudo-labels from the nearest class template, and semantic aggregation.

The templates are one of the two classifiers that DASO blends. A template is the mean of the labelled features in the
memory's queue. The published templates also use confident unlabelled features; here they use labelled features only, as
in the public code of DASO, which has ``rule: cosine``, ``threshold: 0.85``, ``features: current`` and ``warmup_steps:
500``, and queues of five times the labels of a class.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayssl import collectives
from rayssl.losses.aggregation import joint, mutual_information
from rayssl.losses.pseudolabel import matched
from rayssl.methods.base import Batch, Classes, ClassRecall, Outputs, Recalled, Step, Views
from rayssl.methods.daso import Prototypical, PrototypicalConfig
from rayssl.models.encoder import Encoder
from rayssl.views.recipes import Segment, ViewsConfig


class USADTMConfig(PrototypicalConfig):
    """``temperature`` of the cosines to templates. ``queue``: a template is the mean of this many labelled features.

    ``aggregation``: the weight of the mutual information of the undistorted, the weak and the strong view (T-MI); 0 for
    none. It costs a third pass, and time and memory for classes cubed.
    """

    name: Literal["usadtm"] = "usadtm"
    """USADTM (Han et al., 2020): pseudo-labels from the nearest class template, and three views that agree."""
    rule: Literal["softmax", "cosine"] = "softmax"
    """Which pseudo-labels are learnt. ``softmax``: those whose probability, by cosines and ``temperature``, reaches
    ``threshold``. ``cosine``, published: those whose cosine reaches ``threshold`` (0.85), if the template that is
    nearest by the cosine is also nearest by the distance.
    """
    features: Literal["average", "current"] = "average"
    """Which encoder computes the labelled features of the templates: the ``average``, or the ``current`` one in its
    training pass, as published.
    """
    warmup_steps: int = Field(0, ge=0)
    """The number of first steps in which no pseudo-label is learnt; 500 are published."""
    temperature: float = Field(0.05, gt=0)
    """The temperature of the cosines to templates, for ``rule`` ``softmax``; lower values make pseudo-labels more
    confident.
    """
    aggregation: float = Field(0.1, ge=0)
    """The weight of the mutual information of the undistorted, the weak and the strong view (T-MI); 0 for none. It
    costs a third pass, and time and memory grow with the cube of the number of classes.
    """

    def segments(self, views: ViewsConfig, epoch: int) -> tuple[Segment, ...]:
        """The weak and the strong view and, for the aggregation, an undistorted view."""
        plain = Segment(name="plain", seconds=views.segment_s)
        return (*super().segments(views, epoch), *((plain,) if self.aggregation else ()))


class USADTM(Prototypical):
    """``L_cls + weight L_u - aggregation I``, with pseudo-labels ``q = softmax(cos(z_weak, templates) / T)``.

    With ``rule: cosine`` they are those of `matched`.
    """

    Config = USADTMConfig
    config: USADTMConfig

    def __init__(self, config: USADTMConfig, encoder: Encoder, classes: Classes) -> None:
        super().__init__(config, encoder, classes)
        if config.features == "current":
            self.rows_of = ("labelled", *self.rows_of)

    def forward(self, views: Views) -> Outputs:
        """As `Prototypical.forward`, plus ``plain``: logits ``[B, C]`` of the undistorted view."""
        out = super().forward(views)
        if "plain" in views:
            out["plain"] = self.model.classifier(self.model.encoder(views["plain"].wave, None))
        return out

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """The loss. As long as there is no template, the pseudo-labels are uniform, so none is confident."""
        assert isinstance(recall, ClassRecall)
        config, rows = self.config, out["weak_rows"].detach()
        pseudo = self.semantic(rows, recall, config.temperature).softmax(dim=1)
        confident = pseudo.amax(dim=1) >= config.threshold
        if config.rule == "cosine":
            confident = matched(rows, recall.prototypes, recall.present, threshold=config.threshold)
        step = self.pseudo_step(out, batch, pseudo, confident & (batch.step >= config.warmup_steps))
        if not self.config.aggregation:
            return step
        views = [out[name].softmax(dim=1) for name in ("plain", "weak", "strong")]
        together = collectives.sum_over_ranks(joint(*views)) / collectives.world()
        information = mutual_information(together)
        terms = {**step.terms, "information": information.detach()}
        return Step(step.loss - self.config.aggregation * information, terms, step.remember, step.counts)
