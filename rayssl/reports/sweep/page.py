"""Makes one HTML page from a sweep's folder: which keys matter, the best trial, all trials, and what to run next."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import Any

from rayssl import storage
from rayssl.errors import StorageError
from rayssl.reports.content import (
    Block,
    Code,
    Column,
    Details,
    Figure,
    Listing,
    Page,
    Paragraph,
    Row,
    Section,
    Table,
    text,
)
from rayssl.reports.document import document
from rayssl.reports.run.clock import duration
from rayssl.reports.run.reading import Record, is_number
from rayssl.reports.sweep.pictures import Importance, importance, importance_bars, learning_curves, parallel, short

_RESULTS, _BEST = "results.json", "best.yaml"
_PARALLEL = (
    "Each line is a trial: its value of every key and, at the end, its metric. Blue lines are the best of the trials "
    "that trained longest; the thick one is the best of all. Grey dashed trials trained less: compare them with care. "
    "Where blue lines meet on an axis, the value is good. Where they are spread over an axis, the key matters little."
)
_CURVES = (
    "The metric of a trial each time it was judged, over its epochs of training. A cross is where a trial was stopped. "
    "If the lines of the other trials seldom cross later, stopping was right. If they often cross, a trial that "
    "improves late may have been lost."
)


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep's ``results.json``. ``trials``: best first. ``best_yaml``: the text of ``best.yaml``."""

    uri: str
    metric: str
    mode: str
    space: Record
    trials: list[Record]
    best: int | None = None
    best_yaml: str = ""
    facts: Record = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.uri.rstrip("/").rpartition("/")[2] or self.uri

    @property
    def judged(self) -> list[Record]:
        """The trials that were judged at least once, the best first."""
        return [trial for trial in self.trials if trial["rungs"]]


def is_sweep(uri: str) -> bool:
    """Whether the folder at ``uri`` is that of a sweep."""
    return storage.exists(storage.join(uri, _RESULTS))


def read_sweep(uri: str) -> Sweep:
    """The sweep in the folder ``uri``. Raises `StorageError` if there is none, or if its results are damaged."""
    where = storage.join(uri, _RESULTS)
    try:
        tree = json.loads(storage.read_text(where))
        known = {name: tree.pop(name) for name in ("metric", "mode", "space", "trials", "best")}
        for trial in known["trials"]:
            assert {"index", "point", "state", "rungs", "epochs"} <= trial.keys()
    except (ValueError, KeyError, AttributeError, TypeError, AssertionError) as error:
        raise StorageError(f"{where}: not the results of a sweep; run 'rayssl sweep' again to write them") from error
    best = storage.join(uri, _BEST)
    text = storage.read_text(best) if known["best"] is not None and storage.exists(best) else ""
    return Sweep(uri=uri, best_yaml=text, facts=tree, **known)


def write_sweep_report(uri: str, out: str | None = None) -> str:
    """Writes the page about the sweep at ``uri`` and returns its URI. Raises `StorageError` as `read_sweep`.

    ``out`` is the file or URI (default: ``report.html`` in the sweep's folder).
    """
    page = out or storage.join(uri, "report.html")
    storage.write_text(page, render_sweep(read_sweep(uri)))
    return page


def render_sweep(sweep: Sweep) -> str:
    """The whole page as HTML text. All text that comes from the sweep is escaped."""
    return document(
        Page(
            title=f"{sweep.name} - rayssl sweep",
            heading=sweep.name,
            facts=_facts(sweep),
            cards=_cards(sweep),
            sections=[
                *_keys(sweep), _curves(sweep), _table(sweep), _failures(sweep), _best(sweep), _how(sweep)
            ],
        )
    )  # fmt: skip


def _facts(sweep: Sweep) -> list[str]:
    scheduler = sweep.facts.get("scheduler")
    name = scheduler.get("name") if isinstance(scheduler, dict) else None
    parts = [f"sweep over {sweep.facts.get('base', 'an experiment')}", f"search: {sweep.facts.get('search', '-')}"]
    return [*parts, *([f"scheduler: {name}"] if name else []), sweep.uri]


def _cards(sweep: Sweep) -> list[tuple[str, str]]:
    count = {state: sum(t["state"] == state for t in sweep.trials) for state in ("finished", "stopped", "failed")}
    cards = []
    best = next((trial for trial in sweep.trials if trial["index"] == sweep.best), None)
    if best is not None:
        cards.append((_number(best["value"]), f"{sweep.metric} of trial {best['index']} after {best['epochs']} epochs"))
    asked = sweep.facts.get("asked")
    planned = f" of {asked} planned" if is_number(asked) and asked != len(sweep.trials) else ""
    cards.append((str(len(sweep.trials)), f"trials{planned}, {count['finished']} of them trained to the end"))
    if count["stopped"]:
        cards.append((str(count["stopped"]), "stopped early"))
    if count["failed"]:
        cards.append((str(count["failed"]), "failed, see below"))
    seconds = sum(rung.get("seconds", 0.0) for trial in sweep.trials for rung in trial["rungs"])
    cards.append((duration(seconds), "of training and evaluation, all trials"))
    return cards


