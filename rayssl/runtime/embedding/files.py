"""`rayssl embed`: a corpus to embeddings on storage, a Parquet file for each of its shards.

    <out>/_embeddings.json      run, checkpoint, corpus; "complete" once every file is there
    <out>/00000.parquet ...     name, id, speaker, recording, label, embedding: the rows of the corpus's shard 0, ...

An actor writes the file of a shard as soon as it is embedded, at once and whole: nothing passes through the driver, and
memory holds one shard an actor. The same command again embeds what is missing. A file says in its own metadata what it
was made from, and counts only where that is right.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from rayssl import storage
from rayssl.data.shards import MANIFEST, Manifest
from rayssl.errors import ConfigError, CorpusError, StorageError
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import EncoderConfig
from rayssl.runs.reading import RunCheckpoint, find
from rayssl.runtime.embedding.actors import Embedder, EmbeddingTask, over_shards, read_corpus
from rayssl.schema import Config

RECORD = "_embeddings.json"  # readers of a folder of Parquet pass over names that begin so
_VERSION = 1
_MADE_FROM = b"rayssl"
_LOOK_AT_ONCE = 8
_SAY_EVERY_S = 10.0


class EmbeddingRecord(Config):
    """What a folder of embeddings is: ``dim`` float32 numbers for each of ``rows`` utterances, not normalised.

    ``digest`` is the SHA-256 of the checkpoint's weights, ``fingerprint`` that of the corpus's content: those and
    ``encoder`` decide whether embeddings may stand beside each other. ``files`` are in the order of the corpus.
    """

    version: int = _VERSION
    run: str
    checkpoint: str
    step: int
    digest: str
    architecture: str
    encoder: EncoderConfig
    dim: int
    corpus: str
    fingerprint: str
    rate: int
    rows: int
    files: list[str]
    complete: bool = False

    @property
    def made_from(self) -> str:
        """One name for what decides the numbers."""
        parts = [self.version, self.digest, self.fingerprint, self.encoder.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Embedded:
    """What `embed_corpus` did: the ``record`` in the folder, and how many of its files it made."""

    record: EmbeddingRecord
    made: int
    wall_s: float


def embed_corpus(
    run: str,
    corpus: str,
    out: str,
    which: str = "last",
    overrides: list[str] | None = None,
    *,
    actors: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Embedded:
    """Embeds the prepared corpus at ``corpus`` into the folder ``out`` by a checkpoint of ``run``; all may be URIs.

    ``actors`` embed at once (0: see `EmbeddingTask`); ``say`` gets a line of progress now and then. Existing files
    stay as they are. Raises `UserError` for a run, checkpoint or corpus that cannot be used, and for an ``out`` that
    holds something else.
    """
    started = time.monotonic()
    source = find(run, which, overrides)
    corpus, out = storage.absolute(corpus), storage.absolute(out)
    manifest = read_corpus(corpus)
    record = _record(source, corpus, manifest)
    _check_out(out, record)
    missing = _missing(out, record, manifest)
    if missing:
        load_encoder(source.experiment, source.uri, manifest.rate)  # what does not fit is refused before it is begun
        _write_record(out, record)
        job = EmbeddingTask(source.experiment, source.uri, corpus, manifest, normalise=False, actors=actors)
        rows = [shard.rows for shard in manifest.shards]
        progress = _Progress(len(rows), rows, set(missing), say)
        for answer in over_shards(job, missing, FileWriter, out, record.made_from):
            progress.done(int(answer))
    _write_record(out, record.model_copy(update={"complete": True}))
    return Embedded(record, len(missing), time.monotonic() - started)


class FileWriter(Embedder):
    """The actor that writes what it embeds into the folder ``out``."""

    def __init__(self, job: EmbeddingTask, out: str, made_from: str) -> None:
        super().__init__(job)
        self.out, self.made_from = out, made_from

    def answer(self, index: int) -> bytes:
        """Writes the file of shard ``index``; says which."""
        table, shard = self.table(index), self.job.manifest.shards[index]
        ids = pa.array(range(shard.first_id, shard.first_id + shard.rows), pa.int64())
        columns = {"name": table["name"], "id": ids, **{k: table[k] for k in ("speaker", "recording", "label")}}
        wanted = pa.table({**columns, "embedding": table["embedding"]})
        wanted = wanted.replace_schema_metadata({_MADE_FROM: _mark(self.made_from, shard.sha256)})
        sink = io.BytesIO()
        pq.write_table(wanted, sink, compression="zstd", use_dictionary=["name"], row_group_size=shard.rows)
        storage.write_bytes(storage.join(self.out, _file(index)), sink.getvalue())
        return str(index).encode()


class _Progress:
    """Lines on how far it is, at most one in ten seconds, and one at the end."""

    def __init__(self, shards: int, rows: Sequence[int], missing: set[int], say: Callable[[str], None]) -> None:
        self.shards, self.rows, self.say = shards, rows, say
        self.before = sum(count for k, count in enumerate(rows) if k not in missing)
        self.left, self.fresh = len(missing), 0
        self.started = self.said = time.monotonic()
        if self.before:
            say(f"{shards - len(missing)} of {shards} shards were embedded before")

    def done(self, index: int) -> None:
        """Shard ``index`` has its file."""
        self.left, self.fresh = self.left - 1, self.fresh + self.rows[index]
        now = time.monotonic()
        if self.left and now - self.said < _SAY_EVERY_S:
            return
        self.said = now
        pace = self.fresh / max(now - self.started, 1e-3)  # starting Ray and its actors included
        whole = sum(self.rows)
        line = f"{self.shards - self.left} of {self.shards} shards, {self.before + self.fresh} of {whole} utterances, "
        line += f"{pace:.0f} utterances/s"
        left = round((whole - self.before - self.fresh) / pace)
        self.say(line + (f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if self.left else ""))


def _record(source: RunCheckpoint, corpus: str, manifest: Manifest) -> EmbeddingRecord:
    experiment = source.experiment
    return EmbeddingRecord(
        run=source.run,
        checkpoint=source.uri,
        step=source.step,
        digest=source.digest,
        architecture=experiment.architecture,
        encoder=experiment.encoder,
        dim=experiment.encoder.embedding_dim,
        corpus=corpus,
        fingerprint=manifest.fingerprint,
        rate=manifest.rate,
        rows=manifest.rows,
        files=[_file(index) for index in range(len(manifest.shards))],
    )


def _check_out(out: str, record: EmbeddingRecord) -> None:
    """Raises `ConfigError` or `CorpusError` where the folder ``out`` is not one for these embeddings."""
    way_out = "give another folder, or delete this one"
    there = _read_record(out)
    if there is None:
        for name, what in ((MANIFEST, "a prepared corpus"), ("config.yaml", "a run")):
            if storage.exists(storage.join(out, name)):
                raise ConfigError(f"{out}: is {what}, not a folder for embeddings; give another folder")
        if storage.list_files(out, suffixes=(".parquet",)):
            raise ConfigError(f"{out}: holds Parquet files that are no embeddings of rayssl; {way_out}")
        return
    if there.fingerprint != record.fingerprint:
        raise ConfigError(
            f"{out}: holds embeddings of the corpus {there.corpus} ({there.fingerprint}), not of {record.corpus} "
            f"({record.fingerprint}); {way_out}"
        )
    if there.digest != record.digest:
        raise ConfigError(f"{out}: holds embeddings by {there.checkpoint}, not by {record.checkpoint}; {way_out}")
    if there.made_from != record.made_from:
        raise ConfigError(f"{out}: holds embeddings by {there.checkpoint} with another 'encoder' section; {way_out}")


def _read_record(out: str) -> EmbeddingRecord | None:
    place = storage.join(out, RECORD)
    try:
        return EmbeddingRecord.model_validate_json(storage.read_text(place))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            return None
        raise
    except ValidationError:
        message = f"{place}: damaged, or of another version of rayssl; give another folder, or delete this one"
        raise CorpusError(message) from None


def _write_record(out: str, record: EmbeddingRecord) -> None:
    place, text = storage.join(out, RECORD), json.dumps(record.model_dump(mode="json"), indent=1) + "\n"
    if _read_record(out) != record:
        storage.write_text(place, text)


def _missing(out: str, record: EmbeddingRecord, manifest: Manifest) -> list[int]:
    """The shards whose file is absent, or not a whole one of these embeddings."""
    present = {uri.rsplit("/", 1)[-1] for uri in storage.list_files(out, suffixes=(".parquet",))}
    wanted = [(index, _file(index), shard) for index, shard in enumerate(manifest.shards)]

    def sound(item: tuple[int, str, Any]) -> bool:
        _, name, shard = item
        if name not in present:
            return False
        try:
            footer = pq.ParquetFile(storage.open_read(storage.join(out, name))).metadata
        except (pa.ArrowException, EOFError):
            return False
        made_from = (footer.metadata or {}).get(_MADE_FROM)
        return footer.num_rows == shard.rows and made_from == _mark(record.made_from, shard.sha256)

    with ThreadPoolExecutor(_LOOK_AT_ONCE) as pool:
        found = list(pool.map(sound, wanted))
    return [index for (index, _, _), whole in zip(wanted, found, strict=True) if not whole]


def _mark(made_from: str, sha256: str) -> bytes:
    return f"{made_from} {sha256}".encode()


def _file(index: int) -> str:
    return f"{index:05d}.parquet"
