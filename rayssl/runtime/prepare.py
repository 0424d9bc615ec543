"""Prepares corpora with Ray Data, with one task for each unit of work. `rayssl.data` defines and processes units."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from rayssl import errors, storage
from rayssl.data import corpus, decode, integrity, shards, trials
from rayssl.data.corpus import PrepareConfig, PreparedCorpusConfig, PreparePlan
from rayssl.data.listing import list_rows
from rayssl.data.nights.runs import NightsEntry
from rayssl.data.segments import detectors, planned
from rayssl.data.segments import entry as segments
from rayssl.data.segments.selection import ChosenSegments, digest, select
from rayssl.data.shards import Manifest, Reject
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource, described
from rayssl.data.sources.nights import UNSCORED_NAME
from rayssl.data.trials import Made
from rayssl.data.units import Done, PrepareUnit, PrepareWork, process
from rayssl.progress import Line, Phase, Screen, open_screen
from rayssl.runtime import cluster, console
from rayssl.runtime.telling import PrepareTeller
from rayssl.schema import Config

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_PARTS_IN_TASKS = 8  # fewer parts are listed in this process, since starting tasks would take longer
_MOST_LINES = 20  # rejects that a summary tells
_KEPT = "made by an earlier rayssl; kept as it is; --overwrite makes it again"


class _Over(Protocol):
    """Calls a function with each item, in tasks or in this process, and yields everything that it yields."""

    def __call__(
        self, function: Callable[[Asked], Iterable[Answer]], asked: Sequence[Asked], /
    ) -> Iterator[Answer]: ...


class Prepared(Config):
    """One corpus of a `Summary`.

    ``reused``: it was complete before. ``reasons``: the number of rejected utterances for each reason. ``note``: a line
    to tell, or nothing. ``rejects``: of a corpus of nights, the first rejects, of nights or of parts of nights.
    ``passed_over``: the number of files that are no utterances, by kind.
    """

    out: str
    manifest: Manifest
    reused: bool
    wall_s: float
    reasons: dict[str, int]
    trials: dict[str, Made]
    note: str = ""
    rejects: list[Reject] = []
    passed_over: dict[str, int] = {}

    def lines(self, name: str) -> list[str]:
        """What was made, for people; ``name`` is the corpus's."""
        m = self.manifest
        pace = "already complete" if self.reused else f"{self.wall_s:.1f} s"
        where = f"{len(m.shards)} shards at {self.out} ({pace})"
        hours, of = f"{m.seconds / 3600:.2f} h", ""
        if m.nights is None:
            what = f"{m.rows} utterances, {hours}, {m.speakers} speakers, {m.recordings} recordings"
        else:
            nights = f"{m.nights.nights}" + (f" of {m.recordings}" if m.nights.nights < m.recordings else "")
            what, of = f"{nights} nights, {hours} in {m.rows} epochs, {m.nights.subjects} subjects", " epochs"
        lines = [f"{name}: {what}, {where}", *([f"  {self.note}"] if self.note else [])]
        if m.nights is None:
            lines += [f"  rejected {count}: {reason}" for reason, count in self.reasons.items()]
            lines += _cut(m)
            if self.passed_over:
                kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.passed_over.items()))
                lines.append(f"  passed over {sum(self.passed_over.values())} files: {kinds}")
        else:
            lines += [*_epochs(m.nights), *self._left_out()]
        for label, split in m.splits.items():
            lines.append(f"  split {label}: {split.labelled} labelled{of} of {len(split.classes)} classes, ")
            lines[-1] += f"{split.unlabelled} unlabelled{of}"
            lines += [f"    {note}" for note in split.notes]
        for label, listed in self.trials.items():
            left_out = f", {listed.left_out} left out" if listed.left_out else ""
            lines.append(f"  trials {label}: {listed.trials}, {listed.targets} of them targets{left_out}")
        return lines

    def _left_out(self) -> list[str]:
        """A line for each of the `rejects`, and one for all others."""
        lines = [f"  left out {reject.name}: {reject.reason}" for reject in self.rejects]
        if more := self.manifest.rejected - len(self.rejects):
            lines.append(f"  and {more} more: see {storage.join(self.out, shards.REJECTS)}")
        return lines


class Summary(Config):
    """What `prepare` made: each corpus by its name."""

    corpora: dict[str, Prepared]

    def text(self) -> str:
        """A few lines for people."""
        return "\n".join(line for name, made in self.corpora.items() for line in made.lines(name))


