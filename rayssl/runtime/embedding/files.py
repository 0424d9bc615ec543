"""`rayssl embed`: embeds a corpus and writes a Parquet file for each of its shards.

    <out>/_embeddings.json      run, checkpoint, corpus; "complete" once every file is there
    <out>/00000.parquet ...     the rows of the corpus's shard 0, ...: name, id, speaker, speaker_name, recording,
                                recording_name, label, label_name, embedding

An actor writes the whole file of a shard as soon as the shard is embedded. Nothing passes through the driver, and each
actor holds one shard in RAM. If the same command runs again, it embeds the shards whose file is missing. The metadata
of a file say what it was made from; a file that was made from something else counts as missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from rayssl import storage
from rayssl.data import listed, shards
from rayssl.data.shards import MANIFEST, Manifest
from rayssl.errors import ConfigError, CorpusError, StorageError
from rayssl.evaluation.settings import EmbeddingPrecision
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import EncoderConfig
from rayssl.runs.reading import RunCheckpoint, find
from rayssl.runtime.embedding.actors import Embedder, EmbeddingTask, over_shards, read_corpus
from rayssl.runtime.embedding.names import with_names
from rayssl.runtime.embedding.nights import check_pictures, night_windows_of
from rayssl.runtime.embedding.progress import Progress
from rayssl.schema import Config

RECORD = "_embeddings.json"  # readers of a Parquet folder ignore names that begin with _
_VERSION = 2  # 1 had no names of speakers, recordings and labels
_MADE_FROM = b"rayssl"
_LOOK_AT_ONCE = 8


class EmbeddingRecord(Config):
    """Describes a folder of embeddings: ``dim`` float32 numbers for each of ``rows`` utterances, not normalised.

    ``digest`` is the SHA-256 of the checkpoint's weights, ``fingerprint`` that of the corpus's content. Embeddings may
    be in one folder only if these two, ``encoder`` and ``stride`` are equal. ``files`` are in the order of the corpus.
    ``stride``: for epochs of nights, how many epochs a window of the encoder begins after the one before.
    ``precision`` and ``crop_share``: of the evaluation; embeddings of two of them are never in one folder.
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
    stride: int | None = None
    precision: EmbeddingPrecision = "fp32"
    crop_share: float = 0.0
    complete: bool = False

    @property
    def made_from(self) -> str:
        """A hash of everything that determines the embeddings."""
        parts = [self.version, self.digest, self.fingerprint, self.encoder.model_dump(mode="json")]
        parts += [] if self.stride is None else [self.stride]
        parts += [] if self.precision == "fp32" else [self.precision]
        parts += [] if not self.crop_share else [f"crop_share={self.crop_share}"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Embedded:
    """What `embed_corpus` did: the ``record`` in the folder, and the number of files that it ``made``."""

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
    precision: EmbeddingPrecision | None = None,
    local: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Embedded:
    """Embeds the prepared corpus at ``corpus`` into the folder ``out`` with a checkpoint of ``run``; all may be URIs.

    ``actors`` is the number of actors, and ``precision`` that of the encoder (0 and None: see `EmbeddingTask`).
    ``local``: in this process, without Ray. ``say`` receives a line of progress now and then. Existing files do not
    change. Raises `UserError` if the run, the checkpoint or the corpus cannot be used, or if ``out`` holds something
    else.
    """
    started = time.monotonic()
    source = find(run, which, overrides)
    corpus, out = storage.absolute(corpus), storage.absolute(out)
    manifest = read_corpus(corpus)
    check_pictures(source.experiment, corpus, manifest)
    how: Any = {"actors": actors, "local": local, "asked_precision": precision}
    job = EmbeddingTask(source.experiment, source.uri, corpus, manifest, normalise=False, **how)
    record = _record(source, job)
    _check_out(out, record)
    missing = _missing(out, record, manifest)
    if missing:
        storage.check_writable(out)
        source.experiment.storage.apply()
        load_encoder(source.experiment, source.uri, manifest.rate)  # raises here, before any actor starts
        _write_record(out, record)
        rows = [shard.rows for shard in manifest.shards]
        progress = Progress(len(rows), rows, set(missing), say)
        for answer in over_shards(job, missing, FileWriter, out, record.made_from):
            progress.done(int(answer))
    _write_record(out, record.model_copy(update={"complete": True}))
    return Embedded(record, len(missing), time.monotonic() - started)


class FileWriter(Embedder):
    """An actor that writes its embeddings into the folder ``out``."""

    def __init__(self, job: EmbeddingTask, out: str, made_from: str) -> None:
        super().__init__(job)
        self.out, self.made_from = out, made_from
        self.names = cache(partial(shards.read_labels, job.corpus))

    def answer(self, index: int, found: pa.Table | None = None) -> bytes:
        """Writes the file of shard ``index``; the answer is the index."""
        table, shard = self.table(index, found), self.job.manifest.shards[index]
        ids = pa.array(range(shard.first_id, shard.first_id + shard.rows), pa.int64())
        columns = {"name": table["name"], "id": ids, **{k: table[k] for k in ("speaker", "recording", "label")}}
        wanted = with_names(pa.table({**columns, "embedding": table["embedding"]}), self.names)
        wanted = wanted.replace_schema_metadata({_MADE_FROM: _mark(self.made_from, shard.sha256)})
        sink = io.BytesIO()
        pq.write_table(wanted, sink, compression="zstd", use_dictionary=["name"], row_group_size=shard.rows)
        storage.write_bytes(storage.join(self.out, _file(index)), sink.getvalue())
        return str(index).encode()


def _record(source: RunCheckpoint, job: EmbeddingTask) -> EmbeddingRecord:
    experiment, manifest, corpus = source.experiment, job.manifest, job.corpus
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
        stride=night_windows_of(experiment)[0] if job.by_night else None,
        precision="fp32" if job.by_night else job.precision,
        crop_share=0.0 if job.by_night else job.crop_share,
    )


