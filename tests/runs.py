"""A corpus of a few short tones, and training loops over it without Ray: what the tests of training run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rayssl.data import decode, shards
from rayssl.data import labels as splitting
from rayssl.data.labels import SplitConfig
from rayssl.data.shards import Manifest
from rayssl.experiment import local
from rayssl.experiment.build import build_loop, build_method
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import Job, resolve
from rayssl.experiment.local import LocalContext
from rayssl.memory.pieces import Kind
from rayssl.methods.base import Batch, JobFacts, Method, View, Views
from rayssl.progress import open_screen
from rayssl.schema import override, parse
from rayssl.training import checkpoint, pieces
from rayssl.training.context import InProcessClasses, InProcessMemory
from rayssl.training.loop import Loop
from rayssl.training.metrics import RunLog, read_metrics
from rayssl.training.trackers.base import Tracker
from rayssl.views.recipes import ViewsConfig

RATE = 16000
VIEWS: dict[str, Any] = {
    "segment_s": 0.2,
    "reference_s": 0.3,
    "distort": {"noise": {"clips": 2, "clip_s": 0.4}, "reverb": {"rooms": 4, "length_s": 0.05}},
}
ENCODER: dict[str, Any] = {
    "frontend": {"n_mels": 20},
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
SSPS_METHOD: dict[str, Any] = {
    "name": "ssps",
    "over": {"name": "simclr", "temperature": 0.2},
    "start_epoch": 1,
    "clusters": 4,
    "neighbours": 1,
}
DINO_METHOD: dict[str, Any] = {
    "name": "dino",
    "locals": 2,
    "local_s": 0.1,
    "head": {"hidden": [12], "bottleneck": 6, "prototypes": 10},
    "student_temperature": 0.5,
    "teacher_temperature": 0.2,
    "teacher_momentum": 0.8,
    "centre_momentum": 0.5,
}
# queues that go round within three epochs of three or four batches of eight, and start in the second
MOCO_METHOD: dict[str, Any] = {"name": "moco", "temperature": 0.5, "queue": 20, "momentum": 0.8}
SWAV_METHOD: dict[str, Any] = {
    "name": "swav",
    "projector": {"sizes": [12, 8]},
    "prototypes": 10,
    "temperature": 0.5,
    "epsilon": 0.5,
    "queue": 20,
    "queue_start_epoch": 1,
}
VICREG_METHOD: dict[str, Any] = {
    "name": "vicreg",
    "projector": {"sizes": [12, 8], "last_bias": False},
    "invariance": 1.0,
    "variance": 1.0,
    "covariance": 0.04,
}
SDPN_METHOD: dict[str, Any] = {
    "name": "sdpn",
    "locals": 2,
    "local_s": 0.1,
    "head": {"hidden": [12], "bottleneck": 6, "prototypes": 10},
    "student_temperature": 0.5,
    "teacher_temperature": 0.2,
    "dimension_weight": 0.05,
    "teacher_momentum": 0.8,
}
# rounds of two epochs; in the second one labels are left out and corrected
PSEUDO_METHOD: dict[str, Any] = {
    "name": "pseudo_speakers",
    "clusters": 4,
    "round_epochs": 2,
    "gate_after": 1,
    "correct_after": 1,
    "correct_above": 0.3,
    "scale": 5.0,
}
# windows, a warm-up and queues that end within nine steps; few clips are ever sure of their class
DASO_METHOD: dict[str, Any] = {
    "name": "daso",
    "threshold": 0.3,
    "ema": 0.8,
    "queue": 3,
    "warmup_steps": 4,
    "window": 2,
    "prototype_temperature": 0.2,
    "adjust": 0.5,
}
USADTM_METHOD: dict[str, Any] = {
    "name": "usadtm",
    "threshold": 0.3,
    "ema": 0.8,
    "queue": 3,
    "temperature": 0.2,
    "aggregation": 0.3,
}
SPLITS: dict[str, Any] = {"few": {"labelled": {"per_class": 2}}}
# an epoch of three steps is no pass over either stream
FEW = (
    "labels={split: few, ratio: 2}",
    "training.epoch_steps=3",
    "views.weak.time_shift.p=0.5",
    "views.strong.fade.p=1",
)


def tone(number: int, speaker: int, samples: int) -> np.ndarray:
    time = np.arange(samples) / RATE
    noise = np.random.default_rng(number).normal(0, 0.02, samples)
    return decode.quantise((0.3 * np.sin(2 * np.pi * (200 + 300 * speaker) * time) + noise).astype(np.float32))


def write_corpus(
    folder: Path,
    sizes: Sequence[int] = (9, 14, 4, 7),
    *,
    speakers: int = 4,
    corrupt: int | None = None,
    splits: dict[str, Any] | None = None,
) -> Manifest:
    """One shard for each of ``sizes``; utterance k is of speaker k % speakers and lasts 0.25 to 0.5 s.

    The audio of utterance ``corrupt`` is no FLAC. With ``speakers`` 0 nothing is labelled. With ``splits`` speakers are
    classes, too.
    """
    parts, first = [], 0
    for index, size in enumerate(sizes):
        numbers = range(first, first + size)
        pcm = [tone(k, k % max(1, speakers), 4000 + 500 * (k % 9)) for k in numbers]
        audio = [decode.encode(samples, "flac") for samples in pcm]
        columns = {
            "name": [f"utt{k:03d}" for k in numbers],
            "audio": [b"noise" if k == corrupt else data for k, data in zip(numbers, audio, strict=True)],
            "samples": [len(samples) for samples in pcm],
            "speaker": [k % speakers if speakers else -1 for k in numbers],
            "recording": [k % (2 * speakers) if speakers else -1 for k in numbers],
            "label": [k % speakers if splits else -1 for k in numbers],
        }
        parts.append(shards.write_shard(str(folder), (index,), columns))
        first += size
    names = {
        "speaker": [f"s{k}" for k in range(speakers)],
        "recording": [f"r{k}" for k in range(2 * speakers)],
        "label": [f"s{k}" for k in range(speakers)] if splits else [],
    }
    shards.write_labels(str(folder), names)
    wanted = {name: SplitConfig.model_validate(config) for name, config in (splits or {}).items()}
    made = splitting.make(wanted, str(folder), shards.number(parts), names["label"])
    return shards.write_manifest(str(folder), parts, format="flac", names=names, rejected=0, settings={}, splits=made)


def experiment(run: Path, corpus: Path, *overrides: str, method: dict[str, Any] | None = None) -> Experiment:
    tree: dict[str, Any] = {
        "run": str(run),
        "seed": 3,
        "corpus": {"uri": str(corpus), "unit_rows": 10},
        "views": VIEWS,
        "encoder": ENCODER,
        "method": method or SSPS_METHOD,
        "training": {"epochs": 3, "batch": 8, "log_every": 1},
        "ray": {"workers": 1},
    }
    return parse(Experiment, override(tree, list(overrides)), "tests/runs.py")


def write_run(settings: Experiment, step: int = 4) -> Path:
    """A run's folder with one checkpoint of weights that no training has touched, but for the statistics of norms."""
    method = build_method(resolve(settings))
    generator = torch.Generator().manual_seed(step)
    for name, value in method.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand(value.shape, generator=generator))
    run = Path(settings.run)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(json.dumps(settings.model_dump(mode="json")))  # JSON is YAML
    state = {"method": method.state_dict(), "encoder_prefix": method.encoder_prefix}
    checkpoint.save(str(run), checkpoint.Meta(step, 1, 0, settings.architecture, {"loss": 1.0}), state, None)
    return run


