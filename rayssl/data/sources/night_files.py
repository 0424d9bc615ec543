"""Nights in files: EDF or audio with a label file each, or EDF+ whose annotations are the labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import starmap
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from rayssl import storage
from rayssl.data.decode import Channels, DecodeError
from rayssl.data.nights import alignment, pairing, rml, scorings
from rayssl.data.nights.audio_files import audio_recording
from rayssl.data.nights.edf_parts import edf_recording
from rayssl.data.nights.scorings import Scoring
from rayssl.data.nights.timeline import Recording, cut, seconds_of
from rayssl.data.sources.base import Reference
from rayssl.data.sources.files import AUDIO_SUFFIXES, join, matching
from rayssl.data.sources.nights import UNSCORED, Dropped, Epoch, EpochOrDropped, NightSource, NightSourceConfig
from rayssl.errors import CorpusError, StorageError


class NightFilesConfig(NightSourceConfig):
    """Nights below ``uri``.

    A night is one recording of one subject: one EDF or audio file, or the EDF files ``NAME[001].edf``,
    ``NAME[002].edf`` ... (``%5B`` stands for ``[`` too). These are joined by the times in their headers. The name of a
    night is the path without the number and the ending.

    Labels are placed by the clocks of both files. Audio files have no clock: there labels begin with the audio. Epochs
    lie on the 30 s grid of the labels. If the audio begins off this grid, the first epoch is the first whole one in the
    audio.
    """

    name: Literal["nights"] = "nights"
    """Nights in files: EDF or audio with a label file each, or EDF+ whose annotations are the labels."""
    uri: str
    """Folder or URI below which the nights are."""
    files: str = "*"
    """Only files are read whose path, relative to ``uri``, matches this pattern with ``*``."""
    kind: Literal["auto", "edf", "audio"] = "auto"
    """Which files are nights: ``edf``, ``audio`` (WAV, FLAC, Ogg, MP3 ...), or both (``auto``)."""
    subject: str = "auto"
    """How the subject's name is taken from the path: ``id`` is the file name before its first hyphen, ``folder`` the
    folder of the file, ``auto`` the first of both that there is, else the name; all others are a regular expression
    with one group. Splits are by subject.
    """
    channel: str | list[str] = "Mic"
    """The EDF signal that holds the sound, or a list of names of which the first one is taken that there is. A sample
    is its physical value over the largest that the night's headers allow.
    """
    channels: Channels = "reject_above_2"
    """For audio files with several channels: ``mean`` averages them, ``first`` takes the first one, ``reject_above_2``
    averages two and refuses more.
    """
    scorings: str | None = None
    """Folder or URI, or the one file, of the labels; null looks below ``uri``. The label file of a night has its name,
    perhaps with ``-hypnogram`` or another such word behind it; one in the same folder comes first.
    """
    scoring: Literal["auto", "rml", "csv", "txt", "annotations", "none"] = "auto"
    """The form of the labels: ``rml``, ``csv``, ``txt``, ``annotations`` of EDF+, ``none``, or ``auto``, the first of
    these that there is. `rayssl.data.nights.scorings` describes the tables.
    """
    staging: rml.Staging = "user"
    """Whose stages to take from RML: those of a person (``user``), of the software (``machine``), or of a person where
    there are some (``any``).
    """
    label_offset_s: float = Field(default=0.0, allow_inf_nan=False)
    """Seconds that are added to the time of every label, if the clocks of sound and labels differ; may be negative."""
    max_start_difference_h: float = Field(default=3.0, gt=0)
    """A night is refused if its label file begins more hours than this earlier or later, or covers none of it."""
    unscored: Literal["keep", "drop"] = "keep"
    """``keep`` keeps epochs, and whole nights, without a stage, for unlabelled training; ``drop`` does not."""

    uris: ClassVar[tuple[str, ...]] = ("uri", "scorings")

    @field_validator("subject")
    @classmethod
    def _one_group(cls, value: str) -> str:
        if value not in ("auto", "id", "folder"):
            try:
                groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"'{value}' is no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"'{value}' needs one group in parentheses; or write auto, id or folder")
        return value

    @field_validator("channel")
    @classmethod
    def _some_channel(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one channel")
        return value

    def describe(self) -> str:
        """The URI."""
        return self.uri


class NightFiles(NightSource):
    """A locator is the number of label files, their paths relative to ``scorings``, and the paths of the audio."""

    Config = NightFilesConfig
    config: NightFilesConfig

    def list(self) -> Iterator[Reference]:
        """Nights in order of their name. Only the names of files are read.

        Raises:
            CorpusError: there is no such folder, or no night in it; two files are the same night; or a label file fits
                several nights.
        """
        nights: dict[str, list[tuple[int, str]]] = {}
        for path in self._paths():
            night, part = pairing.night_and_part(path or self.config.uri.rpartition("/")[2])
            nights.setdefault(night, []).append((part, path))
        labels = self._labels(nights)
        for night, files in sorted(nights.items()):
            paths = [path for _, path in sorted(files)]
            if len(paths) > 1 and not all(part >= 0 for part, _ in files):
                way = "set the source's kind, or choose one by its files"
                raise CorpusError(f"{self.config.uri}: {paths[0]} and {paths[-1]} are both night '{night}'; {way}")
            subject = pairing.subject(paths[0] or self.config.uri.rpartition("/")[2], self.config.subject)
            found = labels[night]
            yield Reference(night, subject, night, None, (len(found), *found, *paths))

    def place(self, reference: Reference) -> str:
        """The URI of the night's first file."""
        return join(self.config.uri, self._located(reference)[1][0])

    def epochs(self, reference: Reference) -> Iterator[EpochOrDropped]:
        """The epochs of a night; of its files, only blocks of about 30 s are in memory.

        A `Dropped` without epochs is a remark. See `NightSource.epochs`.
        """
        config = self.config
        labels, paths = self._located(reference)
        recording = self._recording(paths)
        scoring = self._scoring(labels, paths, recording)
        if scoring is None:
            if config.unscored == "drop":
                raise DecodeError(
                    f"no scoring: {recording.file} has no labels; set unscored to 'keep' to use it without"
                )
            for one in cut(recording.pieces, 0.0):
                yield one if isinstance(one, Dropped) else Epoch(one[0], UNSCORED, one[1])
            return
        shift = alignment.shift(scoring, recording, config.label_offset_s, config.max_start_difference_h)
        yield from (Dropped(note, 0) for note in scoring.notes)
        yield from alignment.missing(scoring, recording, shift)
        yield from self._scored(scoring, recording, shift)

    def begins(self, reference: Reference) -> datetime | None:
        """The clock of the night's first EDF file, at epoch 0. It reads the headers again, and the labels."""
        config = self.config
        labels, paths = self._located(reference)
        recording = self._recording(paths)
        if recording.clock is None:
            return None
        scoring, boundary = self._scoring(labels, paths, recording), 0.0
        if scoring is not None:
            shift = alignment.shift(scoring, recording, config.label_offset_s, config.max_start_difference_h)
            boundary = float(scoring.onsets[0]) + shift
        clock = recording.clock if recording.dated else recording.clock.replace(year=1)
        return clock + timedelta(seconds=seconds_of(0, boundary))

    def _scored(self, scoring: Scoring, recording: Recording, shift: float) -> Iterator[EpochOrDropped]:
        boundary = float(scoring.onsets[0]) + shift
        left_out: Counter[str] = Counter()
        for one in cut(recording.pieces, boundary):
            if isinstance(one, Dropped):
                yield one
                continue
            index, samples = one
            start = seconds_of(index, boundary) - shift
            stage = scoring.stage(start)
            if stage == UNSCORED and self.config.unscored == "drop":
                left_out[alignment.unscored(scoring, start)] += 1
            else:
                yield Epoch(index, stage, samples)
        yield from starmap(Dropped, left_out.items())

    def _paths(self) -> Sequence[str]:
        uri, kind = self.config.uri, self.config.kind
        suffixes = (pairing.EDF_SUFFIXES if kind != "audio" else ()) + (AUDIO_SUFFIXES if kind != "edf" else ())
        paths = matching(uri, self.config.files, suffixes)
        if not paths and not storage.exists(uri):
            raise CorpusError(f"{uri}: no such folder; correct the source's uri")
        if not paths:
            wanted = {"edf": ".edf file", "audio": "audio file", "auto": ".edf or audio file"}[kind]
            raise CorpusError(
                f"{uri}: no {wanted} matches '{self.config.files}'; correct the source's uri, files or kind"
            )
        return paths

    def _labels(self, nights: Mapping[str, Sequence[tuple[int, str]]]) -> Mapping[str, Sequence[str]]:
        """The label files of each night, relative to `_label_base`."""
        config = self.config
        if config.scoring in ("none", "annotations"):
            return dict.fromkeys(nights, ())
        suffixes = [suffix for suffix, form in pairing.LABEL_FORMS.items() if config.scoring in ("auto", form)]
        if config.scorings is None and storage.is_file(config.uri):  # only that file's neighbours of the same name
            (night,) = nights
            folder = self._label_base([""])
            names = [f"{night}{suffix}" for suffix in suffixes]
            return {night: [name for name in names if storage.exists(join(folder, name))][:1]}
        base = config.scorings or config.uri
        paths = matching(base, "*", suffixes)
        if not paths and not storage.exists(base):
            raise CorpusError(f"{base}: no such folder; correct the source's scorings")
        return pairing.labels(paths).of(nights)

    def _label_base(self, audio: Sequence[str]) -> str:
        """The folder of the labels; the folder of the one file that is the source, whose path is empty."""
        uri = self.config.uri
        return self.config.scorings or (uri.rpartition("/")[0] if audio[0] == "" else uri)

    def _located(self, reference: Reference) -> tuple[Sequence[str], Sequence[str]]:
        """The paths of the label files and of the audio."""
        count, *paths = reference.locator
        named = [str(path) for path in paths]
        return named[: int(count)], named[int(count) :]

    def _recording(self, paths: Sequence[str]) -> Recording:
        config = self.config
        files = [(join(config.uri, path), path or config.uri.rpartition("/")[2]) for path in paths]
        if not pairing.is_edf(files[0][1]):
            return audio_recording(*files[0], config.channels)
        return edf_recording(files, [config.channel] if isinstance(config.channel, str) else config.channel)

    def _scoring(self, labels: Sequence[str], paths: Sequence[str], recording: Recording) -> Scoring | None:
        """The stages of a night; None if it has none."""
        config = self.config
        if config.scoring == "none":
            return None
        if len(labels) > 1:
            raise DecodeError(f"{len(labels)} label files: {', '.join(labels)}; keep one, or set the source's scorings")
        if labels:
            uri = join(self._label_base(paths), labels[0])
            return _read(uri, labels[0] or uri.rpartition("/")[2], config.staging)
        if recording.clock is None or config.scoring not in ("auto", "annotations"):
            return None
        return scorings.from_annotations(recording.file, recording.annotations(), recording.clock)


def _read(uri: str, file: str, staging: rml.Staging) -> Scoring | None:
    """The stages in the label file at ``uri``."""
    form = pairing.form(file)
    try:
        if form == "rml":
            return rml.from_rml(file, storage.read_bytes(uri), staging)
        text = storage.read_text(uri)
    except StorageError as error:
        if error.errno not in (None, *storage.ABSENT):
            raise
        raise DecodeError(f"unreadable: {error}") from None
    return scorings.from_csv(file, text) if form == "csv" else scorings.from_lines(file, text)
