"""The whole YAML of an experiment as one type, and from it the objects that train.

`Experiment.method` is a union discriminated by ``name``: that union is the registry of methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from rayssl import storage
from rayssl.batches.selection import split_of
from rayssl.batches.streams import Stream, labelled_stream, own_stream
from rayssl.data.shards import Manifest
from rayssl.errors import ConfigError
from rayssl.evaluation.settings import AnyEvaluation
from rayssl.memory.pieces import cuts
from rayssl.memory.utterances.settings import MemorySettings, bytes_needed
from rayssl.methods.base import Classes, Method
from rayssl.methods.clar import CLAR, CLARConfig
from rayssl.methods.classifier import ClassifierConfig, ClassifierMethod
from rayssl.methods.daso import DASO, DASOConfig
from rayssl.methods.dino import DINO, DINOConfig
from rayssl.methods.fixmatch import FixMatch, FixMatchConfig
from rayssl.methods.moco import MoCo, MoCoConfig
from rayssl.methods.semi import SemiConfig
from rayssl.methods.simclr import SimCLR, SimCLRConfig
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.methods.supervised import Supervised, SupervisedConfig
from rayssl.methods.swav import SwAV, SwAVConfig
from rayssl.methods.usadtm import USADTM, USADTMConfig
from rayssl.methods.vicreg import VICReg, VICRegConfig
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder
from rayssl.models.norm import set_sync
from rayssl.random import draws
from rayssl.schema import Config
from rayssl.training import checkpoint
from rayssl.training.state import TrainingConfig
from rayssl.views.recipes import ViewsConfig

_BASES: dict[type[Config], Callable[[Any, Encoder, ViewsConfig], Method]] = {
    SimCLRConfig: SimCLR,
    DINOConfig: DINO,
    MoCoConfig: MoCo,
    SwAVConfig: SwAV,
    VICRegConfig: VICReg,
}
# those that learn the classes of a split, from few labels
_LEARNERS: dict[type[Config], Callable[[Any, Encoder, ViewsConfig, Classes], Method]] = {
    ClassifierConfig: ClassifierMethod,
    FixMatchConfig: FixMatch,
    USADTMConfig: USADTM,
    DASOConfig: DASO,
}
MethodConfig = Annotated[
    SimCLRConfig
    | DINOConfig
    | MoCoConfig
    | SwAVConfig
    | VICRegConfig
    | SSPSConfig
    | SupervisedConfig
    | CLARConfig
    | ClassifierConfig
    | FixMatchConfig
    | USADTMConfig
    | DASOConfig,
    Field(discriminator="name"),
]


class CorpusConfig(Config):
    """``uri`` of a prepared corpus; ``unit_rows``: utterances that one data task reads and decodes at the least;
    ``readers``: data tasks at once, 0 for as many as ranks.
    """

    uri: str
    unit_rows: int = Field(1024, ge=1)
    readers: int = Field(0, ge=0)


class LabelsConfig(Config):
    """Whose labels a method may use: ``split``, one that `rayssl prepare` has made of the corpus.

    Methods with two streams take ``training.batch`` unlabelled clips a step, and ``ratio`` (mu) times fewer labelled
    ones. ``class_aware``: the labelled stream has clips of every class about as often.
    """

    split: str
    ratio: int = Field(2, ge=1)
    class_aware: bool = False


class MemoryConfig(Config):
    """Where the memory of SSPS lives, and how. The results are the same for any number of shards.

    ``sync``: ``strict`` applies what all ranks remember, in rank order, before the next recall, so that runs repeat
    exactly; ``ahead`` answers at once. ``half``: references and positives are kept in fp16 (a positive beyond 65,504
    is left out, and counted as ``rejected``); recalled rows are float32 in any case. ``shards`` S: 1 keeps all in one
    actor, more put the rows into S actors spread over the nodes, and what decides who is sampled into one more.
    ``clustering: blocking`` lets training wait for each epoch's clustering; ``overlapped`` clusters a copy of the
    references during an epoch and brings the result into use at the beginning of the next one, so that assignments are
    an epoch old (the first clustering blocks, and serves two epochs). A checkpoint waits for a clustering under way.

    Of each actor: ``threads`` of the clustering, 0 for all of its node's cores; ``cpus`` and ``memory_bytes`` (0:
    nothing) that it reserves of its node in Ray's books, ``gpus`` (0: none) that it reserves, and clusters on. With S
    above 1 the last two are those of each store. Bytes needed, with N utterances, |Q'| positives, D_repr and D_emb
    dimensions of h = 4 bytes each, or 2 with ``half``: a store N/S (h D_repr + 1) + |Q'|/S (h D_emb + 4), and N/S
    h D_repr more while it clusters a copy (``overlapped``, ``method.whiten``); the index about 37 N + 16 |Q'| + 4 K
    D_repr, which one actor with everything has as well. The k-means comes on top. `rayssl train` prints the sums.
    """

    sync: Literal["strict", "ahead"] = "strict"
    half: bool = False
    shards: int = Field(1, ge=1, le=64)
    clustering: Literal["blocking", "overlapped"] = "blocking"
    threads: int = Field(0, ge=0)
    cpus: float = Field(0.1, ge=0)
    memory_bytes: int = Field(0, ge=0)
    gpus: float = Field(0, ge=0)

    @property
    def actors(self) -> int:
        """How many there are: the stores, and the index where it has an actor of its own."""
        return self.shards + (self.shards > 1)


class RayConfig(Config):
    """``workers``: DDP ranks; ``gpu``: one GPU a worker (auto: where the cluster has enough); ``cpus_per_worker`` also
    bounds a worker's threads; ``max_failures``: restarts from the last checkpoint before giving up.
    """

    workers: int = Field(2, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpu: bool | Literal["auto"] = "auto"
    max_failures: int = Field(3, ge=0)
    collective_timeout_s: int = Field(1800, ge=1)


class Experiment(Config):
    """One YAML file: a run, its corpus, views, encoder, method, memory, training, evaluation and resources."""

    run: str
    seed: int = Field(0, ge=0)
    corpus: CorpusConfig
    labels: LabelsConfig | None = None
    views: ViewsConfig = ViewsConfig()
    encoder: EncoderConfig
    method: MethodConfig
    memory: MemoryConfig = MemoryConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: AnyEvaluation | None = None
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        clustered = isinstance(self.method, SSPSConfig) and self.method.sampling in ("cluster", "centroid")
        if self.memory.clustering == "overlapped" and not clustered:
            raise ValueError(
                "memory.clustering=overlapped needs a method that clusters (ssps, sampling cluster or centroid); "
                "leave it out"
            )
        workers, batch = self.ray.workers, self.training.batch
        if batch % workers:
            raise ValueError(f"training.batch={batch} is not divisible by ray.workers={workers}; change one of them")
        learns = isinstance(self.method, tuple(_LEARNERS)) or (
            isinstance(self.method, CLARConfig) and self.method.labels != "none"
        )
        if learns and self.labels is None:
            raise ValueError(f"method.name={self.method.name}: learns from labels; name a split in labels.split")
        if isinstance(self.method, SemiConfig) and self.labels is not None and batch % (self.labels.ratio * workers):
            raise ValueError(
                f"training.batch={batch} unlabelled clips a step are not divisible by labels.ratio={self.labels.ratio} "
                f"times ray.workers={workers}; change one of them"
            )
        if isinstance(self.method, SSPSConfig) and self.labels is not None:
            raise ValueError("labels: SSPS remembers the whole corpus, not what a split has of it; leave it out")
        if isinstance(self.method, SSPSConfig) and self.training.epoch_steps:
            raise ValueError("training.epoch_steps: SSPS clusters between passes over the corpus; leave it out")
        if isinstance(self.method, SSPSConfig) and self.method.start_epoch >= self.training.epochs:
            raise ValueError(
                f"method.start_epoch={self.method.start_epoch} is not before training.epochs={self.training.epochs}: "
                "SSPS would never start; lower the one or raise the other"
            )
        return self

    @property
    def architecture(self) -> str:
        """The model in one line, for messages about checkpoints that do not fit."""
        encoder: EncoderConfig | None = self.encoder
        parts = []
        while encoder is not None:
            backbone = encoder.backbone
            sizes = ", ".join(f"{name}={value}" for name, value in backbone.model_dump().items() if name != "name")
            parts.append(f"{backbone.name}({sizes}) on {encoder.frontend.name}")
            encoder = encoder.beside
        return f"{self.method.name} over {' and '.join(parts)}"


def located(experiment: Experiment) -> Experiment:
    """The same with absolute paths: Ray's workers have working folders of their own."""
    tree = experiment.model_dump(mode="json")
    absolute = storage.absolute
    tree["run"], tree["corpus"]["uri"] = absolute(tree["run"]), absolute(tree["corpus"]["uri"])
    for stage in (tree["views"]["distort"]["noise"], tree["views"]["distort"]["reverb"]):
        stage["corpus"] = stage["corpus"] and absolute(stage["corpus"])
    if tree["method"].get("start_from"):
        tree["method"]["start_from"] = absolute(tree["method"]["start_from"])
    if tree["evaluation"] is not None:
        places = [key for key in ("corpus", "trials") if key in tree["evaluation"]]
        tree["evaluation"] |= {key: absolute(tree["evaluation"][key]) for key in places}
        if tree["evaluation"].get("as_norm") is not None:
            tree["evaluation"]["as_norm"]["cohort"] = absolute(tree["evaluation"]["as_norm"]["cohort"])
    return Experiment(**tree)


