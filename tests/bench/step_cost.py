"""What the memory actor adds to a step of SSPS: the same steps with it and with a memory that costs nothing, in turn.

    python -m tests.bench.step_cost [--batch 256] [--dim 512] [--queue 100000] [--steps 10] [--rounds 5] [--json]

One rank with as many threads as there are cores, so that the actor has no core to itself. Both forms compute the
reference; the one without an actor hands out rows made beforehand and forgets what it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayssl import schema
from rayssl.batches.plan import Cursor
from rayssl.experiment.build import build_method
from rayssl.experiment.config import Experiment, MemoryConfig
from rayssl.experiment.job import Job, job_of
from rayssl.experiment.local import LocalContext
from rayssl.memory.utterances.exchange import RecallArrays, RememberArrays
from rayssl.training.context import Answer, MemoryClient
from rayssl.training.loop import Loop
from rayssl.training.state import TrainState
from rayssl.views.modules import build_recipes

CONFIG = Path(__file__).parents[2] / "configs" / "gsc_ssps_simclr.yaml"
RATE = 16000


class Free:
    """Recalls rows that were made beforehand and forgets what it is told: the least that a memory can cost."""

    def __init__(self, batch: int, dim: int) -> None:
        self.rows = np.random.default_rng(0).standard_normal((batch, dim)).astype(np.float32)

    def exchange(self, remember: Sequence[RememberArrays], ids: np.ndarray | None, epoch: int) -> Answer:
        answer: Future[RecallArrays | None] = Future()
        answer.set_result(None if ids is None else RecallArrays(self.rows, np.ones(len(ids), dtype=bool), ids))
        return answer

    def refresh(self, epoch: int) -> dict[str, float]:
        return {}


def experiment(arguments: argparse.Namespace, run: str) -> Experiment:
    over = [
        f"run={run}",
        f"encoder.backbone.embedding_dim={arguments.dim}",
        f"method.queue={arguments.queue}",
        "method.sampling=cluster",
        f"method.clusters={arguments.queue // 10}",
        "method.merged_from=0",
        "method.references=rolling",
        "method.whiten=false",
        "method.start_epoch=1",
        f"training.batch={arguments.batch}",
        "training.log_every=1000000",
        "ray.workers=1",
    ]
    tree = schema.override(schema.load_yaml(CONFIG.read_text(), str(CONFIG)), over)
    return schema.parse(Experiment, tree, str(CONFIG))


def batches(settings: Experiment, count: int, utterances: int, segments: Any) -> list[dict[str, Any]]:
    """Noise under the ids of an epoch; what it sounds like does not matter to a clock."""
    random = np.random.default_rng(1)
    order = random.permutation(utterances)
    size = settings.training.batch
    made = []
    for step in range(count):
        ids = order[np.arange(step * size, (step + 1) * size) % utterances]
        row: dict[str, Any] = {"id": ids, "epoch": 1, "step": step, "rank": 0, "fill": False}
        row |= {name: (ids % 5000).astype(np.int32) for name in ("speaker", "recording", "label", "truth")}
        row["turn"] = np.zeros(size, np.int32)
        for segment in segments:
            samples = round(segment.seconds * RATE)
            row[segment.name] = random.integers(-3000, 3000, (size, samples), dtype=np.int16)
        made.append(row)
    return made


def endless(rows: list[dict[str, Any]], order: np.ndarray, batch: int) -> Iterator[dict[str, Any]]:
    """The batches of one epoch after the other, over and over: ``rows`` under the ids of ``order``."""
    for step in count():
        ids = order[np.arange(step * batch, (step + 1) * batch) % len(order)]
        yield {**rows[step % len(rows)], "step": step, "id": ids}


def loop(job: Job, memory: MemoryClient, steps: int) -> Loop:
    settings, method = job.experiment, build_method(job)
    method.train()
    made = Loop(
        TrainState(
            config=settings.training,
            run=settings.run,
            seed=settings.seed,
            steps_per_epoch=steps,
            architecture=settings.architecture,
            method=method,
            wrapped=method,
            recipes=build_recipes(settings.views, RATE, settings.seed),
            segments=job.segments,
            context=LocalContext(job),
            memory=memory,
        )
    )
    made.cursor, made.step = Cursor(1, 0), steps
    return made


def filled(client: MemoryClient, arguments: argparse.Namespace, utterances: int) -> None:
    """A row of each utterance in the memory, and one clustering."""
    random = np.random.default_rng(2)
    centres = random.standard_normal((arguments.queue // 10, arguments.dim)).astype(np.float32)
    for start in range(0, utterances, 4096):
        ids = np.arange(start, min(start + 4096, utterances))
        rows = centres[ids % len(centres)] + random.standard_normal((len(ids), arguments.dim)).astype(np.float32)
        client.exchange([RememberArrays(ids, rows, rows)], None, 0).result()
    print(f"clustered in {client.refresh(1)['seconds']:.1f} s", flush=True)


class Corpus:
    """As much of a manifest as a method asks for."""

    def __init__(self, rows: int) -> None:
        self.rows, self.speakers, self.recordings, self.rate = rows, 5000, 5000, RATE
        self.format, self.nights, self.mel = "flac", None, None


def measure(arguments: argparse.Namespace, run: str) -> dict[str, Any]:
    from rayssl.runtime.memory.actor import ActorMemory

    settings = experiment(arguments, run)
    manifest: Any = Corpus(arguments.queue)
    job = job_of(settings, manifest)
    assert job.utterances is not None
    actor = ActorMemory(job.utterances, MemoryConfig(), "b")
    filled(actor, arguments, arguments.queue)
    steps = (arguments.rounds + 1) * arguments.steps
    loops = {
        "actor": loop(job, actor, steps + 1),
        "free": loop(job, Free(arguments.batch, arguments.dim), steps + 1),
    }
    rows = batches(settings, 4, arguments.queue, list(job.segments.own[1]))
    order = np.random.default_rng(3).permutation(arguments.queue)
    streams = {name: endless(rows, order, arguments.batch) for name in loops}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(arguments.rounds + 1):
        for name in ("actor", "free") if round_ % 2 else ("free", "actor"):
            began = time.perf_counter()
            for _ in range(arguments.steps):
                raw = loops[name]._next(streams[name])
                assert raw is not None
                loops[name]._train_step(raw, streams[name])
            if round_:  # the first warms up
                seconds[name].append((time.perf_counter() - began) / arguments.steps)
            print(f"round {round_} {name}: {(time.perf_counter() - began) / arguments.steps:.3f} s a step", flush=True)
    ratios = [a / b for a, b in zip(seconds["actor"], seconds["free"], strict=True)]
    figures = {name: statistics.median(values) for name, values in seconds.items()}
    return {**vars(arguments), **figures, "ratio": statistics.median(ratios), "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings = (("batch", 256), ("dim", 512), ("queue", 100_000), ("steps", 10), ("rounds", 5))
    for name, value in settings:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    from rayssl.runtime import cluster

    cluster.connect(2)
    try:
        with tempfile.TemporaryDirectory() as run:
            figures = measure(arguments, run)
    finally:
        cluster.disconnect()
    print(f"with the actor {figures['actor']:.3f} s a step, free {figures['free']:.3f} s, ratio {figures['ratio']:.3f}")
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
