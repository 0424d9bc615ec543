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
from rayssl.training.state import TrainingConfig
from rayssl.views.recipes import ViewsConfig


class CorpusConfig(Config):
    """The corpus to train on.

    ``uri``: a prepared corpus. ``shuffle_shards``: the most shards whose utterances are mixed; all, if the corpus
    has fewer. ``unit_rows``: the number of utterances that one data task reads and mixes; a large batch has several
    such pools side by side. These two decide which utterances form a batch: keep them when a run resumes. ``readers``:
    the number of data tasks at once; ``auto``: as many as the cores that training leaves free, at least one a rank.
    """

    uri: str
    shuffle_shards: int = Field(SHUFFLE_SHARDS, ge=1)
    unit_rows: int = Field(UNIT_ROWS, ge=1)
    readers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"


class LabelsConfig(Config):
    """Which labels a method may use: those of ``split``, which `rayssl prepare` has made for the corpus.

    In each step, methods with two streams take ``training.batch`` unlabelled clips and ``training.batch / ratio``
    labelled ones (the papers' mu). With ``class_aware`` every class comes about equally often in the labelled stream.
    """

    split: str
    ratio: int = Field(2, ge=1)
    class_aware: bool = False


class MemoryConfig(Config):
    """Where the memory lives, and how it answers. The results are the same for any number of shards.

    ``sync``: ``strict`` applies what all ranks remember, in rank order, before the next recall: runs repeat exactly.
    ``ahead`` answers at once. (No rank waits for a memory of classes: each holds its queues, and the memory their
    state.) The key ``ahead``: one request of a rank to the memory of utterances serves so many steps. It makes fewer
    calls (an actor answers a few hundred a second), and the positives of a step are older by up to as many steps.
    Checkpoints then lie between two groups of so many steps. ``half``: references and positives are stored in fp16;
    recalled rows are float32 in any case. A positive beyond 65,504 is left out, and counted as
    ``rejected``. ``shards`` S: with 1, one actor holds everything. With more, S actors (stores), spread over the nodes,
    hold the rows, and one more, the index, holds what decides which positives are sampled.

    ``clustering``: with ``blocking``, training waits for each epoch's clustering. ``overlapped`` clusters a copy of the
    references during an epoch and uses the result from the beginning of the next one: assignments are one epoch old.
    The first clustering always blocks, and serves two epochs. A checkpoint is whole when a clustering under way is.

    For each actor: ``threads`` for clustering (0: all cores of its node); ``cpus`` and ``memory_bytes`` (0: none) are
    what Ray reserves for it on its node; ``gpus`` (0: none) are reserved and used for clustering. With S above 1,
    ``memory_bytes`` and ``gpus`` are those of each store.

    Bytes needed, with N utterances, |Q'| positives, and D_repr and D_emb dimensions of h = 4 bytes each (2 with
    ``half``): a store N/S (h D_repr + 1) + |Q'|/S (h D_emb + 4), and N/S h D_repr more while it clusters a copy
    (``overlapped``, ``method.whiten``); the index about 37 N + 16 |Q'| + 4 K D_repr. A single actor needs both sums.
    The k-means comes on top. `rayssl train` prints the sums.
    """

    sync: Literal["strict", "ahead"] = "strict"
    ahead: int = Field(1, ge=1, le=256)
    half: bool = False
    shards: int = Field(1, ge=1, le=64)
    clustering: Literal["blocking", "overlapped"] = "blocking"
    threads: int = Field(0, ge=0)
    cpus: float = Field(0.1, ge=0)
    memory_bytes: int = Field(0, ge=0)
    gpus: float = Field(0, ge=0)

    @property
    def actors(self) -> int:
        """The number of actors: the stores, and the index if it has its own actor."""
        return self.shards + (self.shards > 1)


class RayConfig(Config):
    """The resources of a training on Ray.

    ``workers``: the number of DDP ranks, or ``[fewest, most]``: then as many train as there is room for, of those
    numbers that divide the batch. A lost node costs a restart with fewer, and the run starts again with more where
    there is room. The batches stay the same; so do the results but for their last digits, if
    ``training.sync_batchnorm`` is set. ``gpu``: one GPU for each worker (auto: if the cluster has enough).
    ``cpus_per_worker`` also limits a worker's threads. ``max_failures``: how often in a row, without a new checkpoint
    between, the training restarts from the last checkpoint before it fails. ``start_timeout_s``: how long to wait for
    room for the workers on a joined cluster, which may have to add nodes and pull images (``.inf``: without an end).
    Once they have trained, a command waits without an end for nodes that come back.
    ``collective_timeout_s``: how long a rank waits for the others in a step, for example for their data.
    ``silent_s``: a worker that does not answer for so long is taken for stopped.
    """

    workers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 2
    cpus_per_worker: float = Field(1.0, gt=0)
    gpu: bool | Literal["auto"] = "auto"
    max_failures: int = Field(3, ge=0)
    collective_timeout_s: int = Field(1800, ge=1)
    start_timeout_s: float = Field(1200.0, gt=0)
    silent_s: float = Field(45.0, gt=0)

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
    seed: int = Field(0, ge=0)
    corpus: CorpusConfig
    labels: LabelsConfig | None = None
    views: ViewsConfig = ViewsConfig()
    encoder: EncoderConfig
    method: AnyMethod
    memory: MemoryConfig = MemoryConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: AnyEvaluation | None = None
    ray: RayConfig = RayConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        method, labels = self.method, self.labels
        if self.memory.clustering == "overlapped" and not method.clusters_references:
            raise ValueError(
                "memory.clustering=overlapped needs a method that clusters (ssps, sampling cluster or centroid); "
                "leave it out"
            )
        if method.learns_labels and labels is None:
            raise ValueError(f"method.name={method.name}: learns from labels; name a split in labels.split")
        if not self.worker_counts:
            self._tell_indivisible()
        training = self.training
        method.check_training(epochs=training.epochs, epoch_steps=training.epoch_steps, labels=labels is not None)
        return self

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
    evaluation = experiment.evaluation
    changes = {
        "run": absolute(experiment.run),
        "corpus": experiment.corpus.model_copy(update={"uri": absolute(experiment.corpus.uri)}),
        "views": experiment.views.located(),
        "encoder": experiment.encoder.located(),
        "method": experiment.method.located(),
        "evaluation": None if evaluation is None else evaluation.located(),
    }
    return experiment.model_copy(update=changes)
