"""Gives a run's figures to Ray's metrics, which Prometheus reads from every node. Names and meanings are listed here.

Ray puts ``ray_`` before each name. `infra/monitoring` has rules and a dashboard that use them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any

from rayssl.errors import UserError
from rayssl.experiment.config import Experiment
from rayssl.training.metrics import RunLog
from rayssl.training.trackers.base import Identity, Several, Tracker
from rayssl.training.trackers.opening import open_all

_AGAIN_S = 4.0  # gauges are set again this often: every 10 s Ray sends only those that were set since the last time
_CLASSES = 200  # the most series of one run and one kind of count; the other classes are added up as "others"
_OTHERS = "others"

# name: (figure of the record, its meaning)
RANK_STEP = {  # from every rank, with the tag rank
    "rayssl_data_wait_ratio": ("data_wait", "Share of the time since the last log line spent waiting for data"),
    "rayssl_memory_wait_ratio": (
        "memory_wait",
        "Share of the time since the last log line spent waiting for the memory",
    ),
    "rayssl_gpu_allocated_bytes": ("gpu_allocated_bytes", "GPU memory in tensors"),
    "rayssl_gpu_peak_bytes": ("gpu_peak_bytes", "GPU memory in tensors, at the most since the last log line"),
    "rayssl_gpu_reserved_bytes": ("gpu_reserved_bytes", "GPU memory that torch holds"),
    "rayssl_gpu_total_bytes": ("gpu_total_bytes", "GPU memory that there is"),
}
RUN_STEP = {  # from rank 0, as all below
    "rayssl_learning_rate": ("lr", "Learning rate of the last step"),
    "rayssl_loss": ("loss", "Training loss, mean over ranks and the steps since the last log line"),
}
RUN_EPOCH = {
    "rayssl_ssps_coverage_ratio": ("coverage", "Share of the epoch's anchors that a positive was found for"),
    "rayssl_ssps_speaker_accuracy_ratio": ("speaker_accuracy", "Share of sampled positives of the anchor's speaker"),
    "rayssl_ssps_recording_accuracy_ratio": ("recording_accuracy", "Share of them of the anchor's own recording"),
    "rayssl_ssps_pool_size": ("pool_size", "Utterances that a positive is drawn from, mean"),
    "rayssl_ssps_clusters_used_ratio": ("clusters_used", "Share of clusters with anybody in the queue"),
    "rayssl_ssps_objective": ("objective", "Mean cosine of references to their centroids"),
    "rayssl_ssps_nmi_speaker": ("nmi_speaker", "Normalised mutual information of clusters and speakers"),
    "rayssl_ssps_nmi_recording": ("nmi_recording", "Normalised mutual information of clusters and recordings"),
    "rayssl_memory_queue_fill_ratio": ("queue_fill", "How full the queue of positives, or of class features, is"),
    "rayssl_memory_reference_fill_ratio": ("reference_fill", "Share of utterances with a reference"),
    "rayssl_memory_prototypes_filled_ratio": ("prototypes_filled", "Share of classes with a prototype"),
    "rayssl_memory_rejected_rows": ("rejected", "Rows of the epoch that were not finite, or too large for fp16"),
    "rayssl_memory_staleness_steps": ("staleness_steps", "By how many steps the memory's answers were behind, mean"),
}
# name: (labels besides run and method, its meaning)
OTHER_GAUGES = {
    "rayssl_utterances_per_second": (("rank",), "Utterances that this rank trains on in a second"),
    "rayssl_step": ((), "Optimiser steps done"),
    "rayssl_epoch": ((), "The epoch that is trained, from 1"),
    "rayssl_last_step_timestamp_seconds": ((), "When figures last came, or the worker began, in Unix time"),
    "rayssl_term": (("term",), "Loss terms and what else a method measures of a step, means like the loss"),
    "rayssl_validation": (("figure",), "Figures of the last validation: error rates and accuracies are fractions"),
    "rayssl_pseudo_labels": (
        ("class", "count"),
        "Pseudo-labels of the last epoch by class: predicted, confident, right, and of those that truth knows",
    ),
}
HISTOGRAMS = {
    "rayssl_step_seconds": (
        ("rank",),
        "From the end of a step to that of the next one",
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60),
    ),
    "rayssl_fill_seconds": (
        ("rank",),
        "The same where the memory is filled before a clustering",
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60),
    ),
    "rayssl_clustering_seconds": (
        (),
        "How long a clustering took; with memory.clustering=overlapped, what was left to wait for",
        (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 3600),
    ),
}
COUNTERS = {"rayssl_diverged": "How often a run has ended because its loss or weights were not finite"}
_NO_TERMS = {"epoch", "utterances_per_s", *(figure for figure, _ in (RANK_STEP | RUN_STEP).values())}


def exported() -> set[str]:
    """The names of all series that Prometheus can see."""
    gauges = [*RANK_STEP, *RUN_STEP, *RUN_EPOCH, *OTHER_GAUGES]
    parts = [f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")]
    return {f"ray_{name}" for name in (*gauges, *parts, *(f"{name}_total" for name in COUNTERS))}


@dataclass(frozen=True)
class _Made:
    """Ray's metric objects, by name."""

    gauges: Mapping[str, Any]
    histograms: Mapping[str, Any]
    counters: Mapping[str, Any]


def _make() -> _Made:
    from ray.util.metrics import Counter, Gauge, Histogram

    own = ("run", "method")
    described: dict[str, tuple[tuple[str, ...], str]] = {
        name: (("rank",), text) for name, (_, text) in RANK_STEP.items()
    }
    described |= {name: ((), text) for name, (_, text) in (RUN_STEP | RUN_EPOCH).items()} | OTHER_GAUGES
    return _Made(
        {name: Gauge(name, text, (*own, *keys)) for name, (keys, text) in described.items()},
        {name: Histogram(name, text, list(bounds), (*own, *keys)) for name, (keys, text, bounds) in HISTOGRAMS.items()},
        {name: Counter(name, text, own) for name, text in COUNTERS.items()},
    )


