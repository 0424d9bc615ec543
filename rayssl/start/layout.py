"""What the folders of a path are: speakers with recordings, classes, or neither. Pure functions of the paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

Purpose = Literal["speakers", "classes", "sleep"]

_PARTITION = re.compile(r"(train|dev|test|valid|validation|eval|val)([-_ ].*)?", re.IGNORECASE)
_PERSON = re.compile(
    r"(speaker|spkr?|voice|talker|reader|person|user|client|subject|actor|singer|participant)s?[-_ ]?\w{0,12}", re.I
)
_NUMBERED = re.compile(r"[a-z]{0,3}[-_ ]?\d{2,}", re.IGNORECASE)  # id10270, p225, 1034, s01
_SESSION = re.compile(
    r"(rec|recording|session|sess|ses|day|take|part|tape|disc|chapter|video|call|s|r)?[-_ ]?\d+", re.I
)
_SOUNDS = """
zero one two three four five six seven eight nine yes no up down left right on off stop go forward backward follow learn
visual bed bird cat dog house tree wow happy sad angry anger neutral fear fearful disgust surprise calm joy sadness
boredom male female music noise speech silence cough cry crying laugh laughing sneeze hungry tired burping discomfort
rain wind sea siren horn engine drilling jackhammer chainsaw clock fire crackling rooster helicopter baby footsteps door
knock bark street traffic gun shot glass alarm keyboard guitar piano drum drums violin bass flute blues classical
country disco hiphop jazz metal pop reggae rock normal abnormal healthy english french german spanish italian chinese
mandarin russian hindi arabic japanese portuguese
"""
_CLASSES = frozenset(_SOUNDS.split())
_MANY = 30  # so many folders are rarely classes
_SHORT_S = 2.0  # clips so short are rather words and sounds than speech of a person
_COVERED = 0.9  # a layout must hold for this share of the files


class FolderLayout(NamedTuple):
    """``layout`` and ``files`` as the source folder takes them; ``why`` is a sentence for people.

    ``unsure``: whether the folders can as well be the other of speakers and classes.
    """

    purpose: Purpose | None
    layout: list[str]
    files: str
    why: str
    unsure: bool = False


def guess(paths: Sequence[str], purpose: Purpose | None = None, median_s: float = 0.0) -> FolderLayout:
    """What the first folders of ``paths`` are.

    Args:
        paths: the audio files, relative to the folder.
        purpose: what the user says that they are: speakers or classes; None guesses.
        median_s: the median length of a file in seconds; 0 if it is not known.
    """
    depth = _depth(paths)
    deep = [path.split("/")[:-1] for path in paths if path.count("/") >= depth]
    skipped = 0
    while skipped < depth and _says_nothing({folders[skipped] for folders in deep}):
        skipped += 1
    names = Counter(folders[skipped] for folders in deep) if skipped < depth else Counter[str]()
    if not names:
        return FolderLayout(None, [], "*", "no folders divide the files")
    if max(names.values()) == 1 and purpose is None:
        return FolderLayout(None, [], "*", f"each of the {len(names)} folders holds one file, so they name recordings")
    deeper = [(folders[skipped], folders[skipped + 1]) for folders in deep] if skipped + 1 < depth else []
    unsure = False
    if purpose is None:
        purpose, why, unsure = kind(names, median_s)
    else:
        why = f"--for {purpose}"
    levels = ["speaker", "recording"] if purpose == "speakers" else ["label", "speaker"]
    if not deeper or (purpose == "classes" and not _shared(deeper)):
        levels = levels[:1]
    pattern = "/".join(["*"] * (skipped + len(levels) + 1)) if len(deep) < len(paths) else "*"
    return FolderLayout(purpose, ["-"] * skipped + levels, pattern, why, unsure)


def kind(names: Mapping[str, int] | Collection[str], median_s: float = 0.0) -> tuple[Purpose, str, bool]:
    """Whether ``names`` are those of speakers or of classes, why, and whether that is unsure."""
    some = _some(names)
    if _share(names, lambda name: bool(_PERSON.fullmatch(name))) >= 0.5:
        return "speakers", f"the names ({some}) are those of speakers", False
    if len(names) <= 10 and _share(names, lambda name: bool(re.fullmatch(r"\d", name))) == 1:
        return "classes", f"the names ({some}) are digits", True
    if _share(names, lambda name: bool(_words(name) & _CLASSES)) >= 0.3:
        return "classes", f"the names ({some}) are words for sounds", False
    if _share(names, lambda name: bool(_NUMBERED.fullmatch(name))) >= 0.5:
        return "speakers", f"the names ({some}) are numbered, as those of speakers are", False
    if len(names) > _MANY:
        return "speakers", f"{len(names)} names ({some}) are many for classes", False
    if 0 < median_s < _SHORT_S:
        return "classes", f"the names ({some}) say little, but the clips are short ({median_s:.1f} s)", True
    return "speakers", f"the names ({some}) say little; names of classes would be words for sounds", True


def prefixes(paths: Sequence[str]) -> list[str]:
    """What the file names begin with, if that divides them into groups which could be speakers; else nothing."""
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in paths]
    found = Counter(match[1] for match in (re.match(r"(.+?)[-_ ]", stem) for stem in stems) if match)
    if found.total() == len(stems) and 2 <= len(found) <= len(stems) // 3 and min(found.values()) > 1:
        return sorted(found)
    return []


def _depth(paths: Sequence[str]) -> int:
    """The largest number of folders that nearly all paths have."""
    depths = Counter(path.count("/") for path in paths)
    covered, found = 0, 0
    for depth in sorted(depths, reverse=True):
        covered += depths[depth]
        if covered >= _COVERED * len(paths):
            found = depth
            break
    return found


def _says_nothing(names: Collection[str]) -> bool:
    """Whether a level of folders has only one name, or the names of partitions."""
    return len(names) == 1 or all(_PARTITION.fullmatch(name) for name in names)


def _shared(deeper: Sequence[tuple[str, str]]) -> bool:
    """Whether the second folders are speakers who occur in several classes, and not sessions."""
    classes: dict[str, set[str]] = {}
    for label, name in deeper:
        classes.setdefault(name, set()).add(label)
    if len(classes) < 4 or all(_SESSION.fullmatch(name) for name in classes):
        return False
    return sum(len(found) > 1 for found in classes.values()) >= 0.5 * len(classes)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def _share(names: Collection[str], holds: object) -> float:
    assert callable(holds)
    return sum(map(bool, map(holds, names))) / max(1, len(names))


def _some(names: Collection[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f", ... {len(listed)} of them" if len(listed) > 3 else "")
