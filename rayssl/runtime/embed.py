"""A corpus to embeddings by Ray Data: actors that each hold the frozen encoder and take shard after shard."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayssl import errors
from rayssl.data import decode, shards
from rayssl.errors import CorpusError
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.experiment import Experiment, build_run_encoder
from rayssl.models.encoder import Encoder
from rayssl.runtime import cluster
from rayssl.training import checkpoint


def embed(
    experiment: Experiment, checkpoint_uri: str, corpus: str, limit: int | None = None, *, normalise: bool = True
) -> pa.Table:
    """Embeddings of the utterances of a corpus: ``name``, ``embedding``, ``speaker``, ``recording``, ``label``.

    ``limit``: only the first so many. ``normalise``: of unit length. The order is that of the corpus.
    """
    manifest = shards.read_manifest(corpus)
    if not manifest.shards:
        raise CorpusError(f"{corpus}: the corpus has no utterances; prepare it again")
    load_encoder(experiment, checkpoint_uri, manifest.rate)  # what does not fit is refused here, not in an actor
    settings = experiment.evaluation
    cluster.connect(cpus=settings.actors if settings else 1)  # before ray is imported, which reads its environment
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    # Without bars Ray Data would say that there are none; as log lines they are below the level of cluster.connect.
    context.enable_progress_bars, context.use_ray_tqdm = True, False
    count = len(manifest.shards)
    if limit is not None:
        count = next((k + 1 for k, shard in enumerate(manifest.shards) if shard.first_id + shard.rows >= limit), count)
    source = ray.data.from_items([{"shard": k} for k in range(count)], override_num_blocks=count)
    gpu = ray.cluster_resources().get("GPU", 0) and experiment.ray.gpu is not False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the way in which max_restarts has to be given
        embedded = source.map_batches(
            _Embedder,
            fn_constructor_args=(
                experiment.model_dump(mode="json"),
                checkpoint_uri,
                corpus,
                manifest.model_dump(mode="json"),
                normalise,
            ),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(count, settings.actors if settings else 1)),
            num_cpus=1,
            num_gpus=1 if gpu else 0,
            # Nodes of a cluster may go away; on this machine alone Ray would only complain that a restart could fail.
            max_restarts=-1 if cluster.joins() else 0,
        )
    parts = []
    for row in embedded.iter_rows():
        if row["error"]:
            raise getattr(errors, row["error"])(row["message"])
        parts.append(pa.ipc.open_stream(row["table"]).read_all())
    table = pa.concat_tables(parts)
    return table.slice(0, limit) if limit is not None else table


def load_encoder(experiment: Experiment, checkpoint_uri: str, rate: int) -> Encoder:
    """The frozen encoder of a checkpoint; raises `CheckpointError` where it does not fit the run's configuration."""
    loaded = checkpoint.load(checkpoint_uri)
    prefix = loaded.state["encoder_prefix"]
    encoder = build_run_encoder(experiment, rate)
    weights = {name[len(prefix) :]: value for name, value in loaded.state["method"].items() if name.startswith(prefix)}
    checkpoint.load_module(encoder, weights, checkpoint_uri, experiment.architecture)
    return encoder.eval().requires_grad_(False)


class _Embedder:
    """A Ray Data actor: loads the encoder once, then embeds shard after shard."""

    def __init__(
        self, tree: dict[str, Any], checkpoint_uri: str, corpus: str, manifest: dict[str, Any], normalise: bool
    ) -> None:
        self.experiment, self.normalise = Experiment(**tree), normalise
        self.corpus, self.manifest = corpus, shards.Manifest(**manifest)
        torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = load_encoder(self.experiment, checkpoint_uri, self.manifest.rate).to(self.device)

    def __call__(self, items: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        try:
            return {"table": [self._embed(int(items["shard"][0]))], "error": [""], "message": [""]}
        except errors.UserError as error:  # as values: exceptions bring tracebacks of every process that they pass
            return {"table": [b""], "error": [type(error).__name__], "message": [str(error)]}

    def _embed(self, index: int) -> bytes:
        shard = self.manifest.shards[index]
        table = shards.read_shard(self.corpus, shard, columns=["name", "audio", "speaker", "recording", "label"])
        waves = [decode.pcm(audio.as_py(), self.manifest.format) for audio in table.column("audio")]
        settings = self.experiment.evaluation
        batch = settings.batch if settings else 64
        rows = embed_utterances(self.encoder, waves, self.device, batch, normalise=self.normalise)
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        result = table.drop_columns(["audio"]).add_column(1, "embedding", values)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, result.schema) as writer:
            writer.write_table(result)
        return sink.getvalue()


def matrix(table: pa.Table) -> np.ndarray:
    """The embeddings of a table of `embed`: float32 ``[n, D]``."""
    column = table.column("embedding").combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(table.num_rows, -1)