class Quiet(LocalContext):
    """Says nothing and draws no events; ``wrapper`` in place of what averages gradients, if given."""

    def __init__(self, job: Job, wrapper: Callable[[nn.Module], nn.Module] | None = None) -> None:
        super().__init__(job, screen=open_screen("quiet"))
        self._wrapper, self._run = wrapper, job.run

    def wrap(self, method: Method) -> nn.Module:
        return super().wrap(method) if self._wrapper is None else self._wrapper(method)

    def open_log(self, resume_step: int | None) -> Tracker | None:
        return RunLog(self._run, resume_step, tensorboard=False) if self.rank == 0 else None


def build(settings: Experiment, *, wrap: Any = None) -> Loop:
    """The loop of this rank, gone back to the run's last checkpoint where there is one."""
    job = resolve(settings)
    return build_loop(job, Quiet(job, wrap))


def batches(settings: Experiment, loop: Loop) -> Iterator[dict[str, Any]]:
    """This rank's batches from the loop's cursor on."""
    context = loop.state.context
    return local.batches(resolve(settings), loop.cursor, rank=context.rank, world=context.world)


class Interrupted(Exception):
    """What ends a run in the middle."""


def cut_off(rows: Iterator[dict[str, Any]], after: int) -> Iterator[dict[str, Any]]:
    for count, row in enumerate(rows):
        if count == after:
            raise Interrupted
        yield row
    raise Interrupted


