"""What a trial runs: a training, a preparation, an embedding or a sweep that takes half a minute undisturbed."""

from __future__ import annotations

import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from rayssl import storage
from rayssl.training import checkpoint
from tests.runs import experiment, memory_of, write_run
from tests.runs import write_corpus as write_tones
from tests.small_experiment import ROWS, tree, write_corpus
from tests.sweeps.plans import sweep_tree

CLI = (sys.executable, "-m", "rayssl.cli")
EPOCH_STEPS = 12
EMBEDDED = (16,) * 150  # shards of a corpus to embed


@dataclass(frozen=True)
class Work:
    """A verb and its configuration. ``name`` is the configuration's, and that of its reference run."""

    name: str

    def write(self, home: str) -> None:
        """Writes the corpus and the configuration below the folder or URI ``home``, unless they are there."""
        raise NotImplementedError

    def command(self, home: str, run: str) -> list[str]:
        """What a user types; all that it writes lies below ``run``."""
        raise NotImplementedError

    def done(self, run: str) -> int:
        """How much of the work is done, in pieces that depend on the verb."""
        raise NotImplementedError

    def differences(self, run: str, reference: str) -> list[str]:
        """What of ``run`` has other bits than in ``reference``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Training(Work):
    """SSPS over SimCLR on two workers, memory.sync=strict, with a line of metrics for every step.

    ``overrides`` are those of the command line.
    """

    epochs: int = 8
    every_steps: int = 4
    overrides: tuple[str, ...] = ()
    rows: int = EPOCH_STEPS * 16
    batch: int = 16
    share: float = 1.0  # of the steps: a fault comes within this first part

    @property
    def steps(self) -> int:
        """The steps of the whole training."""
        return self.epochs * (self.rows // self.batch)

    def write(self, home: str) -> None:
        corpus = storage.join(home, f"corpus-{self.rows}")
        if not storage.exists(storage.join(corpus, "manifest.json")):
            write_corpus(corpus, self.rows)
        values = tree(home)
        values["corpus"]["uri"] = values["evaluation"]["corpus"] = corpus
        values["training"] |= {"epochs": self.epochs, "log_every": 1, "batch": self.batch}
        values["training"]["checkpoints"] = {"every_steps": self.every_steps, "keep": 2}
        write_yaml(home, self.name, values)

    def command(self, home: str, run: str) -> list[str]:
        told = ["--log", "json"] if storage.is_remote(run) else []  # a trial follows the steps in what is printed
        return [*CLI, "train", storage.join(home, f"{self.name}.yaml"), f"run={run}", *self.overrides, *told]

    def done(self, run: str) -> int:
        return max(checkpoint.steps(run), default=0)

    def differences(self, run: str, reference: str) -> list[str]:
        return checkpoints_differ(run, reference)


@dataclass(frozen=True)
class Preparing(Work):
    """A corpus of synthetic speech."""

    speakers: int = 150

    def write(self, home: str) -> None:
        source = {"name": "synthetic", "speakers": self.speakers, "recordings": 2, "utterances": 4, "seconds": 2.0}
        values = {"corpora": {"train": {"source": source, "out": "unset", "shard_utterances": 16}}}
        write_yaml(home, self.name, values)

    def command(self, home: str, run: str) -> list[str]:
        return [*CLI, "prepare", f"{home}/{self.name}.yaml", f"corpora.train.out={run}/train", "--quiet"]

    def done(self, run: str) -> int:
        return len(tables(run))

    def differences(self, run: str, reference: str) -> list[str]:
        return tables_differ(run, reference)


@dataclass(frozen=True)
class Embedding(Work):
    """The embeddings of a corpus of many small shards."""

    def write(self, home: str) -> None:
        if storage.exists(storage.join(home, "embedded", "manifest.json")):
            return
        with tempfile.TemporaryDirectory(prefix="rayssl-faults-") as made:
            write_tones(Path(made) / "embedded", EMBEDDED)
            write_run(experiment(Path(made) / "encoder", Path(made) / "embedded"))
            for file in (path for path in Path(made).rglob("*") if path.is_file()):
                storage.write_bytes(storage.join(home, str(file.relative_to(made))), file.read_bytes())

    def command(self, home: str, run: str) -> list[str]:
        return [*CLI, "embed", f"{home}/encoder", f"{home}/embedded", run, "--actors", "2"]

    def done(self, run: str) -> int:
        return len(tables(run))

    def differences(self, run: str, reference: str) -> list[str]:
        return tables_differ(run, reference)


@dataclass(frozen=True)
class Sweeping(Work):
    """Two short trials of a grid, one after the other, none stopped early."""

    clusters: tuple[int, ...] = (4, 8)

    def write(self, home: str) -> None:
        corpus = storage.join(home, "corpus")
        if not storage.exists(storage.join(corpus, "manifest.json")):
            write_corpus(corpus, ROWS)
        base = tree(home)
        base["training"] |= {"epochs": 4, "log_every": 1}
        write_yaml(home, "experiment", base)
        space = {"method.clusters": {"choices": list(self.clusters)}}
        plan = sweep_tree(
            Path("unset"), space=space, search="grid", trials=None, scheduler={"name": "fifo"}, concurrent=1
        )
        plan["overrides"] = ["evaluation.resamples=0"]
        write_yaml(home, self.name, plan)

    def command(self, home: str, run: str) -> list[str]:
        return [*CLI, "sweep", f"{home}/{self.name}.yaml", f"sweep={run}"]

    def done(self, run: str) -> int:
        found = storage.list_files(storage.join(run, "trials"), suffixes=("metrics.jsonl",))
        return sum(storage.read_bytes(uri).count(b'"kind": "step"') for uri in found)

    def differences(self, run: str, reference: str) -> list[str]:
        found = []
        for index in range(len(self.clusters)):
            mine, other = (f"{uri}/trials/{index:04d}" for uri in (run, reference))
            found += [f"trial {index}: {each}" for each in checkpoints_differ(mine, other)]
        return found


def write_yaml(home: str, name: str, values: dict[str, Any]) -> None:
    """``values`` as the configuration ``name``."""
    storage.write_text(storage.join(home, f"{name}.yaml"), yaml.safe_dump(values))


def checkpoints_differ(run: str, reference: str) -> list[str]:
    """Names of the tensors and the memory's arrays of the last checkpoints that do not have the same bits."""
    mine, other = (checkpoint.load(checkpoint.locate(uri, "last")) for uri in (run, reference))
    if mine.meta.step != other.meta.step:
        return [f"step {mine.meta.step} instead of {other.meta.step}"]
    left, right = ({**tensors(each.state), **(memory_of(each) if each.memory else {})} for each in (mine, other))
    found = sorted(left.keys() ^ right.keys())
    return found + [name for name in sorted(left.keys() & right.keys()) if not same(left[name], right[name])]


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors inside a state, by the keys that lead to them."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {inner: leaf for key, item in items for inner, leaf in tensors(item, f"{name}.{key}".lstrip(".")).items()}


def same(left: Any, right: Any) -> bool:
    """Whether two tensors or two arrays have the same type, shape and bits."""
    one, other = (each.numpy() if isinstance(each, torch.Tensor) else np.asarray(each) for each in (left, right))
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def tables(run: str) -> dict[str, str]:
    """The URIs of the Parquet files below a folder or URI, by their places there."""
    return {uri.removeprefix(run): uri for uri in storage.list_files(run, suffixes=(".parquet",))}


def tables_differ(mine: str, other: str) -> list[str]:
    """Places of the Parquet files below two folders that are in one alone or hold something else."""
    left, right = tables(mine), tables(other)
    found, both = sorted(left.keys() ^ right.keys()), sorted(left.keys() & right.keys())
    return found + [name for name in both if not _table(left[name]).equals(_table(right[name]))]


def _table(uri: str) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)))
