"""One unit of preparation: its references are decoded, checked, rendered, joined, and written as one shard.

A finished unit leaves a record under ``<out>/.work``, so that a restarted preparation skips it. The content of a shard
depends on its unit only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from rayssl import storage
from rayssl.data import conditions, decode, joining, shards
from rayssl.data.columns import unpacked
from rayssl.data.conditions import ConditionsConfig
from rayssl.data.joining import JoinConfig
from rayssl.data.nights.writing import NightDone, NightsConfig, NightWriter
from rayssl.data.segments import reading
from rayssl.data.segments.settings import SegmentsConfig
from rayssl.data.shards import Reject, Shard
from rayssl.data.sources.base import Audio, Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.nights import NightSourceConfig
from rayssl.data.sources.registry import AnySource
from rayssl.data.taking import TakeConfig
from rayssl.errors import StorageError
from rayssl.schema import Config

Rendering = tuple[int, int, int]
CLEAN = -1  # the "condition" of an utterance that is not rendered
WORK = ".work"
PLAN = f"{WORK}/plan"
DROPPED = "too short to join: "  # the reason of a reject begins with this if its audio is usable but too short to join
_ROWS = 22


class ContentConfig(Config):
    """How utterances are made from a source: everything that their samples depend on.

    Of these keys, only ``source``, ``format`` and ``nights`` go with a source of nights.
    """

    source: AnySource
    """Where the raw audio comes from; ``source.name`` chooses the layout and decides which other keys there are.
    ``rayssl list sources`` lists the names.
    """
    format: decode.Format = "flac"
    """How audio is stored, mono at 16 kHz: ``flac`` is lossless and smaller than ``pcm16``, which needs no decoding.
    ``mel`` stores log-mel pictures of nights, as ``nights.mel`` says, and no sound.
    """
    channels: decode.Channels = "reject_above_2"
    """What happens to audio with several channels: ``mean`` averages them, ``first`` takes the first one,
    ``reject_above_2`` averages two and refuses more.
    """
    min_s: float = Field(default=0.1, ge=0)
    """Audio that is shorter than this many seconds is a reject."""
    conditions: ConditionsConfig | None = None
    """Simulated recording conditions (rooms, microphones, noise, codecs) under which each utterance is rendered; null
    leaves the audio as it is. For corpora with one recording for each speaker.
    """
    join: JoinConfig | None = None
    """Joins short clips of a recording to longer utterances, for example single words; null does not."""
    nights: NightsConfig | None = None
    """How nights become epochs of sleep of 30 s. Only for sources of nights; null takes the defaults."""
    segments: SegmentsConfig | None = None
    """Divides long recordings into segments of speech, which become the utterances; ``{}`` takes the defaults, and null
    leaves recordings whole.
    """
    take: TakeConfig | None = None
    """The part of the source that this corpus takes, for example all speakers but those of the test; null takes all."""

    @property
    def of_nights(self) -> bool:
        """Whether the utterances are epochs of nights."""
        return isinstance(self.source, NightSourceConfig)

    @property
    def listed(self) -> str:
        """What the source lists, in a word for messages."""
        return "nights" if self.of_nights else "utterances"

    @model_validator(mode="after")
    def _nights_fit(self) -> ContentConfig:
        if self.of_nights:
            for key in ("conditions", "join", "channels", "min_s", "segments", "take"):
                if getattr(self, key) != ContentConfig.model_fields[key].default:
                    hints = {"channels": "set source.channels", "min_s": "set nights.min_hours", "take": "use splits"}
                    hint = hints.get(key, "leave it out")
                    raise ValueError(f"{key} does not go with a source of nights; {hint}")
        elif self.segments is not None and self.join is not None:
            raise ValueError("join does not go with segments: it joins clips, segments divides recordings")
        elif self.format == "mel" or self.nights is not None:
            key = "format: mel" if self.format == "mel" else "nights"
            raise ValueError(f"{key} needs a source of nights; source.name={self.source.name} gives utterances")
        return self


class PrepareWork(Config):
    """What all units of a preparation have in common. The paths in ``out`` and ``settings`` are absolute."""

    out: str
    seed: int
    settings: ContentConfig


@dataclass(frozen=True, slots=True)
class PrepareUnit:
    """The work of one task, which becomes one shard.

    Its rows, one for each utterance before joining, are ``data``; if there is none, they are ``size`` bytes from
    ``start`` of the file ``place`` below `PLAN`. ``utterances`` counts the rows. ``digest`` is a hash of all that the
    content of the shard depends on.
    """

    index: int
    digest: str
    utterances: int
    place: str
    start: int
    size: int
    data: bytes


class _Content(NamedTuple):
    """The rows of a unit. A job is (position in ``references``, condition, recording index). The jobs of a group are
    joined, if the settings say so.
    """

    references: list[Reference]
    speakers: list[int]
    labels: list[int]
    jobs: list[list[Rendering]]


class _Made(NamedTuple):
    """A rendering: its number of samples, and its int16 samples if it is to be joined, else encoded audio."""

    samples: int
    pcm: np.ndarray | None
    audio: bytes


class Done(Config):
    """The record of a finished unit. ``shard`` is None if no utterance was usable; ``utterances`` is the unit's.

    ``night``: what a unit of nights became, instead of ``shard``. Its rejects are also in ``rejects``.
    """

    digest: str
    shard: Shard | None
    utterances: int
    rejects: list[Reject]
    night: NightDone | None = None

    @property
    def shards(self) -> list[Shard]:
        """The shards that the unit became."""
        return [*([] if self.shard is None else [self.shard]), *([] if self.night is None else self.night.shards)]

    def unusable(self) -> list[Reject]:
        """The rejects whose audio cannot be used. Clips that were only too short to join are not among them.

        Of a night that has shards, only parts were left out.
        """
        if self.night is not None and self.night.shards:
            return []
        return [reject for reject in self.rejects if not reject.reason.startswith(DROPPED)]


def process(work: PrepareWork, unit: PrepareUnit) -> Done:
    """Makes one shard, unless a record says that it is made already.

    A unit with unusable utterances is always made again, because the user may have fixed them.
    """
    out = work.out
    record = storage.join(out, WORK, f"{unit.index:05d}.json")
    done = _read_record(record)
    if done is not None and done.digest == unit.digest and not done.unusable():
        return done
    # The old record is removed first: after a crash there must be no old record beside a new shard.
    storage.remove(record)
    content = _content(work, unit)
    if work.settings.of_nights:
        night = _night(work, unit, content)
        done = Done(digest=unit.digest, shard=None, utterances=1, rejects=night.rejects, night=night)
    else:
        pieces, rejects = _pieces(work, content)
        columns, dropped = _columns(work, unit.index, content, pieces)
        shard = shards.write_shard(out, (unit.index,), columns) if columns["name"] else None
        done = Done(digest=unit.digest, shard=shard, utterances=unit.utterances, rejects=rejects + dropped)
    storage.write_text(record, done.model_dump_json())
    return done


def rendering_name(name: str, condition: int) -> str:
    """The name of the rendering of a source utterance or recording under ``condition``."""
    return name if condition == CLEAN else f"{name}#c{condition}"


def recording_name(reference: Reference, condition: int) -> str | None:
    """The name of the recording that a rendering belongs to; None if it is unknown."""
    name = reference.recording_name()
    if name is None and condition != CLEAN and reference.speaker is not None:
        name = reference.speaker  # the original recording is unknown, but the simulated channel is known
    return None if name is None else rendering_name(name, condition)


def _read_record(uri: str) -> Done | None:
    try:
        return Done.model_validate_json(storage.read_bytes(uri))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            return None
        raise
    except ValueError:
        return None


def _content(work: PrepareWork, unit: PrepareUnit) -> _Content:
    """The rows of ``unit``, as `rayssl.data.planning` has packed them."""
    data = unit.data or storage.read_range(storage.join(work.out, PLAN, unit.place), unit.start, unit.size)
    rows = unpacked(data).to_pydict()
    first = {name: row for row, name in enumerate(rows["name"])}
    used = sorted(first)
    position = {name: place for place, name in enumerate(used)}
    facts = [[rows[key][first[name]] for name in used] for key in ("speaker", "recording", "label")]
    locators = [tuple(json.loads(rows["locator"][first[name]])) for name in used]
    jobs: list[list[Rendering]] = []
    before: tuple[int, int] | None = None
    for name, condition, recording in zip(rows["name"], rows["condition"], rows["recording_index"], strict=True):
        group = (recording, condition)
        if work.settings.join is None or group != before:
            jobs.append([])
        jobs[-1].append((position[name], condition, recording))
        before = group
    return _Content(
        references=[Reference(*values) for values in zip(used, *facts, locators, strict=True)],
        speakers=[rows["speaker_index"][first[name]] for name in used],
        labels=[rows["label_index"][first[name]] for name in used],
        jobs=jobs,
    )


def _night(work: PrepareWork, unit: PrepareUnit, content: _Content) -> NightDone:
    """Writes the night of a unit: it has one."""
    settings = work.settings
    (reference,), ((_, _, recording),) = content.references, content.jobs[0]
    writer = NightWriter(
        work.out, unit.index, settings.nights or NightsConfig(), settings.format, content.speakers[0], recording
    )
    return writer.write(CheckedSource(settings.source), reference)


def _pieces(work: PrepareWork, content: _Content) -> tuple[dict[Rendering, _Made], list[Reject]]:
    """What each job becomes whose reference is usable, and a reject for each reference that is not."""
    settings, pieces, rejects = work.settings, dict[Rendering, _Made](), list[Reject]()
    channels = [] if settings.conditions is None else conditions.draw_all(settings.conditions)
    jobs_of: dict[int, list[Rendering]] = {}
    for job in (job for group in content.jobs for job in group):
        jobs_of.setdefault(job[0], []).append(job)
    source = CheckedSource(settings.source)
    if settings.segments is None:
        found = source.read(content.references)
    else:
        found = reading.read(source, content.references, settings.channels)
    for position, audio in found:
        try:
            clip = _usable(settings, audio)
        except decode.DecodeError as error:
            reference = content.references[position]
            rejects.append(Reject(name=reference.name, source=source.place(reference), reason=str(error)))
            continue
        for job in jobs_of[position]:
            pcm = decode.quantise(_heard(settings, content.references[position].name, job[1], clip, channels))
            if settings.join is None:  # encoded at once: the samples of a whole unit are several times as large
                pieces[job] = _Made(len(pcm), None, decode.encode(pcm, settings.format))
            else:
                pieces[job] = _Made(len(pcm), pcm, b"")
    return pieces, rejects


def _usable(settings: ContentConfig, audio: Audio | decode.DecodeError) -> np.ndarray:
    if isinstance(audio, decode.DecodeError):
        raise audio
    clip = decode.decode(audio, settings.channels) if isinstance(audio, bytes) else audio
    if len(clip) < max(1, round(settings.min_s * decode.RATE)):
        raise decode.DecodeError(f"too short: {len(clip) / decode.RATE:.3f} s, min_s is {settings.min_s:g}")
    if not decode.quantise(clip).any():
        raise decode.DecodeError("silent: every sample is zero")
    return clip


def _heard(
    settings: ContentConfig, name: str, condition: int, clip: np.ndarray, channels: Sequence[conditions.Condition]
) -> np.ndarray:
    if settings.conditions is None or condition == CLEAN:
        return clip
    seed = conditions.rendering_seed(settings.conditions, name, condition)
    return conditions.render(clip, channels[condition], seed)


def _columns(
    work: PrepareWork, index: int, content: _Content, pieces: dict[Rendering, _Made]
) -> tuple[dict[str, list[Any]], list[Reject]]:
    """The columns of the shard, with its rows permuted by the seed, and rejects for recordings too short to join."""
    rows, dropped = list[tuple[Any, ...]](), list[Reject]()
    for group in content.jobs:
        usable = [job for job in group if job in pieces]
        lengths = [pieces[job].samples for job in usable]
        if not usable:
            continue
        if work.settings.join is None:
            joined = [[k] for k in range(len(usable))]
        else:
            minimum = round(work.settings.join.min_s * decode.RATE)
            if sum(lengths) < minimum and work.settings.join.leftover == "reject":
                dropped.append(_leftover(work, content, usable[0], sum(lengths)))
                continue
            joined = joining.join(lengths, minimum)
        rows += [
            _row(work, content, [usable[k] for k in members], pieces, number) for number, members in enumerate(joined)
        ]
    rows.sort(key=lambda row: str(row[0]))
    order = np.random.default_rng([work.seed, _ROWS, index]).permutation(len(rows))
    columns = {field.name: [rows[k][place] for k in order] for place, field in enumerate(shards.SCHEMA)}
    return columns, dropped


def _row(
    work: PrepareWork, content: _Content, jobs: list[Rendering], pieces: dict[Rendering, _Made], number: int
) -> tuple[Any, ...]:
    position, condition, recording = jobs[0]
    reference = content.references[position]
    name = rendering_name(reference.name, condition)
    if work.settings.join is not None:
        name = f"{recording_name(reference, condition)}/{number:03d}"
    samples, _, audio = pieces[jobs[0]]
    if work.settings.join is not None:
        pcm = np.concatenate([pieces[job].pcm for job in jobs])
        samples, audio = len(pcm), decode.encode(pcm, work.settings.format)
    # if the joined clips have different labels, the utterance has none
    label = content.labels[position] if len({content.labels[job[0]] for job in jobs}) == 1 else -1
    return name, audio, samples, content.speakers[position], recording, label


def _leftover(work: PrepareWork, content: _Content, job: Rendering, total: int) -> Reject:
    reference = content.references[job[0]]
    minimum = work.settings.join.min_s if work.settings.join is not None else 0.0
    reason = f"{DROPPED}all clips together are {total / decode.RATE:.3f} s, join.min_s is {minimum:g}"
    return Reject(
        name=str(recording_name(reference, job[1])),
        source=CheckedSource(work.settings.source).place(reference),
        reason=reason,
    )
