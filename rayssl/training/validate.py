"""The settings of validation: by which figure a run is judged while it trains, and which figures there are."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.schema import Config

Mode = Literal["min", "max"]
PREFIX = "validate/"  # before a figure's name among the metrics of an epoch


@dataclass(frozen=True)
class FigureKind:
    """What a figure is computed from, and which values of it are good.

    ``of``: ``trials``, ``labels``, ``audio`` (no labels are needed) or ``clusters`` (those of the memory of
    utterances). ``rate``: whether it is a fraction, shown in percent.
    """

    of: Literal["trials", "labels", "audio", "clusters"]
    mode: Mode
    rate: bool = True


KINDS: dict[str, FigureKind] = {
    "eer": FigureKind("trials", "min"),
    "min_dcf_001": FigureKind("trials", "min", rate=False),
    "min_dcf_005": FigureKind("trials", "min", rate=False),
    "accuracy": FigureKind("labels", "max"),
    "balanced_accuracy": FigureKind("labels", "max"),
    "geometric_mean": FigureKind("labels", "max"),
    "macro_f1": FigureKind("labels", "max"),
    "pseudo_eer": FigureKind("audio", "min"),
    "effective_rank": FigureKind("audio", "max", rate=False),
    "objective": FigureKind("clusters", "max", rate=False),
    "stability": FigureKind("clusters", "max", rate=False),
    "empty_clusters": FigureKind("clusters", "min"),
    "cluster_largest": FigureKind("clusters", "min", rate=False),
}


def unknown(name: str) -> str | None:
    """A line if there is no figure ``name``, with the known ones; else None."""
    if name in KINDS:
        return None
    close = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"there is no figure '{name}'; {hint}Choose one of {', '.join(KINDS)}"


class ValidateConfig(Config):
    """Judges the run while it trains: on a held-out part, or without labels.

    The best checkpoint is then the one with the best ``metric``, and ``patience`` ends the training by it. The ranks
    compute the figures together, after the checkpoint of the epoch has been written; the training is not changed by it.
    """

    every_epochs: int = Field(1, ge=1)
    """The number of epochs between two validations. The last epoch always has one."""
    metric: str
    """The figure that decides. ``eer``, ``min_dcf_001`` and ``min_dcf_005`` need ``trials``; ``accuracy``,
    ``balanced_accuracy``, ``geometric_mean`` and ``macro_f1`` need a ``corpus`` with labels. The others need no labels:
    ``pseudo_eer`` (EER between two distorted segments of an utterance and those of other utterances),
    ``effective_rank`` (RankMe), and of SSPS's clusters ``objective``, ``stability``, ``empty_clusters`` and
    ``cluster_largest``. Under SSPS, ``pseudo_eer`` gets worse while the true error rate falls, because both segments of
    a pseudo-trial are of one recording.
    """
    mode: Mode | None = None
    """Whether the lowest (``min``) or the highest (``max``) value is best; null takes what fits the metric."""
    also: list[str] = []
    """Further figures, by the same names, which are computed and written beside ``metric`` and decide nothing."""
    corpus: str | None = None
    """Folder or URI of the prepared held-out corpus: neither the training corpus nor the test corpus. Figures without
    labels may leave it out: null takes utterances of the training corpus.
    """
    trials: str | None = None
    """File or URI of a list of trials of that ``corpus``, for the error rates. It should not be the list of the
    evaluation: what is chosen by a list is too good on it.
    """
    probe: Literal["auto", "model", "knn", "linear"] = "auto"
    """Whose predictions give the accuracies: the ``model``'s own classifier, or ``knn`` or ``linear`` on the frozen
    embeddings of at most ``utterances`` labelled clips of the training corpus. ``auto`` takes the model's own if it has
    one, else ``knn``.
    """
    utterances: int = Field(1000, ge=2)
    """The most utterances that are embedded for a figure, spread evenly over the corpus. Trials take all that they
    name. ``effective_rank`` is at most this number.
    """
    segment_s: float = Field(2.0, gt=0)
    """The length in seconds of the segments of ``pseudo_eer``; of a shorter utterance the segments are its halves."""
    batch: int = Field(64, ge=1)
    """The number of utterances of one forward pass of a rank. It changes speed and memory, not the figures."""
    patience: int = Field(0, ge=0)
    """After so many validations without a better ``metric`` the training ends (early stopping); 0 never ends it. It
    counts anew from the epoch in which the loss changes its meaning (``method.start_epoch`` of SSPS).
    """

    @model_validator(mode="after")
    def _possible(self) -> ValidateConfig:
        for key, name in (("metric", self.metric), *(("also", name) for name in self.also)):
            line = unknown(name)
            if line is not None:
                raise ValueError(f"{key}: {line}")
        kind = KINDS[self.metric]
        if self.mode not in (None, kind.mode) and kind.of != "clusters":
            raise ValueError(
                f"mode: {self.mode}, but a {'lower' if kind.mode == 'min' else 'higher'} {self.metric} is "
                "better; leave mode out"
            )
        needs = {KINDS[name].of: name for name in reversed(self.figures)}
        if "trials" in needs and (self.corpus is None or self.trials is None):
            raise ValueError(
                f"{needs['trials']} needs corpus and trials: a held-out corpus and a list of its trials "
                "(rayssl prepare makes both); without known speakers take pseudo_eer"
            )
        if "labels" in needs and self.corpus is None:
            raise ValueError(f"{needs['labels']} needs corpus: held-out clips with labels; or take effective_rank")
        return self

    @property
    def figures(self) -> list[str]:
        """The names of all figures, ``metric`` first."""
        return list(dict.fromkeys([self.metric, *self.also]))

    @property
    def best(self) -> Mode:
        """Which value of ``metric`` is best."""
        return self.mode or KINDS[self.metric].mode

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether there is a validation at the end of ``epoch`` (from 1) of ``epochs``."""
        return epoch == epochs or (epoch > 0 and epoch % self.every_epochs == 0)

    def located(self) -> ValidateConfig:
        """The same settings with absolute paths."""
        places = {
            name: value and storage.absolute(value)
            for name, value in (("corpus", self.corpus), ("trials", self.trials))
        }
        return self.model_copy(update=places)


def shown(name: str, value: float) -> str:
    """A figure for a person."""
    return f"{name} {value:.2%}" if KINDS[name].rate else f"{name} {value:.4g}"
