"""Manifests of Lhotse: recordings, supervisions or cuts as lines of JSON, compressed or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import model_validator

from rayssl import storage
from rayssl.data.sources.base import Reference, SourceConfig
from rayssl.data.sources.excerpts import ExcerptSource
from rayssl.data.sources.files import text
from rayssl.errors import CorpusError

_WHOLE_S = 1e-3  # a cut that leaves out less than this is the whole recording
_KNOWN = "MonoCut and MultiCut are read"


class LhotseConfig(SourceConfig):
    """The manifests of Lhotse below ``uri``: ``cuts``, or ``recordings`` with or without ``supervisions``.

    A cut is a MonoCut or a MultiCut, whose channels are averaged. The speaker is that of the supervisions, if they
    agree. Audio by commands, and mixed, padded or transformed audio is refused, but resampling is not: the corpus has
    16 kHz.
    """

    name: Literal["lhotse"] = "lhotse"
    """Manifests of Lhotse: cuts, or recordings and supervisions."""
    uri: str
    """Folder or URI that holds the manifests."""
    cuts: str | None = None
    """The file of cuts, relative to ``uri``, for example ``cuts.jsonl.gz``; each cut is an utterance."""
    recordings: str | None = None
    """The file of recordings, relative to ``uri``, if there are no cuts; each is an utterance, unless ``supervisions``
    is given.
    """
    supervisions: str | None = None
    """The file of supervisions, relative to ``uri``, beside ``recordings``; each of them is an utterance."""
    label: str | None = None
    """The name of the field of supervisions that is the label, for example ``language`` or ``custom.dialect``; null for
    no labels.
    """
    audio: str | None = None
    """Folder or URI to which paths of audio are relative; null takes ``uri``."""

    uris: ClassVar[tuple[str, ...]] = ("uri", "audio")

    @model_validator(mode="after")
    def _lists_fit(self) -> LhotseConfig:
        if (self.cuts is None) == (self.recordings is None):
            raise ValueError("give cuts, or recordings with or without supervisions")
        if self.cuts is not None and self.supervisions is not None:
            raise ValueError("cuts hold their supervisions; leave supervisions out")
        return self

    def describe(self) -> str:
        """The URI of the list of utterances."""
        return storage.join(self.uri, str(self.cuts or self.supervisions or self.recordings))


class _Part(NamedTuple):
    """A part of a recording: its id, seconds, channels, and the supervisions in it."""

    name: str
    start: float
    duration: float
    channels: Any
    supervisions: Sequence[dict[str, Any]]


class Lhotse(ExcerptSource):
    """Cuts, supervisions or recordings."""

    Config = LhotseConfig
    config: LhotseConfig
    listed = "manifests"

    @property
    def folder(self) -> str:  # type: ignore[override]
        """Where paths of audio begin."""
        return self.config.audio or self.config.uri

    def list(self) -> Iterator[Reference]:
        """Utterances in the order of the manifest. Raises `CorpusError` for a malformed or refused line."""
        config = self.config
        if config.cuts is not None:
            for where, cut in self._lines(config.cuts):
                with _checked(where):
                    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
                        raise CorpusError(f"{where}: a {cut['type']}; {_KNOWN}; save its audio, and list that")
                    part = _Part(
                        cut["id"], cut["start"], cut["duration"], cut.get("channel", 0), cut.get("supervisions") or []
                    )
                    yield self._reference(where, part, cut["recording"])
            return
        assert config.recordings is not None
        if config.supervisions is None:
            for where, recording in self._lines(config.recordings):
                with _checked(where):
                    part = _Part(recording["id"], 0.0, recording["duration"], _channels(recording), [])
                    yield self._reference(where, part, recording)
            return
        recordings = {recording["id"]: recording for _, recording in self._lines(config.recordings)}
        for where, found in self._lines(config.supervisions):
            with _checked(where):
                if found["recording_id"] not in recordings:
                    raise CorpusError(f"{where}: {config.recordings} has no recording '{found['recording_id']}'")
                part = _Part(found["id"], found["start"], found["duration"], found.get("channel", 0), [found])
                yield self._reference(where, part, recordings[found["recording_id"]])

    def _lines(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each object of a manifest, and its place for messages."""
        place = storage.join(self.config.uri, name)
        for number, line in _lines(place):
            if not line.strip():
                continue
            where = f"{place}: line {number}"
            try:
                found = json.loads(line)
            except ValueError:
                raise CorpusError(f"{where}: not JSON; a manifest must be JSONL, one object in each line") from None
            if not isinstance(found, dict) or not isinstance(found.get("id"), str):
                raise CorpusError(f"{where}: not an object with an id, as Lhotse writes them")
            yield where, found

    def _reference(self, where: str, part: _Part, recording: dict[str, Any]) -> Reference:
        """``where``: the place of the line, for messages."""
        start, stop, whole = float(part.start), float(part.start + part.duration), float(recording["duration"])
        if not 0 <= start < stop < float("inf"):
            raise CorpusError(f"{where}: '{part.name}' begins at {start:g} s and has {part.duration:g} s")
        refused = [each["name"] for each in recording.get("transforms") or [] if each["name"] != "Resample"]
        if refused:
            raise CorpusError(
                f"{where}: '{part.name}' is transformed ({', '.join(refused)}); save its audio, list that"
            )
        source, channel = _source(where, recording, part.channels)
        locator: tuple[str | int, ...] = (source,)
        if channel is not None or start > _WHOLE_S or stop < whole - _WHOLE_S:
            locator = (source, _seconds(start), _seconds(stop), *([] if channel is None else [channel]))
        facts = [self._fact(part.supervisions, field) for field in ("speaker", self.config.label)]
        return Reference(part.name, facts[0], str(recording["id"]), facts[1], locator)

    def _fact(self, supervisions: Sequence[dict[str, Any]], field: str | None) -> str | None:
        """The value on which all supervisions agree."""
        if field is None:
            return None
        name, _, inner = field.partition(".")
        found = {text((each.get(name) or {}).get(inner) if inner else each.get(name)) for each in supervisions}
        return found.pop() if len(found) == 1 else None


