"""The whole YAML file of an experiment as one type.

The ``name`` in `Experiment.method`, and in each part of `Experiment.encoder`, chooses the type; see `rayssl.registry`.
"""

from __future__ import annotations

from typing import Annotated, Literal, NoReturn

from pydantic import Field, model_validator

from rayssl import storage
from rayssl.batches.plan import SHUFFLE_SHARDS, UNIT_ROWS
from rayssl.evaluation.settings import AnyEvaluation
from rayssl.methods.registry import AnyMethod
from rayssl.models.encoder import EncoderConfig
from rayssl.schema import Config
from rayssl.storage.settings import StorageConfig
from rayssl.training.checkpoint import Best
from rayssl.training.state import TrainingConfig
from rayssl.training.validate import KINDS
from rayssl.views.recipes import ViewsConfig


class CorpusConfig(Config):
    """The corpus to train on, and how it is read.

    ``shuffle_shards`` and ``unit_rows`` decide which utterances form a batch: keep them when a run resumes.
    """

    uri: str
    """Folder or URI of the prepared corpus to train on: the ``out`` of a corpus that ``rayssl prepare`` has made."""
    shuffle_shards: int = Field(SHUFFLE_SHARDS, ge=1)
    """The most shards whose utterances are mixed; all of them if the corpus has fewer. More shards mix better and open
    more files at once. ``rayssl bench shuffle`` shows the effect. It decides which utterances form a batch: keep it
    when a run resumes.
    """
    unit_rows: int = Field(UNIT_ROWS, ge=1)
    """The number of utterances that one data task reads and mixes. A batch larger than this takes several such pools
    side by side. More mix better, but each task needs more memory. It decides which utterances form a batch: keep it
    when a run resumes.
    """
    readers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """The number of data tasks that read and decode at once, about one CPU core each. ``auto`` takes the cores that
    training leaves free, at least one for each rank. Raise it if the ranks wait for data (``rayssl bench ingest``
    measures the need). It does not change the batches.
    """


class LabelsConfig(Config):
    """Which labels a method may use."""

    split: str
    """The name of a split that ``rayssl prepare`` has made for the corpus: a key of ``splits`` in the preparation. Only
    the labels of its labelled utterances are used in training.
    """
    ratio: int = Field(2, ge=1)
    """For methods with two streams: the number of unlabelled clips for each labelled clip (mu in the papers). A step
    takes ``training.batch`` unlabelled clips and ``training.batch / ratio`` labelled ones. ``training.batch`` must be
    divisible by ``ratio`` times the number of workers.
    """
    class_aware: bool = False
    """Whether every class comes about equally often in the labelled stream: utterances of rare classes are repeated.
    Without it every labelled utterance comes once in a pass. It does not go with the method sleep.
    """


class MemoryConfig(Config):
    """Where the memory lives, and how it answers. The results are the same for any number of shards.

    Bytes needed, with N utterances, |Q'| positives, and D_repr and D_emb dimensions of h = 4 bytes each (2 with
    ``half``): a store N/S (h D_repr + 1) + |Q'|/S (h D_emb + 4), and N/S h D_repr more while it clusters a copy
    (``overlapped``, ``method.whiten``); the index about 37 N + 16 |Q'| + 4 K D_repr. A single actor needs both sums.
    The k-means comes on top. `rayssl train` prints the sums.
    """

    sync: Literal["strict", "ahead"] = "strict"
    """``strict`` applies what all ranks remember, in rank order, before the next recall: runs repeat exactly, and any
    number of ranks gives the same. ``ahead`` answers at once, and the order in which ranks come decides. No rank waits
    for a memory of classes in either case: each holds its queues, and the memory keeps their state.
    """
    ahead: int = Field(1, ge=1, le=256)
    """How many steps one request of a rank to the memory of utterances serves. More make fewer calls (an actor answers
    a few hundred a second), but the positives of a step are older by up to as many steps, and checkpoints lie between
    two such groups. Methods with a memory of classes need 1.
    """
    half: bool = False
    """Whether references and positives are stored in fp16, which halves the memory. Recalled rows are float32 in any
    case. A positive with a value beyond 65,504 is left out and counted as ``rejected``.
    """
    shards: int = Field(1, ge=1, le=64)
    """The number of actors (stores) that hold the rows, spread over the nodes. With 1, one actor holds everything; with
    more, one further actor, the index, decides which positives are sampled. Raise it if one node lacks the RAM or one
    actor is too slow.
    """
    clustering: Literal["blocking", "overlapped"] = "blocking"
    """With ``blocking``, training waits for the clustering of each epoch. ``overlapped`` clusters a copy of the
    references during an epoch and uses the result from the next epoch on, so assignments are one epoch old. The first
    clustering always blocks, and serves two epochs. Only for methods that cluster.
    """
    threads: int = Field(0, ge=0)
    """The number of threads of each actor for clustering; 0 takes all cores of its node. It does not change the result.
    """
    cpus: float = Field(0.1, ge=0)
    """The number of CPU cores that Ray reserves for each actor on its node. It guides the placement only: ``threads``
    says how many cores a clustering uses.
    """
    memory_bytes: int = Field(0, ge=0)
    """The bytes of RAM that Ray reserves for each actor on its node; 0 reserves none. With several shards it is the
    value of each store. Set it where other jobs share the nodes; ``rayssl train`` prints what is needed.
    """
    gpus: float = Field(0, ge=0)
    """The number of GPUs that are reserved for each actor and used for clustering; 0 clusters on CPUs. A fraction
    shares a GPU. With several shards it is the value of each store.
    """

    @property
    def actors(self) -> int:
        """The number of actors: the stores, and the index if it has its own actor."""
        return self.shards + (self.shards > 1)


