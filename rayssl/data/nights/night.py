"""One generated night: who sleeps where, what a scorer writes, and the sound of each epoch.

Everything follows from (seed, subject, night) and the settings. `draw` needs no sound and is quick. `NightSound` makes
the carriers and the pieces of the night (10 to 20 MB) and gives the epochs, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rayssl.data.nights import breathing, hypnogram, room, sleeper, sound
from rayssl.data.nights.room import Domain, Room
from rayssl.data.nights.sleeper import Sleeper
from rayssl.data.nights.sound import SoundPieces
from rayssl.data.sources.nights import EPOCH_S, EPOCH_SAMPLES, UNSCORED

#: What is heard: one sleeper, or a night out of distribution.
Kind: TypeAlias = Literal["sleeper", "two_sleepers", "empty_room", "music"]
OUT_OF_DISTRIBUTION: tuple[Kind, ...] = ("empty_room", "music", "two_sleepers")
_SUBJECT, _NIGHT, _HYPNOGRAM, _SCORER, _PARTNER, _ROOM, _SOUND = range(1, 8)  # purposes of the seeds
_LOUDEST = 0.1  # the largest RMS of a piece


@dataclass(frozen=True)
class GeneratedNight:
    """A night without its sound.

    ``key``: (seed, subject, night). ``stages`` int8 ``[E]``: how the subject sleeps. ``labels`` int8 ``[E]``: what the
    scorer writes; all `UNSCORED` if nobody is in the room. ``partner``: a second sleeper, with stages of the partner's
    own, at ``partner_db`` over the first.
    """

    key: tuple[int, int, int]
    kind: Kind
    stages: np.ndarray
    labels: np.ndarray
    sleeper: Sleeper
    room: Room
    partner: Sleeper | None
    partner_stages: np.ndarray
    partner_db: float

    def rng(self, purpose: int, *more: int) -> np.random.Generator:
        """A generator for one purpose in this night."""
        return np.random.default_rng([purpose, *self.key, *more])


def draw(
    seed: int,
    subject: int,
    night: int,
    *,
    domain: Domain,
    hours: tuple[float, float],
    stages: str = "healthy",
    ood_share: float = 0.0,
    label_flips: float = 0.0,
    unscored: float = 0.0,
) -> GeneratedNight:
    """Night number ``night`` of subject number ``subject``; the keys are those of `SyntheticNightsConfig`."""
    key, profile = (seed, subject, night), hypnogram.PROFILES[stages]
    rng = np.random.default_rng([_NIGHT, *key])
    epochs = max(1, round(float(rng.uniform(*hours)) * hypnogram.EPOCHS_AN_HOUR))
    unusual, which = rng.random() < ood_share, int(rng.integers(len(OUT_OF_DISTRIBUTION)))
    kind: Kind = OUT_OF_DISTRIBUTION[which] if unusual else "sleeper"
    first = sleeper.draw(np.random.default_rng([_SUBJECT, seed, subject]), rng)
    heard = room.draw(np.random.default_rng([_ROOM, *key]), domain, epochs * EPOCH_S)
    slept = hypnogram.draw(np.random.default_rng([_HYPNOGRAM, *key]), epochs, profile)
    written = hypnogram.scored(np.random.default_rng([_SCORER, *key]), slept, flips=label_flips, unscored=unscored)
    if kind in ("empty_room", "music"):
        written = np.full(epochs, UNSCORED, np.int8)
    partner, partner_db = None, heard.partner_db
    if kind == "two_sleepers":
        partner_db = float(rng.uniform(-3, 3))
    elif kind != "sleeper":
        partner_db = None
    if partner_db is not None:
        partner = sleeper.draw(np.random.default_rng([_PARTNER, seed, subject]), rng)
    second = hypnogram.draw(np.random.default_rng([_HYPNOGRAM, *key, 1]), epochs, profile)
    return GeneratedNight(key, kind, slept, written, first, heard, partner, second, partner_db or 0.0)


class NightSound:
    """The sound of a `GeneratedNight`."""

    def __init__(self, night: GeneratedNight) -> None:
        self._carriers: list[np.ndarray] = []
        self._microphone = night.room.microphone
        rng = night.rng(_SOUND)
        epochs = len(night.stages)
        level = 10 ** (night.sleeper.level_db / 20)
        quiet = level * 10 ** (-night.room.snr_db / 20)
        self._floor = room.floor(rng, night.room)
        self._floor *= np.float32(quiet)
        self._gains = room.drift(rng, epochs)
        self._places = rng.integers(0, room.FLOOR, epochs)
        found = [self._room(rng, night, quiet)]
        if night.kind in ("sleeper", "two_sleepers"):
            found += self._person(night.rng(_SOUND, 1), night.sleeper, night.stages, level)
        if night.partner is not None:
            far = level * 10 ** (night.partner_db / 20)
            found += self._person(night.rng(_SOUND, 2), night.partner, night.partner_stages, far)
        times = night.room.programmes
        if night.kind == "music":
            times = ((0.0, float(epochs * EPOCH_S)),)
        if times:
            tune = sound.music(int(rng.integers(3)))
            speech = 0.0 if night.kind == "music" else float(rng.uniform(0, 1))
            number = self._add((1 - speech) * _unit(tune) + speech * _unit(sound.talk()), sound.band(80, 6000))
            found += room.programme(rng, times, level * 10 ** (night.room.programme_db / 20), number=number)
        self._pieces: SoundPieces = sound.merged(found)

    def epoch(self, index: int) -> np.ndarray:
        """Epoch ``index``: float32 ``[480000]`` in [-1, 1]."""
        out = np.empty(EPOCH_SAMPLES, np.float32)
        place, gain = int(self._places[index]), self._gains[index]
        first = min(EPOCH_SAMPLES, room.FLOOR - place)
        np.multiply(self._floor[place : place + first], gain, out=out[:first])
        np.multiply(self._floor[: EPOCH_SAMPLES - first], gain, out=out[first:])
        sound.render(out, index * EPOCH_SAMPLES, self._pieces, self._carriers)
        return np.clip(out, -1, 1, out=out)

    def _add(self, spectrum: np.ndarray, response: np.ndarray) -> int:
        """Makes a carrier, and gives its number."""
        self._carriers.append(sound.carrier(spectrum, response * self._microphone))
        return len(self._carriers) - 1

    def _room(self, rng: np.random.Generator, night: GeneratedNight, level: float) -> SoundPieces:
        street = self._add(sound.white(3), sound.band(60, 500))
        bump = self._add(sound.rustle(), sound.band(150, 3000, 1.0))
        return room.noises(rng, night.room, len(night.stages) * EPOCH_S, level, street=street, bump=bump)

    def _person(self, rng: np.random.Generator, who: Sleeper, stages: np.ndarray, level: float) -> list[SoundPieces]:
        """What one sleeper is heard of, breathing at an RMS of ``level``: float, linear."""
        bouts = breathing.slow_process(rng, len(stages), breathing.BOUT_EPOCHS)
        breaths = breathing.breathe(rng, who, stages, bouts)
        moves = breathing.move(rng, who, stages, bouts)
        said = breathing.talking(rng, stages, bouts)
        centre, octaves = who.tract
        low, high = centre * 2 ** (-octaves), centre * 2**octaves
        numbers = {
            "in": self._add(sound.white(4), sound.band(low, high)),
            "out": self._add(sound.white(5), sound.band(low * 0.8, high * 0.7)),
            "snore": self._add(sound.snores(rng, who.pitch), sound.band(60, 400)),
            "rustle": self._add(sound.rustle(), sound.band(200, 5000, 1.0)),
            "talk": self._add(sound.talk(), sound.band(100, 5000)),
        }
        posture = rng.normal(0, 3.0, len(moves.start) + 1)  # dB, another after each movement
        near = level * 10 ** (posture[np.searchsorted(moves.start, breaths.start)] / 20)
        gain = np.minimum(_LOUDEST, near * breaths.depth)
        found = [
            sound.pieces(rng, numbers["in"], sound.BREATH_IN, breaths.start, 0.38 * breaths.period, gain),
            sound.pieces(
                rng, numbers["out"], sound.BREATH_OUT, breaths.start + 0.4 * breaths.period, 0.5 * breaths.period,
                gain * who.exhale,
            ),
        ]  # fmt: skip
        loud, snored = np.minimum(_LOUDEST, gain * 10 ** (who.snore_db / 20)), breaths.snored
        found.append(
            sound.pieces(
                rng, numbers["snore"], sound.BREATH_IN, breaths.start[snored], 0.38 * breaths.period[snored],
                loud[snored],
            )
        )  # fmt: skip
        for name, events, over in (("rustle", moves, 8.0), ("talk", said, 12.0)):
            loud = np.minimum(_LOUDEST, level * 10 ** (over / 20) * events.size)
            found.append(sound.pieces(rng, numbers[name], sound.BURST, events.start, events.length, loud))
        return found


def _unit(spectrum: np.ndarray) -> np.ndarray:
    return np.asarray(spectrum / np.sqrt(np.vdot(spectrum, spectrum).real))
