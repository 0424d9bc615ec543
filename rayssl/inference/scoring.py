"""Scores pairs of plain audio files by the cosine of their embeddings, with the threshold of the run's evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from rayssl import storage
from rayssl.data import listed
from rayssl.data.trials import Trial
from rayssl.evaluation.verification import det_curve
from rayssl.inference.model import Model, cosine
from rayssl.runs.reading import RunCheckpoint
from rayssl.training import weights

_KEPT = 50_000  # embeddings that a list of trials holds in memory, 100 MB of 512 dimensions


@dataclass(frozen=True)
class Threshold:
    """The ``value`` of the cosine at which as many speakers are falsely accepted as rejected, ``eer``, in an evaluation
    of ``trials`` trials.
    """

    value: float
    eer: float
    trials: int

    def text(self) -> str:
        """The threshold for a person."""
        return f"threshold {self.value:.4f} at the EER of {self.eer:.2%} over {self.trials:,} trials"


def eer_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of ``scores [n]`` at which the rates of false acceptance and of misses are the closest.

    A score at or above it is accepted. ``labels``: 1 for the same speaker, else 0. Raises `ValueError` for unusable
    trials.
    """
    false_alarm, miss, thresholds = det_curve(scores, labels)
    return float(thresholds[1:][np.abs(false_alarm - miss)[1:].argmin()])


def threshold_of(source: RunCheckpoint, which: str = "last") -> Threshold | None:
    """The threshold from the evaluation of the checkpoint ``which`` of a run; None if it was not evaluated on trials.

    None also for an evaluation of another checkpoint, or one with normalised scores, which are no cosines. A published
    folder says its own.
    """
    if weights.is_published(source.run):
        given = weights.about(source.run).get("threshold")
        return None if given is None else Threshold(**given)
    for folder in ("evaluation", f"evaluation/{which}"):
        place = storage.join(source.run, folder)
        if not storage.exists(storage.join(place, "scores.parquet")):
            continue
        result = json.loads(storage.read_text(storage.join(place, "result.json")))
        if result.get("checkpoint") != source.checkpoint or result.get("norm") != "none":
            continue
        where = storage.join(place, "scores.parquet")
        with listed.damage(where, "run rayssl evaluate again"):
            table = listed.parquet(storage.read_bytes(where))
            value = eer_threshold(table["score"].to_numpy(), table["label"].to_numpy())
        return Threshold(value, result["eer"], result["trials"])
    return None


def score_files(model: Model, trials: Sequence[Trial], root: str = "") -> Iterator[float]:
    """The cosine of each trial, whose names are audio files below ``root``. A file is embedded once.

    Raises `AudioError` or `StorageError` naming the file that cannot be embedded.
    """

    @lru_cache(_KEPT)
    def embedding(name: str) -> Tensor:
        return model.embed_file(storage.join(root, name) if root else name)

    for trial in trials:
        yield cosine(embedding(trial.enrol), embedding(trial.test))
