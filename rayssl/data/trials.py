"""Verification trials: read from a list, expanded to renderings under simulated conditions, or generated from a corpus.

A list is a text file with one trial per line, ``label enrol test``: label 1 means the same speaker, 0 different ones.
Tabs or spaces are between the three; if there is a tab in the line, names may hold spaces. A name that holds a tab or
the end of a line, or begins with a quotation mark, stands there as a JSON string, ``"a\\nb"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from rayssl import storage
from rayssl.data import shards
from rayssl.errors import CorpusError
from rayssl.random import draws
from rayssl.schema import Config

_EXPAND, _GENERATE = 31, 32
_DRAWS_A_PAIR = 50


class Trial(NamedTuple):
    """``label`` is 1 if the utterances named ``enrol`` and ``test`` have the same speaker, else 0."""

    label: int
    enrol: str
    test: str


class TrialsConfig(Config):
    """A list of trials to write."""

    out: str
    """File or URI to which the list is written; ``evaluation.trials`` of an experiment takes it."""
    source: str | None = None
    """File or URI of an existing list of trials between source utterances, for example VoxCeleb1-O. Each trial becomes
    one between renderings of the two. Null generates trials from the corpus.
    """
    across: Literal["condition", "same", "any"] = "condition"
    """With ``conditions``: whether the two renderings of a trial have different conditions (``condition``), the
    ``same`` one (with a ``source`` alone), or ``any``. Without ``source``, ``any`` also takes target trials from one
    recording, or from recordings that are not known: the error rate is then lower than across recordings.
    """
    pairs: int = Field(default=2000, ge=1)
    """Without ``source``: the number of target trials, and of non-target trials, to generate. The two utterances of a
    target trial are from different recordings. More make narrower intervals.
    """
    seed: int = 0
    """The seed from which trials, or renderings, are drawn."""


def read(uri: str) -> list[Trial]:
    """The trials of the list at ``uri``.

    Raises `CorpusError` for a malformed line, with its number, or for a list without trials.
    """
    trials = []
    # not splitlines(): a name may hold one of the other characters at which that would split
    for number, line in enumerate(storage.read_text(uri).split("\n"), 1):
        line = line.rstrip("\r")
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise CorpusError(f"{uri}: line {number}: expected 'label enrol test' with label 0 or 1, got '{line[:80]}'")
        trials.append(Trial(int(fields[0]), _plain(fields[1]), _plain(fields[2])))
    if not trials:
        raise CorpusError(f"{uri}: holds no trials")
    return trials


def read_for(uri: str, corpus: str) -> list[Trial]:
    """The trials of the list at ``uri``, to be scored on the prepared corpus at ``corpus``.

    Raises `CorpusError` if there are not both kinds of trials, or ``corpus`` lacks one of their utterances.
    """
    listed = read(uri)
    targets = sum(trial.label for trial in listed)
    if targets in (0, len(listed)):
        kind = "target" if targets else "non-target"
        raise CorpusError(f"{uri}: has only {kind} trials; an error rate needs both labels 1 and 0")
    manifest = shards.read_manifest(corpus)
    tables = [shards.read_shard(corpus, shard, ["name"]) for shard in manifest.shards]
    check(listed, (name for table in tables for name in table["name"].to_pylist()), uri, corpus)
    return listed


def write(uri: str, trials: Iterable[Trial]) -> None:
    """Writes the list atomically, with tabs."""
    lines = [f"{label}\t{_quoted(enrol)}\t{_quoted(test)}\n" for label, enrol, test in trials]
    storage.write_text(uri, "".join(lines))


def _quoted(name: str) -> str:
    """A name as it stands in a list."""
    odd = name.startswith('"') or any(mark in name for mark in "\t\n\r")
    return json.dumps(name, ensure_ascii=False) if odd else name


def _plain(field: str) -> str:
    """The name of which `_quoted` made ``field``."""
    if not field.startswith('"'):
        return field
    try:
        name = json.loads(field)
    except ValueError:
        return field
    return name if isinstance(name, str) else field


class Made(NamedTuple):
    """Counts of a written list: its trials, its target trials, and the source's trials that were left out."""

    trials: int
    targets: int
    left_out: int


def make(config: TrialsConfig, corpus: str) -> Made:
    """Writes the list of ``config`` for the prepared corpus at the URI ``corpus``.

    Raises `CorpusError` if the source names unknown utterances, or if no trial can be made.
    """
    names, speakers, recordings = _columns(corpus)
    if config.source is None:
        apart = _clips(names) if config.across == "any" else recordings
        heard = _conditions(names) if config.across == "condition" else None
        base = trials = generate(names, speakers, apart, config.pairs, config.seed, corpus, conditions=heard)
    else:
        base = read(config.source)
        renderings: dict[str, list[int]] = {}
        for name in names:
            source, mark, condition = name.rpartition("#c")
            renderings.setdefault(source if mark else name, []).extend([int(condition)] if mark else [])
        rejected = {reject.name for reject in shards.read_rejects(corpus)}
        check(base, renderings.keys() | rejected, config.source, corpus)
        if any(renderings.values()):
            trials = expand(base, renderings, config.across, config.seed)
        else:
            trials = [trial for trial in base if trial.enrol in renderings and trial.test in renderings]
        if not trials:
            raise CorpusError(
                f"{config.source}: no trial has two renderings that fit 'across: {config.across}'; choose another"
            )
    write(config.out, trials)
    return Made(len(trials), sum(trial.label for trial in trials), len(base) - len(trials))