def build_run_encoder(experiment: Experiment, rate: int) -> Encoder:
    """The experiment's encoder, with weights drawn from its seed."""
    torch.manual_seed(draws.fold(experiment.seed, 5) >> 1)
    return build_encoder(experiment.encoder, rate, experiment.training.sync_batchnorm)


def build_method(experiment: Experiment, manifest: Manifest) -> Method:
    """The experiment's method, with weights drawn from its seed: the same on every rank."""
    config, views = experiment.method, experiment.views
    encoder = build_run_encoder(experiment, manifest.rate)
    if isinstance(config, SupervisedConfig):
        return Supervised(config, encoder, views, manifest.speakers)
    if isinstance(config, (*_LEARNERS, CLARConfig)):
        made: Any = CLAR if isinstance(config, CLARConfig) else _LEARNERS[type(config)]
        method: Method = made(config, encoder, views, classes_of(experiment, manifest))
        set_sync(method, experiment.training.sync_batchnorm)
        return method
    over = config.over if isinstance(config, SSPSConfig) else config
    base = _BASES[type(over)](over, encoder, views)
    set_sync(base, experiment.training.sync_batchnorm)
    return SSPS(config, base, views) if isinstance(config, SSPSConfig) else base


def classes_of(experiment: Experiment, manifest: Manifest) -> Classes | None:
    """The classes of the split that the labels are taken from, None without one."""
    if experiment.labels is None:
        return None
    split = split_of(manifest, experiment.corpus.uri, experiment.labels.split)
    return Classes(tuple(each.name for each in split.classes), tuple(each.labelled for each in split.classes))