def _keys(sweep: Sweep) -> list[Section]:
    picture = parallel(sweep.space, sweep.judged, sweep.metric, sweep.mode, sweep.best)
    values: Block = Figure(picture, _PARALLEL) if picture else text("Nothing to draw before two trials were judged.")
    found = importance(sweep.space, sweep.judged)
    matter: list[Block] = [text(found)] if isinstance(found, str) else []
    if not isinstance(found, str) and (bars := importance_bars(found)):
        matter = [Figure(bars, _explained(found, sweep.metric))]
    return [Section("Which values are good", [values]), Section("Which keys matter", matter)]


def _explained(found: Importance, metric: str) -> str:
    judged = (
        "which is little: the order of the bars is only a guess"
        if found.explained < 0.3
        else "so the order of the bars is a useful hint, but not more with so few trials"
    )
    return (
        f"A forest of regression trees is fitted to {metric} at {found.rows} rungs of all trials. A bar shows how much "
        "worse it gets when the values of one key are shuffled, as a share of all keys. Thin lines are one standard "
        f"deviation over shuffles. The forest explains {100 * max(0.0, found.explained):.0f} % of the variance of "
        f"trials that it has not seen, {judged}. It also knows the epochs of training, which are not shown."
    )


def _curves(sweep: Sweep) -> Section:
    picture = learning_curves(sweep.judged, sweep.metric, sweep.mode, sweep.best)
    return Section("Learning curves", [Figure(picture, _CURVES)] if picture else [])


def _table(sweep: Sweep) -> Section:
    keys = list(sweep.space)
    heads = ["Trial", *(short(key, keys) for key in keys), sweep.metric, "Epochs", "Minutes"]
    rows = []
    for rank, trial in enumerate(sweep.trials, start=1):
        minutes = sum(rung.get("seconds", 0.0) for rung in trial["rungs"]) / 60
        cells = [str(rank), str(trial["index"]), *(_value(trial["point"].get(key)) for key in keys)]
        cells += [_number(trial.get("value")), str(trial["epochs"]), f"{minutes:.1f}"]
        said = trial["state"] if trial["state"] != "stopped" else f"stopped: {trial.get('reason') or '-'}"
        for taken in trial.get("taken", []):
            said += f", from trial {taken['source']} after epoch {taken['epoch']}"
        rows.append(Row([*cells, said], marked=trial["index"] == sweep.best))
    columns = [Column("Rank", "number"), *(Column(head, "number") for head in heads), Column("State")]
    said = "Trials that trained longer come first, then better ones; failed trials are last."
    return Section("All trials", [text(said), Table("All trials", columns, rows)])


def _failures(sweep: Sweep) -> Section:
    failed = [trial for trial in sweep.trials if trial["state"] == "failed"]
    blocks: list[Block] = []
    for trial in failed:
        point = ", ".join(f"{key}={_value(value)}" for key, value in trial["point"].items())
        reason = trial.get("reason") or "the reason is not known"
        blocks.append(text(f"Trial {trial['index']} ({point}): {reason}", "problem"))
    return Section("Failures", [*blocks, text("--retry-failed runs them again.")] if failed else [])


def _best(sweep: Sweep) -> Section:
    title = "Best configuration"
    if not sweep.best_yaml:
        return Section(title, [text("There is none yet: no trial has been judged.")])
    command = f"rayssl train {shlex.quote(storage.join(sweep.uri, _BEST))}"
    again = Paragraph([Code(command), " trains it again, in a new folder."])
    return Section(title, [again, Details("The whole file", [Listing(sweep.best_yaml)])])


def _how(sweep: Sweep) -> Section:
    argv = sweep.facts.get("argv")
    if not isinstance(argv, list) or not argv:
        return Section("How to reproduce", [])
    program = str(argv[0]).rpartition("/")[2]
    words = ["rayssl" if program.endswith(".py") else program, *(str(part) for part in argv[1:])]
    commit = sweep.facts.get("commit")
    said = f"At commit {commit}. " if commit else ""
    again = text(f"{said}The same command resumes an unfinished sweep.", "soft")
    return Section("How to reproduce", [Listing(shlex.join(words)), again])


def _number(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else "-"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
