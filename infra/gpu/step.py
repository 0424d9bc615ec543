#!/usr/bin/env python3
"""Training steps of the real loop on one GPU: milliseconds, launches, host waits, copies, and the share kernels run.

    python infra/gpu/step.py [--only simclr,ssps,dino] [--steps 15] [--batch 256] [--channels 1024] [--device cuda]
        [--plain] [KEY=VALUE ...]    # of the experiment, for example training.compile=true

After each of them a line of JSON has all figures so far, so that a run that is cut off leaves some. Batches are on the
device before, so that nothing is read. A memory hands out rows that were made beforehand. ECAPA-TDNN, bf16, 2 x 2 s.
The reference of SSPS has 4 s. DINO is that of `configs/voxceleb2_dino.yaml`, but with generated noises and rooms.
`--plain` keeps the layout of a CPU, with the channels not last. The package measured is the `rayssl` of PYTHONPATH with
its own `configs`, so that two trees can be measured in one call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rayssl
from rayssl import schema
from rayssl.batches.plan import Cursor
from rayssl.data.shards import Manifest, Shard
from rayssl.experiment.build import build_loop
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import job_of
from rayssl.experiment.local import LocalContext
from rayssl.memory.utterances.exchange import RecallArrays

CONFIGS = Path(rayssl.__file__).parents[1] / "configs"
GENERATED = ("views.distort.noise={p: 0.5}", "views.distort.reverb={p: 0.5}")  # the recorded ones are not there
RATE, UTTERANCES, PROFILED = 16000, 100_000, 5
SIMCLR = "{name: simclr, temperature: 0.03}"


def manifest() -> Manifest:
    """Of a corpus that is not there: nothing is read."""
    sizes = {"rows": UTTERANCES, "speakers": 5000, "recordings": 5000, "labels": 0, "rejected": 0}
    shard = Shard(path="0", rows=UTTERANCES, first_id=0, seconds=1.0, bytes=1, sha256="0")
    return Manifest(
        version=1, format="pcm16", seconds=1.0, shards=[shard], settings={}, fingerprint="0", group_rows=32, **sizes
    )


class Free:
    """Recalls rows that were made beforehand and forgets what it is given: the least that a memory can cost."""

    def __init__(self, batch: int, dim: int) -> None:
        self.rows = np.random.default_rng(0).standard_normal((batch, dim)).astype(np.float32)
        self.centroids = self.rows

    def exchange(self, remember: Any, ids: np.ndarray | None, epoch: int) -> Future[RecallArrays | None]:
        answer: Future[RecallArrays | None] = Future()
        answer.set_result(None if ids is None else RecallArrays(self.rows, np.ones(len(ids), dtype=bool), ids))
        return answer

    def refresh(self, epoch: int) -> dict[str, float]:
        return {}

    def metrics(self) -> dict[str, float]:
        return {}


class Context(LocalContext):
    """Prints and writes nothing; its memory is `Free`. Older trees know `say` alone, and not `tell`."""

    def __init__(self, job: Any, device: str, memory: Free) -> None:
        super().__init__(job, device)
        self._memory = memory

    def tell(self, event: Any) -> None:
        return None

    def say(self, line: str) -> None:
        return None

    def utterance_memory(self, settings: Any) -> Any:
        return self._memory

    def open_log(self, resume_step: int | None) -> None:
        return None


class Enough(Exception):
    """Ends the loop after the last batch that is measured."""


def experiment(name: str, arguments: argparse.Namespace, run: str) -> Experiment:
    """The settings of one of the three."""
    own = ["ray.workers=1", f"run={run}", "training.log_every=1000000", f"training.batch={arguments.batch}"]
    c = arguments.channels
    own.append(f"encoder.backbone={{name: ecapa, channels: {c}, mfa_channels: {3 * c}, embedding_dim: 512}}")
    base = CONFIGS / ("voxceleb2_dino.yaml" if name == "dino" else "gsc_ssps_simclr.yaml")
    if name == "dino":
        own += ["training.sync_batchnorm=false", f"training.batch={max(1, arguments.batch // 4)}", *GENERATED]
        own += [f"method.head.hidden=[{2 * c}, {2 * c}]", f"method.head.prototypes={64 * c}"]  # published for 1,024
    else:
        ssps = f"{{name: ssps, over: {SIMCLR}, queue: {UTTERANCES}, clusters: 25000, start_epoch: 1}}"
        own += ["training.precision=bf16", f"method={SIMCLR if name == 'simclr' else ssps}"]
        own += ["views.segment_s=2.0", "views.reference_s=4.0", "encoder.frontend={n_mels: 40}"]
    tree = schema.override(schema.load_yaml(base.read_text(), str(base)), [*own, *arguments.overrides])
    return schema.parse(Experiment, tree, str(base))


def rows(settings: Experiment, segments: Any, device: torch.device) -> list[dict[str, Any]]:
    """Four batches of noise under the ids of an epoch, on the device as the stream puts them there."""
    random, size, made = np.random.default_rng(1), settings.training.batch, []
    for step in range(4):
        ids = random.permutation(UTTERANCES)[:size]
        row: dict[str, Any] = {"id": ids, "epoch": 1, "rank": 0, "fill": False}
        row |= {name: (ids % 5000).astype(np.int32) for name in ("speaker", "recording", "label", "truth")}
        row["turn"] = np.zeros(size, np.int32)
        waves = {
            each.name: random.integers(-3000, 3000, (size, round(each.seconds * RATE)), np.int16) for each in segments
        }
        if device.type == "cuda":
            arrays = {name: value for name, value in row.items() if isinstance(value, np.ndarray)} | waves
            row["placed"] = {name: torch.from_numpy(value).to(device) for name, value in arrays.items()}
        else:
            row |= waves
        made.append(row | {"step": step})
    return made


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The figures of one of the three."""
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as run:
        settings = experiment(name, arguments, run)
        job = job_of(settings, manifest())
        torch.manual_seed(0)
        loop = build_loop(job, Context(job, arguments.device, Free(settings.training.batch, 512)))
        loop.cursor, loop.step = Cursor(1, 0), job.own.epoch_steps
        made, marks = rows(settings, list(job.segments.own[1]), device), {}
        profile = torch.profiler.profile() if on_gpu else None

        def mark(key: str) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            marks[key] = time.perf_counter()

        def batches() -> Iterator[dict[str, Any]]:
            last = arguments.warm + arguments.steps
            for step in range(last + PROFILED + 2):
                if step == arguments.warm:
                    mark("begin")
                if step == last:
                    mark("end")
                    if profile is not None:
                        profile.__enter__()
                if step == last + PROFILED:
                    mark("profiled")
                    if profile is not None:
                        profile.__exit__(None, None, None)
                    raise Enough
                yield made[step % 4] | {"step": step}

        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        mark("built")
        with suppress(Enough):
            loop.fit(batches())
        milliseconds = (marks["end"] - marks["begin"]) / arguments.steps * 1e3
        found = {"ms": milliseconds, "warm_s": marks["begin"] - marks["built"], "batch": settings.training.batch}
        if profile is not None:
            found |= counted(profile, (marks["profiled"] - marks["end"]) * 1e3)
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found


