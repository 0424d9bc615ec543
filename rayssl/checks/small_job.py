"""A small job to test a component in: a corpus of tones, a small network, and a few steps of the real loop."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayssl import collectives
from rayssl.checks.small_nights import write_nights
from rayssl.data import decode, labels, shards
from rayssl.data.labels import SplitConfig
from rayssl.errors import described
from rayssl.experiment.build import build_loop
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.experiment.local import LocalContext, batches
from rayssl.models.nightmel import NightMelConfig
from rayssl.progress import open_screen
from rayssl.schema import override, parse
from rayssl.training.loop import Loop
from rayssl.training.stopping import Stopping
from rayssl.training.trackers.base import Tracker

ROWS, BATCH, CLASSES = 36, 8, 4  # an epoch has four steps, and leaves out four utterances
_PATIENCE_S = 120.0

ENCODER: dict[str, Any] = {
    "frontend": {"name": "logmel", "n_mels": 20},
    "backbone": {
        "name": "ecapa",
        "channels": 16,
        "scale": 2,
        "embedding_dim": 16,
        "mfa_channels": 24,
        "attention_channels": 8,
        "se_channels": 8,
    },
}
METHOD: dict[str, Any] = {"name": "simclr", "temperature": 0.5, "projector": {"sizes": [12, 8]}}
VIEWS: dict[str, Any] = {
    "segment_s": 0.3,
    "reference_s": 0.4,
    "distort": {"noise": {"clips": 2, "clip_s": 0.5}, "reverb": {"rooms": 4, "length_s": 0.05}},
    "weak": {"time_shift": {"p": 0.5}},
    "strong": {"fade": {"p": 1.0}},
    "night": {"strong": {"noise": {"kinds": ["white", "hum"], "clips": 2, "clip_s": 5}}},
}


@dataclass
class Trace:
    """The state after some steps, and the losses of these steps.

    They are arrays, since tensors would share memory with a process that ends. ``gradients`` are those of the first
    step whose gradients are not all zero.
    """

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    optimiser: dict[str, np.ndarray] = field(default_factory=dict)
    memory: dict[str, np.ndarray] = field(default_factory=dict)


class SmallJob:
    """Trains an experiment for a few steps in ``folder``, on a corpus of tones that are long enough for its segments.

    A method that learns from sequences gets a corpus of short nights instead, as pictures if the front end takes them.

    The run, corpus, labels and training of ``tree`` are replaced by small ones.
    """

    def __init__(self, folder: str, tree: Mapping[str, Any]) -> None:
        self.folder = folder
        self._tree = _small(dict(tree), folder)
        self._runs = 0
        settings = parse(Experiment, self._tree, "check")
        if settings.method.sequences:
            frontend = settings.encoder.frontend
            write_nights(f"{folder}/corpus", frontend.mel if isinstance(frontend, NightMelConfig) else None)
        else:
            write_tones(f"{folder}/corpus", _longest(settings))

    def experiment(self, *overrides: str, run: str | None = None) -> Experiment:
        """The experiment with ``overrides``, in the folder ``run`` (default: a new one)."""
        self._runs += 1
        where = run or f"{self.folder}/run-{self._runs}"
        return parse(Experiment, override(self._tree, [f"run={where}", *overrides]), "check")

    def train(self, steps: int, *overrides: str, run: str | None = None) -> Trace:
        """Trains one rank up to optimiser step ``steps``, from the last checkpoint of ``run`` if there is one."""
        return train(self.experiment(*overrides, run=run), steps)

    def train_ranks(self, steps: int, *overrides: str, world: int = 2) -> list[Trace]:
        """The same with ``world`` processes that share the global batch."""
        return in_ranks(train, self.experiment(f"ray.workers={world}", *overrides), steps, world=world)


def train(experiment: Experiment, steps: int) -> Trace:
    """Trains up to optimiser step ``steps`` and saves. In a process group, this is one of its ranks."""
    torch.set_num_threads(1)
    job = resolve(experiment)
    context = _QuietContext(job)
    loop = build_loop(job, context)
    loop.state.stopping = _After(loop, steps)
    trace = Trace()

    def first(*_: object) -> None:
        if not any(gradient.any() for gradient in trace.gradients.values()):
            found = {name: p.grad for name, p in loop.state.method.named_parameters() if p.grad is not None}
            trace.gradients = {name: _array(gradient) for name, gradient in found.items()}

    loop.optimiser.register_step_pre_hook(first)
    loop.fit(batches(job, loop.cursor, rank=context.rank, world=context.world))
    trace.losses = context.losses
    trace.weights = {name: _array(value) for name, value in loop.state.method.state_dict().items()}
    state = loop.optimiser.state_dict()["state"]
    trace.optimiser = {
        f"{number}.{name}": _array(value)
        for number, held in state.items()
        for name, value in held.items()
        if isinstance(value, torch.Tensor)
    }
    memory: Any = loop.state.memory or loop.state.prototypes
    if memory is not None:
        trace.memory = dict(memory.memory.state_dict())
        trace.memory.pop("counters", None)  # only rank 0 reads them, which resets them
    return trace


def _array(value: torch.Tensor) -> np.ndarray:
    copied: np.ndarray = value.detach().cpu().numpy().copy()
    return copied


class _QuietContext(LocalContext):
    """A context that prints nothing and collects the loss of every step."""

    def __init__(self, job: Any) -> None:
        super().__init__(job, screen=open_screen("quiet"))
        self.losses: list[float] = []

    def open_log(self, resume_step: int | None) -> Tracker:
        """A tracker that collects the losses and writes no file."""
        return _Losses(self.losses)


class _Losses(Tracker):
    def __init__(self, losses: list[float]) -> None:
        self._losses = losses

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Takes the loss of each step."""
        if kind == "step":
            self._losses.append(float(values["loss"]))


