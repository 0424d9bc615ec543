"""The terms of the method sleep: the weight of each, and its settings. `rayssl.methods.sleep` says what they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayssl.schema import Config


class NoiseTermConfig(Config):
    """``L_NC``: its ``weight``; ``nights`` whose sequences; ``distance`` between the predictions.

    ``detach_clean``: the clean view is a target without gradient.
    """

    weight: float = Field(default=0.0, ge=0)
    nights: Literal["labelled", "unlabelled", "both"] = "labelled"
    distance: Literal["js", "kl", "mse"] = "js"
    detach_clean: bool = False


class FixMatchTermConfig(Config):
    """``L_FM``: its ``weight``; ``threshold``: the least confidence of a pseudo-label."""

    weight: float = Field(default=0.0, ge=0)
    threshold: float = Field(default=0.95, ge=0, le=1)


class SequentialTermConfig(Config):
    """``L_SC``: its ``weight``; ``w_min``: the weight of the first epoch with the last.

    ``distance``: squared (l2) or absolute (l1). ``detach_b``: the strong view is a target without gradient.
    """

    weight: float = Field(default=0.0, ge=0)
    w_min: float = Field(default=0.5, ge=0, le=1)
    distance: Literal["l2", "l1"] = "l2"
    detach_b: bool = False


class CcsslTermConfig(Config):
    """``L_CCSSL``: its ``weight`` and ``temperature``. ``push``: epochs less sure attract only their other view."""

    weight: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    push: float = Field(default=0.0, ge=0, le=1)


class SscTermConfig(Config):
    """``L_SSC``: its ``weight`` and ``temperature``.

    An anchor attracts epochs that have its stage with a probability of ``threshold`` or more. ``normaliser``: its loss
    is divided by the sum of these probabilities (soft), or by the number of these epochs (count). ``anchors``:
    the labelled epochs of the ``batch``, or the last ``queue`` ones of each stage in the ``memory``, which an actor
    keeps for all ranks.
    """

    weight: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    threshold: float = Field(default=0.0, ge=0, le=1)
    normaliser: Literal["soft", "count"] = "soft"
    anchors: Literal["batch", "memory"] = "batch"
    queue: int = Field(default=64, ge=1)