def counted(profile: Any, milliseconds: float) -> dict[str, float]:
    """Of each profiled step: launches, host waits, copies; and of the time under the profiler, how much kernels ran."""
    events = profile.key_averages()

    def calls(*names: str) -> float:
        return sum(event.count for event in events if any(name in event.key for name in names)) / PROFILED

    # a span that somebody named, as an optimiser does, holds kernels that are listed as well
    named = {event.key for event in events if getattr(event, "is_user_annotation", False)}
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [event for event in on_device if event.key not in named]
    for event in sorted(kernels, key=lambda each: -each.self_device_time_total)[:8]:
        each = event.self_device_time_total / PROFILED / 1e3
        print(f"  {each:8.2f} ms  {event.count / PROFILED:5.0f}  {event.key[:90]}")
    return {
        "busy": sum(event.self_device_time_total for event in kernels) / 1e3 / milliseconds,
        "kernels_ms": sum(event.self_device_time_total for event in kernels) / 1e3 / PROFILED,
        "launches": calls("LaunchKernel", "GraphLaunch"),
        # the two of `mark` are not the loop's
        "waits": max(0.0, calls("StreamSynchronize", "DeviceSynchronize", "EventSynchronize") - 2 / PROFILED),
        "copies": calls("cudaMemcpyAsync"),
    }


def main() -> None:
    """Measures all that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 256), ("channels", 1024), ("steps", 15), ("warm", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--only", default="simclr,ssps,dino")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    if arguments.plain:
        from rayssl.models.base import Backbone  # older trees have one layout

        Backbone.channels_last = False
    found: dict[str, Any] = {}
    for name in arguments.only.split(","):
        try:
            found[name] = measure(name, arguments)
        except Exception as error:  # the other figures are still wanted
            found[name] = {"error": repr(error)[:300]}
        print(json.dumps({"step": found}), flush=True)
        if arguments.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