def class_settings(experiment: Experiment, manifest: Manifest) -> dict[str, Any] | None:
    """Arguments of a `rayssl.memory.classes.memory.ClassMemory`, None for a method without one."""
    config = experiment.method
    if not isinstance(config, USADTMConfig | DASOConfig):
        return None
    classes = classes_of(experiment, manifest)
    assert classes is not None
    if experiment.memory.shards > len(cuts(len(classes.names))) - 1:
        raise ConfigError(
            f"memory.shards={experiment.memory.shards}: a memory of {len(classes.names)} classes has "
            f"{len(cuts(len(classes.names))) - 1} pieces to be shared; set memory.shards to that at the most"
        )
    return {
        "classes": len(classes.names),
        "dim": experiment.encoder.embedding_dim,
        "length": config.queue,
        "window": config.window,
    }


def streams(experiment: Experiment, manifest: Manifest, method: Method) -> tuple[Stream, Stream | None]:
    """The method's own stream and the labelled one, where it has one.

    Raises `CorpusError` for a split that is not there, or a stream that would be empty.
    """
    labels, training = experiment.labels, experiment.training
    how: dict[str, Any] = {
        "split": None if labels is None else labels.split,
        "class_aware": labels is not None and labels.class_aware,
    }
    uri = experiment.corpus.uri
    own = own_stream(manifest, uri, method.role, batch=training.batch, epoch_steps=training.epoch_steps, **how)
    if not method.labelled_segments(0):
        return own, None
    few = training.batch // (1 if labels is None else labels.ratio)
    return own, labelled_stream(manifest, uri, batch=few, epoch_steps=own.epoch_steps, **how)