class _After(Stopping):
    """Stops every rank after ``steps`` optimiser steps. Ranks need not communicate for that."""

    def __init__(self, loop: Loop, steps: int) -> None:
        super().__init__()
        self._loop, self._steps = loop, steps

    def agreed(self) -> bool:
        """True before the last step."""
        return self._loop.step + 1 >= self._steps


def in_ranks(function: Callable[..., Trace], *arguments: Any, world: int) -> list[Trace]:
    """Calls ``function(*arguments)`` in ``world`` processes of one gloo group. Returns the answers in rank order.

    Raises RuntimeError with the error of the first rank that fails, or if the ranks wait for each other for ever.
    """
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    with tempfile.TemporaryDirectory(prefix="rayssl-ranks-") as folder:
        try:
            for rank in range(world):
                ours, theirs = context.Pipe()
                work = (rank, world, f"{folder}/store", theirs, function, arguments)
                process = context.Process(target=_serve, args=work, daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
                pipes.append(ours)
            return _collected(pipes)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _serve(
    rank: int, world: int, file: str, pipe: Connection, function: Callable[..., Trace], arguments: tuple[Any, ...]
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        with collectives.process_group(rank, world, file):
            pipe.send(function(*arguments))
    except BaseException as error:
        pipe.send(f"on rank {rank}: {described(error)}")


def _collected(pipes: list[Connection]) -> list[Trace]:
    answers: dict[int, Trace] = {}
    while len(answers) < len(pipes):
        ready = wait([pipe for rank, pipe in enumerate(pipes) if rank not in answers], _PATIENCE_S)
        if not ready:
            raise RuntimeError(f"the ranks gave no answer in {_PATIENCE_S:.0f} s: do all of them gather equally often?")
        for rank, pipe in enumerate(pipes):
            if pipe in ready:
                try:
                    answer = pipe.recv()
                except EOFError:
                    raise RuntimeError(f"the process of rank {rank} died") from None
                if isinstance(answer, str):
                    raise RuntimeError(answer)
                answers[rank] = answer
    return [answers[rank] for rank in range(len(pipes))]


def write_tones(folder: str, seconds: float) -> None:
    """Writes a corpus of `ROWS` tones by `CLASSES` speakers with two recordings each. The speakers are also its labels.

    Utterances last 1 to 1.5 times ``seconds``. The split ``few`` labels three utterances of each class.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    sizes, first, parts = (9, 14, 4, 9), 0, []
    for index, size in enumerate(sizes):
        numbers = range(first, first + size)
        pcm = [_tone(number, seconds) for number in numbers]
        columns: dict[str, list[Any]] = {
            "name": [f"tone{number:03d}" for number in numbers],
            "audio": [decode.encode(samples, "pcm16") for samples in pcm],
            "samples": [len(samples) for samples in pcm],
            "speaker": [number % CLASSES for number in numbers],
            "recording": [number % (2 * CLASSES) for number in numbers],
            "label": [number % CLASSES for number in numbers],
        }
        parts.append(shards.write_shard(folder, (index,), columns))
        first += size
    assert first == ROWS
    names = {
        "speaker": [f"s{number}" for number in range(CLASSES)],
        "recording": [f"r{number}" for number in range(2 * CLASSES)],
        "label": [f"s{number}" for number in range(CLASSES)],
    }
    shards.write_labels(folder, names)
    wanted = {"few": SplitConfig.model_validate({"labelled": {"per_class": 3}})}
    made = labels.make(wanted, folder, shards.number(parts), names["label"])
    shards.write_manifest(folder, parts, format="pcm16", names=names, rejected=0, settings={}, splits=made)


def _tone(number: int, seconds: float) -> np.ndarray:
    samples = round(decode.RATE * seconds * (1 + 0.0625 * (number % 9)))
    time = np.arange(samples) / decode.RATE
    noise = np.random.default_rng(number).normal(0, 0.02, samples)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 300 * (number % CLASSES)) * time) + noise
    return decode.quantise(wave.astype(np.float32))


def _longest(settings: Experiment) -> float:
    """The length of the longest segment of the method, in seconds."""
    method, views = settings.method, settings.views
    found = [segment for epoch in (0, 1) for segment in method.segments(views, epoch)]
    found += [segment for epoch in (0, 1) for segment in method.fill_segments(views, epoch)]
    found += method.labelled_segments(views, 0)
    return max(segment.seconds for segment in found)


def _small(tree: dict[str, Any], folder: str) -> dict[str, Any]:
    """``tree`` with the small run, corpus and training of a `SmallJob`.

    The optimiser is SGD with small steps: larger ones amplify rounding. Adam would make a full step even if a gradient
    is only rounding.
    """
    tree.pop("evaluation", None)
    training: dict[str, Any] = {}
    if tree.get("labels"):
        # two streams of different lengths: an epoch is not a pass over one of them
        tree["labels"], training = {"split": "few", "ratio": 2}, {"epoch_steps": 4}
    return tree | {
        "run": f"{folder}/run",
        "seed": 3,
        "corpus": {"uri": f"{folder}/corpus", "unit_rows": 10},
        "ray": {"workers": 1, "gpu": False},
        "training": {
            "epochs": 2,
            "batch": BATCH,
            "log_every": 1,
            "optimiser": {"name": "sgd", "lr": 0.005, "momentum": 0.5, "clip_norm": 1.0},
            "checkpoints": {"every_steps": 3, "keep": 9, "best": None},
            **training,
        },
    }
