"""Stages the nights of a run's test corpus: actors hold the model, and stage one night after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayssl import storage
from rayssl.batches.selection import split_of
from rayssl.data import shards, splits
from rayssl.data.nights import runs
from rayssl.data.nights.scores import NightScores, read_stages, write_stages
from rayssl.data.shards import Manifest
from rayssl.data.sources.nights import STAGES
from rayssl.errors import AudioError, ConfigError, CorpusError
from rayssl.evaluation.settings import StagingConfig
from rayssl.evaluation.staging import StagingResult, staging_result
from rayssl.experiment.config import Experiment
from rayssl.inference.staging import Stager
from rayssl.models.nightmel import NightMelConfig
from rayssl.runtime.embedding.actors import Embedder, EmbeddingTask, device_of, over_shards, read_corpus
from rayssl.runtime.embedding.nights import ShardEpochs, check_pictures, read_epochs
from rayssl.runtime.embedding.progress import Progress, Say, silent


def stage(
    experiment: Experiment, settings: StagingConfig, uri: str, *, local: bool = False, say: Say = silent
) -> tuple[StagingResult, pa.Table]:
    """The figures of the checkpoint at ``uri``, and the stages of all epochs (`rayssl.data.nights.scores`).

    ``say`` receives lines of progress. Raises `UserError` naming the corpus or the key that cannot be used.
    """
    manifest = read_corpus(settings.corpus)
    nights = _nights(settings, manifest)
    _check(experiment, settings, manifest)
    job = EmbeddingTask(experiment, uri, settings.corpus, manifest, local=local)
    rows = [sum(manifest.shards[number].rows for number in night) for night in nights]
    progress, tables = Progress(len(nights), rows, {*range(len(nights))}, say, ("nights", "epochs")), []
    for index, answer in enumerate(over_shards(job, range(len(nights)), NightStager, settings, nights)):
        tables.append(pa.ipc.open_stream(answer).read_all())
        progress.done(index)
    table = pa.concat_tables(tables)
    result = staging_result(
        read_stages(table),
        STAGES,
        train_counts=_train_counts(experiment),
        seed=experiment.seed,
        resamples=settings.resamples,
        checkpoint=uri.rsplit("/", 1)[-1],
    )
    return result, table


class NightStager(Embedder):
    """An actor that stages nights. ``nights``: the indices of the shards of each night."""

    def __init__(self, job: EmbeddingTask, settings: StagingConfig, nights: list[list[int]]) -> None:
        self.job, self.nights = job, nights
        torch.set_num_threads(1)
        self.device, how = device_of(job.experiment), {"stride": settings.stride, "batch": settings.batch}
        self.stager = Stager.load(job.experiment, job.checkpoint_uri, self.device, **how)
        self.subjects = shards.read_labels(job.corpus)["speaker"]

    @classmethod
    def read(cls, job: EmbeddingTask, index: int, *extra: Any) -> pa.Table:
        """What a task of its own reads for `table`: all epochs of a night, as pictures."""
        _settings, nights = extra
        return _epochs(job, nights[index]).packed()

    def table(self, index: int, found: pa.Table | None = None) -> pa.Table:
        """The stages of one night."""
        job, stager = self.job, self.stager
        read = _epochs(job, self.nights[index]) if found is None else ShardEpochs.unpacked(found)
        try:
            scores = stager.probabilities(read.places, stager.encode(read.pictures))
        except AudioError as error:
            raise CorpusError(f"{job.corpus}: night '{read.night}': {error}") from None
        truth = read.table["label"].to_numpy().astype(np.int64)
        subject = self.subjects[read.table["speaker"][0].as_py()]
        return write_stages([NightScores(read.night, subject, read.places, truth, scores)])


def _epochs(job: EmbeddingTask, numbers: list[int]) -> ShardEpochs:
    """The epochs of a night, whose shards are ``numbers``."""
    frontend = job.experiment.encoder.frontend
    assert isinstance(frontend, NightMelConfig)
    chosen = (job.manifest.shards[number] for number in numbers)
    return ShardEpochs.joined([read_epochs(job.corpus, job.manifest, shard, frontend.mel) for shard in chosen])


def _nights(settings: StagingConfig, manifest: Manifest) -> list[list[int]]:
    """The indices of the shards of each night that is evaluated."""
    if manifest.nights is None:
        raise CorpusError(f"{settings.corpus}: has no nights; name a corpus of nights in evaluation.corpus")
    found = runs.read(storage.join(storage.absolute(settings.corpus), manifest.nights.path), manifest.nights.sha256)
    first = np.array([shard.first_id for shard in manifest.shards])
    night = found.night[np.searchsorted(found.first, first)]
    used = np.ones(len(first), bool)
    if settings.split is not None:
        split = split_of(manifest, settings.corpus, settings.split)
        place = storage.join(storage.absolute(settings.corpus), split.path)
        used = splits.columns(place, split.sha256)[0][first] == 0
        if not used.any():
            raise CorpusError(
                f"{settings.corpus}: split '{settings.split}' holds out no night; set nights.held_out in it, or leave "
                "evaluation.split out"
            )
    shards_of: dict[int, list[int]] = {}
    for number in np.flatnonzero(used).tolist():
        shards_of.setdefault(int(night[number]), []).append(number)
    return list(shards_of.values())


def _check(experiment: Experiment, settings: StagingConfig, manifest: Manifest) -> None:
    frontend = experiment.encoder.frontend
    if not isinstance(frontend, NightMelConfig):
        raise ConfigError(
            f"evaluation.task: staging needs an encoder of nights, and encoder.frontend.name is {frontend.name}"
        )
    check_pictures(experiment, settings.corpus, manifest)


def _train_counts(experiment: Experiment) -> list[int] | None:
    """How many labelled epochs of each stage the run was trained with; None if it has no split."""
    if experiment.labels is None:
        return None
    uri = experiment.corpus.uri
    split = split_of(shards.read_manifest(uri), uri, experiment.labels.split)
    return [known.labelled for known in split.classes]