def _cut(manifest: Manifest) -> list[str]:
    """Of how much audio the segments are, and what was left out by reason, with hours."""
    entry = manifest.segments
    if entry is None:
        return []
    lines = [f"  cut from {entry.recordings} recordings of {entry.seconds / 3600:.2f} h: {entry.kept} segments of"]
    lines[0] += f" {entry.kept_seconds / 3600:.2f} h, listed in {segments.PATH}"
    for reason, lost in entry.dropped.items():
        count = f" in {lost.segments} segments" if lost.segments else ""
        lines.append(f"    left out {lost.seconds / 3600:.2f} h{count}: {reason}")
    return lines


def _epochs(nights: NightsEntry) -> list[str]:
    """The epochs of each stage, with their share of the scored ones, and the dropped ones by reason."""
    counts = {name: count for name, count in nights.stages.items() if name != UNSCORED_NAME}
    scored, unscored = sum(counts.values()), nights.stages[UNSCORED_NAME]
    stages = [f"{name} {count} ({count / max(1, scored):.1%})" for name, count in counts.items()]
    lines = [f"  stages: {', '.join(stages)}; {unscored} epochs unscored"]
    if nights.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in nights.dropped.items())
        lines.append(f"  dropped {sum(nights.dropped.values())} epochs: {reasons}")
    return lines


def prepare(
    config: PrepareConfig,
    *,
    progress: bool = True,
    overwrite: bool = False,
    local: bool = False,
    screen: Screen | None = None,
    verbose: bool = False,
) -> Summary:
    """Makes every corpus of ``config`` that is not complete yet, with its splits and its trials.

    An interrupted preparation lists its source again, and resumes. Splits are made again if their settings changed.
    ``overwrite``: replaces a corpus of other settings or of an earlier rayssl; without it the first raises
    `CorpusError`, and the second is kept. ``local``: processes one unit after the other in this process, without Ray.
    ``screen`` shows what happens; without one, ``progress`` shows a bar on standard error. ``verbose``: shows also what
    Ray's own processes print.
    """
    if screen is None:
        screen = open_screen("auto" if progress else "quiet", sys.stderr)
        try:
            return prepare(config, overwrite=overwrite, local=local, screen=screen, verbose=verbose)
        finally:
            screen.close()
    corpora = ", ".join(f"{name} at {settings.out}" for name, settings in config.corpora.items())
    screen.show(Line(f"preparing {corpora}"))
    made = {}
    for settings in config.corpora.values():
        storage.exists(storage.join(settings.out, shards.MANIFEST))  # a wrong address is told now, within seconds
    config.storage.apply()
    over: _Over = _here if local else partial(in_tasks, connect=partial(_connect, screen, verbose))
    for name, settings in config.corpora.items():
        made[name] = _prepare_one(settings, config.seed, PrepareTeller(screen, name), overwrite, over)
    return Summary(corpora=made)


def _connect(screen: Screen, verbose: bool) -> None:
    """Joins a cluster or starts one, and shows what its processes print on ``screen``."""
    if cluster.started():
        return
    began = time.monotonic()
    screen.show(Line("starting Ray" if not cluster.joins() else "connecting to the cluster"))
    cluster.connect()
    console.take_over(screen, verbose)
    screen.show(Phase("connected to the cluster" if cluster.joins() else "started Ray", time.monotonic() - began))


def verify_corpora(config: PrepareConfig) -> list[str]:
    """The problems of the prepared corpora of ``config``, one line for each; empty if there are none."""
    return [problem for settings in config.corpora.values() for problem in integrity.verify(settings.out)]


def _prepare_one(
    settings: PreparedCorpusConfig, seed: int, teller: PrepareTeller, overwrite: bool, over: _Over
) -> Prepared:
    started = time.monotonic()
    manifest = None if overwrite else corpus.kept(settings)
    kept, reused, others = manifest is not None, manifest is not None, dict[str, int]()
    if manifest is None:
        manifest, reused, others = _made(settings, seed, teller, overwrite, over)
    if reused:
        manifest = corpus.renew_splits(settings, manifest)
    lists = {label: trials.make(wanted, settings.out) for label, wanted in settings.trials.items()}
    rejects = shards.read_rejects(settings.out)
    reasons = Counter(reject.reason.partition(":")[0] for reject in rejects)
    return Prepared(
        out=settings.out,
        manifest=manifest,
        reused=reused,
        wall_s=time.monotonic() - started,
        reasons=dict(reasons),
        trials=lists,
        note=_KEPT if kept else "",
        rejects=rejects[:_MOST_LINES] if settings.of_nights else [],
        passed_over=others,
    )


