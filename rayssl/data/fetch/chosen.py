"""Which clips of an archive a table holds: what the names in the archives say about part, speaker and class.

The names of the utterances are those of the mirrors with which the results in ``configs/`` were measured. What is drawn
for an utterance, such as its recording condition, depends on its name: so the same names give the same draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import combinations
from typing import NamedTuple

import numpy as np

from rayssl.data.trials import Trial


class Clip(NamedTuple):
    """What the name of a file says. ``part``: the table that the clip belongs to; ``session``: its round or fold."""

    part: str
    id: str
    speaker: str
    label: str
    session: str


@dataclass(frozen=True)
class ClipSelection:
    """Clips for tables.

    Args:
        clip: the clip of a name in the archive, None if it is not chosen.
        counts: how many clips each part must have.
        trials: trials of the part ``test``, or None.
    """

    clip: Callable[[str], Clip | None]
    counts: dict[str, int]
    trials: Callable[[Sequence[Clip]], list[Trial]] | None = None


_WORD = re.compile(r"(\w+)/([0-9a-f]{8})_nohash_(\d+)\.wav")
_DIGIT = re.compile(r"recordings/(\d)_([a-z]+)_(\d+)\.wav")
_SOUND = re.compile(r"(\d{3}) - ([\w ]+)/(\d)-(\d+)-([A-Z])\.ogg")
_CRY = re.compile(r"donateacry_corpus_cleaned_and_updated_data/(\w+)/(([\w-]{36})-(\d+)-[\w.-]+)\.wav")


def _word(name: str) -> Clip | None:
    found = _WORD.fullmatch(name)
    if found is None:
        return None
    word, speaker, number = found.groups()
    part = _words().get((speaker, word, number))
    return None if part is None else Clip(part, f"{speaker}/{word}_{number}.flac", speaker, word, f"r{number}")


@cache
def _words() -> dict[tuple[str, str, str], str]:
    """The part of each chosen clip, by speaker, word and number."""
    found: dict[tuple[str, str, str], str] = {}
    for part, speaker, *words in _lines("speech_commands_sv.txt"):
        for entry in words:
            word, _, numbers = entry.partition(":")
            found |= {(speaker, word, number): part for number in numbers.split(",")}
    return found


def _digit(name: str) -> Clip | None:
    """Of each digit and speaker the first 25: five to test, as the set's authors advise, and 20 to train.

    One speaker is left out, as in the mirror.
    """
    found = _DIGIT.fullmatch(name)
    if found is None or int(found[3]) >= 25 or found[2] == "theo":
        return None
    digit, speaker, number = found.groups()
    part = "test" if int(number) < 5 else "train"
    return Clip(part, f"fsdd/{speaker}/{digit}_{number}.flac", speaker, digit, part)


def _sound(name: str) -> Clip | None:
    """The recording at Freesound from which a clip was cut stands for its speaker."""
    found = _SOUND.fullmatch(name)
    if found is None:
        return None
    number, label, fold, recording, take = found.groups()
    label = label.lower().replace(" ", "_")
    return Clip("all", f"esc10/{number}_{fold}-{recording}-{take}.flac", f"freesound-{recording}", label, f"fold{fold}")


def _cry(name: str) -> Clip | None:
    found = _CRY.fullmatch(name)
    if found is None:
        return None
    label, stem, infant, time = found.groups()
    part = _infants().get(infant[:8].lower(), "train")
    return None if part == "left_out" else Clip(part, f"cry/{stem}.flac", infant.lower(), label, time)


@cache
def _infants() -> dict[str, str]:
    return {infant: part for part, *infants in _lines("donateacry.txt") for infant in infants}


def _lines(name: str) -> Iterator[list[str]]:
    """The words of each line of a list of this package."""
    text = (resources.files("rayssl.data.fetch") / name).read_text()
    return (line.split() for line in text.splitlines() if not line.startswith("#"))


def trials_of_words(clips: Sequence[Clip]) -> list[Trial]:
    """All pairs of a speaker's clips of different words, and as many drawn pairs of different speakers and words."""
    clips = sorted(clips)
    same = [(a, b) for a, b in combinations(clips, 2) if a.speaker == b.speaker and a.label != b.label]
    found = [Trial(1, a.id, b.id) for a, b in same]
    random, drawn = np.random.default_rng(0), set[tuple[int, int]]()
    enough = sum(a.speaker != b.speaker and a.label != b.label for a, b in combinations(clips, 2))
    while len(drawn) < min(len(same), enough):
        first, second = sorted(random.integers(len(clips), size=2).tolist())
        a, b = clips[first], clips[second]
        if a.speaker != b.speaker and a.label != b.label and (first, second) not in drawn:
            drawn.add((first, second))
            found.append(Trial(0, a.id, b.id))
    return found


SPEECH_COMMANDS = ClipSelection(_word, {"train": 2557, "test": 1463}, trials_of_words)
FSDD = ClipSelection(_digit, {"train": 1000, "test": 250})
ESC10 = ClipSelection(_sound, {"all": 400})
DONATEACRY = ClipSelection(_cry, {"train": 320, "test": 73})
