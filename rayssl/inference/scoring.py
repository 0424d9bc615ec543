"""Scores pairs of plain audio files by the cosine of their embeddings, with the threshold of the run's evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from rayssl import storage
from rayssl.data import listed
from rayssl.data.trials import Trial
from rayssl.errors import ConfigError
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
    found = evaluation_of(source, which)
    if found is None or len(found[1]) != 1 or found[1][0].get("norm") != "none":
        return None
    place, (result,) = storage.join(found[0], "scores.parquet"), found[1]
    if not storage.exists(place):
        return None
    with listed.damage(place, "run rayssl evaluate again"):
        table = listed.parquet(storage.read_bytes(place))
        value = eer_threshold(table["score"].to_numpy(), table["label"].to_numpy())
    return Threshold(value, result["eer"], result["trials"])


def evaluation_of(source: RunCheckpoint, which: str) -> tuple[str, list[dict[str, Any]]] | None:
    """The folder of the evaluation of this checkpoint of a run, and its results, one for each classifier.

    None if the checkpoint ``which`` was not evaluated, or before it became another one.
    """
    for folder in ("evaluation", f"evaluation/{which}"):
        place = storage.join(source.run, folder)
        path = storage.join(place, "result.json")
        if not storage.exists(path):
            continue
        try:
            found = json.loads(storage.read_text(path))
        except ValueError:
            raise ConfigError(f"{path}: damaged; run rayssl evaluate again") from None
        results = found if isinstance(found, list) else [found]
        if results and all(each.get("checkpoint") == source.checkpoint for each in results):
            return place, results
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
