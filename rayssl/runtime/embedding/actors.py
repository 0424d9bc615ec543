"""Embeds a corpus with Ray Data: each actor holds the frozen encoder and embeds one shard after another.

Where actors have GPUs, shards are read and decoded in tasks of their own, ahead of the actors, so that no GPU waits for
a decoder; epochs of nights become pictures there. An actor without a GPU decodes by itself: its core has nothing better
to do. Without Ray, threads of the one process decode ahead.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rayssl import errors, storage
from rayssl.data import decode, shards
from rayssl.data.shards import Manifest, Shard
from rayssl.errors import CorpusError
from rayssl.evaluation.embeddings import embed_epochs, embed_utterances, kept_samples
from rayssl.evaluation.settings import EmbeddingPrecision
from rayssl.experiment.config import Experiment
from rayssl.inference.encoder import load_encoder
from rayssl.models.encoder import NightEncoder
from rayssl.models.layout import placed
from rayssl.models.nightmel import NightMelConfig
from rayssl.runtime import cluster
from rayssl.runtime.embedding.nights import ShardEpochs, check_pictures, night_windows_of, read_epochs
from rayssl.runtime.embedding.progress import Progress, Say, silent
from rayssl.training.ahead import made_ahead

_Rows: TypeAlias = tuple[pa.Table, Callable[[], NDArray[np.float32]]]  # a shard without audio; makes its embeddings
_COLUMNS = ("name", "speaker", "recording", "label")
_THREADS_OF_A_GPU = 4  # decode ahead of it, without Ray; each holds a shard in RAM


@dataclass(frozen=True)
class EmbeddingTask:
    """What every actor needs: a run's ``experiment``, the URI of its checkpoint, and the URI of the corpus.

    ``normalise``: scale embeddings to length 1. ``actors``: how many there are; with 0 it is the run's
    ``evaluation.actors``, or one for each GPU if the run has no such key (one without GPUs). An actor takes a GPU if
    the cluster has any. ``local``: embed in this process alone, without Ray. ``asked_precision``: else it is the run's
    ``evaluation.precision``, or fp32.
    """

    experiment: Experiment
    checkpoint_uri: str
    corpus: str
    manifest: Manifest
    normalise: bool = True
    actors: int = 0
    local: bool = False
    asked_precision: EmbeddingPrecision | None = None

    @property
    def precision(self) -> EmbeddingPrecision:
        """That of embedding utterances; nights are always embedded in fp32."""
        found: EmbeddingPrecision = getattr(self.experiment.evaluation, "precision", "fp32")
        return self.asked_precision or found

    @property
    def crop_share(self) -> float:
        """The run's ``evaluation.crop_share``; 0 if it has no such key."""
        found: float = getattr(self.experiment.evaluation, "crop_share", 0.0)
        return found

    @property
    def by_night(self) -> bool:
        """Whether epochs of nights are embedded among their neighbours."""
        return self.manifest.nights is not None and self.experiment.encoder.frontend.layout == "epochs"

    @property
    def batch(self) -> int:
        """The most utterances of one forward pass."""
        return self.experiment.evaluation.batch if self.experiment.evaluation else 64

    @property
    def asked_actors(self) -> int:
        """The number of actors that the caller or the configuration names; 0 if neither does."""
        settings = self.experiment.evaluation
        return self.actors or (settings.actors if settings else 0)


def embed(
    experiment: Experiment,
    checkpoint_uri: str,
    corpus: str,
    limit: int | None = None,
    *,
    normalise: bool = True,
    local: bool = False,
    say: Say = silent,
) -> pa.Table:
    """A table of the utterances of a corpus: ``name``, ``embedding``, ``speaker``, ``recording``, ``label``.

    The order is that of the corpus. ``limit``: only the first so many utterances. ``normalise``: scale embeddings to
    length 1. ``local``: in this process, without Ray. ``say`` receives a line of progress now and then. Raises
    `UserError` naming what cannot be used.
    """
    job = EmbeddingTask(experiment, checkpoint_uri, corpus, read_corpus(corpus), normalise, local=local)
    check_pictures(experiment, corpus, job.manifest)
    load_encoder(experiment, checkpoint_uri, job.manifest.rate)  # if it does not fit, raises before any actor starts
    count = len(job.manifest.shards)
    if limit is not None:
        whole = (k + 1 for k, shard in enumerate(job.manifest.shards) if shard.first_id + shard.rows >= limit)
        count = next(whole, count)
    progress, parts = Progress(count, [shard.rows for shard in job.manifest.shards[:count]], {*range(count)}, say), []
    for index, answer in enumerate(over_shards(job, range(count), Embedder)):
        parts.append(pa.ipc.open_stream(answer).read_all())
        progress.done(index)
    table = pa.concat_tables(parts)
    return table.slice(0, limit) if limit is not None else table


