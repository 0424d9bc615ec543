"""Compares several runs: which differ only in the seed, which settings differ between the others, and by how much.

This module has the data; `page` makes the HTML page from it, and `pictures` the pictures.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.reports.drawing import COLOURS
from rayssl.reports.run.clock import running_time, training_seconds
from rayssl.reports.run.reading import HEADS, Record, Run, is_number, read_run
from rayssl.schema import flatten

Floats = NDArray[np.float64]

ABSENT = object()  # the value of a key that a configuration does not have
VERIFICATION = {"eer": ("EER %", 100), "min_dcf_001": ("minDCF(0.01)", 1), "min_dcf_005": ("minDCF(0.05)", 1)}
CLASSIFICATION = {
    "balanced_accuracy": ("Balanced accuracy %", 100),
    "geometric_mean": ("Geometric mean %", 100),
    "macro_f1": ("Macro F1 %", 100),
    "accuracy": ("Accuracy %", 100),
}
STAGING = {"macro_f1": ("Macro F1 %", 100), "kappa": ("Kappa", 1), "accuracy": ("Accuracy %", 100)}
_LINES = ("-", "--", ":", "-.")
_FIRST = ("loss", "utterances_per_s", "coverage", "speaker_accuracy", "useful_rate")
# not drawn: the schedule is known, the waits belong to the throughput, and the others describe refreshes
_LEFT_OUT = {"lr", "data_wait", "memory_wait", "seconds", "version"}


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed. ``number`` counts from 1. The group has its own colour and line everywhere."""

    number: int
    label: str
    runs: list[Run]

    @property
    def colour(self) -> str:
        """One of `COLOURS`. Groups with the same colour have different lines."""
        return COLOURS[(self.number - 1) % len(COLOURS)]

    @property
    def line(self) -> str:
        """A line style of matplotlib."""
        return _LINES[(self.number - 1) // len(COLOURS) % len(_LINES)]


@dataclass(frozen=True)
class Comparison:
    """Groups in the order in which their first runs were given."""

    groups: list[Group]

    @property
    def runs(self) -> list[Run]:
        """All runs, group after group."""
        return [run for group in self.groups for run in group.runs]

    def names(self) -> dict[str, str]:
        """For each URI its shortest end that no other run has; the whole URI if there is no such end."""
        return _short_names([run.uri for run in self.runs])


@dataclass(frozen=True)
class Spread:
    """A figure over the runs of a group: how many have it, their mean, and for two or more their sample deviation."""

    count: int
    mean: float
    deviation: float | None
    paired: bool = True

    def text(self, decimals: int, sign: str = "") -> str:
        """``mean ± sd``, or the mean alone without a deviation."""
        said = f"{self.mean:{sign}.{decimals}f}"
        return said if self.deviation is None else f"{said} ± {self.deviation:.{decimals}f}"

    def difference(self, decimals: int) -> str:
        """The text of a difference: with its sign, and with the number of pairs or ``*`` for no pairs."""
        return f"{self.text(decimals, '+')} {f'(n={self.count})' if self.paired else '*'}"


def read_comparison(uris: Sequence[str]) -> Comparison:
    """The runs at ``uris``, each once, without their scores and embeddings.

    Raises `StorageError` for a folder that is not a run.
    """
    return grouped([read_run(uri, drawn=False) for uri in dict.fromkeys(uri.rstrip("/") for uri in uris)])


def grouped(runs: Sequence[Run]) -> Comparison:
    """Groups the runs whose configurations differ only in seeds and the run's folder.

    A run without a configuration is a group of its own.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = run.uri if run.config is None else json.dumps(settings(run), sort_keys=True, default=str)
        found.setdefault(key, []).append(run)
    names, labels = _short_names([run.uri for run in runs]), Counter[str]()
    groups = []
    for number, members in enumerate(found.values(), start=1):
        members.sort(key=_seed_order)
        label = _group_label([names[run.uri] for run in members])
        labels[label] += 1
        label = label if labels[label] == 1 else f"{label} ({labels[label]})"
        groups.append(Group(number, label, members))
    return Comparison(groups)


def settings(run: Run) -> dict[str, Any]:
    """The run's dotted keys, without seeds and without its own folder.

    In the values of a run with seed 3, ``seed3`` becomes ``seed*``. So runs that start from another run of the same
    seed still differ only in the seed.
    """
    leaves = flatten(run.config or {})
    own = re.compile(rf"(?i)(?<=seed)([-_=]?){re.escape(str(seed(run)))}(?!\d)")
    return {
        key: own.sub(r"\1*", value) if isinstance(value, str) else value
        for key, value in leaves.items()
        if key != "run" and key.rpartition(".")[2] != "seed"
    }


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The keys of the configuration whose values differ, with the value of each group (`ABSENT` if it has none).

    Keys are grouped by sections, in the order of the first configuration that has them.
    """
    trees = [settings(group.runs[0]) for group in groups if group.runs[0].config is not None]
    known = [settings(group.runs[0]) if group.runs[0].config is not None else None for group in groups]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    found = {}
    for key in sorted(keys, key=lambda key: sections.index(key.partition(".")[0])):
        values = [tree.get(key, ABSENT) for tree in trees]
        if any(value != values[0] or type(value) is not type(values[0]) for value in values):
            found[key] = [ABSENT if tree is None else tree.get(key, ABSENT) for tree in known]
    return found


def seed(run: Run) -> Any:
    """The run's seed; None if neither its configuration nor its origin has it."""
    own = (run.config or {}).get("seed")
    return run.origin.get("seed") if own is None else own


def spread(group: Group, value: Any) -> Spread | None:
    """A figure over the group's runs. ``value(run)`` is a number or None. None if no run has the figure."""
    found = [value(run) for run in group.runs]
    return _spread([float(v) for v in found if is_number(v)])


def difference(group: Group, base: Group, value: Any) -> Spread | None:
    """The figure of ``group`` minus that of ``base``, over pairs of runs with the same seed.

    For several runs with one seed, their mean is used. If the groups share no seed, it is the difference of the means.
    """
    mine, theirs = ({key: float(np.mean(v)) for key, v in _by_seed(each, value).items()} for each in (group, base))
    pairs = [mine[key] - theirs[key] for key in mine if key in theirs]
    if pairs or not mine or not theirs:
        return _spread(pairs)
    between = float(np.mean(list(mine.values())) - np.mean(list(theirs.values())))
    return Spread(0, between, None, paired=False)


def verification(run: Run) -> Record:
    """The run's first result of speaker verification; empty without one."""
    return run.verified[0] if run.verified else {}


def staging(run: Run) -> Record:
    """The run's first result of sleep staging; empty without one."""
    return run.staged[0] if run.staged else {}


def classification(run: Run, which: tuple[str, float | None]) -> Record:
    """The run's result with this classifier and this share of the labels; empty without one."""
    return next((result for result in run.classified if _classifier(result) == which), {})


def classifiers(comparison: Comparison) -> list[tuple[str, float | None]]:
    """All heads with shares of labels that have results: those of most runs first, then in `Run.classified`'s order."""
    counts = Counter(which for run in comparison.runs for which in {_classifier(result) for result in run.classified})
    place = {head: index for index, head in enumerate(HEADS)}
    return sorted(counts, key=lambda w: (-counts[w], place.get(w[0], len(place)), -(1.0 if w[1] is None else w[1])))


def chosen_classifiers(comparison: Comparison) -> list[tuple[str, float | None]]:
    """The first of `classifiers` that are needed so that every evaluated run has a result of one of them."""
    chosen, covered = [], set[str]()
    for which in classifiers(comparison):
        having = {run.uri for run in comparison.runs if classification(run, which)}
        if having - covered:
            chosen.append(which)
            covered |= having
    return chosen


def classifier_name(which: tuple[str, float | None]) -> str:
    """The name for people: the classifier, and its share of the labels."""
    head, share = which
    return HEADS.get(head, head) + (f", {100 * share:g} % of labels" if share is not None else "")


def curve(run: Run, name: str) -> tuple[Floats, Floats, Floats]:
    """The steps, the seconds since the start and the values ``[k]`` of a metric, from lines of steps or else of epochs.

    Time in which the run did not run, before a restart, is left out.
    """
    for kind in ("step", "epoch"):
        lines = [r for r in run.metrics if r.get("kind") == kind and is_number(r.get(name))]
        pairs = [
            (r["step"], r["time"], r[name]) for r in lines if is_number(r.get("step")) and is_number(r.get("time"))
        ]
        if len(pairs) > 1:
            table = np.array(pairs, np.float64)
            return table[:, 0], running_time(run, table[:, 1]), table[:, 2]
    nothing = np.zeros(0)
    return nothing, nothing, nothing


def common_metrics(comparison: Comparison, most: int = 10) -> list[str]:
    """Metrics with learning curves in two or more runs, at most ``most``: loss, its terms, throughput, then of epochs.

    Metrics that never change in any run are left out, and so is a term that equals the loss.
    """
    counts, steps, values = Counter[str](), set[str](), dict[str, set[float]]()
    for run in comparison.runs:
        terms = run.names("step")
        steps.update(terms)
        for name in dict.fromkeys([*terms, *run.names("epoch")]):
            found = curve(run, name)[2]
            counts[name] += len(found) > 0
            values.setdefault(name, set()).update(found.tolist())
    wanted = [name for name, count in counts.most_common() if count > 1 and len(values[name]) > 1]
    wanted = [name for name in wanted if name not in _LEFT_OUT and not _only_the_loss(comparison, name)]
    chosen = [name for name in _FIRST if name in wanted]
    chosen += sorted((name for name in wanted if name not in _FIRST), key=lambda name: name not in steps)
    order = {"loss": 0, "utterances_per_s": 2}
    return sorted(chosen[:most], key=lambda name: order.get(name, 1 if name in steps else 3))


def facts(run: Run) -> Record:
    """The run's origin and progress: seed, commit, ranks, epochs done and planned, steps, seconds, last loss."""
    epochs = (run.config or {}).get("training")
    steps, _, losses = curve(run, "loss")
    done = [int(r["epoch"]) for r in run.metrics if r.get("kind") == "epoch" and is_number(r.get("epoch"))]
    return {
        "seed": seed(run),
        "commit": run.origin.get("commit"),
        "world_size": run.origin.get("world_size"),
        "epoch": max(done, default=None),
        "epochs": epochs.get("epochs") if isinstance(epochs, dict) else None,
        "step": int(steps[-1]) if len(steps) else None,
        "seconds": training_seconds(run),
        "loss": float(losses[-max(1, len(losses) // 50) :].mean()) if len(losses) else None,
    }


def missing(comparison: Comparison) -> list[tuple[str, str | None]]:
    """Sentences about what runs lack, each with the command that makes it, or None."""
    found: list[tuple[str, str | None]] = []
    for run, name in ((run, comparison.names()[run.uri]) for run in comparison.runs):
        known = facts(run)
        found += [(f"{name}: {problem}", None) for problem in run.problems]
        if run.config is None:
            found.append((f"{name} has no usable config.yaml: how it differs is not known", None))
        if not run.origin:
            found.append((f"{name} has no usable origin.json: commit and number of ranks are not known", None))
        again = shlex.join(["rayssl", *map(str, run.origin.get("argv", [])[1:])]) if run.origin.get("argv") else None
        again = again if again and again.startswith("rayssl train ") else None
        if known["step"] is None and known["epoch"] is None:
            found.append((f"{name} has logged no training steps (metrics.jsonl)", again))
        elif is_number(known["epochs"]) and (known["epoch"] or 0) < known["epochs"]:
            at = f"epoch {known['epoch'] or 0} of {known['epochs']}"
            found.append((f"{name} is not trained to its end: {at}", again))
        if not run.results:
            found.append((f"{name} has not been evaluated", shlex.join(["rayssl", "evaluate", run.uri])))
    return found


def _by_seed(group: Group, value: Any) -> dict[Any, list[float]]:
    found: dict[Any, list[float]] = {}
    for run in group.runs:
        if is_number(value(run)):
            found.setdefault(seed(run), []).append(float(value(run)))
    return found


def _only_the_loss(comparison: Comparison, name: str) -> bool:
    """Whether a metric is the only term of the loss in every run."""
    if name == "loss":
        return False
    pairs = [(curve(run, name)[2], curve(run, "loss")[2]) for run in comparison.runs]
    return all(len(one) == len(loss) and bool((one == loss).all()) for one, loss in pairs if len(one))


def _spread(values: list[float]) -> Spread | None:
    if not values:
        return None
    return Spread(len(values), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _classifier(result: Record) -> tuple[str, float | None]:
    share = result.get("share")
    return str(result.get("head")), float(share) if is_number(share) and share is not None else None


def _seed_order(run: Run) -> tuple[bool, float, str]:
    own = seed(run)
    return not is_number(own), float(own) if is_number(own) else 0.0, run.uri


def _short_names(uris: Sequence[str]) -> dict[str, str]:
    names = {}
    for uri in uris:
        parts = [part for part in uri.split("/") if part] or [uri]
        ends = ("/".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [f"/{other.strip('/')}" for other in uris if other != uri]
        names[uri] = next((end for end in ends if not any(other.endswith(f"/{end}") for other in others)), uri)
    return names


def _group_label(names: list[str]) -> str:
    """The name of a single run; for several, the common beginning of their names without a trailing "seed"."""
    if len(names) == 1:
        return names[0]
    same = next((at for at, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), len(names[0]))
    begin = re.sub(r"(?i)[-_./ ]*(?:seed[-_./= ]*\d*|s)?[-_./= ]*$", "", names[0][:same])
    return begin or f"{names[0]} and {len(names) - 1} more"