class RayMetrics(Tracker):
    """Gives the figures of one rank of ``run`` to Ray; rank 0 also gives those of the whole run.

    A gauge whose value is not finite is left out. Gauges disappear about 20 s after their worker ends; histograms and
    counters stay.
    """

    def __init__(self, run: str, method: str, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._run_tags = {"run": run, "method": method}
        self._rank_tags = {**self._run_tags, "rank": str(rank)}
        self._made = _make()
        self._values: dict[tuple[str, tuple[str, ...]], tuple[float, dict[str, str]]] = {}
        self._lock, self._closed = Lock(), Event()
        self._progress()
        self._thread = Thread(target=self._again, name="rayssl-telemetry", daemon=True)
        self._thread.start()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """See `Tracker.write`."""
        take: Callable[[int, dict[str, Any]], None] | None = {
            "step": self._step,
            "epoch": self._epoch,
            "refresh": self._refresh,
            "classes": self._classes,
            "validate": self._validate,
            "event": self._event,
        }.get(kind)
        if take is not None:
            take(step, values)
        self._progress()

    def observe(self, name: str, seconds: Sequence[float]) -> None:
        """Adds ``seconds`` to the histogram ``rayssl_<name>_seconds``."""
        for each in seconds:
            self._made.histograms[f"rayssl_{name}_seconds"].observe(each, self._rank_tags)
        self._progress()

    def close(self, *, failed: bool = False) -> None:
        """Stops setting the gauges again."""
        self._closed.set()
        self._thread.join()

    def _step(self, step: int, values: dict[str, Any]) -> None:
        self._take(RANK_STEP, values, self._rank_tags)
        if "utterances_per_s" in values:  # that of the global batch; every rank has the same share of it
            share = values["utterances_per_s"] / self._world
            self._set("rayssl_utterances_per_second", share, self._rank_tags)
        if self._rank != 0:
            return
        self._take(RUN_STEP, values, self._run_tags)
        self._set("rayssl_step", step, self._run_tags)
        if "epoch" in values:
            self._set("rayssl_epoch", values["epoch"] + 1, self._run_tags)
        for name, value in values.items():
            if name not in _NO_TERMS and isinstance(value, (int, float)):
                self._set("rayssl_term", value, {**self._run_tags, "term": name})

    def _epoch(self, step: int, values: dict[str, Any]) -> None:
        if self._rank == 0:
            self._set("rayssl_step", step, self._run_tags)
            self._take(RUN_EPOCH, values, self._run_tags)

    def _refresh(self, step: int, values: dict[str, Any]) -> None:
        if self._rank == 0:
            self._made.histograms["rayssl_clustering_seconds"].observe(values["seconds"], self._run_tags)
            self._take(RUN_EPOCH, values, self._run_tags)

    def _classes(self, step: int, values: dict[str, Any]) -> None:
        if self._rank != 0:
            return
        names = [str(name) for name in values["names"]]
        for count in ("predicted", "confident", "right", "truth"):
            numbers = [float(number) for number in values.get(count, ())]
            own = dict(zip(names[:_CLASSES], numbers[:_CLASSES], strict=False))
            if len(numbers) > _CLASSES:
                own[_OTHERS] = sum(numbers[_CLASSES:])
            for name, number in own.items():
                self._set("rayssl_pseudo_labels", number, {**self._run_tags, "class": name, "count": count})

    def _validate(self, step: int, values: dict[str, Any]) -> None:
        if self._rank == 0:
            for name, value in values.items():
                if name != "epoch":
                    self._set("rayssl_validation", value, {**self._run_tags, "figure": name})

    def _event(self, step: int, values: dict[str, Any]) -> None:
        if self._rank == 0 and values.get("event") == "diverged":
            self._made.counters["rayssl_diverged"].inc(1, self._run_tags)

    def _take(self, figures: Mapping[str, tuple[str, str]], values: dict[str, Any], tags: dict[str, str]) -> None:
        for name, (figure, _) in figures.items():
            if figure in values:
                self._set(name, values[figure], tags)

    def _progress(self) -> None:
        if self._rank == 0:
            self._set("rayssl_last_step_timestamp_seconds", time.time(), self._run_tags)

    def _set(self, name: str, value: float | None, tags: dict[str, str]) -> None:
        key = (name, tuple(tags.values()))
        with self._lock:
            if value is None or not math.isfinite(value):
                self._values.pop(key, None)
                return
            self._values[key] = (float(value), tags)
            self._made.gauges[name].set(float(value), tags)

    def _again(self) -> None:
        while not self._closed.wait(_AGAIN_S):
            with self._lock:
                for (name, _), (value, tags) in self._values.items():
                    self._made.gauges[name].set(value, tags)


def open_log(
    experiment: Experiment, *, rank: int, world: int, resume_step: int | None, say: Callable[[str], None]
) -> Tracker:
    """The tracker of this rank: Ray's metrics. On rank 0: the run's own file, Ray's metrics, the configured trackers.

    Raises `ConfigError` for a tracker whose package is missing on this node.
    """
    metrics = RayMetrics(experiment.run, experiment.method.label, rank, world)
    if rank != 0:
        return metrics
    try:
        own = RunLog(experiment.run, resume_step=resume_step)
        of = Identity(experiment.run, experiment.model_dump(mode="json"), resume_step is not None)
        return Several([own, metrics, *open_all(experiment.training.trackers, of, say)])
    except UserError:
        metrics.close(failed=True)
        raise
