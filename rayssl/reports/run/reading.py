"""Reads from a run's folder everything that a report shows. Missing or damaged parts are reported and are not fatal."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayssl import storage
from rayssl.data import listed
from rayssl.data.nights.scores import NightScores, read_stages
from rayssl.errors import StorageError, UserError
from rayssl.schema import load_yaml

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Record = dict[str, Any]
T = TypeVar("T")

_LINES = ("metrics.jsonl", "evaluation/over_time.jsonl")
HEADS = {"model": "The model's own", "linear": "Linear probe", "finetune": "Fine-tuned", "knn": "Nearest neighbours"}


@dataclass(frozen=True)
class Scores:
    """Scored trials: ``label [n]`` 1 for target, 0 for non-target; ``score [n]``, all finite."""

    label: Ints
    score: Floats


@dataclass(frozen=True)
class EmbeddingSample:
    """A sample of the embeddings: ``embedding [m, D]``, with the ``speaker [m]`` and the ``recording [m]`` of each."""

    embedding: Floats
    speaker: Ints
    recording: Ints


@dataclass(frozen=True)
class PseudoLabels:
    """Counts of unlabelled rows by epoch and class, each ``[E, C]``, at the epochs ``epoch [E]``.

    ``predicted``: rows that got the class as pseudo-label. ``confident``: those of them above the threshold.
    ``right``: those of ``predicted`` that are right. ``truth``: rows of the class (all 0 if the truth is not known).
    ``linear``, ``semantic``: what ``right`` would be with only one of the two classifiers that DASO blends.
    """

    names: list[str]
    epoch: Ints
    predicted: Ints
    confident: Ints
    right: Ints
    truth: Ints
    linear: Ints | None = None
    semantic: Ints | None = None


@dataclass(frozen=True)
class Run:
    """What a run's folder has. ``problems`` are sentences about files that exist but cannot be used."""

    uri: str
    config: Record | None = None
    origin: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    results: list[Record] = field(default_factory=list)
    scores: Scores | None = None
    sample: EmbeddingSample | None = None
    nights: list[NightScores] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.uri.rstrip("/").rpartition("/")[2] or self.uri

    @property
    def verified(self) -> list[Record]:
        """The results of speaker verification."""
        return [r for r in self.results if "balanced_accuracy" not in r and r.get("task") != "staging"]

    @property
    def staged(self) -> list[Record]:
        """The results of sleep staging."""
        return [result for result in self.results if result.get("task") == "staging"]

    @property
    def classified(self) -> list[Record]:
        """The results of classification, by head (the model's own first), then by falling share of the labels."""
        found = [r for r in self.results if "balanced_accuracy" in r and r.get("task") != "staging"]
        place = {head: index for index, head in enumerate(HEADS)}
        return sorted(found, key=lambda r: (place.get(str(r.get("head")), len(place)), -_share(r)))

    def pseudo_labels(self) -> PseudoLabels | None:
        """The logged counts by class (lines of kind "classes"); None without usable ones.

        Lines whose number of classes differs from the first line's are left out. Classes without names are numbered.
        """
        lines = [r for r in self.metrics if r.get("kind") == "classes"]
        usable = [(r, counts) for r in lines if (counts := _class_counts(r)) is not None]
        if not usable:
            return None
        classes = usable[0][1].shape[1]
        usable = [(r, counts) for r, counts in usable if counts.shape[1] == classes]
        given: list[Any] = next((r["names"] for r in lines if isinstance(r.get("names"), list)), [])
        names = [str(name) for name in given] if len(given) == classes else [str(c) for c in range(classes)]
        epochs = [r["epoch"] if is_number(r.get("epoch")) else index for index, (r, _) in enumerate(usable)]
        both = [_lists(r, ("right_linear", "right_semantic"), classes) for r, _ in usable]
        parts = np.stack([counts for _, counts in usable], axis=1)
        if not any(each is None for each in both):
            parts = np.concatenate([parts, np.stack([each for each in both if each is not None], axis=1)])
        return PseudoLabels(names, np.array(epochs, np.int64), *parts)

    def timed(self, name: str) -> tuple[Floats, Floats]:
        """Seconds of training and values ``[k]`` of one figure of evaluated checkpoints (lines of kind "probe")."""
        lines = [r for r in self.metrics if r.get("kind") == "probe"]
        pairs = [(r["seconds"], r[name]) for r in lines if is_number(r.get("seconds")) and is_number(r.get(name))]
        table = np.array(pairs, np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def series(self, kind: str, name: str) -> tuple[Floats, Floats]:
        """Steps and values ``[k]`` of one metric, from the lines in which it is a number."""
        lines = [
            r for r in self.metrics if r.get("kind") == kind and is_number(r.get("step")) and is_number(r.get(name))
        ]
        pairs = np.array([(line["step"], line[name]) for line in lines], np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def names(self, kind: str) -> list[str]:
        """The metrics that are numbers in lines of this kind, in the order in which they appear."""
        lines = (r for r in self.metrics if r.get("kind") == kind)
        seen = dict.fromkeys(name for record in lines for name, value in record.items() if is_number(value))
        return [name for name in seen if name not in ("step", "time", "epoch")]

    def ssps_start(self) -> float | None:
        """The step at which sampled positives begin; None without them, 0 if they are used from the start.

        It is that of an event with "ssps" in its name, or else the beginning of the first epoch with coverage.
        """
        for record in self.metrics:
            if record.get("kind") == "event" and "ssps" in str(record.get("event")) and is_number(record.get("step")):
                return float(record["step"])
        previous = 0.0
        for record in self.metrics:
            if record.get("kind") == "epoch" and is_number(record.get("step")):
                if is_number(record.get("coverage")) and record["coverage"] > 0:
                    return previous
                previous = float(record["step"])
        return None


def is_staging(run: Run) -> bool:
    """Whether the run has staging results, or is to be evaluated by staging."""
    settings = (run.config or {}).get("evaluation")
    return bool(run.staged) or (isinstance(settings, dict) and settings.get("task") == "staging")


def night_rows(result: Record) -> list[Record]:
    """The usable records of single nights of a staging result, in their order."""
    rows: Any = result.get("per_night")
    return [row for row in rows if isinstance(row, dict) and "night" in row] if isinstance(rows, list) else []


def by_kappa(result: Record) -> list[Record]:
    """The nights of a staging result whose kappa is known, by rising kappa."""
    return sorted((row for row in night_rows(result) if is_number(row.get("kappa"))), key=lambda row: row["kappa"])


def shown_nights(result: Record) -> dict[str, str]:
    """The nights to draw: name and what it is. The best, the median (the lower of two) and the worst by kappa."""
    rows = by_kappa(result)
    if not rows:
        return {}
    chosen = {"Best night": rows[-1], "Median night": rows[(len(rows) - 1) // 2], "Worst night": rows[0]}
    found: dict[str, str] = {}
    for what, row in chosen.items():
        found.setdefault(str(row["night"]), what)
    return found


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_run(uri: str, *, speakers: int = 15, utterances: int = 600, seed: int = 0, drawn: bool = True) -> Run:
    """Reads the run's folder at ``uri``, and a sample of its embeddings: at most so many speakers and utterances.

    Without ``drawn`` it skips scores, embeddings and nights, which are by far the largest files: only pictures need
    them. Of the nights it keeps those that `shown_nights` names.
    Raises `StorageError` if the folder has neither ``config.yaml`` nor ``metrics.jsonl``, or cannot be reached.
    """
    if not any(storage.exists(storage.join(uri, name)) for name in ("config.yaml", "metrics.jsonl")):
        raise StorageError(f"{uri}: no run here (neither config.yaml nor metrics.jsonl); give the folder of a run")
    problems: list[str] = []

    def part(name: str, read: Callable[[str], T], absent: T) -> T:
        where = storage.join(uri, name)
        if not storage.exists(where):
            return absent
        try:
            return read(where)
        except (UserError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            problems.append(f"{name} cannot be used: {' '.join(str(error).split())}")
            return absent

    results = part("evaluation/result.json", _read_results, list[Record]())
    return Run(
        uri=uri,
        config=part("config.yaml", lambda where: load_yaml(storage.read_text(where), "config.yaml"), None),
        origin=part("origin.json", _read_object, {}),
        metrics=[line for name in _LINES for line in part(name, _read_lines, list[Record]())],
        results=results,
        scores=part("evaluation/scores.parquet", _read_scores, None) if drawn else None,
        sample=part(
            "evaluation/embeddings.parquet", lambda where: _read_sample(where, speakers, utterances, seed), None
        )
        if drawn
        else None,
        nights=part("evaluation/stages.parquet", lambda where: _read_nights(where, results), []) if drawn else [],
        problems=problems,
    )


def choose(speaker: Ints, recording: Ints, speakers: int, utterances: int, seed: int) -> Ints:
    """The sorted rows of a random sample, with equally many rows from each chosen speaker.

    Speakers with several recordings are chosen first. Rows of unknown speakers (negative) are left out.
    """
    draw = np.random.default_rng([seed, len(speaker)])
    known = np.unique(speaker[speaker >= 0])
    several = {int(s) for s in known if len(np.unique(recording[speaker == s])) > 1}
    order = sorted(draw.permutation(known).tolist(), key=lambda s: s not in several)[:speakers]
    rows = [draw.permutation(np.flatnonzero(speaker == s))[: max(1, utterances // max(1, len(order)))] for s in order]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def _share(result: Record) -> float:
    share: Any = result.get("share")
    return float(share) if is_number(share) else 1.0


def _class_counts(line: Record) -> Ints | None:
    """The predicted, confident, right and true counts ``[4, C]`` of a line; None if they are not such lists."""
    first = line.get("predicted")
    return _lists(line, ("predicted", "confident", "right", "truth"), len(first) if isinstance(first, list) else 0)


def _lists(line: Record, names: tuple[str, ...], classes: int) -> Ints | None:
    """The counts ``[n, classes]`` of a line under ``names``; None if one is not a list of ``classes`` counts."""
    lists = [line.get(name) for name in names]
    whole = all(isinstance(values, list) and all(type(v) is int and v >= 0 for v in values) for values in lists)
    if not classes or not whole or any(len(values) != classes for values in lists if values is not None):
        return None
    return np.array(lists, np.int64)


def _read_object(where: str) -> Record:
    value = json.loads(storage.read_text(where))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _read_results(where: str) -> list[Record]:
    value = json.loads(storage.read_text(where))
    results = value if isinstance(value, list) else [value]
    if not all(isinstance(result, dict) for result in results):
        raise ValueError("neither a JSON object nor a list of them")
    return results


def _read_lines(where: str) -> list[Record]:
    """The run's metrics. Lines that are not JSON objects are left out: while a run is live, the last may be half."""
    records = []
    for line in storage.read_bytes(where).splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _read_scores(where: str) -> Scores:
    file = listed.parquet_file(io.BytesIO(storage.read_bytes(where)))
    table = file.read(columns=["label", "score"], use_threads=False)
    label = np.asarray(table["label"].to_numpy(), np.int64)
    score = np.asarray(table["score"].to_numpy(), np.float64)
    if not np.isfinite(score).all():
        raise ValueError("some scores are NaN or infinite")
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("needs target (1) and non-target (0) trials")
    return Scores(label, score)


def _read_nights(where: str, results: list[Record]) -> list[NightScores]:
    """The nights that `shown_nights` names, in its order; the first three of the file if it names none."""
    data = io.BytesIO(storage.read_bytes(where))
    names = list(shown_nights(next((r for r in results if r.get("task") == "staging"), {})))
    if not names:
        column = listed.parquet_file(data).read(columns=["night"], use_threads=False)["night"]
        names = list(dict.fromkeys(column.to_pylist()))[:3]
    alone = {"use_threads": False, "pre_buffer": False}  # see `rayssl.data.listed.parquet_file`
    found = {night.name: night for night in read_stages(pq.read_table(data, filters=[("night", "in", names)], **alone))}
    return [found[name] for name in names if name in found]


def _read_sample(where: str, speakers: int, utterances: int, seed: int) -> EmbeddingSample | None:
    """A sample of the embeddings, or None if no speaker is known. It reads only the row groups that it needs."""
    with storage.open_read(where) as stream:
        file = listed.parquet_file(stream)
        labels = file.read(columns=["speaker", "recording"], use_threads=False)
        speaker = np.asarray(labels["speaker"].to_numpy(), np.int64)
        recording = np.asarray(labels["recording"].to_numpy(), np.int64)
        rows = choose(speaker, recording, speakers, utterances, seed)
        if not len(rows):
            return None
        chosen, first = [], 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            inside = rows[(rows >= first) & (rows < first + count)] - first
            if len(inside):
                column = file.read_row_group(group, columns=["embedding"], use_threads=False)[
                    "embedding"
                ].combine_chunks()
                chosen += column.take(pa.array(inside)).to_pylist()
            first += count
    embedding = np.array(chosen, np.float64)
    if embedding.ndim != 2 or not np.isfinite(embedding).all():
        raise ValueError("some embeddings are NaN, infinite or of different lengths")
    return EmbeddingSample(embedding, speaker[rows], recording[rows])
