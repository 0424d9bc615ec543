"""Prepares corpora with Ray Data, with one task for each unit of work. `rayssl.data` defines and processes units."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rayssl import errors
from rayssl.data import corpus, integrity, shards, trials
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig, PreparePlan
from rayssl.data.listing import list_rows
from rayssl.data.shards import Manifest
from rayssl.data.sources.checked import CheckedSource, described
from rayssl.data.trials import Made
from rayssl.data.units import Done, PrepareUnit, PrepareWork, process
from rayssl.runtime import cluster
from rayssl.schema import Config

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_PARTS_IN_TASKS = 8  # fewer parts are listed in this process, since starting tasks would take longer
_QUIET_S = 2.0  # a plan that takes longer shows how far it is
_KEPT = "made by an earlier rayssl; kept as it is; --overwrite makes it again"


class _Over(Protocol):
    """Calls a function with each item, in tasks or in this process, and yields everything that it yields."""

    def __call__(
        self, function: Callable[[Asked], Iterable[Answer]], asked: Sequence[Asked], /
    ) -> Iterator[Answer]: ...


class Prepared(Config):
    """One corpus of a `Summary`.

    ``reused``: it was complete before. ``reasons``: the number of rejected utterances for each reason. ``note``: a line
    to tell, or nothing.
    """

    out: str
    manifest: Manifest
    reused: bool
    wall_s: float
    reasons: dict[str, int]
    trials: dict[str, Made]
    note: str = ""


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
            lines += [f"  {made.note}"] if made.note else []
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

    An interrupted preparation lists its source again, and resumes. Splits are made again if their settings changed.
    ``progress``: shows a bar on standard error. ``overwrite``: replaces a corpus of other settings or of an earlier
    rayssl; without it the first raises `CorpusError`, and the second is kept. ``local``: processes one unit after the
    other in this process, without Ray.
    """
    made = {}
    for name, settings in config.corpora.items():
        made[name] = _prepare_one(name, settings, config.seed, progress, overwrite, _here if local else in_tasks)
    return Summary(corpora=made)


def verify_corpora(config: PrepareConfig) -> list[str]:
    """The problems of the prepared corpora of ``config``, one line for each; empty if there are none."""
    return [problem for settings in config.corpora.values() for problem in integrity.verify(settings.out)]


def _prepare_one(
    name: str, settings: PreparedCorpusConfig, seed: int, progress: bool, overwrite: bool, over: _Over
) -> Prepared:
    started = time.monotonic()
    manifest = None if overwrite else corpus.kept(settings)
    kept, reused = manifest is not None, manifest is not None
    if manifest is None:
        manifest, reused = _made(name, settings, seed, progress, overwrite, over)
    if reused:
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
        note=_KEPT if kept else "",
    )


def _made(
    name: str, settings: PreparedCorpusConfig, seed: int, progress: bool, overwrite: bool, over: _Over
) -> tuple[Manifest, bool]:
    """The manifest of the corpus, and whether it was there before."""
    plan = _plan(name, settings, seed, progress, over)
    try:
        manifest = corpus.prepared(settings, plan)
    except errors.CorpusError:
        if not overwrite:
            corpus.discard(settings)
            raise
        corpus.clear(settings)
        manifest = None
    if manifest is None:
        return corpus.finish(settings, plan, _process(name, plan, progress, over)), False
    corpus.discard(settings)
    return manifest, True


def _plan(name: str, settings: PreparedCorpusConfig, seed: int, progress: bool, over: _Over) -> PreparePlan:
    work = corpus.prepare_work(settings, seed)
    parts = CheckedSource(work.settings.source).parts()
    where = over if len(parts) >= _PARTS_IN_TASKS else _here
    listed = where(partial(list_rows, work.settings, seed), parts)
    columns = TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} utterances"), TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress)
    begun = time.monotonic()

    def tell(what: str, utterances: int) -> None:
        if not bar.task_ids:
            if time.monotonic() - begun < _QUIET_S:  # a small corpus needs no bar
                return
            bar.add_task("", total=None)
            bar.start()
        bar.update(bar.task_ids[0], description=f"{what} {name}", completed=utterances)

    try:
        return corpus.plan(settings, seed, listed, tell)
    finally:
        if bar.task_ids:
            bar.stop()


def _process(name: str, plan: PreparePlan, progress: bool, over: _Over) -> list[Done]:
    done: list[Done] = []
    count = rejects = 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("utterances"),
        TimeElapsedColumn(), TextColumn("{task.fields[pace]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(f"prepare {name}", total=plan.count(), pace="")
        started = time.monotonic()
        for record in over(partial(_processed, plan.work), plan.units):
            done.append(record)
            count += record.utterances
            rejects += len(record.rejects)
            pace = f"{count / max(time.monotonic() - started, 1e-3):.0f} /s, {rejects} rejected"
            bar.update(task, completed=count, pace=pace)
    return done


def _processed(work: PrepareWork, unit: PrepareUnit) -> Iterator[Done]:
    yield process(work, unit)


def _here(function: Callable[[Asked], Iterable[Answer]], asked: Sequence[Asked]) -> Iterator[Answer]:
    """Calls ``function`` with each item, one after the other, in this process."""
    return itertools.chain.from_iterable(map(function, asked))


def in_tasks(function: Callable[[Asked], Iterable[Answer]], asked: Sequence[Asked]) -> Iterator[Answer]:
    """Calls ``function`` with each item in its own task, and yields the answers in the order in which tasks give them.

    A `UserError` in a task is raised here. The function, items and answers are sent as bytes. For a source that is
    defined in a user's file, they contain the text of that file, see `rayssl.registry.ComponentConfig`.
    """
    cluster.connect()
    import ray.cloudpickle
    import ray.data

    sent = ray.cloudpickle.dumps(function)

    def answers(items: pa.Table) -> Iterator[pa.Table]:
        try:
            called = _loaded(sent)
            for item in items["asked"].to_pylist():
                for answered in called(_loaded(item)):
                    yield _row(ray.cloudpickle.dumps(answered))
        except errors.UserError as error:
            # sent as a row: Ray would wrap an exception in its own one and print two tracebacks
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            yield _row(b"", kind.__name__, str(error))

    items = [{"asked": ray.cloudpickle.dumps(item)} for item in asked]
    rows = ray.data.from_items(items, override_num_blocks=len(items))
    given = rows.map_batches(answers, batch_size=None, batch_format="pyarrow")
    for batch in given.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for place in range(batch.num_rows):
            (row,) = batch.slice(place, 1).to_pylist()
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield ray.cloudpickle.loads(row["answer"])


def _row(answer: bytes, error: str = "", message: str = "") -> pa.Table:
    return pa.table({"answer": pa.array([answer], pa.binary()), "error": [error], "message": [message]})


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
