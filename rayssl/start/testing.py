"""What a run can be tested on: speakers whom it has not heard, or clips of known classes. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayssl.data import columns
from rayssl.data.sources.base import Reference
from rayssl.data.taking import TakeConfig
from rayssl.random import draws

LEAST_SPEAKERS = 4  # two to test and two to learn from
FEW_SPEAKERS = 20  # fewer test speakers make an error rate that says little
_SHARE = 0.2
_MOST_SPEAKERS = 100  # more make no better figure, and training would lose them
_NAMED = 12  # so many names are written down
_SEEDS = 200
_DRAWN = 46


@dataclass(frozen=True)
class HeldOut:
    """What is held out for a test.

    ``take``: the keys of `TakeConfig` without ``part``; None if nothing can be held out. ``why``: a sentence.
    ``test``: how many utterances that are, ``speakers``: how many speakers. ``across``: whether target trials can be
    across recordings. ``pairs``: how many target trials to ask for.
    """

    take: dict[str, Any] | None
    why: str
    test: int = 0
    speakers: int = 0
    across: bool = True
    pairs: int = 0


def of_speakers(references: Sequence[Reference]) -> HeldOut:
    """Some speakers, with all their utterances, for trials of speaker verification."""
    known = [reference for reference in references if reference.speaker is not None]
    counts = Counter(reference.speaker or "" for reference in known)
    if len(counts) < LEAST_SPEAKERS:
        why = f"{len(counts)} known speakers are too few to hold two out: {LEAST_SPEAKERS} are needed"
        return HeldOut(None, why)
    recordings: dict[str, set[str]] = {}
    for reference in known:
        if reference.recording is not None:
            recordings.setdefault(reference.speaker or "", set()).add(reference.recording)
    several = [name for name in counts if len(recordings.get(name, ())) > 1]
    wanted = max(2, min(round(_SHARE * len(counts)), _MOST_SPEAKERS))
    across = len(several) >= wanted
    eligible = several if across else [name for name, count in counts.items() if count > 1]
    if len(eligible) < 2:
        return HeldOut(
            None, "no two speakers have two utterances each, and a trial needs two utterances of one speaker"
        )
    wanted = min(wanted, len(eligible))
    if len(counts) <= _NAMED * round(1 / _SHARE):
        keys = draws.texts_np(draws.fold(0, _DRAWN), *columns.texts(pa.array(sorted(eligible), pa.string())))
        names = sorted(sorted(eligible)[k] for k in np.argsort(keys, kind="stable")[:wanted])
        take: dict[str, Any] = {"by": "speaker", "held_out": names}
    else:
        take = {"by": "speaker", "held_out": round(wanted / len(counts), 4)}
    held = TakeConfig(part="held_out", **take).of(references)
    test = Counter(reference.speaker for reference in held)
    targets = sum(count * (count - 1) // 2 for count in test.values())
    some = f"{len(test)} of {len(counts)} speakers are held out"
    why = f"{some}, because an error rate must be of speakers who were not heard"
    return HeldOut(take, why, len(held), len(test), across, max(1, min(2000, targets)))


def of_classes(references: Sequence[Reference]) -> HeldOut:
    """Some clips of each class; all clips of some speakers, if they are known and each class has others."""
    labels = Counter(reference.label for reference in references if reference.label is not None)
    if len(labels) < 2 or min(labels.values()) < 2:
        few = min(labels, key=lambda name: labels[name]) if labels else None
        why = "fewer than two classes are known" if len(labels) < 2 else f"the class '{few}' has one clip only"
        return HeldOut(None, f"{why}: nothing can be held out for a test")
    speakers = {reference.speaker for reference in references} - {None}
    ways = ["speaker", "utterance"] if len(speakers) >= 5 else ["utterance"]
    for way in ways:
        take, test = _fairest(references, labels, way)
        if take is not None:
            what = "speakers" if way == "speaker" else "clips"
            why = f"about a fifth of the {what} are held out, of each class at least one clip"
            return HeldOut(take, why, sum(test.values()))
    return HeldOut(None, "no draw leaves each class clips for training and for testing")


def _fairest(
    references: Sequence[Reference], labels: Counter[str], way: str
) -> tuple[dict[str, Any] | None, Counter[str]]:
    """The share and the seed that hold about `_SHARE` of each class out, with the counts of the test; None without."""
    best: tuple[float, dict[str, Any] | None, Counter[str]] = (np.inf, None, Counter())
    for seed in range(_SEEDS if len(references) <= 20_000 else 5):
        take = {"by": way, "held_out": _SHARE, "seed": seed}
        held = TakeConfig(part="held_out", **take).of(references)
        test = Counter(reference.label for reference in held if reference.label is not None)
        shares = [test[name] / count for name, count in labels.items()]
        off = max(abs(share - _SHARE) for share in shares)
        if min(shares) > 0 and max(shares) < 1 and off < best[0]:
            best = (off, take, test)
    return best[1], best[2]
