"""A corpus to embeddings by Ray Data: actors that each hold the frozen encoder and take shard after shard."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayssl import errors, storage
from rayssl.data import decode, shards
from rayssl.data.shards import Manifest
from rayssl.errors import CorpusError
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.experiment.config import Experiment
from rayssl.inference.encoder import load_encoder
from rayssl.runtime import cluster

_COLUMNS = ("name", "speaker", "recording", "label")


@dataclass(frozen=True)
class EmbeddingTask:
    """What every actor knows: a run's ``experiment``, its checkpoint and the corpus, both as URIs.

    ``normalise``: embeddings of unit length. ``actors`` 0: a GPU's worth each where the cluster has GPUs, otherwise as
    many as the run's ``evaluation.actors``. ``local``: by this process alone, without Ray.
    """

    experiment: Experiment
    checkpoint_uri: str
    corpus: str
    manifest: Manifest
    normalise: bool = True
    actors: int = 0
    local: bool = False

    @property
    def batch(self) -> int:
        """Utterances of one forward pass."""
        return self.experiment.evaluation.batch if self.experiment.evaluation else 64

    @property
    def asked_actors(self) -> int:
        """How many actors were asked for, 0 where nobody did."""
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
) -> pa.Table:
    """Embeddings of the utterances of a corpus: ``name``, ``embedding``, ``speaker``, ``recording``, ``label``.

    ``limit``: only the first so many. ``normalise``: of unit length. The order is that of the corpus.
    """
    job = EmbeddingTask(experiment, checkpoint_uri, corpus, read_corpus(corpus), normalise, local=local)
    load_encoder(experiment, checkpoint_uri, job.manifest.rate)  # what does not fit is refused here, not in an actor
    count = len(job.manifest.shards)
    if limit is not None:
        whole = (k + 1 for k, shard in enumerate(job.manifest.shards) if shard.first_id + shard.rows >= limit)
        count = next(whole, count)
    parts = [pa.ipc.open_stream(answer).read_all() for answer in over_shards(job, range(count), Embedder)]
    table = pa.concat_tables(parts)
    return table.slice(0, limit) if limit is not None else table


def read_corpus(uri: str) -> Manifest:
    """The manifest of a prepared corpus; raises `CorpusError` naming it where there is none, or nothing in it."""
    manifest = shards.read_manifest(uri)
    if not manifest.shards:
        raise CorpusError(f"{uri}: the corpus has no utterances; prepare it again")
    return manifest


def over_shards(job: EmbeddingTask, which: Sequence[int], embedder: type[Embedder], *extra: Any) -> Iterator[bytes]:
    """What `Embedder.answer` says of each of the shards ``which``, in their order; ``extra`` goes to its constructor.

    A `UserError` in an actor is raised here.
    """
    if job.local:
        alone = embedder(job, *extra)
        yield from (alone.answer(index) for index in which)
        return
    asked = job.asked_actors
    cluster.connect(cpus=asked or 1)  # before ray is imported, which reads its environment
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    # Without bars Ray Data would say that there are none; as log lines they are below the level of cluster.connect.
    context.enable_progress_bars, context.use_ray_tqdm = True, False
    source = ray.data.from_items([{"shard": k} for k in which], override_num_blocks=len(which))
    gpus = int(ray.cluster_resources().get("GPU", 0)) if job.experiment.ray.gpu is not False else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the way in which max_restarts has to be given
        answers = source.map_batches(
            embedder,
            fn_constructor_args=(job, *extra),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(len(which), asked or max(1, gpus))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            # Nodes of a cluster may go away; on this machine alone Ray would only complain that a restart could fail.
            max_restarts=-1 if cluster.joins() else 0,
        )
    for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            if row["error"]:
                raise getattr(errors, row["error"])(row["message"])
            yield row["answer"]


class Embedder:
    """A Ray Data actor: loads the encoder once, then embeds shard after shard."""

    def __init__(self, job: EmbeddingTask) -> None:
        self.job = job
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = load_encoder(job.experiment, job.checkpoint_uri, job.manifest.rate).to(self.device)

    def __call__(self, items: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        try:
            return {"answer": [self.answer(int(items["shard"][0]))], "error": [""], "message": [""]}
        except errors.UserError as error:  # as values: exceptions bring tracebacks of every process that they pass
            return {"answer": [b""], "error": [type(error).__name__], "message": [str(error)]}

    def answer(self, index: int) -> bytes:
        """What becomes of shard ``index``: here its `table` as an Arrow stream."""
        result = self.table(index)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
        return sink.getvalue()

    def table(self, index: int) -> pa.Table:
        """Shard ``index`` with its embeddings in place of its audio; raises `CorpusError` naming what cannot be."""
        job, shard = self.job, self.job.manifest.shards[index]
        place = storage.join(job.corpus, shard.path)
        table = shards.read_shard(job.corpus, shard, columns=["name", "audio", *_COLUMNS[1:]])
        names = table.column("name").to_pylist()
        pairs = zip(names, table.column("audio"), strict=True)
        waves = [self._wave(f"{place}: utterance '{name}'", audio.as_py()) for name, audio in pairs]
        try:
            rows = embed_utterances(self.encoder, waves, self.device, job.batch, normalise=job.normalise)
        except ValueError as error:
            raise CorpusError(f"{place}: {error}; is {job.checkpoint_uri} of a run that diverged?") from None
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        return table.drop_columns(["audio"]).add_column(1, "embedding", values)

    def _wave(self, utterance: str, audio: bytes) -> np.ndarray:
        """Samples int16 ``[T]`` of one utterance."""
        try:
            wave = decode.pcm(audio, self.job.manifest.format)
        except CorpusError as error:
            raise CorpusError(f"{utterance}: {error}") from None
        least = self.encoder.minimum_samples
        if len(wave) < least:
            raise CorpusError(
                f"{utterance}: {len(wave)} samples, this run's encoder needs {least} at least; prepare the corpus "
                f"again with min_s={least / self.job.manifest.rate:g} or more"
            )
        return wave


def matrix(table: pa.Table) -> np.ndarray:
    """The embeddings of a table of `embed`: float32 ``[n, D]``."""
    column = table.column("embedding").combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(table.num_rows, -1)
