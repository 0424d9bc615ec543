"""The job: what follows from an experiment and its corpus. The driver computes it once, for all processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rayssl.batches.plan import Cursor, ReadUnit
from rayssl.batches.selection import split_of
from rayssl.batches.streams import Stream, labelled_stream, own_stream
from rayssl.data import shards
from rayssl.data.shards import Manifest
from rayssl.errors import CheckpointError, ConfigError
from rayssl.experiment.config import Experiment, located
from rayssl.memory.classes.settings import ClassSettings
from rayssl.memory.pieces import cuts
from rayssl.memory.utterances.settings import MemorySettings, bytes_needed
from rayssl.methods.base import Classes, JobFacts
from rayssl.models.base import NightBackboneConfig
from rayssl.models.nightmel import NightMelConfig
from rayssl.training import checkpoint
from rayssl.training.trackers import opening as trackers
from rayssl.views.banks import RecordedBank, recorded, recorded_for_nights
from rayssl.views.reading import ReadSettings
from rayssl.views.recipes import Segment, SegmentPlan


@dataclass(frozen=True)
class Job:
    """Everything that a training needs to know, without a network: settings, streams, segments and memories.

    ``experiment`` has absolute paths. ``own`` is the method's stream; ``labelled`` is the labelled stream, None if the
    method has none. ``utterances`` and ``classes`` are the settings of the two kinds of memory: at most one is not
    None.
    """

    experiment: Experiment
    manifest: Manifest
    facts: JobFacts
    segments: SegmentPlan
    own: Stream
    labelled: Stream | None = None
    utterances: MemorySettings | None = None
    classes: ClassSettings | None = None

    @property
    def run(self) -> str:
        """The run's folder."""
        return self.experiment.run

    @property
    def architecture(self) -> str:
        """The model in one line."""
        return self.experiment.architecture

    @property
    def streams(self) -> dict[str, Stream]:
        """The streams by the names under which they reach the ranks."""
        return {"train": self.own} | ({} if self.labelled is None else {"labelled": self.labelled})

    def segments_of(self, name: str, epoch: int, *, fill: bool = False) -> tuple[Segment, ...]:
        """See `rayssl.views.recipes.SegmentPlan.of_unit`."""
        return self.segments.of_unit(name, epoch, fill=fill, cycles=self.own.cycles)

    def fills(self, name: str) -> Collection[int]:
        """The epochs before which a pass of the stream ``name`` fills the memory."""
        return () if name == "labelled" else self.segments.fills

    def read_settings(self, name: str, ranks: int) -> ReadSettings:
        """What a process needs that reads batches of the stream ``name`` for ``ranks`` ranks."""
        experiment, stream = self.experiment, self.streams[name]
        return ReadSettings(
            experiment.corpus.uri, self.manifest, experiment.seed, stream.batch, ranks, stream.selection
        )

    def units(self, name: str, start: Cursor, until: int, ranks: int) -> Callable[[], Iterator[ReadUnit]]:
        """A function that lists the units of the stream ``name`` from ``start`` to the end of epoch ``until``.

        It can be sent to a task that has no torch.
        """
        config = self.experiment.corpus
        return partial(
            self.streams[name].units,
            self.manifest,
            seed=self.experiment.seed,
            start=start,
            epoch_count=until,
            unit_rows=config.unit_rows,
            shuffle_shards=config.shuffle_shards,
            ranks=ranks,
            fills=self.fills(name),
        )

    def banks(self) -> list[RecordedBank]:
        """The recorded noises and rooms that `rayssl.experiment.build.build_loop` asks its context for."""
        experiment, rate = self.experiment, self.manifest.rate
        frontend = experiment.encoder.frontend
        if experiment.method.sequences and isinstance(frontend, NightMelConfig):
            return recorded_for_nights(experiment.views, frontend.mel, rate, experiment.seed)
        return recorded(experiment.views, rate, experiment.seed)

    def header(self) -> list[str]:
        """What is trained, in lines for a person: the method, the data, and the steps."""
        experiment, manifest = self.experiment, self.manifest
        hours = sum(shard.seconds for shard in manifest.shards) / 3600
        parts = [f"{manifest.rows:,} utterances", f"{hours:,.1f} h"]
        parts += [f"{count:,} {what}" for count, what in ((manifest.speakers, "speakers"),) if count]
        training, steps = experiment.training, self.own.epoch_steps
        return [
            f"{self.run}: {self.architecture}",
            f"data: {', '.join(parts)}; {training.epochs} epochs of {steps:,} steps of {training.batch} utterances",
            *([] if self.utterances is None else [self._memory_line()]),
        ]

    def _memory_line(self) -> str:
        """The bytes that the actors of the memory of utterances need."""
        assert self.utterances is not None
        count = self.experiment.memory.shards
        index, store = bytes_needed(self.utterances, count)
        if count == 1:
            return f"memory: {_size(index + store)} in one actor"
        return f"memory: {count} shards of {_size(store)}, and an index of {_size(index)}"