def begin_from(experiment: Experiment, method: Method) -> str | None:
    """Loads the weights that ``method.start_from`` names, where it does, into the wrapped method; the checkpoint's URI.

    Raises `CheckpointError` where there is none, or one of another architecture.
    """
    config = experiment.method
    if not isinstance(config, SSPSConfig) or config.start_from is None:
        return None
    assert isinstance(method, SSPS)
    return checkpoint.load_weights(method.base, config.start_from, experiment.architecture)


def memory_settings(experiment: Experiment, manifest: Manifest) -> dict[str, Any] | None:
    """Arguments of a `rayssl.memory.utterances.memory.UtteranceMemory`, None for a method without a memory."""
    config = experiment.method
    if not isinstance(config, SSPSConfig):
        return None
    memory, batch = experiment.memory, experiment.training.batch
    most = len(cuts(manifest.rows)) - 1
    if memory.shards > most:
        raise ConfigError(
            f"memory.shards={memory.shards}: a memory of {manifest.rows} utterances has {most} pieces to be shared; "
            f"set memory.shards to {most} at the most"
        )
    # before the first clustering: the last rows of an epoch are left out, but not of a pass that fills the memory
    whole = config.references == "fill" or config.start_from is not None
    seen = manifest.rows - (0 if whole else manifest.rows % batch)
    if config.sampling == "speaker" and not (manifest.speakers and manifest.recordings):
        raise ConfigError(f"method.sampling=speaker: {experiment.corpus.uri} has no labels of speaker and recording")
    if config.sampling in ("cluster", "centroid") and not config.neighbours < config.clusters <= seen:
        raise ConfigError(
            f"method.clusters={config.clusters} must be above method.neighbours={config.neighbours} and at most the "
            f"{seen} of {manifest.rows} utterances of {experiment.corpus.uri} in an epoch of batches of {batch}"
        )
    dim = experiment.encoder.embedding_dim
    if config.sampling == "centroid" and config.over.positive_dim(dim) != dim:
        raise ConfigError(
            f"method.sampling=centroid: centroids have the encoder's {dim} dimensions, positives of {config.over.name} "
            f"{config.over.positive_dim(dim)}; leave out its projector, or sample otherwise"
        )
    return {
        "utterances": manifest.rows,
        "reference_dim": dim,
        "positive_dim": config.over.positive_dim(dim),
        "queue": config.queue or manifest.rows,
        "clusters": max(1, config.clusters),
        "neighbours": config.neighbours,
        "sampling": config.sampling,
        "iterations": config.iterations,
        "kmeans": config.kmeans,
        "seed": experiment.seed,
        "skip_empty": config.skip_empty,
        "whiten": config.whiten,
        "warm_start": config.warm_start,
        "overlapped": memory.clustering == "overlapped",
        "device": "cuda" if memory.gpus else "cpu",
        "reference_dtype": "float16" if memory.half else "float32",
        "positive_dtype": "float16" if memory.half else "float32",
        "threads": memory.threads or None,
    }


def describe_memory(settings: dict[str, Any], config: MemoryConfig) -> str:
    """One line: how many bytes of memory the actors need."""
    index, store = bytes_needed(MemorySettings(**settings), config.shards)
    if config.shards == 1:
        return f"memory: {_size(index + store)} in one actor"
    return f"memory: {config.shards} shards of {_size(store)}, and an index of {_size(index)}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{count / 1e6:.1f} MB"