def read_corpus(uri: str) -> Manifest:
    """The manifest of a prepared corpus. Raises `CorpusError` naming the corpus if there is none, or if it is empty."""
    manifest = shards.read_manifest(uri)
    if not manifest.shards:
        raise CorpusError(f"{uri}: the corpus has no utterances; prepare it again")
    return manifest


def over_shards(job: EmbeddingTask, which: Sequence[int], embedder: type[Embedder], *extra: Any) -> Iterator[bytes]:
    """The answers of ``embedder`` (see `Embedder.answer`) for the shards ``which``, in their order.

    ``extra`` are further arguments of its constructor. A `UserError` in an actor is raised here.
    """
    if job.local:
        yield from _alone(job, which, embedder, *extra)
        return
    asked = job.asked_actors
    cluster.connect(cpus=asked or 1)  # before ray is imported: ray reads the environment then
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    # If bars are disabled, Ray Data prints that they are. As log lines they are below the level of cluster.connect.
    context.enable_progress_bars, context.use_ray_tqdm = True, False
    source = ray.data.from_items([{"shard": k} for k in which], override_num_blocks=len(which))
    gpus = int(ray.cluster_resources().get("GPU", 0)) if job.experiment.ray.gpu is not False else 0
    if gpus:
        source = source.map_batches(decode_shard, fn_args=(job, embedder, *extra), batch_size=1, num_cpus=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about how max_restarts is given; there is no other way
        answers = source.map_batches(
            embedder,
            fn_constructor_args=(job, *extra),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(len(which), asked or max(1, gpus))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            # Nodes of a cluster may fail. On a single machine Ray would only warn that a restart could fail.
            max_restarts=-1 if cluster.joins() else 0,
        )
    for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield row["answer"]


def _alone(job: EmbeddingTask, which: Sequence[int], embedder: type[Embedder], *extra: Any) -> Iterator[bytes]:
    """`over_shards` in this process, while threads read and decode the next shards."""
    alone = embedder(job, *extra)
    threads = min(_THREADS_OF_A_GPU, os.cpu_count() or 1) if alone.device.type == "cuda" else 1
    for index, table in zip(which, made_ahead(lambda k: embedder.read(job, k, *extra), which, threads), strict=True):
        yield alone.answer(index, table)


def decode_shard(
    items: dict[str, np.ndarray], job: EmbeddingTask, embedder: type[Embedder], *extra: Any
) -> dict[str, list[Any]]:
    """What a Ray Data task does to the number of a shard: adds what ``embedder`` reads of it, as an Arrow stream."""
    index = int(items["shard"][0])
    try:
        table = embedder.read(job, index, *extra)
        return {"shard": [index], "decoded": [_stream(table)], "error": [""], "message": [""]}
    except errors.UserError as error:  # sent as a row: an exception would print the traceback of every process
        return {"shard": [index], "decoded": [b""], "error": [type(error).__name__], "message": [str(error)]}


def decoded(job: EmbeddingTask, shard: Shard) -> pa.Table:
    """A shard whose ``audio`` is the samples, int16. Raises `CorpusError` naming the utterance that is damaged."""
    table = shards.read_shard(job.corpus, shard, columns=["name", "audio", *_COLUMNS[1:]])
    place, samples = storage.join(job.corpus, shard.path), []
    for name, audio in zip(table["name"].to_pylist(), table["audio"], strict=True):
        try:
            samples.append(decode.pcm(audio.as_py(), job.manifest.format).tobytes())
        except CorpusError as error:
            raise CorpusError(f"{place}: utterance '{name}': {error}") from None
    return table.set_column(table.schema.get_field_index("audio"), "audio", pa.array(samples, pa.large_binary()))


def device_of(experiment: Experiment) -> torch.device:
    """The GPU of this process, if it has one and ``ray.gpu`` does not say false; else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and experiment.ray.gpu is not False else "cpu")


class Embedder:
    """A Ray Data actor. It loads the encoder once and then embeds one shard after another."""

    def __init__(self, job: EmbeddingTask) -> None:
        self.job = job
        torch.set_num_threads(1)
        self.device = device_of(job.experiment)
        self.encoder = placed(load_encoder(job.experiment, job.checkpoint_uri, job.manifest.rate), self.device)

    def __call__(self, items: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        if "error" in items and items["error"][0]:
            return {"answer": [b""], "error": [items["error"][0]], "message": [items["message"][0]]}
        found = pa.ipc.open_stream(items["decoded"][0]).read_all() if "decoded" in items else None
        try:
            return {"answer": [self.answer(int(items["shard"][0]), found)], "error": [""], "message": [""]}
        except errors.UserError as error:  # sent as a row: an exception would print the traceback of every process
            return {"answer": [b""], "error": [type(error).__name__], "message": [str(error)]}

    @classmethod
    def read(cls, job: EmbeddingTask, index: int, *_extra: Any) -> pa.Table:
        """What a task of its own reads for `table`: a shard, decoded. ``_extra``: see `over_shards`."""
        shard = job.manifest.shards[index]
        return _epochs_of(job, shard).packed() if job.by_night else decoded(job, shard)

    def answer(self, index: int, found: pa.Table | None = None) -> bytes:
        """The answer for shard ``index``: its `table` as an Arrow stream. ``found``: see `table`."""
        return _stream(self.table(index, found))

    def table(self, index: int, found: pa.Table | None = None) -> pa.Table:
        """Shard ``index``, with embeddings instead of audio. Raises `CorpusError` naming what cannot be embedded.

        ``found``: what `read` gives of it, where another task or thread has called that; None to read it here.

        An encoder of nights embeds each epoch of a night among its neighbours in the shard, in the windows of staging,
        see `rayssl.evaluation.embeddings.embed_epochs`. Any other encoder embeds each utterance alone.
        """
        job, shard = self.job, self.job.manifest.shards[index]
        place = storage.join(job.corpus, shard.path)
        found = self.read(job, index) if found is None else found
        table, made = self._epochs(found) if job.by_night else self._utterances(place, found)
        try:
            rows = made()
        except ValueError as error:
            raise CorpusError(f"{place}: {error}; did the run of {job.checkpoint_uri} diverge?") from None
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        return table.add_column(1, "embedding", values)

    def _utterances(self, place: str, table: pa.Table) -> _Rows:
        job, least = self.job, self.encoder.minimum_samples
        waves = [np.frombuffer(audio.as_buffer(), np.int16) for audio in table["audio"]]
        short = next((place for place, wave in enumerate(waves) if len(wave) < least), None)
        if short is not None:
            raise CorpusError(
                f"{place}: utterance '{table['name'][short]}': {len(waves[short])} samples, but this run's encoder "
                f"needs at least {least}; prepare the corpus again with min_s={least / job.manifest.rate:g} or more"
            )
        waves = [wave[: kept_samples(len(wave), job.crop_share, least)] for wave in waves]
        options: Any = {"normalise": job.normalise, "precision": job.precision}
        made = partial(embed_utterances, self.encoder, waves, self.device, job.batch, **options)
        return table.drop_columns(["audio"]), made

    def _epochs(self, table: pa.Table) -> _Rows:
        job, encoder = self.job, self.encoder
        assert isinstance(encoder, NightEncoder)
        read = ShardEpochs.unpacked(table)
        stride, batch = night_windows_of(job.experiment)
        found = partial(embed_epochs, encoder, read.places, read.pictures, self.device, stride=stride, batch=batch)
        return read.table, (lambda: unit_rows(found())) if job.normalise else found


def _epochs_of(job: EmbeddingTask, shard: Shard) -> ShardEpochs:
    frontend = job.experiment.encoder.frontend
    assert isinstance(frontend, NightMelConfig)
    return read_epochs(job.corpus, job.manifest, shard, frontend.mel)


def _stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows ``[n, D]`` scaled to length 1; a row of zeros stays."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def matrix(table: pa.Table) -> np.ndarray:
    """The embeddings in a table of `embed`, as float32 ``[n, D]``."""
    column = table.column("embedding").combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(table.num_rows, -1)
