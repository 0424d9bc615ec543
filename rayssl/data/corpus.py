"""From a source to a prepared corpus in three steps: plan the units of work, process each unit, finish.

A unit becomes one shard. It contains all that a task needs: references, the conditions to render each of them under,
and the indices of speakers, recordings and labels. A finished unit leaves a small record under ``<uri>/.work``, and a
restarted preparation skips the unit. The manifest is written last. The corpus depends only on the settings and the
listing; it does not depend on the number of tasks, or on how often the work was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from rayssl import storage
from rayssl.data import conditions, labels, shards, splits
from rayssl.data.labels import SplitConfig
from rayssl.data.shards import Manifest, Reject
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.trials import TrialsConfig
from rayssl.data.units import CLEAN, WORK, ContentConfig, Done, PrepareUnit, Rendering, recording_name
from rayssl.errors import CorpusError
from rayssl.schema import Config

_ORDER = 21
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # it becomes the name of a file
_RECIPE = 1  # raise it if the same settings begin to give other samples: finished work is then done again


class PreparedCorpusConfig(ContentConfig):
    """One corpus: utterances made from ``source``, prepared at the URI ``out``.

    ``shard_utterances`` is the number of utterances in a shard (after rendering, before joining). Preparation fails if
    more than ``max_reject_share`` of the source is unusable. ``trials`` are lists of trials to write, by name.
    ``splits`` say which utterances are labelled and unlabelled, by name; you may change them after preparation.
    """

    out: str
    shard_utterances: int = Field(default=512, ge=1)
    max_reject_share: float = Field(default=0.01, ge=0, le=1)
    trials: dict[str, TrialsConfig] = {}
    splits: dict[SplitName, SplitConfig] = {}

    @model_validator(mode="after")
    def _trials_fit(self) -> PreparedCorpusConfig:
        for name, wanted in self.trials.items():
            if wanted.source is not None and self.join is not None:
                raise ValueError(f"trials.{name}.source names utterances that join replaces; leave one of the two out")
        return self


class PrepareConfig(Config):
    """The settings of ``rayssl prepare``: corpora by name. ``seed`` shuffles utterances among shards."""

    seed: int = 0
    corpora: dict[str, PreparedCorpusConfig] = Field(min_length=1)


class PreparePlan(Config):
    """A whole preparation: its units, the names of speakers, recordings and labels in the order of their indices, the
    number of source utterances, and a hash over all units.
    """

    units: list[PrepareUnit]
    names: dict[str, list[str]]
    sources: int
    digest: str


def list_references(settings: PreparedCorpusConfig) -> list[Reference]:
    """All utterances of the source, checked. A caller that lists parts in parallel uses `check_references` directly."""
    source = CheckedSource(settings.source.located())
    found = [reference for part in source.parts() for reference in source.list_part(part)]
    return check_references(settings, found)


def check_references(settings: PreparedCorpusConfig, found: list[Reference]) -> list[Reference]:
    """``found`` sorted by name.

    Raises `CorpusError` if there are no references, if two have the same name, if a name contains '#c' although
    conditions are simulated, or if clips are to be joined and one has no recording.
    """
    where = settings.source.describe()
    if not found:
        raise CorpusError(f"{where}: no utterances found; correct the keys of the source")
    found = sorted(found, key=lambda reference: reference.name)
    for first, second in itertools.pairwise(found):
        if first.name == second.name:
            message = f"{where}: two utterances are named '{first.name}'; names must be unique"
            raise CorpusError(message)
        if "#c" in first.name and settings.conditions is not None:
            raise CorpusError(f"{where}: '{first.name}': '#c' is reserved for the names of conditions; rename it")
    if settings.join is not None:
        unknown = [reference.name for reference in found if reference.recording is None]
        if unknown:
            message = f"{where}: join needs recordings, and {len(unknown)} utterances have none (first '{unknown[0]}')"
            raise CorpusError(f"{message}; name the source's recording or leave join out")
    return found


def plan(settings: PreparedCorpusConfig, references: Sequence[Reference], seed: int) -> PreparePlan:
    """Divides the work into units. Renderings are shuffled among the units.

    With ``join``, the renderings of a recording under one condition stay together. The renderings of a clip usually
    get into different units, so that a shard rarely contains the same words twice. Raises `CorpusError` if a split does
    not fit the labels.
    """
    jobs = [(k, c) for k, reference in enumerate(references) for c in _conditions(settings, reference)]
    recording = {job: recording_name(references[job[0]], job[1]) for job in jobs}
    names = {
        "speaker": _sorted_names(reference.speaker for reference in references),
        "recording": _sorted_names(recording.values()),
        "label": _sorted_names(reference.label for reference in references),
    }
    labels.check(settings.splits, names["label"], settings.out)
    indices: dict[str, dict[str | None, int]] = {
        kind: {name: index for index, name in enumerate(known)} | {None: -1} for kind, known in names.items()
    }
    groups: dict[Any, list[Rendering]] = {}
    for job in jobs:
        key = recording[job] if settings.join is not None else job
        groups.setdefault(key, []).append((*job, indices["recording"][recording[job]]))
    ordered = list(groups.values())
    order = np.random.default_rng([seed, _ORDER]).permutation(len(ordered))
    units = [
        _unit(number, seed, settings, references, indices, [ordered[k] for k in chunk])
        for number, chunk in enumerate(_chunks(order, [len(group) for group in ordered], settings.shard_utterances))
    ]
    digest = hashlib.sha256("\n".join(unit.digest for unit in units).encode()).hexdigest()[:16]
    return PreparePlan(units=units, names=names, sources=len(references), digest=digest)


def finish(settings: PreparedCorpusConfig, plan: PreparePlan, done: Sequence[Done]) -> Manifest:
    """Completes the corpus from the records of all units: names, rejects, splits, and last the manifest.

    Raises `CorpusError` if too much of the source was unusable, or if no utterance is left.
    """
    rejects = sorted({reject for record in done for reject in record.rejects}, key=lambda reject: reject.name)
    unusable = {reject for record in done for reject in record.unusable()}
    _check_rejects(settings, plan, [reject for reject in rejects if reject in unusable])
    parts = [record.shard for record in done if record.shard is not None]
    if not parts:
        raise CorpusError(f"{settings.out}: nothing is left after {len(rejects)} rejects (first: {rejects[0].reason})")
    shards.write_labels(settings.out, plan.names)
    shards.write_rejects(settings.out, rejects)
    made = labels.make(settings.splits, settings.out, shards.number(parts), plan.names["label"])
    manifest = shards.write_manifest(
        settings.out,
        parts,
        format=settings.format,
        names=plan.names,
        rejected=len(rejects),
        settings={**content_settings(settings), "plan": plan.digest},
        splits=made,
    )
    _remove_others(settings.out, shards.SHARDS, [shard.path for shard in manifest.shards])
    _remove_others(settings.out, splits.FOLDER, [split.path for split in made.values()])
    storage.remove(storage.join(settings.out, WORK), recursive=True)
    return manifest


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
    """Removes the corpus at ``settings.out``. The manifest goes first, so that nobody reads half of the corpus."""
    storage.remove(storage.join(settings.out, shards.MANIFEST))
    for name in (shards.LABELS, shards.REJECTS):
        storage.remove(storage.join(settings.out, name))
    for folder in (shards.SHARDS, splits.FOLDER, WORK):
        storage.remove(storage.join(settings.out, folder), recursive=True)


def _remove_others(out: str, folder: str, paths: Sequence[str]) -> None:
    """Removes all files of ``folder`` except ``paths``. Folder and paths are relative to ``out``."""
    listed = {storage.join(out, path) for path in paths}
    for stale in storage.list_files(storage.join(out, folder)):
        if stale not in listed:
            storage.remove(stale)


def _conditions(settings: PreparedCorpusConfig, reference: Reference) -> list[int]:
    """The conditions to render ``reference`` under. Clips to be joined may share the conditions of their recording."""
    if settings.conditions is None:
        return [CLEAN]
    shared = settings.join is not None and settings.conditions.per == "recording"
    whole = reference.recording_name() if shared else None
    return conditions.chosen(settings.conditions, whole or reference.name)


def _sorted_names(names: Iterable[str | None]) -> list[str]:
    return sorted({name for name in names if name is not None})


def _chunks(order: np.ndarray, sizes: Sequence[int], target: int) -> list[list[int]]:
    """The groups in ``order``, cut into chunks of about ``target`` utterances each. No group is divided."""
    total = sum(sizes)
    count = max(1, round(total / target))
    chunks: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for group in order:
        chunks[min(count - 1, before * count // total)].append(int(group))
        before += sizes[group]
    return [chunk for chunk in chunks if chunk]


def _unit(
    number: int,
    seed: int,
    settings: PreparedCorpusConfig,
    references: Sequence[Reference],
    indices: dict[str, dict[str | None, int]],
    groups: list[list[Rendering]],
) -> PrepareUnit:
    used = sorted({job[0] for group in groups for job in group})
    position = {k: place for place, k in enumerate(used)}
    held = [references[k] for k in used]
    content: dict[str, Any] = {
        "index": number,
        "seed": seed,
        "references": held,
        "speakers": [indices["speaker"][reference.speaker] for reference in held],
        "labels": [indices["label"][reference.label] for reference in held],
        "jobs": [[(position[k], condition, recording) for k, condition, recording in group] for group in groups],
    }
    # hashes the settings as they were given, with relative paths: the corpus stays the same if the project moves
    hashed = json.dumps([shards.VERSION, _RECIPE, content_settings(settings), content], sort_keys=True)
    made = {key: getattr(settings, key) for key in ContentConfig.model_fields}
    located = ContentConfig(**{**made, "source": settings.source.located()})
    digest = hashlib.sha256(hashed.encode()).hexdigest()
    return PrepareUnit(digest=digest, out=storage.absolute(settings.out), settings=located, **content)


def content_settings(settings: PreparedCorpusConfig) -> dict[str, Any]:
    """The settings that the corpus's content depends on, as plain values."""
    return settings.model_dump(mode="json", include=set(ContentConfig.model_fields))


def _check_rejects(settings: PreparedCorpusConfig, plan: PreparePlan, rejects: Sequence[Reject]) -> None:
    share = len(rejects) / plan.sources
    if share > settings.max_reject_share:
        first = rejects[0]
        raise CorpusError(
            f"{settings.out}: {len(rejects)} of {plan.sources} utterances ({share:.1%}) cannot be used, first "
            f"'{first.name}' ({first.reason}); fix them or raise max_reject_share (now {settings.max_reject_share:g})"
        )