def _lines(place: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a manifest, with their numbers, a part at a time: a large one does not fit into memory."""
    number = 0
    try:
        with storage.open_read(place) as file:
            if not place.endswith(".gz"):
                yield from enumerate(file, 1)
                return
            with gzip.open(file) as lines:
                for number, line in enumerate(lines, 1):
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{place}: damaged after line {number} ({error}); get the file again") from None


@contextmanager
def _checked(where: str) -> Iterator[None]:
    """Turns what malformed values raise into a line."""
    try:
        yield
    except CorpusError:
        raise
    except KeyError as error:
        raise CorpusError(f"{where}: no key {error}, which Lhotse writes") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CorpusError(f"{where}: a value of the wrong type, unlike Lhotse's ({error})") from None


def _channels(recording: dict[str, Any]) -> Any:
    found = recording.get("channel_ids")
    if found is None:
        found = sorted(channel for each in recording["sources"] for channel in each["channels"])
    return found


def _source(where: str, recording: dict[str, Any], channels: Any) -> tuple[str, int | None]:
    """The path of the audio, and the number of the channel in it; None: all of it, averaged."""
    wanted = channels if isinstance(channels, list) else [channels]
    name = recording["id"]
    sources = [each for each in recording["sources"] if set(wanted) & set(each["channels"])]
    if not sources:
        raise CorpusError(f"{where}: recording '{name}' has no channel {wanted[0] if wanted else ''}")
    if len(sources) > 1:
        raise CorpusError(f"{where}: recording '{name}' has its channels in several files; make one cut for each")
    (source,) = sources
    if source["type"] not in ("file", "url"):
        raise CorpusError(f"{where}: recording '{name}' is a {source['type']}; save its audio to a file, and list that")
    held = list(source["channels"])
    if len(wanted) == len(held):
        return source["source"], None
    if len(wanted) > 1:
        raise CorpusError(f"{where}: {len(wanted)} of {len(held)} channels of '{name}'; take one of them, or all")
    return source["source"], held.index(wanted[0])


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
