"""Which figures without labels agree with the true error rate: rank correlation over stored checkpoints.

The evaluation's trials are used for the true EER only; the other figures see no label. What has a high correlation here
may choose checkpoints and settings where there are no labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from rayssl import storage
from rayssl.data import shards
from rayssl.errors import UserError
from rayssl.evaluation.settings import VerificationConfig
from rayssl.experiment.config import Experiment, located
from rayssl.experiment.judging import RunJudge
from rayssl.inference.encoder import load_encoder
from rayssl.runs.reading import read_run
from rayssl.sweeps import records
from rayssl.training import checkpoint
from rayssl.training.validate import KINDS, ValidateConfig

TRUE = "eer"
_OF_TRAINING = (*(name for name, kind in KINDS.items() if kind.of == "clusters"), "loss")
_LEAST = 3  # fewer points have no rank correlation that says anything

Point = dict[str, Any]  # ``run``, ``epoch``, and the figures of a checkpoint


def measure(
    places: Sequence[str],
    say: Callable[[str], None],
    *,
    corpus: str = "",
    utterances: int = 1000,
    segment_s: float = 2.0,
) -> dict[str, Any]:
    """Judges the checkpoints at the ends of epochs, and correlates each figure with the true EER.

    Args:
        places: folders or URIs of runs that are evaluated by trials, or of sweeps, whose trials are taken.
        say: takes a line for each checkpoint.
        corpus: the corpus of the figures without labels; "" for each run's training corpus.
        utterances: how many of its utterances are embedded.
        segment_s: the length of a segment of pseudo-trials in seconds.

    Returns:
        ``checkpoints``: a `Point` for each; ``correlation``: what `correlations` returns.

    Raises:
        UserError: a run cannot be used, or there are fewer than three checkpoints.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = ValidateConfig(
        metric="pseudo_eer", also=["effective_rank"], corpus=corpus or None, utterances=utterances, segment_s=segment_s
    )
    points = list[Point]()
    for run in (run for place in places for run in runs_at(place)):
        for point in _judged(run, free.located(), device):
            points.append(point)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in point.items() if name not in ("run", "epoch"))
            say(f"{run}: epoch {point['epoch']}: {shown}")
    if len(points) < _LEAST:
        raise UserError(
            f"{len(points)} checkpoints are too few for a correlation; give more runs, or train with "
            "training.checkpoints.milestones"
        )
    return {"checkpoints": points, "correlation": correlations(points)}


def runs_at(place: str) -> list[str]:
    """The runs at ``place``: itself, or the trials of a sweep that have been judged once."""
    place = place.rstrip("/")
    if storage.exists(storage.join(place, "config.yaml")):
        return [place]
    found = [storage.join(place, "trials", f"{k:04d}") for k, one in records.read_all(place).items() if one.rungs]
    if not found:
        raise UserError(f"{place}: neither a run nor a sweep with trials; give folders of rayssl train or sweep")
    return found


def correlations(points: Sequence[Point], true: str = TRUE) -> dict[str, dict[str, float | int | None]]:
    """Spearman's rank correlation of each figure of ``points`` with the figure ``true``, by the figure's name.

    ``all``: over all points. ``within``: the mean over runs of that over the checkpoints of a run. ``among``: over the
    last checkpoints of the runs. ``all_n``, ``within_n``, ``among_n``: over how many points, runs, and runs. None where
    there are fewer than three, or all are equal.
    """
    names = dict.fromkeys(name for point in points for name in point if name not in ("run", "epoch", true))
    by_run: dict[str, list[Point]] = {}
    for point in points:
        by_run.setdefault(point["run"], []).append(point)
    last = [max(own, key=lambda point: point["epoch"]) for own in by_run.values()]
    found: dict[str, dict[str, float | int | None]] = {}
    for name in names:
        every, among = _spearman(points, name, true), _spearman(last, name, true)
        within = [value for own in by_run.values() if (value := _spearman(own, name, true)[0]) is not None]
        mean = float(np.mean(within)) if within else None
        found[name] = {"all": every[0], "all_n": every[1], "within": mean, "within_n": len(within)}
        found[name] |= {"among": among[0], "among_n": among[1]}
    return found


def table(correlation: dict[str, dict[str, float | int | None]]) -> str:
    """The correlations as lines for a person."""
    lines = [f"{'Spearman with the EER':24}{'all checkpoints':>20}{'within runs':>16}{'among runs':>16}"]
    for name, found in correlation.items():
        cells = [
            "-" if found[how] is None else f"{found[how]:+.2f} (n={found[f'{how}_n']})"
            for how in ("all", "within", "among")
        ]
        lines.append(f"{name:24}{cells[0]:>20}{cells[1]:>16}{cells[2]:>16}")
    return "\n".join(lines)


def _judged(run: str, free: ValidateConfig, device: torch.device) -> Iterator[Point]:
    experiment = located(read_run(run, []))
    settings = experiment.evaluation
    if not isinstance(settings, VerificationConfig):
        raise UserError(f"{run}: has no evaluation by trials, so there is no true error rate; leave this run out")
    true = ValidateConfig(metric=TRUE, corpus=settings.corpus, trials=settings.trials, batch=settings.batch)
    judges = [RunJudge(each, experiment, device) for each in (true, free)]
    for uri in checkpoint.all_uris(storage.absolute(run)):
        meta = checkpoint.read_meta(uri)
        if meta.epoch_step == 0:
            yield {"run": run, "epoch": meta.epoch, **_figures(experiment, uri, judges, device, meta.metrics)}


def _figures(
    experiment: Experiment, uri: str, judges: Sequence[RunJudge], device: torch.device, known: dict[str, float]
) -> dict[str, float]:
    rate = shards.read_manifest(experiment.corpus.uri).rate
    encoder = load_encoder(experiment, uri, rate).to(device)
    found = {name: value for judge in judges for name, value in judge.of_encoder(encoder, None, {}).items()}
    return found | {name: known[name] for name in _OF_TRAINING if name in known}


def _spearman(points: Sequence[Point], name: str, true: str) -> tuple[float | None, int]:
    pairs = [(point[name], point[true]) for point in points if name in point and true in point]
    if len(pairs) < _LEAST:
        return None, len(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        value = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return (value if np.isfinite(value) else None), len(pairs)