def _check_out(out: str, record: EmbeddingRecord) -> None:
    """Raises `ConfigError` or `CorpusError` if the folder ``out`` holds anything but these embeddings."""
    way_out = "give another folder, or delete this one"
    there = _read_record(out)
    if there is None:
        for name, what in ((MANIFEST, "a prepared corpus"), ("config.yaml", "a run")):
            if storage.exists(storage.join(out, name)):
                raise ConfigError(f"{out}: is {what}, not a folder for embeddings; give another folder")
        if storage.list_files(out, suffixes=(".parquet",)):
            raise ConfigError(f"{out}: holds Parquet files that rayssl embed has not written; {way_out}")
        return
    if there.fingerprint != record.fingerprint:
        raise ConfigError(
            f"{out}: holds embeddings of the corpus {there.corpus} ({there.fingerprint}), not of {record.corpus} "
            f"({record.fingerprint}); {way_out}"
        )
    if there.digest != record.digest:
        raise ConfigError(f"{out}: holds embeddings by {there.checkpoint}, not by {record.checkpoint}; {way_out}")
    if there.version != record.version:
        raise ConfigError(f"{out}: an earlier rayssl wrote it, without the names of speakers and labels; {way_out}")
    if there.made_from != record.made_from:
        what = "evaluation.crop_share" if there.crop_share != record.crop_share else "precision"
        what = "evaluation.stride" if there.stride != record.stride else what
        what = "'encoder' section" if there.encoder != record.encoder else what
        raise ConfigError(f"{out}: holds embeddings by {there.checkpoint} with another {what}; {way_out}")


def _read_record(out: str) -> EmbeddingRecord | None:
    place = storage.join(out, RECORD)
    try:
        return EmbeddingRecord.model_validate_json(storage.read_text(place))
    except StorageError as error:
        if error.errno in storage.ABSENT:
            return None
        raise
    except ValidationError:
        message = f"{place}: damaged, or from another version of rayssl; give another folder, or delete this one"
        raise CorpusError(message) from None


def _write_record(out: str, record: EmbeddingRecord) -> None:
    place, text = storage.join(out, RECORD), json.dumps(record.model_dump(mode="json"), indent=1) + "\n"
    if _read_record(out) != record:
        storage.write_text(place, text)


def _missing(out: str, record: EmbeddingRecord, manifest: Manifest) -> list[int]:
    """The shards whose file is absent, incomplete, or of other embeddings."""
    present = {uri.rsplit("/", 1)[-1] for uri in storage.list_files(out, suffixes=(".parquet",))}
    wanted = [(index, _file(index), shard) for index, shard in enumerate(manifest.shards)]

    def sound(item: tuple[int, str, Any]) -> bool:
        _, name, shard = item
        if name not in present:
            return False
        try:
            footer = listed.parquet_file(storage.open_read(storage.join(out, name))).metadata
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
