"""From what a user names - a folder, a list, a file, a prefix of a bucket - to a source, and what it lists."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from rayssl import storage
from rayssl.data import listed, shards
from rayssl.data.sources.base import Reference
from rayssl.data.sources.checked import CheckedSource
from rayssl.data.sources.files import AUDIO_SUFFIXES
from rayssl.data.sources.registry import AnySource
from rayssl.errors import CorpusError
from rayssl.start import headings

_LISTS = (".csv", ".tsv")
_NIGHTS = (".edf",)
_PARTS = 32  # files of a Parquet or tar source that are listed; the others are taken to be alike
_ROWS = 50  # lines of a list that are looked at to find its columns
_BELOW = ("", "clips", "audio", "wav", "wavs", "data", "files", "recordings")  # where a list's paths may begin
_SHOWN = 1 << 20  # bytes of a list that are read to find its columns
_ADVICE = "correct the file"


@dataclass(frozen=True)
class Found:
    """A source and what it lists.

    ``source``: the keys of the source in a YAML file. ``why``: sentences about how the columns were chosen. ``share``:
    the share of the source that was listed, 1.0 for all. ``passed_over``: files that are no utterances, by kind.
    """

    source: dict[str, Any]
    references: list[Reference]
    why: list[str]
    share: float = 1.0
    passed_over: dict[str, int] = field(default_factory=dict)

    @property
    def utterances(self) -> int:
        """About how many utterances the whole source has."""
        return round(len(self.references) / self.share)


def find(uri: str, purpose: str | None = None) -> Found:
    """What is at ``uri``.

    Raises:
        CorpusError: nothing is there, or nothing that a source reads.
    """
    suffix = uri[uri.rfind(".") :].lower() if "." in uri.rpartition("/")[2] else ""
    if not storage.exists(uri):
        raise CorpusError(f"{uri}: nothing is there; give a folder, a list (CSV, TSV), a tar, Parquet, or a prefix")
    if suffix in _LISTS and storage.is_file(uri):
        return _list(uri)
    if storage.is_file(uri):
        kinds, paths = Counter([suffix]), [""]
        if suffix in AUDIO_SUFFIXES and purpose != "sleep":
            raise CorpusError(f"{uri}: is one recording; give the folder of many, or a list of them")
    else:
        if storage.exists(storage.join(uri, shards.MANIFEST)):
            raise CorpusError(f"{uri}: is a corpus that rayssl prepare made; give the recordings that it was made of")
        paths = [name[len(uri.rstrip("/")) + 1 :] for name in storage.list_files(uri)]
        kinds = Counter(_suffix(path) for path in paths)
    audio = sum(kinds[suffix] for suffix in AUDIO_SUFFIXES)
    if purpose == "sleep" or (not audio and kinds[".edf"]):
        return _listed({"name": "nights", "uri": uri})
    if not audio and any(path.rpartition("/")[2] == "wav.scp" for path in paths) and "wav.scp" in paths:
        return _listed({"name": "kaldi", "uri": uri}, ["wav.scp makes it a data folder of Kaldi"])
    if not audio and kinds[".parquet"]:
        return _parquet(uri, [path for path in paths if _suffix(path) == ".parquet"])
    if not audio and kinds[".tar"]:
        return _tars(uri, [path for path in paths if _suffix(path) == ".tar"])
    if not audio:
        seen = ", ".join(f"{count} {kind or 'without a suffix'}" for kind, count in kinds.most_common(5)) or "no files"
        wanted = "audio files, CSV or TSV lists, .parquet, .tar, .edf or a data folder of Kaldi"
        raise CorpusError(f"{uri}: nothing that a source reads ({seen}); rayssl init takes {wanted}")
    return _listed({"name": "folder", "uri": uri})


def again(found: Found, keys: dict[str, Any], why: Sequence[str] = ()) -> Found:
    """``found`` with other keys of its source, listed again."""
    return _listed({**found.source, **keys}, [*found.why, *why])


def opened(source: dict[str, Any]) -> CheckedSource:
    """The source with the keys ``source``."""
    return CheckedSource(TypeAdapter(AnySource).validate_python(source))


def _listed(source: dict[str, Any], why: Sequence[str] = ()) -> Found:
    checked = opened(source)
    parts = checked.parts()
    chosen = parts[:: -(-len(parts) // _PARTS)]
    references = [one for part in chosen for chunk in checked.list_chunks(part) for one in chunk]
    if not references:
        raise CorpusError(f"{checked.config.describe()}: lists no utterances")
    return Found(source, references, list(why), len(chosen) / len(parts), checked.passed_over())


def _list(uri: str) -> Found:
    """A list with a column of paths."""
    text = storage.read_range(uri, 0, _SHOWN).decode("utf-8-sig", "replace")
    first = text.split("\n", 1)[0]
    delimiter = max(",\t;", key=first.count)  # as rayssl.data.sources.tables takes it
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        columns = [" ".join(name.split()) for name in next(lines, [])]
        rows = [dict(zip(columns, map(str.strip, line), strict=False)) for line in itertools.islice(lines, _ROWS)]
    except csv.Error as error:
        raise CorpusError(f"{uri}: {error}; {_ADVICE}") from None
    rows = [row for row in rows if len(row) == len(columns)]
    path = headings.path_column(columns, rows)
    if path is None or not rows:
        said = ", ".join(filter(None, columns)) or "nothing"
        raise CorpusError(f"{uri}: no column with paths of audio files (columns: {said}); name one 'path'")
    facts = headings.fact_columns([column for column in columns if column != path])
    base = _base(uri, [row[path] for row in rows])
    why = [f"the column '{path}' has the paths" + "".join(f", '{name}' the {fact}" for fact, name in facts.items())]
    others = [name for name in columns if name and name not in (path, *facts.values())]
    if others:
        why.append(f"columns that are not used: {', '.join(others)}")
    source: dict[str, Any] = {"name": "folder", "uri": base, "csv": uri}
    named = {"path": path, **facts}
    if any(fact != column for fact, column in named.items()) or others:
        source["columns"] = named
    return _listed(source, why)


def _base(uri: str, paths: Sequence[str]) -> str:
    """Where the ``paths`` of the list at ``uri`` begin. Raises `CorpusError` if none of them is found."""
    if all(path.startswith("/") for path in paths):
        return "/"
    folder = uri.rpartition("/")[0] or ("." if not uri.startswith("/") else "/")
    above = folder.rpartition("/")[0]
    for place in [*(storage.join(folder, name) if name else folder for name in _BELOW), *filter(None, [above])]:
        if any(storage.exists(storage.join(place, path)) for path in paths[:5]):
            return place
    raise CorpusError(
        f"{uri}: no file '{paths[0]}' in {folder} or in its folder {' or '.join(_BELOW[1:4])}; paths in a list are "
        "relative to the folder of the list: move it, or correct them"
    )


def _parquet(uri: str, paths: Sequence[str]) -> Found:
    """Parquet files with encoded audio in a column."""
    place = storage.join(uri, paths[0]) if paths[0] else uri
    with listed.damage(place, _ADVICE), listed.parquet_file(storage.open_read(place)) as file:
        schema = file.schema_arrow
    audio = [name for name in schema.names if _holds_audio(schema.field(name).type)]
    if not audio:
        what = f"no column holds encoded audio (columns: {', '.join(schema.names)})"
        raise CorpusError(f"{place}: {what}; store the files' bytes in one")
    chosen = "audio" if "audio" in audio else audio[0]
    plain = [name for name in schema.names if name not in audio]
    facts = headings.fact_columns(plain)
    source: dict[str, Any] = {"name": "parquet", "uri": uri}
    name = headings.named("id", plain)
    source |= {key: value for key, value in (("id", name), ("audio", chosen)) if value not in (None, key)}
    source |= {"speaker": facts.pop("speaker", None)} if facts.get("speaker") != "speaker" else {}
    source |= {fact: column for fact, column in facts.items() if fact != "speaker"}
    said = {fact: source.get(fact) or (fact if fact == "speaker" and "speaker" in plain else None) for fact in _FACTS}
    why = [f"the column '{chosen}' has the audio" + "".join(f", '{to}' the {f}" for f, to in said.items() if to)]
    return _listed(source, why)


_FACTS = ("speaker", "recording", "label")


def _holds_audio(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _tars(uri: str, paths: Sequence[str]) -> Found:
    """Tar files, whose JSON members have the facts."""
    place = storage.join(uri, paths[0]) if paths[0] else uri
    keys: list[str] = []
    try:
        with tarfile.open(fileobj=storage.open_read(place), mode="r:") as tar:
            for member in itertools.islice(tar, _ROWS):
                if member.isfile() and member.name.endswith(".json"):
                    given = json.loads((tar.extractfile(member) or io.BytesIO()).read())
                    keys = list(given) if isinstance(given, dict) else []
                    break
    except (tarfile.TarError, ValueError):
        keys = []  # the source says what is wrong, with the place
    facts = headings.fact_columns(keys)
    why = [f"in the JSON files '{name}' is the {fact}" for fact, name in facts.items()]
    other = {fact: name for fact, name in facts.items() if fact != name}
    return _listed({"name": "webdataset", "uri": uri, **other}, why or ["no JSON file names speakers or classes"])


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    return "." + name.rpartition(".")[2].lower() if "." in name.strip(".") and not name.startswith(".") else ""