class RayConfig(Config):
    """The resources of a training on Ray, and its patience with failures."""

    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 2
    """The number of DDP ranks, or ``[fewest, most]``: then as many train as there is room for, of those numbers that
    divide the batch. A lost node costs a restart with fewer, and the run starts again with more where there is room.
    The batches stay the same; so do the results but for their last digits, if ``training.sync_batchnorm`` is set.
    """
    cpus_per_worker: float = Field(1.0, gt=0)
    """The number of CPU cores that Ray reserves for each worker. It also limits the threads of torch in a worker, so
    raise it for a training on CPUs.
    """
    gpu: bool | Literal["auto"] = "auto"
    """Whether each worker takes one GPU. ``auto``: if the cluster has enough of them for all workers."""
    max_failures: int = Field(3, ge=0)
    """How often in a row, without a new checkpoint between, the training restarts from the last checkpoint before it
    fails. 0 fails at the first failure.
    """
    collective_timeout_s: int = Field(1800, ge=1)
    """How many seconds a rank waits for the others in a step, for example for their data, before it gives up."""
    start_timeout_s: float = Field(1200.0, gt=0)
    """How many seconds to wait for room for the workers on a joined cluster, which may have to add nodes and pull
    images. ``.inf`` waits without an end. Once the workers have trained, a command waits without an end for nodes that
    come back.
    """
    silent_s: float = Field(45.0, gt=0)
    """A worker that does not answer for so many seconds is taken for stopped, and the training restarts. Raise it if
    nodes are so loaded that workers pause.
    """

    @property
    def most(self) -> int:
        """The largest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def fewest(self) -> int:
        """The smallest number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _ordered(self) -> RayConfig:
        if self.fewest > self.most:
            raise ValueError(f"ray.workers=[{self.fewest}, {self.most}]: write the smaller number first")
        return self


