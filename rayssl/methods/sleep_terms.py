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
    """The weight of L_NC in the loss; 0 turns it off and costs nothing."""
    nights: Literal["labelled", "unlabelled", "both"] = "labelled"
    """Whose sequences get a noisy view: those of the ``labelled`` nights, of the ``unlabelled`` ones, or of ``both``.
    """
    distance: Literal["js", "kl", "mse"] = "js"
    """The distance of the two predictions: Jensen-Shannon (``js``), Kullback-Leibler (``kl``) or squared (``mse``)."""
    detach_clean: bool = False
    """Whether the clean view is a target without gradient, so that only the noisy one moves."""


class FixMatchTermConfig(Config):
    """``L_FM``: its ``weight``; ``threshold``: the least confidence of a pseudo-label."""

    weight: float = Field(default=0.0, ge=0)
    """The weight of L_FM in the loss; 0 turns it off and costs nothing."""
    threshold: float = Field(default=0.95, ge=0, le=1)
    """The least confidence, from 0 to 1, of a pseudo-label that is learnt and counted as confident."""


class SequentialTermConfig(Config):
    """``L_SC``: its ``weight``; ``w_min``: the weight of the first epoch with the last.

    ``distance``: squared (l2) or absolute (l1). ``detach_b``: the strong view is a target without gradient.
    """

    weight: float = Field(default=0.0, ge=0)
    """The weight of L_SC in the loss; 0 turns it off and costs nothing."""
    w_min: float = Field(default=0.5, ge=0, le=1)
    """The weight, from 0 to 1, of the pair of the first and the last epoch of a sequence; nearer pairs count up to 1.
    """
    distance: Literal["l2", "l1"] = "l2"
    """How the difference of two similarities counts: squared (``l2``) or absolute (``l1``)."""
    detach_b: bool = False
    """Whether the strong view is a target without gradient, so that only the weak one moves."""


class CcsslTermConfig(Config):
    """``L_CCSSL``: its ``weight`` and ``temperature``. ``push``: epochs less sure attract only their other view."""

    weight: float = Field(default=0.0, ge=0)
    """The weight of L_CCSSL in the loss; 0 turns it off and costs nothing."""
    temperature: float = Field(default=0.07, gt=0)
    """The temperature that divides cosine similarities; 0.07 is usual."""
    push: float = Field(default=0.0, ge=0, le=1)
    """The least confidence, from 0 to 1, with which an epoch attracts others of its pseudo-label; less sure ones
    attract only their other view. 0.9 in the paper, 0 keeps all.
    """


class SscTermConfig(Config):
    """``L_SSC``: its ``weight`` and ``temperature``.

    An anchor attracts epochs that have its stage with a probability of ``threshold`` or more. ``normaliser``: its loss
    is divided by the sum of these probabilities (soft), or by the number of these epochs (count). ``anchors``:
    the labelled epochs of the ``batch``, or the last ``queue`` ones of each stage in the ``memory``, which an actor
    keeps for all ranks.
    """

    weight: float = Field(default=0.0, ge=0)
    """The weight of L_SSC in the loss; 0 turns it off and costs nothing."""
    temperature: float = Field(default=0.07, gt=0)
    """The temperature that divides cosine similarities; 0.07 is usual."""
    threshold: float = Field(default=0.0, ge=0, le=1)
    """The least predicted probability, from 0 to 1, of the anchor's stage with which an unlabelled epoch is attracted;
    0 takes all, weighted by their probability.
    """
    normaliser: Literal["soft", "count"] = "soft"
    """What the loss of an anchor is divided by: the sum of the attracted epochs' probabilities (``soft``) or their
    number (``count``).
    """
    anchors: Literal["batch", "memory"] = "batch"
    """Where labelled anchors come from: the labelled epochs of the ``batch``, or queues of each stage in the
    ``memory``, which an actor keeps for all ranks. Take ``memory`` if rare stages are absent from many batches; it
    needs ``features: head``.
    """
    queue: int = Field(default=64, ge=1)
    """For ``anchors: memory``: the number of last labelled epochs of each stage that are kept."""
