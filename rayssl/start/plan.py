"""From a user's recordings to everything that the first two files say: what was found, and what follows from it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rayssl import storage
from rayssl.data.segments import detectors
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.data.sources.base import Reference
from rayssl.data.sources.nights import UNSCORED, Epoch
from rayssl.data.taking import TakeConfig
from rayssl.errors import ConfigError, CorpusError
from rayssl.start import finding, layout, listening, sizes, testing
from rayssl.start.finding import Found
from rayssl.start.layout import Purpose
from rayssl.start.listening import Heard
from rayssl.start.machine import Machine
from rayssl.start.sizes import Sizes
from rayssl.start.testing import HeldOut

_UNLABELLED = 0.2  # from this share on, unlabelled clips are worth a method that uses them
_EPOCHS = 120  # of a night without a label file that are looked at
_ALONE_H, _ALONE_NIGHTS = 5.0, 20  # one process prepares so much in some minutes
_SHORTEST_S = 3.0  # about a quarter of the segments of a long recording are shorter


@dataclass(frozen=True)
class Plan:
    """Everything that the two files say. ``uri`` and ``out`` as the user gave them.

    ``why``: the sentence about speakers or classes. ``unsure``: whether it could as well be the other. ``purpose``:
    None if neither is known.
    """

    uri: str
    out: str
    found: Found
    heard: Heard
    purpose: Purpose | None
    why: str
    unsure: bool
    held: HeldOut
    machine: Machine

    @cached_property
    def usable(self) -> list[Reference]:
        """What was listed, without the recordings that are known to be unreadable."""
        return [one for one in self.found.references if one.name not in self.heard.unreadable]

    @property
    def long(self) -> bool:
        """Whether recordings are to be divided into segments."""
        return self.heard.at(0.5) > sizes.LONG_S

    @property
    def hours(self) -> float:
        """About how many hours of audio can be read."""
        return self.found.utterances * (1 - self.heard.unreadable_share) * self.heard.mean_s / 3600

    @property
    def utterances(self) -> int:
        """About how many utterances the preparation will make, for training and for the test."""
        if self.long:
            return int(self.hours * 3600 / sizes.SEGMENT_S)
        return round(self.found.utterances * (1 - self.heard.unreadable_share))

    @property
    def for_training(self) -> int:
        """About how many of these are for training."""
        return self.utterances - round(self.utterances * self.held.test / max(1, len(self.usable)))

    @property
    def speakers(self) -> int:
        """The number of known speakers."""
        return len({one.speaker for one in self.usable} - {None})

    @property
    def classes(self) -> Counter[str]:
        """The number of recordings of each class."""
        return Counter(one.label for one in self.usable if one.label is not None)

    @property
    def semi(self) -> bool:
        """Whether so many recordings lack a class that a method should learn from them too."""
        unlabelled = len(self.usable) - self.classes.total()
        return unlabelled >= max(sizes.TOO_FEW, _UNLABELLED * len(self.usable))

    @cached_property
    def sizes(self) -> Sizes:
        """The settings that follow from all this."""
        sounds = self.purpose == "classes"
        short_s = _SHORTEST_S if self.long else self.heard.at(0.25)
        spoken = self.utterances / self.speakers if self.speakers else 0.0
        ratio = 2 if sounds and self.semi else 1
        return sizes.sizes(self.for_training, short_s, self.machine, per_speaker=spoken, ratio=ratio, sounds=sounds)

    @property
    def local(self) -> bool:
        """Whether all of it is best done in one process, without Ray."""
        if self.purpose == "sleep":
            few = self.found.utterances <= _ALONE_NIGHTS
            return few and self.machine.bare and self.machine.cores <= sizes.ONE_RANK_CORES
        return self.hours <= _ALONE_H and self.sizes.alone(self.machine)

    @property
    def too_small(self) -> bool:
        """Whether there is too little to learn from, so that the files only show that everything works."""
        return self.purpose != "sleep" and self.for_training < sizes.TOO_FEW

    @property
    def detector(self) -> str:
        """The detector of speech for long recordings: the best that is installed; none for sounds of classes."""
        for name in () if self.purpose == "classes" else ("silero", "webrtc"):
            try:
                detectors.check(SegmentsConfig(detector=name))
            except ConfigError:
                continue
            return name
        return "none"

    @property
    def channels(self) -> int:
        """The largest number of channels that was heard."""
        return max(self.heard.channels, default=1)

    @property
    def reject_share(self) -> float | None:
        """`max_reject_share` that lets the preparation pass; None if the default does."""
        unreadable = self.heard.unreadable
        parts = [self.found.references]
        if self.held.take is not None:
            parts = [TakeConfig(part=part, **self.held.take).of(parts[0]) for part in ("held_out", "rest")]
        if self.heard.whole:
            most = max(sum(one.name in unreadable for one in part) / max(1, len(part)) for part in parts)
        else:
            most = 1.5 * self.heard.unreadable_share
        return None if not unreadable else min(1.0, math.ceil(100 * most) / 100 + 0.01)


def plan(uri: str, out: str, purpose: Purpose | None, machine: Machine) -> Plan:
    """Looks at ``uri`` and decides. It writes nothing.

    Args:
        uri: folder, list, file or prefix.
        out: the folder or URI for the files, the corpora and the run.
        purpose: what the user says; None guesses.
        machine: the machine that will train.

    Raises:
        CorpusError: nothing usable is at ``uri``, too little, or it does not fit ``purpose``.
    """
    uri = uri if len(uri) == 1 else uri.rstrip("/")
    found = finding.find(uri, purpose)
    if found.source["name"] == "nights":
        return _of_nights(uri, out, found, machine)
    heard = listening.listen(finding.opened(found.source), found.references)
    if not len(heard.seconds):
        name, reason = next(iter(heard.unreadable.items()))
        raise CorpusError(f"{uri}: none of {heard.asked} recordings can be read, first '{name}' ({reason})")
    found, chosen, why, unsure = _facts(found, purpose, heard)
    usable = [one for one in found.references if one.name not in heard.unreadable]
    if chosen == "speakers":
        held = testing.of_speakers(usable)
    elif chosen == "classes":
        held = testing.of_classes(usable)
    else:
        held = HeldOut(None, "neither speakers nor classes are known")
    made = Plan(uri, out, found, heard, chosen, why, unsure, held, machine)
    if made.for_training < sizes.LEAST and held.take is not None:
        none = "too few recordings to hold some out"
        made = replace(made, held=HeldOut(None, none))
    if made.for_training < sizes.LEAST:
        what = (
            f"{made.utterances} utterances are too few for any training ({sizes.LEAST} are the least, hundreds a start)"
        )
        raise CorpusError(f"{uri}: {what}: add recordings")
    return made


def _facts(found: Found, purpose: Purpose | None, heard: Heard) -> tuple[Found, Purpose | None, str, bool]:
    """``found`` with what names speakers and classes, which of the two it is for, why, and whether that is unsure."""
    if found.source["name"] == "folder" and "csv" not in found.source:
        guessed = layout.guess([one.name for one in found.references], purpose, heard.at(0.5))
        keys: dict[str, Any] = {"layout": guessed.layout} if guessed.layout else {}
        keys |= {"files": guessed.files} if guessed.files != "*" else {}
        if purpose is not None and not guessed.layout:
            column = "speaker" if purpose == "speakers" else "label"
            raise CorpusError(
                f"{found.source['uri']}: --for {purpose} needs a folder for each of the {purpose}, and {guessed.why}; "
                f"make folders, or give a list (CSV) with the columns path and {column}"
            )
        return (finding.again(found, keys) if keys else found), guessed.purpose, guessed.why, guessed.unsure
    speakers = {one.speaker for one in found.references} - {None}
    labels = {one.label for one in found.references} - {None}
    known = {"speakers": speakers, "classes": labels}
    if purpose is not None and not known[purpose]:
        raise CorpusError(f"{found.source['uri']}: --for {purpose}, but no column or key names {purpose}")
    if purpose is not None:
        return found, purpose, f"--for {purpose}", False
    if len(speakers) > 1:
        return found, "speakers", "speakers are named", len(labels) > 1
    if len(labels) > 1:
        return found, "classes", "classes are named", False
    return found, None, "no column or key names speakers or classes", False


def _of_nights(uri: str, out: str, found: Found, machine: Machine) -> Plan:
    scored = sum(bool(one.locator[0]) for one in found.references)
    source = finding.opened(found.source)
    if not scored:  # perhaps the stages are annotations inside the files
        epochs = itertools.islice(source.epochs(found.references[0]), _EPOCHS)
        if any(isinstance(one, Epoch) and one.stage != UNSCORED for one in epochs):
            scored = len(found.references)
    if not scored:
        raise CorpusError(
            f"{uri}: {len(found.references)} nights, none of them scored: sleep staging needs some nights with stages; "
            "put their label files beside them (RML, CSV, TXT or EDF+ annotations), or prepare the nights with "
            "source.scorings"
        )
    nobody = Heard(np.zeros(0), Counter(), Counter(), {}, True)
    why = f"{len(found.references)} nights, {scored} of them scored"
    held = HeldOut(None, why)
    return Plan(uri, out, found, nobody, "sleep", why, False, held, machine)


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first ``names`` in a few words."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def paths(plan: Plan) -> dict[str, str]:
    """Where everything of ``plan`` goes, by its name."""
    names = ("prepare.yaml", "train.yaml", "train", "test", "trials.txt", "run", "nights")
    return {name: storage.join(plan.out, name) for name in names}
