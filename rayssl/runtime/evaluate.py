"""`rayssl evaluate`: whole-utterance embeddings by Ray Data, trials or classes, figures in the run's folder."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayssl import errors, storage
from rayssl.data import decode, shards, trials
from rayssl.errors import ConfigError, CorpusError
from rayssl.evaluation.embeddings import embed_utterances
from rayssl.evaluation.imbalance import ClassificationResult
from rayssl.evaluation.scoring import as_norm, score_trials
from rayssl.evaluation.settings import ClassificationConfig, VerificationConfig
from rayssl.evaluation.verification import Result, verification_result
from rayssl.experiment import Experiment, build_run_encoder, located
from rayssl.models.encoder import Encoder
from rayssl.runtime import cluster
from rayssl.schema import load_yaml, override, parse
from rayssl.training import checkpoint
from rayssl.training.metrics import read_metrics

Figures: TypeAlias = "Result | list[ClassificationResult]"


def read_run(run: str, overrides: list[str]) -> Experiment:
    """The experiment that a run's folder holds, with overrides on top; raises `ConfigError` where there is none."""
    path = storage.join(run, "config.yaml")
    if not storage.exists(path):
        raise ConfigError(f"{run}: no config.yaml there; give the folder of a run that 'rayssl train' wrote")
    return parse(Experiment, override(load_yaml(storage.read_text(path), path), overrides), path)


def evaluate(run: str, which: str = "last", overrides: list[str] | None = None) -> Figures:
    """Evaluates a checkpoint of a run on its trials or classes and returns the figures, which `report` shows.

    Writes ``evaluation/embeddings.parquet``, ``scores.parquet`` (of trials) and ``result.json`` for the last
    checkpoint, the same below ``evaluation/<which>/`` for another. Raises `UserError` naming the run, corpus or trials
    that cannot be used.
    """
    experiment = read_run(run, overrides or [])
    settings = experiment.evaluation
    if settings is None:
        raise ConfigError(
            f"{run}/config.yaml: no 'evaluation' section; add evaluation.corpus=URI evaluation.trials=URI, or "
            "evaluation.task=classification evaluation.corpus=URI"
        )
    experiment = located(experiment)
    settings = experiment.evaluation or settings
    uri = checkpoint.locate(storage.absolute(run), which, experiment.training.checkpoints.best)
    folder = storage.join(run, "evaluation") if which == "last" else storage.join(run, "evaluation", which)
    if isinstance(settings, ClassificationConfig):
        from rayssl.runtime.classify import classify

        results, table = classify(experiment, settings, uri)
        _write_table(folder, "embeddings", table)
        _write_result(folder, [result.model_dump(mode="json") for result in results])
        return results
    return _verify(experiment, settings, uri, folder)


def over_time(run: str, overrides: list[str] | None = None) -> Iterator[tuple[str, Figures]]:
    """`evaluate` of each checkpoint that ended an epoch and has been kept (``training.checkpoints.milestones``).

    Yields which it was, and its figures. Then ``evaluation/over_time.jsonl`` has a line for each, with the seconds that
    training had taken until then: those of interruptions, of filling a memory and of clustering left out.
    """
    experiment = read_run(run, overrides or [])
    lines = [line for line in read_metrics(storage.join(run, "metrics.jsonl")) if line["kind"] == "epoch"]
    metas = [checkpoint.read_meta(uri) for uri in checkpoint.kept(storage.absolute(run))]
    written = []
    for meta in (meta for meta in metas if meta.epoch_step == 0):
        which = f"epoch-{meta.epoch}"
        found = evaluate(run, which, overrides)
        done = [line for line in lines if line["step"] <= meta.step]
        steps = np.diff([0, *(line["step"] for line in done)])
        rates = [line["utterances_per_s"] / experiment.training.batch for line in done]
        record = {"kind": "probe", "epoch": meta.epoch, "step": meta.step, "seconds": float(np.sum(steps / rates))}
        first = found[0] if isinstance(found, list) else found
        written.append({**record, **first.model_dump(mode="json", exclude={"per_class", "confusion"})})
        yield which, found
    text = "".join(json.dumps(line) + "\n" for line in written)
    storage.write_text(storage.join(run, "evaluation", "over_time.jsonl"), text)


def _verify(experiment: Experiment, settings: VerificationConfig, uri: str, folder: str) -> Result:
    """Scores the trials by the checkpoint at ``uri``."""
    listed = _read_trials(settings.trials, settings.corpus)
    table = embed(experiment, uri, settings.corpus)
    names = table.column("name").to_pylist()
    rows = matrix(table)
    scores = score_trials(listed, names, rows)
    norm = "none"
    if settings.as_norm is not None:
        cohort = embed(experiment, uri, settings.as_norm.cohort, limit=settings.as_norm.utterances)
        scores = as_norm(scores, listed, names, rows, matrix(cohort), top=settings.as_norm.top)
        norm = f"as-norm({cohort.num_rows}, top {settings.as_norm.top})"
    speakers = dict(zip(names, table.column("speaker").to_pylist(), strict=True))
    enrol, test = [trial.enrol for trial in listed], [trial.test for trial in listed]
    known = settings.resamples > 0 and all(speakers[name] >= 0 for name in {*enrol, *test})
    result = verification_result(
        scores,
        [trial.label for trial in listed],
        [speakers[name] for name in enrol] if known else None,
        [speakers[name] for name in test] if known else None,
        seed=experiment.seed,
        resamples=max(1, settings.resamples),
        norm=norm,
        checkpoint=uri.rsplit("/", 1)[-1],
    )
    scored = pa.table(
        {
            "enrol": pa.array([trial.enrol for trial in listed]),
            "test": pa.array([trial.test for trial in listed]),
            "label": pa.array([trial.label for trial in listed], pa.int8()),
            "score": pa.array(scores, pa.float32()),
        }
    )
    _write_table(folder, "embeddings", table)
    _write_table(folder, "scores", scored)
    _write_result(folder, result.model_dump(mode="json"))
    return result


def _read_trials(uri: str, corpus: str) -> list[trials.Trial]:
    """The trials, sure to be of both kinds and over utterances of ``corpus``: found out before anything is embedded."""
    listed = trials.read(uri)
    targets = sum(trial.label for trial in listed)
    if targets in (0, len(listed)):
        kind = "target" if targets else "non-target"
        raise CorpusError(f"{uri}: holds only {kind} trials; an error rate needs labels 1 and 0")
    manifest = shards.read_manifest(corpus)
    tables = [shards.read_shard(corpus, shard, ["name"]) for shard in manifest.shards]
    trials.check(listed, (name for table in tables for name in table["name"].to_pylist()), uri, corpus)
    return listed


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


def _write_table(folder: str, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(folder, f"{name}.parquet"), sink.getvalue())


def _write_result(folder: str, result: Any) -> None:
    storage.write_text(storage.join(folder, "result.json"), json.dumps(result, indent=1))