def _made(
    settings: PreparedCorpusConfig, seed: int, teller: PrepareTeller, overwrite: bool, over: _Over
) -> tuple[Manifest, bool, dict[str, int]]:
    """The manifest of the corpus, whether it was there before, and what the source passed over."""
    selection, others = None, dict[str, int]()
    if overwrite or not storage.exists(storage.join(settings.out, shards.MANIFEST)):
        storage.check_writable(settings.out)
        for wanted in settings.trials.values():
            storage.check_writable(wanted.out.rpartition("/")[0] or ".")
    if settings.segments is not None:
        detectors.check(settings.segments)
        work = corpus.prepare_work(settings, seed)
        asked = planned.asked(work)
        others = CheckedSource(work.settings.source).passed_over()
        listed = digest(itertools.chain.from_iterable(asked))
        complete = None if overwrite else corpus.divided(settings, listed)
        if complete is not None:
            return complete, True, others
        selection = _selection(work, asked, teller, over)
    plan = _plan(settings, seed, teller, over, selection)
    try:
        manifest = corpus.prepared(settings, plan)
    except errors.CorpusError:
        if not overwrite:
            corpus.discard(settings)
            raise
        corpus.clear(settings)
        manifest = None
    if manifest is None:
        manifest = corpus.finish(settings, plan, _process(plan, teller, over))
        return manifest, False, plan.passed_over or others
    corpus.discard(settings)
    return manifest, True, plan.passed_over or others


def _selection(
    work: PrepareWork, asked: Sequence[Sequence[Reference]], teller: PrepareTeller, over: _Over
) -> ChosenSegments:
    """Examines all recordings, and chooses segments."""
    found, hours, done, total = list[planned.Examined](), 0.0, 0, sum(map(len, asked))
    began = teller.now()
    teller.at("examining", 0, total, "recordings")
    for references, cuts in over(partial(planned.examined, work), asked):
        found.append((references, cuts))
        hours += sum(cut.samples for cut in cuts) / decode.RATE / 3600
        done += len(cuts)
        teller.at("examining", done, total, "recordings", hours=hours)
    assert work.settings.segments is not None
    chosen = select(found, work.settings.segments)
    teller.ended(f"examined {done:,} recordings of {hours:.2f} h", began)
    return chosen


def _plan(
    settings: PreparedCorpusConfig,
    seed: int,
    teller: PrepareTeller,
    over: _Over,
    selection: ChosenSegments | None = None,
) -> PreparePlan:
    work, listed, began = corpus.prepare_work(settings, seed), None, teller.now()
    if selection is None:
        teller.at("listing", 0, None, settings.listed)
        parts = CheckedSource(work.settings.source).parts()
        where = over if len(parts) >= _PARTS_IN_TASKS else _here
        listed = where(partial(list_rows, work.settings, seed), parts)

    def tell(what: str, utterances: int) -> None:
        teller.at("listing" if what == "listed" else "planning", utterances, None, settings.listed)

    plan = corpus.plan(settings, seed, listed, tell, selection=selection)
    teller.ended(f"planned {plan.count():,} {settings.listed} in {len(plan.units):,} pieces", began)
    return plan


def _process(plan: PreparePlan, teller: PrepareTeller, over: _Over) -> list[Done]:
    done: list[Done] = []
    count, rejects, hours, began = 0, 0, 0.0, teller.now()
    of_nights, what = plan.work.settings.of_nights, plan.work.settings.listed
    teller.at("preparing", 0, plan.count(), what)
    for record in over(partial(_processed, plan.work), plan.units):
        done.append(record)
        count += record.utterances
        rejects += len(record.unusable() if of_nights else record.rejects)
        hours += sum(shard.seconds for shard in record.shards) / 3600
        teller.at("preparing", count, plan.count(), what, hours=hours, rejected=rejects)
    teller.ended(f"prepared {count:,} {what}", began)
    return done


def _processed(work: PrepareWork, unit: PrepareUnit) -> Iterator[Done]:
    yield process(work, unit)


def _here(function: Callable[[Asked], Iterable[Answer]], asked: Sequence[Asked]) -> Iterator[Answer]:
    """Calls ``function`` with each item, one after the other, in this process."""
    return itertools.chain.from_iterable(map(function, asked))


def in_tasks(
    function: Callable[[Asked], Iterable[Answer]],
    asked: Sequence[Asked],
    connect: Callable[[], None] = cluster.connect,
) -> Iterator[Answer]:
    """Calls ``function`` with each item in its own task, and yields the answers in the order in which tasks give them.

    A `UserError` in a task is raised here. The function, items and answers are sent as bytes. For a source that is
    defined in a user's file, they contain the text of that file, see `rayssl.registry.ComponentConfig`.
    """
    connect()
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