class Experiment(Config):
    """One YAML file: a run, its corpus, views, encoder, method, memory, training, evaluation, resources, storage."""

    run: str = Field(min_length=1)
    """Folder or URI of the run, where its configuration, checkpoints, metrics, embeddings and reports go. The same
    folder resumes the run: use another one for another experiment.
    """
    seed: int = Field(0, ge=0)
    """The seed of initial weights, order of utterances, crops, distortions and sampling. Two runs with the same seed
    and settings draw the same. Train with several seeds to see how much a figure varies.
    """
    corpus: CorpusConfig
    """The corpus to train on, and how it is read and shuffled."""
    labels: LabelsConfig | None = None
    """Which labels the method may use. Needed by the methods that learn from labels, and null for the others;
    ``supervised`` takes the speakers of the corpus instead.
    """
    views: ViewsConfig = ViewsConfig()
    """The segments that are cut from an utterance in each step, and how they are distorted."""
    encoder: EncoderConfig
    """The network that turns audio into an embedding: its front end, its backbone, and masks of its features."""
    method: AnyMethod
    """What is learnt, and with which loss. ``method.name`` chooses it and decides which other keys there are; ``rayssl
    list methods`` lists the names.
    """
    memory: MemoryConfig = MemoryConfig()
    """Where the memory of utterances (SSPS) or of classes (DASO, USADTM, sleep) lives, and how it answers. Other
    methods do not use it.
    """
    training: TrainingConfig = TrainingConfig()
    """Epochs, batch, precision, optimiser, checkpoints, and where figures go."""
    evaluation: AnyEvaluation | None = None
    """What ``rayssl evaluate`` measures: the test corpus and the figures. ``evaluation.task`` chooses between
    verification, classification and staging. Null: the run is not evaluated.
    """
    ray: RayConfig = RayConfig()
    """The workers of a training on Ray, their resources, and how often they may fail. ``rayssl train --local`` does not
    use it.
    """
    storage: StorageConfig = StorageConfig()
    """How long a job waits for an object store that does not answer."""

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        method, labels = self.method, self.labels
        if self.memory.clustering == "overlapped" and not method.clusters_references:
            raise ValueError(
                "memory.clustering=overlapped needs a method that clusters (ssps, sampling cluster or centroid); "
                "leave it out"
            )
        if self.encoder.start_from is not None and method.starts_from is not None:
            raise ValueError(
                "encoder.start_from and method.start_from both give the encoder its first weights; leave one out"
            )
        if method.learns_labels and labels is None:
            raise ValueError(f"method.name={method.name}: learns from labels; name a split in labels.split")
        if not self.worker_counts:
            self._tell_indivisible()
        training = self.training
        self._check_validation()
        method.check_training(epochs=training.epochs, epoch_steps=training.epoch_steps, labels=labels is not None)
        return self

    def _check_validation(self) -> None:
        """Raises ValueError if the method has not got what ``training.validate`` asks for."""
        validate, method = self.training.validate, self.method
        if validate is None:
            return
        if method.sequences:
            raise ValueError(
                f"training.validate: not for method.name={method.name}, which learns nights; rayssl evaluate judges "
                "its checkpoints"
            )
        of_clusters = [name for name in validate.figures if KINDS[name].of == "clusters"]
        if of_clusters and not method.clusters_references:
            raise ValueError(
                f"training.validate: {of_clusters[0]} is of the clusters of ssps, which method.name={method.name} "
                "has not got; take effective_rank or pseudo_eer"
            )

    @property
    def best(self) -> Best:
        """Which checkpoint of the run is the best one."""
        return self.training.best(self.method.loss_changes_after)

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers that may train, largest first: those that divide the batch, also the labelled one."""
        batch = self.training.batch
        few = 1 if self.labels is None or not self.method.labelled_segments(self.views, 0) else self.labels.ratio
        return [count for count in range(self.ray.most, self.ray.fewest - 1, -1) if batch % (few * count) == 0]

    def _tell_indivisible(self) -> NoReturn:
        """Raises ValueError, because no number of workers divides the batch."""
        workers, batch = self.ray.workers, self.training.batch
        said = f"{workers}" if isinstance(workers, int) else f"{list(workers)}"
        if all(batch % count for count in range(self.ray.fewest, self.ray.most + 1)):
            raise ValueError(f"training.batch={batch} is not divisible by ray.workers={said}; change one of them")
        ratio = 1 if self.labels is None else self.labels.ratio
        raise ValueError(
            f"training.batch={batch} unlabelled clips a step are not divisible by labels.ratio={ratio} "
            f"times ray.workers={said}; change one of them"
        )

    def with_workers(self, count: int) -> Experiment:
        """The same experiment for exactly ``count`` workers."""
        return self.model_copy(update={"ray": self.ray.model_copy(update={"workers": count})})

    @property
    def architecture(self) -> str:
        """The model in one line, for messages about checkpoints that do not fit."""
        encoder: EncoderConfig | None = self.encoder
        parts = []
        while encoder is not None:
            backbone = encoder.backbone
            sizes = ", ".join(f"{name}={value}" for name, value in backbone.model_dump().items() if name != "name")
            parts.append(f"{backbone.short_name}({sizes}) on {encoder.frontend.short_name}")
            encoder = encoder.beside
        return f"{self.method.short_name} over {' and '.join(parts)}"


def located(experiment: Experiment) -> Experiment:
    """The same experiment with absolute paths, since each Ray worker has its own working folder."""
    absolute = storage.absolute
    evaluation, start = experiment.evaluation, experiment.encoder.start_from
    changes = {
        "run": absolute(experiment.run),
        "corpus": experiment.corpus.model_copy(update={"uri": absolute(experiment.corpus.uri)}),
        "views": experiment.views.located(),
        "encoder": experiment.encoder.located().model_copy(update={"start_from": start and absolute(start)}),
        "method": experiment.method.located(),
        "training": experiment.training.located(),
        "evaluation": None if evaluation is None else evaluation.located(),
    }
    return experiment.model_copy(update=changes)
