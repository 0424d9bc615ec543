"""Which nights of a corpus are labelled, unlabelled or held out: whole subjects, from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

import numpy as np
from pydantic import Field

from rayssl.data.conditions import text_key
from rayssl.data.splits import LABELLED, UNLABELLED
from rayssl.errors import CorpusError
from rayssl.random import draws
from rayssl.schema import Config

_SUBJECTS = 43


class NightSplitConfig(Config):
    """A split of nights by subject. The patterns match the names of nights."""

    labelled: list[str] = ["*"]
    """Patterns, with ``*``, of the nights whose stages may be used."""
    subjects: int | None = Field(default=None, ge=1)
    """The number of subjects whose nights are labelled, drawn from those that match; null takes all of them."""
    unlabelled: list[str] = ["*"]
    """Patterns, with ``*``, of the nights that are used without their stages. No night of a labelled subject is among
    them, unless ``keep_labelled_in_unlabelled`` is set.
    """
    held_out: float = Field(default=0.0, ge=0, lt=1)
    """This share of the subjects, from 0 to below 1, is not used in training at all, so that ``rayssl evaluate`` can
    take them from the same corpus (``evaluation.split``).
    """


def choose(
    config: NightSplitConfig,
    names: Sequence[str],
    subjects: Sequence[str],
    *,
    seed: int,
    both: bool,
    where: str,
) -> tuple[np.ndarray, list[str]]:
    """The role of each night, int8 ``[nights]``, and notes.

    Args:
        config: the split.
        names: the name of each night.
        subjects: the name of its subject.
        seed: which subjects are chosen. The choice depends on their names, not on their order.
        both: whether labelled nights are unlabelled ones too, and other nights of their subjects may be.
        where: the split, for messages.

    Raises:
        CorpusError: no night matches a pattern.
    """
    known = np.unique(np.asarray(subjects, dtype=object).astype(str))
    drawn = draws.keys_np(draws.fold(seed, _SUBJECTS), np.array([text_key(name) for name in known], np.int64))
    rank = {str(known[k]): place for place, k in enumerate(np.argsort(drawn, kind="stable"))}
    place = np.array([rank[subject] for subject in subjects])
    held = place < round(config.held_out * len(known))
    matched = {}
    for key in ("labelled", "unlabelled"):
        patterns = getattr(config, key)
        matched[key] = np.array([any(fnmatch(name, pattern) for pattern in patterns) for name in names], bool)
        if patterns and not matched[key].any():
            listed = ", ".join(patterns)
            raise CorpusError(f"{where}.nights.{key}: no night matches {listed} (a night is '{names[0]}')")
    labelled = matched["labelled"] & ~held
    notes = []
    if config.subjects is not None:
        ranks = np.unique(place[labelled])
        if len(ranks) < config.subjects:
            notes.append(f"{len(ranks)} labelled subjects, {config.subjects} were asked for")
        labelled &= np.isin(place, ranks[: config.subjects])
    unlabelled = matched["unlabelled"] & ~held
    if both:
        unlabelled |= labelled
    else:
        of_labelled = np.isin(place, place[labelled])
        if others := int(np.count_nonzero(unlabelled & of_labelled & ~labelled)):
            left_out = f"{others} unlabelled nights of labelled subjects are left out"
            notes.append(f"{left_out}; keep_labelled_in_unlabelled takes them")
        unlabelled &= ~of_labelled
    if config.labelled and not labelled.any():
        notes.append("no night is labelled")
    if not unlabelled.any():
        notes.append("no night is unlabelled")
    return (LABELLED * labelled + UNLABELLED * unlabelled).astype(np.int8), notes
