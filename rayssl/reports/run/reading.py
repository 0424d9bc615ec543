"""Everything a report says of a run, gathered from its folder; whatever is missing or damaged is said, not fatal."""

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
    """Embeddings few enough to be seen: ``embedding [m, D]`` with the ``speaker [m]`` and ``recording [m]`` of each."""

    embedding: Floats
    speaker: Ints
    recording: Ints


@dataclass(frozen=True)
class PseudoLabels:
    """Counts of an epoch's unlabelled rows by class, each ``[E, C]``, at epochs ``epoch [E]``.

    ``predicted`` rows were given the class as pseudo-label, ``confident`` of them above the threshold, ``right`` of
    them rightly; ``truth`` rows are of the class (0 everywhere where the truth is not known). ``linear`` and
    ``semantic``: what `right` would be if the one or the other of the classifiers that DASO blends had been believed.
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
    """What a run's folder holds. ``problems`` are sentences about parts that are there but cannot be used."""

    uri: str
    config: Record | None = None
    origin: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    results: list[Record] = field(default_factory=list)
    scores: Scores | None = None
    sample: EmbeddingSample | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.uri.rstrip("/").rpartition("/")[2] or self.uri

    @property
    def verified(self) -> list[Record]:
        """The results of trials."""
        return [result for result in self.results if "balanced_accuracy" not in result]

    @property
    def classified(self) -> list[Record]:
        """The results of classification, by head (the model's own first), then by falling share of the labels."""
        found = [result for result in self.results if "balanced_accuracy" in result]
        place = {head: index for index, head in enumerate(HEADS)}
        return sorted(found, key=lambda r: (place.get(str(r.get("head")), len(place)), -_share(r)))

    def pseudo_labels(self) -> PseudoLabels | None:
        """The counts by class that were logged (lines of kind "classes"); None without any that can be used.

        Lines whose lists do not fit the first's are passed over; without names the classes are numbered.
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
        """Seconds of training and values ``[k]`` of one figure of the checkpoints on the way (kind "probe")."""
        lines = [r for r in self.metrics if r.get("kind") == "probe"]
        pairs = [(r["seconds"], r[name]) for r in lines if is_number(r.get("seconds")) and is_number(r.get(name))]
        table = np.array(pairs, np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def series(self, kind: str, name: str) -> tuple[Floats, Floats]:
        """Steps and values ``[k]`` of one metric, where it was written as a number."""
        lines = [
            r for r in self.metrics if r.get("kind") == kind and is_number(r.get("step")) and is_number(r.get(name))
        ]
        pairs = np.array([(line["step"], line[name]) for line in lines], np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def names(self, kind: str) -> list[str]:
        """The metrics that lines of this kind hold as numbers, in order of appearance."""
        lines = (r for r in self.metrics if r.get("kind") == kind)
        seen = dict.fromkeys(name for record in lines for name, value in record.items() if is_number(value))
        return [name for name in seen if name not in ("step", "time", "epoch")]

    def ssps_start(self) -> float | None:
        """The step at which sampled positives come in; None without them, 0 where they are there from the start.

        An event whose name holds "ssps" tells it; otherwise the beginning of the first epoch with coverage.
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


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_run(uri: str, *, speakers: int = 15, utterances: int = 600, seed: int = 0, drawn: bool = True) -> Run:
    """Reads the run folder at ``uri``; of its embeddings, a sample of at most that many speakers and utterances.

    Without ``drawn``, scores and embeddings are left out: they are by far the largest, and only pictures need them.

    Raises `StorageError` when the folder holds neither ``config.yaml`` nor ``metrics.jsonl``, or is out of reach.
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

    return Run(
        uri=uri,
        config=part("config.yaml", lambda where: load_yaml(storage.read_text(where), "config.yaml"), None),
        origin=part("origin.json", _read_object, {}),
        metrics=[line for name in _LINES for line in part(name, _read_lines, list[Record]())],
        results=part("evaluation/result.json", _read_results, []),
        scores=part("evaluation/scores.parquet", _read_scores, None) if drawn else None,
        sample=part(
            "evaluation/embeddings.parquet", lambda where: _read_sample(where, speakers, utterances, seed), None
        )
        if drawn
        else None,
        problems=problems,
    )


def choose(speaker: Ints, recording: Ints, speakers: int, utterances: int, seed: int) -> Ints:
    """Sorted rows of a sample: whole speakers at random, those with several recordings first, evenly many of each.

    Rows of unknown speakers (negative) are left out.
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
    """Predicted, confident, right and true counts ``[4, C]`` of a line; None where they are no such lists."""
    first = line.get("predicted")
    return _lists(line, ("predicted", "confident", "right", "truth"), len(first) if isinstance(first, list) else 0)


def _lists(line: Record, names: tuple[str, ...], classes: int) -> Ints | None:
    """Counts ``[n, classes]`` by these names in a line; None where one is no list of as many."""
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
    """The run's metrics. Lines that are no JSON objects are passed over: a report of a live run may see half a line."""
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
    table = pq.read_table(io.BytesIO(storage.read_bytes(where)), columns=["label", "score"])
    label = np.asarray(table["label"].to_numpy(), np.int64)
    score = np.asarray(table["score"].to_numpy(), np.float64)
    if not np.isfinite(score).all():
        raise ValueError("some scores are NaN or infinite")
    if set(np.unique(label)) != {0, 1}:
        raise ValueError("needs target (1) and non-target (0) trials")
    return Scores(label, score)


def _read_sample(where: str, speakers: int, utterances: int, seed: int) -> EmbeddingSample | None:
    """A sample of the embeddings, or None where no speaker is known; only the row groups it needs stay in memory."""
    with storage.open_read(where) as stream:
        file = pq.ParquetFile(stream)
        labels = file.read(columns=["speaker", "recording"])
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
                column = file.read_row_group(group, columns=["embedding"])["embedding"].combine_chunks()
                chosen += column.take(pa.array(inside)).to_pylist()
            first += count
    embedding = np.array(chosen, np.float64)
    if embedding.ndim != 2 or not np.isfinite(embedding).all():
        raise ValueError("some embeddings are NaN, infinite or of different lengths")
    return EmbeddingSample(embedding, speaker[rows], recording[rows])
