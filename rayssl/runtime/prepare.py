"""Prepares corpora with Ray Data, with one task for each unit of work. `rayssl.data` defines and processes units."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rayssl import errors
from rayssl.data import corpus, shards, trials
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig, PreparePlan
from rayssl.data.shards import Manifest
from rayssl.data.sources.base import Reference, SourceConfig
from rayssl.data.sources.checked import CheckedSource, described
from rayssl.data.trials import Made
from rayssl.data.units import Done, process
from rayssl.runtime import cluster
from rayssl.schema import Config

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_PARTS_IN_TASKS = 8  # fewer parts are listed in this process, since starting tasks would take longer


class _Over(Protocol):
    """Calls a function with each item, in tasks or in this process."""

    def __call__(self, function: Callable[[Asked], Answer], asked: Sequence[Asked], /) -> Iterator[Answer]: ...


class SourcePart(NamedTuple):
    """The part of a source that one task lists."""

    source: SourceConfig
    part: str


class Prepared(Config):
    """One corpus of a `Summary`.

    ``reused``: it was complete before. ``reasons``: the number of rejected utterances for each reason.
    """

    out: str
    manifest: Manifest
    reused: bool
    wall_s: float
    reasons: dict[str, int]
    trials: dict[str, Made]


class Summary(Config):
    """What `prepare` made: each corpus by its name."""

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


def prepare(config: PrepareConfig, *, progress: bool = True, overwrite: bool = False, local: bool = False) -> Summary:
    """Makes every corpus of ``config`` that is not complete yet, with its splits and its trials.

    An interrupted preparation resumes. Splits are made again if their settings have changed. ``progress``: shows a bar
    on standard error. ``overwrite``: replaces a corpus that was made with other settings; without it such a corpus
    raises `CorpusError`. ``local``: processes one unit after the other in this process, without Ray.
    """
    made = {}
    for name, settings in config.corpora.items():
        made[name] = _prepare_one(name, settings, config.seed, progress, overwrite, _here if local else _in_tasks)
    return Summary(corpora=made)


def verify_corpora(config: PrepareConfig) -> list[str]:
    """The problems of the prepared corpora of ``config``, one line for each; empty if there are none."""
    return [problem for settings in config.corpora.values() for problem in shards.verify(settings.out)]


def _prepare_one(
    name: str, settings: PreparedCorpusConfig, seed: int, progress: bool, overwrite: bool, over: _Over
) -> Prepared:
    started = time.monotonic()
    plan = corpus.plan(settings, _list_references(settings, over), seed)
    try:
        manifest = corpus.prepared(settings, plan)
    except errors.CorpusError:
        if not overwrite:
            raise
        corpus.clear(settings)
        manifest = None
    reused = manifest is not None
    if manifest is None:
        manifest = corpus.finish(settings, plan, _process(name, plan, progress, over))
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


def _list_references(settings: PreparedCorpusConfig, over: _Over) -> list[Reference]:
    source = settings.source.located()
    parts = CheckedSource(source).parts()
    if len(parts) < _PARTS_IN_TASKS:
        return corpus.list_references(settings)
    listings = over(_list_part, [SourcePart(source, part) for part in parts])
    return corpus.check_references(settings, [reference for listing in listings for reference in listing])


def _list_part(asked: SourcePart) -> list[Reference]:
    return CheckedSource(asked.source).list_part(asked.part)


def _process(name: str, plan: PreparePlan, progress: bool, over: _Over) -> list[Done]:
    done: list[Done] = []
    total = sum(unit.count() for unit in plan.units)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("utterances"),
        TimeElapsedColumn(), TextColumn("{task.fields[pace]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(f"prepare {name}", total=total, pace="")
        started = time.monotonic()
        for record in over(process, plan.units):
            done.append(record)
            count = sum(record.utterances for record in done)
            rejects = sum(len(record.rejects) for record in done)
            pace = f"{count / max(time.monotonic() - started, 1e-3):.0f} /s, {rejects} rejected"
            bar.update(task, completed=count, pace=pace)
    return done


def _here(function: Callable[[Asked], Answer], asked: Sequence[Asked]) -> Iterator[Answer]:
    """Calls ``function`` with each item, one after the other, in this process."""
    return map(function, asked)


def _in_tasks(function: Callable[[Asked], Answer], asked: Sequence[Asked]) -> Iterator[Answer]:
    """Calls ``function`` with each item in its own task, and yields the answers in the order in which tasks finish.

    A `UserError` in a task is raised here. Items and answers are sent as bytes. For a source that is defined in a
    user's file, they contain the text of that file, see `rayssl.registry.ComponentConfig`.
    """
    cluster.connect()
    import ray.cloudpickle
    import ray.data

    def answer(row: dict[str, bytes]) -> dict[str, Any]:
        try:
            answered = function(_loaded(row["asked"]))
        except errors.UserError as error:
            # sent as a row: Ray would wrap an exception in its own one and print two tracebacks
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            return {"answer": b"", "error": kind.__name__, "message": str(error)}
        return {"answer": ray.cloudpickle.dumps(answered), "error": "", "message": ""}

    items = [{"asked": ray.cloudpickle.dumps(item)} for item in asked]
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    for batch in rows.map(answer).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield ray.cloudpickle.loads(row["answer"])


def _loaded(item: bytes) -> Any:
    """The item that a task was sent. Raises `CorpusError` if this node lacks a package that a user's source imports."""
    import ray
    import ray.cloudpickle

    try:
        return ray.cloudpickle.loads(item)
    except Exception as error:
        node = ray.util.get_node_ip_address()
        what = f"a task cannot load the source on the node {node}: {described(error)}"
        raise errors.CorpusError(f"{what}; every node needs the packages that a source imports") from error
