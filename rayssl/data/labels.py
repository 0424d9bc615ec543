"""Chooses which utterances are labelled and which are unlabelled: stratified, long-tailed or open-set, from a seed.

The utterances of a class are ordered by a hash of (seed, name). So the split does not depend on how the corpus is
divided into shards. The first utterances of a class are labelled, the next ones unlabelled. If two splits have the same
seed, the labels of the smaller one are a part of the labels of the larger one. An utterance is a row of the corpus, so
two renderings of one clip count as two.

Long tails are made as in DASO (Oh, Kim and Kweon, CVPR 2022, section 4): class k of C, in order of rank, has
``most * gamma ** (-k / (C - 1))`` utterances, rounded down, but at least one.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from rayssl.data import shards, splits
from rayssl.data.conditions import text_key
from rayssl.data.nights import roles as night_roles
from rayssl.data.nights.roles import NightSplitConfig
from rayssl.data.shards import Shard
from rayssl.data.splits import LABELLED, UNLABELLED, Split
from rayssl.errors import CorpusError
from rayssl.random import draws
from rayssl.schema import Config

_SPLIT = 41
_NAMED = 5  # how many classes a note names
_ALL = np.iinfo(np.int64).max


class LabelledConfig(Config):
    """How many utterances of each class are labelled. Give one of ``share``, ``per_class`` and ``most``."""

    share: float | None = Field(default=None, gt=0, le=1)
    """This share of each class, above 0 to 1, is labelled; rounded, but at least one utterance."""
    per_class: int | None = Field(default=None, ge=1)
    """The same number of labelled utterances for every class."""
    most: int | None = Field(default=None, ge=1)
    """The number of labelled utterances of the first (head) class of a long tail; ``gamma`` says how many the last one
    has.
    """
    gamma: float = Field(default=1.0, ge=1)
    """With ``most``: how many times fewer labelled utterances the last class has than the first; 1 for no tail."""

    @model_validator(mode="after")
    def _one_way(self) -> LabelledConfig:
        ways = [key for key in ("share", "per_class", "most") if getattr(self, key) is not None]
        if len(ways) != 1:
            raise ValueError(f"give one of share, per_class and most, not {' and '.join(ways) or 'none'}")
        if self.most is None and self.gamma != 1:
            raise ValueError(f"gamma belongs to most, not to {ways[0]}")
        return self


class UnlabelledConfig(Config):
    """Which utterances are unlabelled: all that are not labelled or, with ``most``, a long tail."""

    most: int | None = Field(default=None, ge=1)
    """The number of unlabelled utterances of the largest class of a long tail; null takes all that are not labelled."""
    gamma: float = Field(default=1.0, ge=1)
    """With ``most``: how many times fewer unlabelled utterances the smallest class has than the largest."""
    order: Literal["same", "reversed", "uniform"] = "same"
    """Which class is the largest: the labelled head (``same``) or the last labelled class (``reversed``). With
    ``uniform`` all classes have ``most``.
    """
    open_set_most: int | None = Field(default=None, ge=1)
    """The most unlabelled utterances of each class of the open set; null uses all of these classes."""

    @model_validator(mode="after")
    def _tail_is_one(self) -> UnlabelledConfig:
        if self.most is None and (self.gamma != 1 or self.order != "same"):
            raise ValueError("gamma and order belong to most, which is not given")
        if self.order == "uniform" and self.gamma != 1:
            raise ValueError(f"order: uniform has no tail and gamma is {self.gamma:g}; leave one out")
        return self


class SplitConfig(Config):
    """One split of a corpus into labelled and unlabelled utterances. Give one of ``labelled`` and ``nights``."""

    seed: int = 0
    """The seed that chooses the utterances of a class, or the subjects. With the same seed the labels of a smaller
    split are a part of those of a larger one.
    """
    labelled: LabelledConfig | None = None
    """How many utterances of each class are labelled; not for nights."""
    nights: NightSplitConfig | None = None
    """For a corpus of nights, instead of ``labelled``: the split is by subject. Of the other keys, only ``seed`` and
    ``keep_labelled_in_unlabelled`` go with it.
    """
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    """Which utterances are unlabelled; ``rest`` (the default) means all that are not labelled."""
    order: list[str] | None = None
    """The classes from head to tail, each once. Null takes the largest first, and equal ones by name."""
    open_set: list[str] = []
    """Classes that occur only among the unlabelled utterances. The classifier does not know them."""
    left_out: list[str] = []
    """Classes that are not used at all."""
    unknown: bool = False
    """Whether utterances without a label are unlabelled ones too; otherwise they are not used."""
    keep_labelled_in_unlabelled: bool = False
    """Whether the labelled utterances are also unlabelled ones, in addition to the number that ``unlabelled`` gives."""

    @model_validator(mode="after")
    def _one_kind(self) -> SplitConfig:
        if (self.labelled is None) == (self.nights is None):
            raise ValueError("give one of labelled and nights")
        others = self.model_fields_set - {"nights", "seed", "keep_labelled_in_unlabelled"}
        if self.nights is not None and others:
            raise ValueError(f"{min(others)} does not go with nights; leave it out")
        return self

    @field_validator("unlabelled", mode="before", json_schema_input_type=UnlabelledConfig | Literal["rest"])
    @classmethod
    def _rest(cls, value: object) -> object:
        # not a union with the word 'rest': then the message for a wrong key would be "input should be 'rest'"
        return {} if value == "rest" else value


def check(wanted: Mapping[str, SplitConfig], names: Sequence[str], uri: str) -> None:
    """Raises `CorpusError` if a split in ``wanted`` does not fit the corpus at ``uri`` with the labels ``names``."""
    for name, config in wanted.items():
        where = f"{uri}: splits.{name}"
        if not names:
            raise CorpusError(f"{where}: the corpus has no labels; name the source's label, or leave the split out")
        listings = {"order": config.order or [], "open_set": config.open_set, "left_out": config.left_out}
        for key, listed in listings.items():
            for item in listed:
                if item not in names:
                    close = difflib.get_close_matches(item, names, n=1, cutoff=0.5)
                    hint = f"did you mean '{close[0]}'?" if close else f"labels are {_some(names)}"
                    raise CorpusError(f"{where}.{key}: '{item}' is no label of the corpus; {hint}")
            if len(set(listed)) != len(listed):
                raise CorpusError(f"{where}.{key}: names a class twice; name each once")
        if twice := set(config.open_set) & set(config.left_out):
            raise CorpusError(f"{where}.left_out: '{min(twice)}' is also in open_set; name it once")
        known = set(names) - set(config.open_set) - set(config.left_out)
        if not known:
            raise CorpusError(
                f"{where}.open_set and left_out: name every label of the corpus; leave some for the classifier"
            )
        if len(known) > splits.MOST_CLASSES:
            raise CorpusError(f"{where}: {len(known)} classes are more than {splits.MOST_CLASSES}")
        if config.order is not None and set(config.order) != known:
            odd = sorted(known ^ set(config.order))
            message = f"must name every class once, and no class of open_set or left_out; check {_some(odd)}"
            raise CorpusError(f"{where}.order: {message}")


def make(wanted: Mapping[str, SplitConfig], uri: str, parts: Sequence[Shard], names: Sequence[str]) -> dict[str, Split]:
    """Writes the splits ``wanted`` of the corpus at ``uri``, which has the shards ``parts`` and the label ``names``.

    It reads the names and labels of all utterances, but no audio. It needs 12 bytes of memory per utterance.
    """
    if not wanted:
        return {}
    check(wanted, names, uri)
    by_night = any(config.nights is not None for config in wanted.values())
    utterance, nights, labels = _columns(uri, parts, by_night)
    subjects = shards.read_labels(uri)["speaker"] if by_night else []
    made = {}
    for name, config in wanted.items():
        if config.nights is None:
            chosen = choose(config, utterance, labels, names)
        else:
            chosen = _by_night(config, nights, subjects, names, f"{uri}: splits.{name}")
        made[name] = _make_one(name, config, uri, chosen, labels, names)
    return made


def current(uri: str, wanted: Mapping[str, SplitConfig], made: Mapping[str, Split]) -> dict[str, Split]:
    """The splits in ``made`` that ``wanted`` has with the same settings, if their files are undamaged."""
    return {
        name: made[name]
        for name, config in wanted.items()
        if name in made and made[name].settings == settings_of(config) and splits.unchanged(uri, made[name])
    }


def settings_of(config: SplitConfig) -> dict[str, object]:
    """The settings of a split as plain values, as they are stored in `Split.settings`."""
    # a split of utterances keeps the settings that it had before there were nights: else it would be made again
    return config.model_dump(mode="json", exclude={"nights"} if config.nights is None else set())


def choose(
    config: SplitConfig, keys: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, list[int], list[str]]:
    """Chooses the role of every utterance.

    Args:
        config: the split.
        keys: int64 ``[N]``, the `text_key` of each utterance's name.
        labels: ``[N]``, indices into ``names``; -1 if unknown.
        names: the names of all labels.

    Returns:
        Roles int8 ``[N]``; the labels of the classifier's classes, in order; and notes about classes that have fewer
        utterances than the split asks for.
    """
    known = [k for k, name in enumerate(names) if name not in (*config.open_set, *config.left_out)]
    unused = [k for k, name in enumerate(names) if name in config.left_out]
    sizes = np.bincount(labels[labels >= 0], minlength=len(names))
    rank = _ranks(config, [names[k] for k in known], sizes[known])
    wanted = np.zeros((2, len(names) + 1), np.int64)  # labelled, unlabelled; the last column is for label -1
    assert config.labelled is not None
    wanted[0, known] = _labelled(config.labelled, sizes[known], rank)
    wanted[1] = _unlabelled(config, known, rank, len(names))
    wanted[1, unused] = 0
    taken = np.minimum(wanted[0, :-1], sizes)
    left = np.minimum(wanted[1, :-1], sizes - taken)
    notes = _shortfalls("labelled", names, wanted[0, :-1], taken)
    if config.unlabelled.most is not None:
        notes += _shortfalls("unlabelled", [names[k] for k in known], wanted[1, known], left[known])
    # the position of each utterance within its class, in the drawn order
    order = np.lexsort((draws.keys_np(draws.fold(config.seed, _SPLIT), keys), labels))
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    labelled = place < wanted[0, labels]
    unlabelled = ~labelled & (place - wanted[0, labels] < wanted[1, labels])
    if config.keep_labelled_in_unlabelled:
        unlabelled |= labelled
    roles = (LABELLED * labelled + UNLABELLED * unlabelled).astype(np.int8)
    if not unlabelled.any():
        notes.append("no utterance is unlabelled")
    return roles, known, notes


def tail(most: int, gamma: float, classes: int) -> np.ndarray:
    """``floor(most * gamma ** (-k / (classes - 1)))``, at least 1, for k = 0..classes-1; int64 ``[classes]``."""
    share = gamma ** -(np.arange(classes) / max(1, classes - 1))
    counts = np.floor(most * share * (1 + 1e-12))  # the factor protects whole numbers from being rounded down
    return np.asarray(np.maximum(1, counts), np.int64)


def _ranks(config: SplitConfig, names: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """The rank of each class; 0 is the head."""
    if config.order is not None:
        return np.array([config.order.index(name) for name in names])
    head_first = sorted(range(len(names)), key=lambda k: (-sizes[k], names[k]))
    rank = np.empty(len(names), np.int64)
    rank[head_first] = np.arange(len(names))
    return rank


def _labelled(config: LabelledConfig, sizes: np.ndarray, rank: np.ndarray) -> np.ndarray:
    if config.share is not None:
        return np.asarray(np.maximum(1, np.floor(config.share * sizes + 0.5)), np.int64)
    if config.per_class is not None:
        return np.full(len(sizes), config.per_class, np.int64)
    assert config.most is not None
    return np.asarray(tail(config.most, config.gamma, len(sizes))[rank])


def _unlabelled(config: SplitConfig, known: Sequence[int], rank: np.ndarray, labels: int) -> np.ndarray:
    """How many unlabelled utterances each label should have, ``[labels + 1]``; the last entry is for no label."""
    wanted = np.full(labels + 1, _ALL)
    wanted[-1] = _ALL if config.unknown else 0
    if config.unlabelled.open_set_most is not None:
        wanted[np.setdiff1d(np.arange(labels), known)] = config.unlabelled.open_set_most
    if config.unlabelled.most is not None:
        counts = tail(config.unlabelled.most, config.unlabelled.gamma, len(known))
        wanted[known] = counts[::-1][rank] if config.unlabelled.order == "reversed" else counts[rank]
    return wanted


def _shortfalls(role: str, names: Sequence[str], wanted: np.ndarray, taken: np.ndarray) -> list[str]:
    short = np.flatnonzero(taken < wanted)
    if not len(short):
        return []
    missing = int((wanted - taken)[short].sum())
    listed = _some([f"{names[k]} {taken[k]} of {wanted[k]}" for k in map(int, short)])
    return [f"{missing} fewer {role} than asked for, too few utterances in {len(short)} classes: {listed}"]


def _by_night(
    config: SplitConfig,
    nights: list[tuple[str, int, int]],
    subjects: Sequence[str],
    names: Sequence[str],
    where: str,
) -> tuple[np.ndarray, list[int], list[str]]:
    """As `choose`, for whole nights: (name, index of the subject, epochs) of each, in the order of ids."""
    assert config.nights is not None
    both = config.keep_labelled_in_unlabelled
    who = {name: subjects[subject] for name, subject, _ in nights}
    roles, notes = night_roles.choose(config.nights, [*who], [*who.values()], seed=config.seed, both=both, where=where)
    role = dict(zip(who, roles, strict=True))
    rows = np.repeat([role[name] for name, _, _ in nights], [epochs for _, _, epochs in nights])
    return rows.astype(np.int8), list(range(len(names))), notes


def _make_one(
    name: str,
    config: SplitConfig,
    uri: str,
    chosen: tuple[np.ndarray, list[int], list[str]],
    labels: np.ndarray,
    names: Sequence[str],
) -> Split:
    roles, known, notes = chosen
    class_of = np.full(len(names) + 1, -1, np.int16)  # the last entry is for label -1
    class_of[known] = np.arange(len(known))
    path, sha256 = splits.write(uri, name, roles, class_of[labels])
    classes, unknown = splits.counted(roles, labels, names, known)
    others = [k for k, label in enumerate(names) if label in config.open_set]
    open_set, _ = splits.counted(roles, labels, names, others)
    return Split(
        path=path,
        settings=settings_of(config),
        sha256=sha256,
        labelled=int(np.count_nonzero(roles & LABELLED)),
        unlabelled=int(np.count_nonzero(roles & UNLABELLED)),
        classes=classes,
        open_set=open_set,
        unknown=unknown,
        notes=notes,
    )


def _columns(
    uri: str, parts: Sequence[Shard], by_night: bool
) -> tuple[np.ndarray, list[tuple[str, int, int]], np.ndarray]:
    """The keys of all names, int64 ``[N]``, and the label indices, int32 ``[N]``, in the order of ids.

    Between them, with ``by_night``: (night, subject, epochs) of the rows of one shard that belong to one night.
    """
    keys, nights, labels = [], list[tuple[str, int, int]](), []
    for part in parts:
        table = shards.read_shard(uri, part, ["name", "speaker", "label"])
        names = table["name"].to_pylist()
        keys.append(np.array([text_key(name) for name in names], np.int64))
        labels.append(table["label"].to_numpy())
        subjects = table["speaker"].to_pylist() if by_night else []
        pairs = zip(names, subjects, strict=False)
        for (night, subject), rows in itertools.groupby((name.rpartition("/")[0], subject) for name, subject in pairs):
            nights.append((night, subject, sum(1 for _ in rows)))
    return np.concatenate(keys), nights, np.concatenate(labels)


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