def check(trials: Sequence[Trial], known: Iterable[str], where: str, corpus: str) -> None:
    """Raises `CorpusError`, with trial number and name, if a trial of ``where`` names an utterance not in ``known``."""
    names = set(known)
    for number, trial in enumerate(trials, 1):
        for name in (trial.enrol, trial.test):
            if name not in names:
                raise CorpusError(f"{where}: trial {number}: '{name}' is not an utterance of {corpus}")


def expand(trials: Sequence[Trial], renderings: Mapping[str, Sequence[int]], across: str, seed: int) -> list[Trial]:
    """Each trial with both utterances replaced by renderings ``name#c<k>``.

    ``renderings`` gives the conditions of each source utterance. The pair of renderings is drawn among those that fit
    ``across``; the draw depends on the seed and the position in the list. A trial without a fitting pair is left out.
    """
    expanded = []
    keys = draws.keys_np(draws.fold(seed, _EXPAND), np.arange(len(trials)))
    for trial, position in zip(trials, draws.uniform_np(keys, _EXPAND), strict=True):
        pairs = [
            (first, second)
            for first in renderings.get(trial.enrol, ())
            for second in renderings.get(trial.test, ())
            if across == "any" or (first == second) == (across == "same")
        ]
        if pairs:
            first, second = pairs[int(position * len(pairs))]
            expanded.append(Trial(trial.label, f"{trial.enrol}#c{first}", f"{trial.test}#c{second}"))
    return expanded


def generate(
    names: Sequence[str],
    speakers: np.ndarray,
    recordings: np.ndarray,
    pairs: int,
    seed: int,
    where: str,
    *,
    conditions: np.ndarray | None = None,
) -> list[Trial]:
    """At most ``pairs`` target and ``pairs`` non-target trials, without repetition, in random order.

    ``speakers [N]`` and ``recordings [N]`` are indices, -1 if unknown. A target trial has one speaker, two different
    recordings and, of renderings, two different clips. ``conditions [N]``, -1 if there is none: a non-target trial has
    two different ones; otherwise a condition in common would tell it from target trials, which have none. Raises
    `CorpusError`, which names ``where``, if the corpus has no target or no non-target pair.
    """
    rng = np.random.default_rng([seed, _GENERATE])
    known = np.flatnonzero(speakers >= 0)
    members = [known[speakers[known] == speaker] for speaker in np.unique(speakers[known])]
    several = [rows for rows in members if len(np.unique(recordings[rows])) > 1]
    clips = _clips(names)
    if len(members) < 2 or not several:
        raise CorpusError(
            f"{where}: trials need two speakers, one of them with two recordings; give trials a source, or across: any"
        )
    targets: set[tuple[int, int]] = set()
    others: set[tuple[int, int]] = set()
    for _ in range(_DRAWS_A_PAIR * pairs):
        if len(targets) < pairs:
            first, second = (int(k) for k in rng.choice(several[rng.integers(len(several))], 2, replace=False))
            if recordings[first] != recordings[second] and clips[first] != clips[second]:
                targets.add((min(first, second), max(first, second)))
        if len(others) < pairs:
            one, other = rng.choice(len(members), 2, replace=False)
            first, second = int(rng.choice(members[one])), int(rng.choice(members[other]))
            if conditions is None or conditions[first] != conditions[second] or conditions[first] < 0:
                others.add((min(first, second), max(first, second)))
        if len(targets) == len(others) == pairs:
            break
    trials = [Trial(1, names[a], names[b]) for a, b in sorted(targets)]
    trials += [Trial(0, names[a], names[b]) for a, b in sorted(others)]
    return [trials[k] for k in rng.permutation(len(trials))]


def _clips(names: Sequence[str]) -> np.ndarray:
    """The index of each utterance's clip, int64 ``[N]``; renderings of one clip have the same."""
    return np.unique([name.rpartition("#c")[0] or name for name in names], return_inverse=True)[1]


def _conditions(names: Sequence[str]) -> np.ndarray:
    """The condition of each rendering ``name#c<k>``, int64 ``[N]``; -1 for other names, or if all have the same one."""
    marks = [name.rpartition("#c") for name in names]
    found = np.array([int(end) if mark and end.isdigit() else -1 for _, mark, end in marks], np.int64)
    return found if len(np.unique(found)) > 1 else np.full(len(names), -1, np.int64)  # a single one tells nothing


def _columns(corpus: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, speaker indices and recording indices of all utterances, in the order of ids. The audio is not read."""
    manifest = shards.read_manifest(corpus)
    tables = [shards.read_shard(corpus, shard, ["name", "speaker", "recording"]) for shard in manifest.shards]
    names = [name for table in tables for name in table["name"].to_pylist()]
    speakers, recordings = (
        np.concatenate([table[key].to_numpy() for table in tables]) for key in ("speaker", "recording")
    )
    return names, speakers, recordings
