"""Generated nights of sleep from a seed, in a hospital or at home. `rayssl.data.nights` describes stages and sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from rayssl.data.nights.night import GeneratedNight, NightSound, draw
from rayssl.data.nights.room import Domain
from rayssl.data.sources.base import Reference
from rayssl.data.sources.nights import Epoch, NightSource, NightSourceConfig
from rayssl.schema import Config


class NightPart(Config):
    """A group of subjects whose nights are alike.

    Its nights are named ``<name>/s00012/n0``, its subjects without n0.
    """

    name: str = Field(default="", pattern=r"^[\w-]*$")
    """The group's name, unique in the source; if it is empty, that of the domain."""
    domain: Domain = "hospital"
    """``hospital`` is a quiet room with a good microphone; ``home`` is a phone, noise at an SNR of -10 to 10 dB,
    television and partners.
    """
    subjects: int = Field(default=8, ge=1, le=100_000)
    """The number of subjects of the group, up to 100,000."""
    first_subject: int | None = Field(default=None, ge=0)
    """The number of the first subject; null takes the number after the last part's. The same number and seed is the
    same person, so two sources share nobody if their numbers do not overlap.
    """
    nights: int = Field(default=1, ge=1)
    """The number of nights of each subject."""
    hours: float | tuple[float, float] = 8.0
    """The length of a night in hours, up to 24, or ``[shortest, longest]``, drawn for each night. Nights below 7 hours
    are cut out of longer ones.
    """
    stages: Literal["healthy", "long_tailed"] = "healthy"
    """How people sleep: ``healthy`` (about W .12 L .55 D .15 R .18) or ``long_tailed`` (W .08 L .82 D .05 R .05; a
    third of the nights have no REM).
    """
    label_flips: float = Field(default=0.1, ge=0, le=1)
    """The share, from 0 to 1, of the transitions that is labelled one epoch too early or too late, as people do."""
    unscored: float = Field(default=0.0, ge=0, lt=1)
    """The share of epochs, from 0 to below 1, without a label."""
    ood_share: float = Field(default=0.0, ge=0, le=1)
    """The probability, from 0 to 1, that a night is out of distribution: nobody is in the room, only music is heard, or
    two people sleep equally loud. Nobody's epochs are unscored; two sleepers' labels are those of the subject.
    """

    @property
    def hours_range(self) -> tuple[float, float]:
        """The shortest and longest night in hours."""
        return self.hours if isinstance(self.hours, tuple) else (self.hours, self.hours)

    @property
    def title(self) -> str:
        """The name, or the domain's."""
        return self.name or self.domain

    @model_validator(mode="after")
    def _hours(self) -> NightPart:
        low, high = self.hours_range
        if not 0 < low <= high <= 24:
            raise ValueError(f"hours: {low:g} to {high:g} is no length of a night; give 0 < shortest <= longest <= 24")
        return self


class SyntheticNightsConfig(NightSourceConfig):
    """Generated nights: the groups of subjects in ``parts``, all from one ``seed``."""

    name: Literal["synthetic_nights"] = "synthetic_nights"
    """Nights of sleep generated from a seed, in a hospital or at home; needs no data."""
    seed: int = Field(default=0, ge=0)
    """The seed of all people and nights. Another seed gives other people."""
    parts: list[NightPart] = Field(default=[NightPart()], min_length=1)
    """The groups of subjects, each with its domain, number and lengths of nights."""

    def groups(self) -> list[tuple[NightPart, int]]:
        """The parts, each with the number of its first subject."""
        found, after = [], 0
        for part in self.parts:
            first = after if part.first_subject is None else part.first_subject
            after = first + part.subjects
            found.append((part, first))
        return found

    @model_validator(mode="after")
    def _parts(self) -> SyntheticNightsConfig:
        seen: list[tuple[NightPart, int]] = []
        for part, first in self.groups():
            for other, start in seen:
                if other.title == part.title:
                    raise ValueError(f"two parts are called {part.title}; give each a name of its own (parts.name)")
                if start < first + part.subjects and first < start + other.subjects:
                    raise ValueError(
                        f"parts {other.title} and {part.title} share subjects; leave out {part.title}'s first_subject, "
                        f"or set it to {start + other.subjects} or more"
                    )
            seen.append((part, first))
        return self

    def describe(self) -> str:
        """Always the same text: there is no URI to name."""
        return "the source of synthetic nights"


class SyntheticNights(NightSource):
    """The locator of a night is the numbers of its part, subject and night."""

    Config = SyntheticNightsConfig
    config: SyntheticNightsConfig

    def list(self) -> Iterator[Reference]:
        """Nights in the order of parts, subjects and numbers."""
        for index, (part, first) in enumerate(self.config.groups()):
            for subject in range(first, first + part.subjects):
                who = f"{part.title}/s{subject:05d}"
                for night in range(part.nights):
                    name = f"{who}/n{night}"
                    yield Reference(name, who, f"n{night}", None, (index, subject, night))

    def night(self, reference: Reference) -> GeneratedNight:
        """The night without its sound: its kind, true stages and labels."""
        index, subject, number = map(int, reference.locator)
        part, _ = self.config.groups()[index]
        return draw(
            self.config.seed,
            subject,
            number,
            domain=part.domain,
            hours=part.hours_range,
            stages=part.stages,
            ood_share=part.ood_share,
            label_flips=part.label_flips,
            unscored=part.unscored,
        )

    def epochs(self, reference: Reference) -> Iterator[Epoch]:
        """All epochs of a night. None is missing."""
        night = self.night(reference)
        heard = NightSound(night)
        for index, stage in enumerate(night.labels.tolist()):
            yield Epoch(index, stage, heard.epoch(index))