def fit(settings: Experiment, stop: int | None = None) -> Loop:
    """One life of a run: from its last checkpoint to its end, or until the batches break off after ``stop``."""
    loop = build(settings)
    rows = batches(settings, loop)
    try:
        if stop is None:
            loop.fit(rows)
        else:
            with suppress(Interrupted):
                loop.fit(cut_off(rows, stop))
                raise AssertionError("nothing interrupted it")
    finally:
        assert loop.state.log is not None
        loop.state.log.close()
    return loop


def remembered(loop: Loop) -> dict[str, np.ndarray]:
    """The arrays of a loop's memory in this process, none without one."""
    if loop.state.prototypes is not None:
        assert isinstance(loop.state.prototypes, InProcessClasses)
        return loop.state.prototypes.memory.state_dict()
    memory = loop.state.memory
    assert memory is None or isinstance(memory, InProcessMemory)
    return {} if memory is None else memory.memory.state_dict()


def memory_of(loaded: checkpoint.Loaded) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint's memory, positives oldest first."""
    return arrays_of(loaded.uri, loaded.memory)


def arrays_of(folder: str, records: pieces.Records) -> dict[str, np.ndarray]:
    """A memory's arrays, as `UtteranceMemory.state_dict` has them, from its files, however many stores wrote them."""
    index = pieces.read_index(folder, records)
    read, parts = pieces.reader(folder, records), {}
    kinds: tuple[Kind, ...] = ("references", "positives")
    for kind in kinds:
        rows = [(piece.end - piece.first, piece.arrays["rows"]) for piece in read(kind, 0, 1 << 60)]
        whole = kind == "references"  # what was never written is no part of a file; slots are used in their order
        parts[kind] = np.concatenate([np.pad(r, ((0, (n - len(r)) * whole), (0, 0))) for n, r in rows])
    by_age = np.argsort(index.pop("positives.ages"))
    index["positives.ids"] = index["positives.ids"][by_age]
    return {**index, "references.rows": parts["references"], "positives.rows": parts["positives"][by_age]}


def content(loop: Loop) -> dict[str, Any]:
    assert loop.state.checkpointable is not None
    return {
        "weights": loop.state.method.state_dict(),
        "optimiser": loop.optimiser.state_dict(),
        "memory": {name: torch.from_numpy(array) for name, array in remembered(loop).items()},
    }


def records(run: str, kind: str) -> list[dict[str, Any]]:
    """The run's metrics of one kind, without what the clock decides."""
    timed = ("time", "seconds", "utterances_per_s", "data_wait", "memory_wait")
    lines = read_metrics(f"{run}/metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] == kind]


def views_config() -> ViewsConfig:
    return ViewsConfig.model_validate(VIEWS)


def facts(**changes: Any) -> JobFacts:
    """What a method is told of a small job."""
    return JobFacts(
        **{
            "corpus": "c",
            "utterances": 34,
            "speakers": 4,
            "recordings": 8,
            "views": views_config(),
            "embedding_dim": 16,
            "batch": 8,
            **changes,
        }
    )


def random_views(names: Sequence[str], size: int = 6, seed: int = 0) -> Views:
    """Noise as segments of 0.2 s, a ``reference`` of 0.3 s."""
    generator = torch.Generator().manual_seed(seed)
    views = {}
    for number, name in enumerate(names):
        samples = 4800 if name == "reference" else 3200
        wave = 0.1 * torch.randn(size, samples, generator=generator)
        keys = None if name == "reference" else torch.arange(size) + 100 * number
        views[name] = View(wave, keys)
    return views


def batch_of(size: int = 6, speakers: Sequence[int] | None = None, epoch: int = 1) -> Batch:
    unknown = torch.full((size,), -1)
    known = unknown if speakers is None else torch.tensor(speakers)
    return Batch(torch.arange(size), known, unknown, unknown, epoch, unknown)


def write_trials(path: Path, utterances: int) -> None:
    """All pairs of the first ``utterances`` of `write_corpus`; every fourth one is of the same speaker."""
    pairs = [(a, b) for a in range(utterances) for b in range(a)]
    path.write_text("".join(f"{int((a - b) % 4 == 0)} utt{a:03d} utt{b:03d}\n" for a, b in pairs))
