"""Preparing corpora with Ray Data: one task a unit of work. What a unit is, and what it makes, is `rayssl.data`'s."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rayssl import errors
from rayssl.data import corpus, shards, sources, trials
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig, PreparePlan
from rayssl.data.shards import Manifest
from rayssl.data.sources import Reference
from rayssl.data.trials import Made
from rayssl.data.units import Done, PrepareUnit, process
from rayssl.runtime import cluster
from rayssl.schema import Config

_PARTS_IN_TASKS = 8  # fewer parts than this are listed here: starting tasks would take longer


class Prepared(Config):
    """One corpus of a `Summary`; ``reused`` when it was complete already, ``reasons`` counts rejects by their kind."""

    out: str
    manifest: Manifest
    reused: bool
    wall_s: float
    reasons: dict[str, int]
    trials: dict[str, Made]


class Summary(Config):
    """What `prepare` made, corpus by corpus."""

    corpora: dict[str, Prepared]

    def text(self) -> str:
        """A few lines for people."""
        lines = []
        for name, made in self.corpora.items():
            m = made.manifest
            pace = "already complete" if made.reused else f"{made.wall_s:.1f} s"
            lines.append(f"{name}: {m.rows} utterances, {m.seconds / 3600:.2f} h, {m.speakers} speakers, ")
            lines[-1] += f"{m.recordings} recordings, {len(m.shards)} shards at {made.out} ({pace})"
            lines += [f"  rejected {count}: {reason}" for reason, count in made.reasons.items()]
            for label, split in m.splits.items():
                lines.append(f"  split {label}: {split.labelled} labelled of {len(split.classes)} classes, ")
                lines[-1] += f"{split.unlabelled} unlabelled"
                lines += [f"    {note}" for note in split.notes]
            for label, listed in made.trials.items():
                left_out = f", {listed.left_out} left out" if listed.left_out else ""
                lines.append(f"  trials {label}: {listed.trials}, {listed.targets} of them targets{left_out}")
        return "\n".join(lines)


def prepare(config: PrepareConfig, *, progress: bool = True, overwrite: bool = False) -> Summary:
    """Makes every corpus of ``config`` that is not complete yet, its splits and its trials.

    An interrupted preparation goes on where it stopped. ``overwrite`` replaces a corpus made with other settings, which
    is otherwise a `CorpusError`. Splits are made anew wherever their settings changed.
    """
    made = {}
    for name, settings in config.corpora.items():
        made[name] = _prepare_one(name, settings, config.seed, progress, overwrite)
    return Summary(corpora=made)


def verify_corpora(config: PrepareConfig) -> list[str]:
    """What is wrong with the prepared corpora of ``config``, one line each; empty when all are sound."""
    return [problem for settings in config.corpora.values() for problem in shards.verify(settings.out)]


def _prepare_one(name: str, settings: PreparedCorpusConfig, seed: int, progress: bool, overwrite: bool) -> Prepared:
    started = time.monotonic()
    plan = corpus.plan(settings, _list_references(settings), seed)
    try:
        manifest = corpus.prepared(settings, plan)
    except errors.CorpusError:
        if not overwrite:
            raise
        corpus.clear(settings)
        manifest = None
    reused = manifest is not None
    if manifest is None:
        manifest = corpus.finish(settings, plan, _process(name, plan, progress))
    else:
        manifest = corpus.renew_splits(settings, manifest)
    lists = {label: trials.make(wanted, settings.out) for label, wanted in settings.trials.items()}
    reasons = Counter(reject.reason.partition(":")[0] for reject in shards.read_rejects(settings.out))
    return Prepared(
        out=settings.out,
        manifest=manifest,
        reused=reused,
        wall_s=time.monotonic() - started,
        reasons=dict(reasons),
        trials=lists,
    )


def _list_references(settings: PreparedCorpusConfig) -> list[Reference]:
    source = sources.resolved(settings.source)
    parts = sources.parts(source)
    if len(parts) < _PARTS_IN_TASKS:
        return corpus.list_references(settings)
    asked = [sources.SourcePart(source=source, part=part).model_dump_json() for part in parts]
    listings = (sources.Listing.model_validate_json(answer) for answer in _in_tasks(_list_part, asked))
    return corpus.check_references(settings, [reference for listing in listings for reference in listing.references])


def _list_part(asked: str) -> str:
    part = sources.SourcePart.model_validate_json(asked)
    return sources.Listing(references=sources.list_part(part.source, part.part)).model_dump_json()


def _process_unit(asked: str) -> str:
    return process(PrepareUnit.model_validate_json(asked)).model_dump_json()


def _process(name: str, plan: PreparePlan, progress: bool) -> list[Done]:
    done: list[Done] = []
    total = sum(unit.count() for unit in plan.units)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("utterances"),
        TimeElapsedColumn(), TextColumn("{task.fields[pace]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(f"prepare {name}", total=total, pace="")
        started = time.monotonic()
        for answer in _in_tasks(_process_unit, [unit.model_dump_json() for unit in plan.units]):
            done.append(Done.model_validate_json(answer))
            count = sum(record.utterances for record in done)
            rejects = sum(len(record.rejects) for record in done)
            pace = f"{count / max(time.monotonic() - started, 1e-3):.0f} /s, {rejects} rejected"
            bar.update(task, completed=count, pace=pace)
    return done


def _in_tasks(function: Callable[[str], str], asked: Sequence[str]) -> Iterator[str]:
    """``function`` of each string, a task each, in the order they finish. A `UserError` in a task is raised here."""
    cluster.connect()
    import ray.data

    def answer(row: dict[str, str]) -> dict[str, str]:
        try:
            return {"answer": function(row["asked"]), "error": "", "message": ""}
        except errors.UserError as error:
            # as values: an exception would arrive wrapped in Ray's own, with two tracebacks
            return {"answer": "", "error": type(error).__name__, "message": str(error)}

    rows = ray.data.from_items([{"asked": text} for text in asked], override_num_blocks=len(asked))
    for batch in rows.map(answer).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield row["answer"]
