"""From a source to a prepared corpus in three steps: plan the units of work, process each unit, finish.

A unit becomes one shard. It contains all that a task needs: references, the conditions to render each of them under,
and the indices of speakers, recordings and labels. A finished unit leaves a small record under ``<uri>/.work``, and a
restarted preparation skips the unit. The manifest is written last. The corpus depends only on the settings and the
listing; it does not depend on the number of tasks, or on how often the work was interrupted.

A plan needs little memory, however large the source is. The source is listed in batches of rows (`listing`). The rows
are sorted by a hash of their names (`sorting`), in files under ``<uri>/.work/plan`` if they are many. Names become
indices (`naming`), and the sorted rows are cut into units (`planning`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from rayssl import storage
from rayssl.data import labels, listing, naming, planning, shards, sorting, splits
from rayssl.data.labels import SplitConfig
from rayssl.data.naming import Names
from rayssl.data.nights import runs
from rayssl.data.nights.runs import NightsEntry
from rayssl.data.nights.writing import GROUP_ROWS, NightsConfig
from rayssl.data.segments import entry, planned
from rayssl.data.segments.selection import ChosenSegments, digest, select
from rayssl.data.shards import Manifest, Reject, Shard
from rayssl.data.sources.checked import CheckedSource, others_found
from rayssl.data.sources.nights import STAGES, UNSCORED_NAME
from rayssl.data.trials import TrialsConfig
from rayssl.data.units import PLAN, WORK, ContentConfig, Done, PrepareUnit, PrepareWork
from rayssl.errors import CorpusError
from rayssl.schema import Config
from rayssl.storage.settings import StorageConfig

SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # it becomes the name of a file
_RECIPE = 2  # raise it if the same settings begin to give other samples: finished work is then done again


class PreparedCorpusConfig(ContentConfig):
    """One corpus: utterances made from ``source``, prepared at the URI ``out``."""

    out: str
    """Folder or URI of the corpus to make: shards of Parquet and a manifest."""
    shard_utterances: int = Field(default=512, ge=1)
    """The number of utterances in a shard, after rendering and before joining. Mixing needs several shards."""
    max_reject_share: float | None = Field(default=None, ge=0, le=1)
    """Preparation fails if a larger share of the source is unusable; null: 0.01, and for nights any share but all."""
    trials: dict[str, TrialsConfig] = {}
    """Lists of verification trials to write for this corpus, by a name of your choice."""
    splits: dict[SplitName, SplitConfig] = {}
    """Which utterances are labelled and unlabelled, by a name for ``labels.split``. The audio does not depend on it."""

    @model_validator(mode="after")
    def _trials_fit(self) -> PreparedCorpusConfig:
        for name, wanted in self.trials.items():
            if wanted.source is not None and self.join is not None:
                raise ValueError(f"trials.{name}.source names utterances that join replaces; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _splits_fit(self) -> PreparedCorpusConfig:
        for name, split in self.splits.items():
            if self.of_nights and split.nights is None:
                raise ValueError(f"splits.{name}.labelled would divide nights; give splits.{name}.nights instead")
            if split.nights is not None and not self.of_nights:
                raise ValueError(f"splits.{name}.nights needs a source of nights; give splits.{name}.labelled instead")
        return self


class PrepareConfig(Config):
    """The settings of ``rayssl prepare``: corpora by name. ``seed`` shuffles utterances among shards."""

    seed: int = 0
    """The seed that shuffles utterances among shards."""
    corpora: dict[str, PreparedCorpusConfig] = Field(min_length=1)
    """The corpora to make, by a name of your choice."""
    storage: StorageConfig = StorageConfig()
    """How long a job waits for an object store that does not answer."""


@dataclass(frozen=True)
class PreparePlan:
    """A whole preparation: its units, and what they have in common.

    ``names`` are those of each kind in the order of their indices, ``sources`` counts source utterances, ``digest`` is
    a hash over all units. ``selection``: the segments, if recordings are divided; ``passed_over``: what was not listed.
    """

    work: PrepareWork
    units: list[PrepareUnit]
    names: dict[str, Names]
    sources: int
    digest: str
    selection: ChosenSegments | None = None
    passed_over: dict[str, int] = field(default_factory=dict)

    def count(self) -> int:
        """The number of utterances that the units make, before joining."""
        return sum(unit.utterances for unit in self.units)


def plan(
    settings: PreparedCorpusConfig,
    seed: int,
    listed: Iterable[pa.RecordBatch] | None = None,
    tell: Callable[[str, int], None] = lambda what, utterances: None,
    run_bytes: int | None = None,
    selection: ChosenSegments | None = None,
) -> PreparePlan:
    """Divides the work into units. Renderings are shuffled among the units, so a shard rarely has the same words twice.

    With ``join``, the renderings of a recording under one condition stay together.

    Args:
        settings: the corpus.
        seed: shuffles.
        listed: what `listing.list_rows` gives for all parts, in any order; None lists here.
        tell: is called again and again with what is done (``listed`` or ``planned``), and to how many utterances.
        run_bytes: how many bytes of rows to hold. More rows are sorted in files. The plan does not depend on it.
        selection: the segments of all recordings, if the settings divide them; None examines them here.

    Raises:
        CorpusError: there are no references, too many recordings are unusable, no segment is left, two have the same
            name, a name contains '#c' although conditions are simulated, clips are to be joined and one has no
            recording, or a split does not fit the labels.
    """
    work = prepare_work(settings, seed)
    if settings.segments is not None:
        if selection is None:
            selection = select(planned.examine_all(work), settings.segments)
        planned.check(settings.out, selection, settings.max_reject_share)
        listed = planned.rows(work, selection)
    if listed is None:
        parts = CheckedSource(work.settings.source).parts()
        listed = (batch for part in parts for batch in listing.list_rows(work.settings, seed, part))
    per = 1 if settings.conditions is None else settings.conditions.per_utterance
    how = _how_to_cut(settings, seed, selection)
    sorter = sorting.Sorter(storage.join(settings.out, PLAN), how.joined, run_bytes)
    try:
        count, others = 0, Counter[str]()
        for batch in _checked(settings, listed, others):
            sorter.add(batch)
            count += len(batch)
            tell("listed", count // per)
        rows = sorter.finish()
        _check_names(settings, rows.names, count)
        units = planning.cut(rows, how, sorter.spilled, lambda done: tell("planned", done // per))
        rows.remove()
    except (naming.RepeatedName, CorpusError) as error:
        if sorter.spilled:
            discard(settings)
        if isinstance(error, CorpusError):
            raise
        raise _repeated(settings, str(error)) from None
    whole = hashlib.sha256("\n".join(unit.digest for unit in units).encode()).hexdigest()[:16]
    return PreparePlan(work, units, rows.names, count // per, whole, selection, dict(others))


def _check_names(settings: PreparedCorpusConfig, names: dict[str, Names], count: int) -> None:
    """Raises `CorpusError` if what the ``count`` listed utterances are called does not fit the settings."""
    if settings.take is not None:
        settings.take.check(names["speaker"].texts(), settings.out)
    if settings.of_nights and names["recording"].count < count:
        what = f"{count} nights are {names['recording'].count} recordings of subjects"
        raise CorpusError(f"{settings.source.describe()}: {what}; each night must be a recording of its own")
    if settings.splits:
        labels.check(settings.splits, STAGES if settings.of_nights else names["label"].texts(), settings.out)


def _repeated(settings: PreparedCorpusConfig, rendering: str) -> CorpusError:
    name = rendering if settings.join is None else rendering.rpartition("#c")[0]
    what = f"two {settings.listed} are named '{name}'; names must be unique"
    return CorpusError(f"{settings.source.describe()}: {what}")


def _how_to_cut(settings: PreparedCorpusConfig, seed: int, selection: ChosenSegments | None) -> planning.Cut:
    per_unit = 1 if settings.of_nights else settings.shard_utterances
    if selection is not None:
        per_unit = selection.shard_utterances(per_unit)
    head = [shards.VERSION, _RECIPE, content_settings(settings), seed]
    return planning.Cut(per_unit, settings.join is not None or selection is not None, head)


def prepare_work(settings: PreparedCorpusConfig, seed: int) -> PrepareWork:
    """What tasks need to know of ``settings``, with absolute paths."""
    made = {key: getattr(settings, key) for key in ContentConfig.model_fields}
    located = ContentConfig(**{**made, "source": settings.source.located()})
    return PrepareWork(out=storage.absolute(settings.out), seed=seed, settings=located)


def finish(settings: PreparedCorpusConfig, plan: PreparePlan, done: Sequence[Done]) -> Manifest:
    """Completes the corpus from the records of all units: names, rejects, splits, and last the manifest.

    Raises `CorpusError` if too much of the source was unusable, or if no utterance is left.
    """
    rejects = sorted({reject for record in done for reject in record.rejects}, key=lambda reject: reject.name)
    unusable = {reject for record in done for reject in record.unusable()}
    _check_rejects(settings, plan, [reject for reject in rejects if reject in unusable])
    parts = shards.number([shard for record in done for shard in record.shards])
    if not parts:
        raise CorpusError(f"{settings.out}: nothing is left after {len(rejects)} rejects (first: {rejects[0].reason})")
    names, how, made_of = plan.names, dict[str, Any](), dict[str, str]()
    if plan.selection is not None:
        rejects = sorted([*rejects, *planned.rejects(plan.work, plan.selection)], key=lambda reject: reject.name)
        how, made_of = (
            {"segments": plan.selection.write(settings.out)},
            {"recordings": digest(plan.selection.references)},
        )
    if settings.of_nights:
        names = {**names, "label": naming.listed(STAGES)}
        how = _nights(settings, done, parts)
    naming.write(settings.out, names)
    shards.write_rejects(settings.out, rejects)
    label_names = names["label"].texts() if settings.splits else []
    made = labels.make(settings.splits, settings.out, parts, label_names)
    manifest = shards.write_manifest(
        settings.out,
        parts,
        format=settings.format,
        names={kind: range(found.count) for kind, found in names.items()},
        rejected=len(rejects),
        settings={**content_settings(settings), "plan": plan.digest, "recipe": _RECIPE, **made_of},
        splits=made,
        **how,
    )
    _remove_others(settings.out, shards.SHARDS, [shard.path for shard in manifest.shards])
    _remove_others(settings.out, splits.FOLDER, [split.path for split in made.values()])
    storage.remove(storage.join(settings.out, WORK), recursive=True)
    return manifest


def _nights(settings: PreparedCorpusConfig, done: Sequence[Done], parts: Sequence[Shard]) -> dict[str, Any]:
    """What the manifest says of nights; writes their runs. ``parts``: all shards, with their first ids."""
    first_ids = {shard.path: shard.first_id for shard in parts}
    found, totals, dropped = [], Counter[str](), Counter[str]()
    kept = [record.night for record in done if record.night is not None and record.night.shards]
    for night in kept:
        for shard, inside in zip(night.shards, night.runs, strict=True):
            found += [(first_ids[shard.path] + run.row, run.epochs, night.recording, run.index) for run in inside]
        totals.update(night.stages)
        dropped.update(night.dropped)
    path, sha256 = runs.write(settings.out, sorted(found))
    stages = {name: totals[name] for name in (*STAGES, UNSCORED_NAME)}
    # sorted, because records come in the order in which tasks end
    counts = {"nights": len(kept), "subjects": len({night.subject for night in kept})}
    entry = NightsEntry(path=path, sha256=sha256, stages=stages, dropped=dict(sorted(dropped.items())), **counts)
    config = settings.nights or NightsConfig()
    return {"nights": entry, "mel": config.mel if settings.format == "mel" else None, "group_rows": GROUP_ROWS}


def renew_splits(settings: PreparedCorpusConfig, manifest: Manifest) -> Manifest:
    """Gives the complete corpus of ``manifest`` the splits of ``settings``, and no others. The audio does not change.

    A split is made only if its settings changed, or if its file is absent or damaged. The files are written before the
    manifest, because readers compare the files with it.
    """
    kept = labels.current(settings.out, settings.splits, manifest.splits)
    missing = {name: config for name, config in settings.splits.items() if name not in kept}
    names = shards.read_labels(settings.out)["label"] if missing else []
    made = labels.make(missing, settings.out, manifest.shards, names)
    both = {**kept, **made}
    wanted = {name: both[name] for name in settings.splits}
    if wanted == manifest.splits:
        return manifest
    manifest = shards.replace_splits(settings.out, manifest, wanted)
    _remove_others(settings.out, splits.FOLDER, [split.path for split in wanted.values()])
    return manifest


def kept(settings: PreparedCorpusConfig) -> Manifest | None:
    """The manifest at ``settings.out`` if an earlier rayssl made the corpus there, with these settings; else None.

    Such a corpus is complete, but this rayssl would divide the same utterances into other shards. Raises `CorpusError`
    if the manifest is damaged.
    """
    if not storage.exists(storage.join(settings.out, shards.MANIFEST)):
        return None
    manifest = shards.read_manifest(settings.out)
    made = {key: value for key, value in manifest.settings.items() if key not in ("plan", "recipe")}
    earlier = "plan" in manifest.settings and manifest.settings.get("recipe", 1) < _RECIPE
    return manifest if earlier and made == content_settings(settings) else None


def divided(settings: PreparedCorpusConfig, recordings: str) -> Manifest | None:
    """The manifest at ``settings.out`` if the corpus there is complete and was made of these recordings; else None.

    Then no recording must be examined again. ``recordings``: what `rayssl.data.segments.selection.digest` gives.
    """
    if not storage.exists(storage.join(settings.out, shards.MANIFEST)):
        return None
    manifest = shards.read_manifest(settings.out)
    made = {key: value for key, value in manifest.settings.items() if key != "plan"}
    wanted = {**content_settings(settings), "recipe": _RECIPE, "recordings": recordings}
    return manifest if made == wanted else None


def prepared(settings: PreparedCorpusConfig, plan: PreparePlan) -> Manifest | None:
    """The manifest at ``settings.out`` if the corpus is complete and was made by this plan; None if there is none.

    Raises `CorpusError` if the corpus there was made with other settings or from another source.
    """
    if not storage.exists(storage.join(settings.out, shards.MANIFEST)):
        return None
    manifest = shards.read_manifest(settings.out)
    if manifest.settings.get("plan") != plan.digest:
        message = f"{settings.out}: holds a corpus that was made with other settings or another source"
        raise CorpusError(f"{message}; change 'out', or replace it with --overwrite")
    return manifest


def clear(settings: PreparedCorpusConfig) -> None:
    """Removes the corpus at ``settings.out``, and records. The files of a plan stay.

    The manifest goes first, so that nobody reads half of the corpus.
    """
    storage.remove(storage.join(settings.out, shards.MANIFEST))
    for name in (shards.LABELS, shards.REJECTS, runs.PATH, entry.PATH):
        storage.remove(storage.join(settings.out, name))
    for folder in (shards.SHARDS, splits.FOLDER):
        storage.remove(storage.join(settings.out, folder), recursive=True)
    folder = storage.join(settings.out, PLAN) + "/"
    for record in storage.list_files(storage.join(settings.out, WORK)):
        if not record.startswith(folder):
            storage.remove(record)


def discard(settings: PreparedCorpusConfig) -> None:
    """Removes the files of a plan that will not be processed."""
    storage.remove(storage.join(settings.out, PLAN), recursive=True)


def _remove_others(out: str, folder: str, paths: Sequence[str]) -> None:
    """Removes all files of ``folder`` except ``paths``. Folder and paths are relative to ``out``."""
    listed = {storage.join(out, path) for path in paths}
    for stale in storage.list_files(storage.join(out, folder)):
        if stale not in listed:
            storage.remove(stale)


def _checked(
    settings: PreparedCorpusConfig, listed: Iterable[pa.RecordBatch], others: Counter[str]
) -> Iterator[pa.RecordBatch]:
    """The batches of ``listed`` with rows. What a source passed over is added to ``others``.

    Raises `CorpusError` for what only a look at the utterances shows.
    """
    where = settings.source.describe()
    found, unknown, first = 0, 0, ""
    for batch in listed:
        others.update(listing.passed_over(batch))
        if not len(batch):
            continue
        found += len(batch)
        names = batch.column("name")
        if settings.conditions is not None:
            reserved = names.filter(pc.match_substring(names, "#c"))
            if len(reserved):
                what = f"'{pc.min(reserved).as_py()}': '#c' is reserved for the names of conditions; rename it"
                raise CorpusError(f"{where}: {what}")
        for kind, means in (("speaker", "subject"), ("recording", "recording")) if settings.of_nights else ():
            if batch.column(kind).null_count:
                nameless = pc.min(names.filter(batch.column(kind).is_null())).as_py()
                raise CorpusError(f"{where}: night '{nameless}' has no {means}; give it as Reference.{kind}")
        if settings.join is not None and batch.column("recording").null_count:
            nameless = pc.unique(names.filter(batch.column("recording").is_null()))
            unknown += len(nameless)
            first = min(first or nameless[0].as_py(), pc.min(nameless).as_py())
        yield batch
    if not found:
        raise CorpusError(f"{where}: no {settings.listed} found{others_found(others)}; correct the keys of the source")
    if unknown:
        message = f"{where}: join needs recordings, and {unknown} utterances have none (first '{first}')"
        raise CorpusError(f"{message}; name the source's recording or leave join out")


def content_settings(settings: PreparedCorpusConfig) -> dict[str, Any]:
    """The settings that the corpus's content depends on, as plain values."""
    # a corpus without one of these keeps the settings, and so the digest, that it had before there were any
    left_out = {key for key in ("nights", "segments", "take") if getattr(settings, key) is None}
    return settings.model_dump(mode="json", include=set(ContentConfig.model_fields) - left_out)


def _check_rejects(settings: PreparedCorpusConfig, plan: PreparePlan, rejects: Sequence[Reject]) -> None:
    share, most = len(rejects) / plan.sources, settings.max_reject_share
    if most is None:
        most = 1.0 if settings.of_nights else 0.01
    if share > most:
        first = rejects[0]
        raise CorpusError(
            f"{settings.out}: {len(rejects)} of {plan.sources} {settings.listed} ({share:.1%}) cannot be used, first "
            f"'{first.name}' ({first.reason}); fix them or raise max_reject_share (now {most:g})"
        )
