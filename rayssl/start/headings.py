"""What the columns of a list or of a Parquet file, and the keys of a JSON file, hold. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rayssl.data.sources.files import AUDIO_SUFFIXES

#: Names under which people write each fact, without capitals and punctuation; the first found is taken.
NAMES: Mapping[str, Sequence[str]] = {
    "speaker": (
        *("speaker", "speakerid", "spk", "spkid", "spkr", "speakername", "clientid", "userid", "user", "subject"),
        *("subjectid", "voice", "person", "talker", "reader", "readerid", "singer", "actor", "participant"),
    ),
    "recording": (
        *("recording", "recordingid", "session", "sessionid", "video", "videoid", "youtubeid", "ytid", "chapterid"),
        *("chapter", "call", "callid", "tape", "conversation", "conversationid", "episode"),
    ),
    "label": (
        *("label", "labels", "class", "classname", "category", "target", "emotion", "word", "command", "keyword"),
        *("genre", "event", "digit", "intent", "language", "accent", "scene", "scenelabel", "instrument"),
    ),
    "path": (
        *("path", "file", "filename", "filepath", "audio", "audiopath", "audiofile", "wav", "wavpath", "wavfile"),
        *("audiofilepath", "audiofilename", "location", "uri", "url", "slicefilename", "fname", "clip"),
    ),
    "id": ("id", "utt", "uttid", "utterance", "utteranceid", "key", "uid", "segmentid", "clipid"),
}


def fact_columns(columns: Sequence[str]) -> dict[str, str]:
    """Which of ``columns`` holds the speaker, the recording and the label, of those that are there."""
    found = {}
    for fact in ("speaker", "recording", "label"):
        column = named(fact, columns)
        if column is not None:
            found[fact] = column
    return found


def named(fact: str, columns: Sequence[str]) -> str | None:
    """The one of ``columns`` whose name stands for ``fact``; None if none does."""
    plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(columns)}
    return next((plain[name] for name in NAMES[fact] if name in plain), None)


def path_column(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str | None:
    """The column whose values are audio files; by its name if several are, or if the values have no suffix."""

    def audio(column: str) -> bool:
        values = [row[column] for row in rows]
        return bool(values) and sum(value.lower().endswith(AUDIO_SUFFIXES) for value in values) >= 0.5 * len(values)

    holding = [column for column in columns if audio(column)]
    if len(holding) == 1:
        return holding[0]
    return named("path", holding or columns) or (holding[0] if holding else None)
