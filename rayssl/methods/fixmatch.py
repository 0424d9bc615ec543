"""FixMatch (Sohn et al., NeurIPS 2020): a confident prediction for the weak view is the label of the strong view."""

from __future__ import annotations

from typing import Literal

from rayssl.methods.base import Batch, Outputs, Recalled, Step
from rayssl.methods.semi import SemiConfig, SemiSupervised


class FixMatchConfig(SemiConfig):
    """The settings of `SemiConfig`, without others."""

    name: Literal["fixmatch"] = "fixmatch"
    """FixMatch (Sohn et al., 2020): a confident prediction for the weak view is the label of the strong view."""


class FixMatch(SemiSupervised):
    """The linear classifier gives the pseudo-labels: ``p = softmax(f(weak))`` (Eq. 4)."""

    Config = FixMatchConfig
    config: FixMatchConfig
    reads_statistics = False

    def step(self, out: Outputs, batch: Batch, recall: Recalled | None) -> Step:
        """``L_cls + weight L_u``."""
        return self.pseudo_step(out, batch, out["weak"].detach().softmax(dim=1))