def resolve(experiment: Experiment) -> Job:
    """The job of an experiment. It reads the corpus's manifest and builds no network.

    Args:
        experiment: the settings; relative paths count from the current folder.

    Returns:
        The job, frozen and ready to be pickled.

    Raises:
        UserError: anything that is wrong and can be found without a network. The message names the key, the corpus or
            the package.
    """
    experiment = located(experiment)
    trackers.check(experiment.training.trackers, experiment.run)
    return job_of(experiment, shards.read_manifest(experiment.corpus.uri))


def job_of(experiment: Experiment, manifest: Manifest) -> Job:
    """`resolve` for an experiment that has absolute paths, with the manifest of its corpus."""
    method, views, training = experiment.method, experiment.views, experiment.training
    facts = facts_of(experiment, manifest)
    _check_nights(experiment, manifest)
    method.check(facts)
    experiment.encoder.check(manifest.rate)
    epochs = range(training.epochs)
    segments = SegmentPlan(
        tuple(method.segments(views, epoch) for epoch in epochs),
        tuple(method.fill_segments(views, epoch) for epoch in epochs),
        method.labelled_segments(views, 0),
    )
    own, labelled = _streams(experiment, manifest, labelled=bool(segments.labelled))
    utterances, classes = _memories(experiment, facts)
    return Job(experiment, manifest, facts, segments, own, labelled, utterances, classes)


def facts_of(experiment: Experiment, manifest: Manifest) -> JobFacts:
    """The facts about the job that a method gets. Raises `CorpusError` if the corpus lacks the split."""
    classes = None
    if experiment.labels is not None:
        split = split_of(manifest, experiment.corpus.uri, experiment.labels.split)
        classes = Classes(tuple(each.name for each in split.classes), tuple(each.labelled for each in split.classes))
    return JobFacts(
        corpus=experiment.corpus.uri,
        utterances=manifest.rows,
        speakers=manifest.speakers,
        recordings=manifest.recordings,
        views=experiment.views,
        embedding_dim=experiment.encoder.embedding_dim,
        batch=experiment.training.batch,
        seed=experiment.seed,
        joined=experiment.encoder.beside is not None,
        classes=classes,
        sequence=sequence_of(experiment) or 1,
    )


def sequence_of(experiment: Experiment) -> int | None:
    """The number of epochs of sleep in a sequence; None if the method learns from utterances."""
    backbone = experiment.encoder.backbone
    return backbone.sequence if experiment.method.sequences and isinstance(backbone, NightBackboneConfig) else None


def _check_nights(experiment: Experiment, manifest: Manifest) -> None:
    """Raises `ConfigError` unless method, encoder and corpus all are for nights, or none of them."""
    method, corpus, encoder = experiment.method, experiment.corpus.uri, experiment.encoder
    if not method.sequences:
        if manifest.format == "mel":
            raise ConfigError(
                f"{corpus}: holds pictures of epochs of sleep, which method.name={method.name} cannot use; choose sleep"
            )
        return
    if manifest.nights is None:
        raise ConfigError(
            f"{corpus}: method.name={method.name} needs a corpus of nights; prepare it from a source of nights"
        )
    if not isinstance(encoder.backbone, NightBackboneConfig) or not isinstance(encoder.frontend, NightMelConfig):
        raise ConfigError(
            f"encoder: method.name={method.name} needs an encoder of nights; choose frontend nightmel with sleepformer "
            "or soundsleepnet"
        )
    if manifest.mel is not None and manifest.mel != encoder.frontend.mel:
        mine, theirs = encoder.frontend.mel.model_dump(), manifest.mel.model_dump()
        odd = next(key for key in mine if mine[key] != theirs[key])
        raise ConfigError(
            f"encoder.frontend.mel.{odd}: is {mine[odd]}, but the pictures of {corpus} were made with {theirs[odd]}; "
            "use the same"
        )
    if experiment.labels is not None and experiment.labels.class_aware:
        raise ConfigError("labels.class_aware: sequences have several stages; use method.stage_power instead")


def position(job: Job) -> Cursor:
    """Where the run resumes: after its last checkpoint, or at the beginning.

    Raises `CheckpointError` if the last checkpoint is not one of this job, or if the one that the method starts from
    does not exist. Weights are not read here: whether they fit shows when they are loaded.
    """
    start = job.experiment.method.starts_from
    if not checkpoint.steps(job.run):
        if start is not None:
            checkpoint.find_weights(start)
        return Cursor()
    uri = checkpoint.locate(job.run, "last")
    meta, steps = checkpoint.read_meta(uri), job.own.epoch_steps
    # inside an epoch, the remaining batches are known only for the same corpus and training.batch
    if meta.step != meta.epoch * steps + meta.epoch_step:
        raise CheckpointError(
            f"{uri}: step {meta.step} is not in epoch {meta.epoch + 1} of {steps} steps: training.batch or the "
            "corpus has changed since; change it back or use another run folder"
        )
    return Cursor(meta.epoch, meta.epoch_step)


def _streams(experiment: Experiment, manifest: Manifest, *, labelled: bool) -> tuple[Stream, Stream | None]:
    labels, training, uri = experiment.labels, experiment.training, experiment.corpus.uri
    how: dict[str, Any] = {
        "split": None if labels is None else labels.split,
        "class_aware": labels is not None and labels.class_aware,
        "length": sequence_of(experiment),
    }
    role = experiment.method.role
    own = own_stream(manifest, uri, role, batch=training.batch, epoch_steps=training.epoch_steps, **how)
    if not labelled:
        return own, None
    few = training.batch // (1 if labels is None else labels.ratio)
    return own, labelled_stream(manifest, uri, batch=few, epoch_steps=own.epoch_steps, **how)


def _memories(experiment: Experiment, facts: JobFacts) -> tuple[MemorySettings | None, ClassSettings | None]:
    """The memory settings that the method needs, completed with the job's ``memory`` keys."""
    needed, config = experiment.method.memory(facts), experiment.memory
    if isinstance(needed, ClassSettings):
        if config.ahead > 1:
            raise ConfigError(
                f"memory.ahead={config.ahead}: method.name={experiment.method.name} asks a memory of classes in every "
                "step; set memory.ahead=1"
            )
        most = len(cuts(needed.classes)) - 1
        if config.shards > most:
            raise ConfigError(
                f"memory.shards={config.shards}: a memory of {needed.classes} classes has only {most} pieces; "
                f"set memory.shards to {most} at most"
            )
        return None, needed
    if needed is None:
        return None, None
    if config.clustering == "overlapped" and needed.sampling == "label":
        raise ConfigError(
            f"memory.clustering=overlapped: method.name={experiment.method.name} would learn the clusters of the round "
            "before; leave it out"
        )
    most = len(cuts(needed.utterances)) - 1
    if config.shards > most:
        raise ConfigError(
            f"memory.shards={config.shards}: a memory of {needed.utterances} utterances has only {most} pieces; "
            f"set memory.shards to {most} at most"
        )
    dtype = "float16" if config.half else "float32"
    settings = replace(
        needed,
        overlapped=config.clustering == "overlapped",
        device="cuda" if config.gpus else "cpu",
        reference_dtype=dtype,
        positive_dtype=dtype,
        threads=config.threads or None,
    )
    return settings, None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.1f} MB"
