"""The arithmetic of a step on a GPU: encoder, loss, gradients and update, as before and as now, in turn in one process.

    python -m tests.bench.gpu_step [--only simclr,ssps,dino] [--batch 256] [--channels 1024] [--rounds 3] [--json]

Noise as views that are ready on the device; nothing is read, remembered or exchanged. Forms: ``plain`` has the layout
of a CPU, ``last`` the channels last in memory, ``compiled`` is ``last`` and compiled. The rest is as
`rayssl.training.kernels` chooses it. On a CPU (``--device cpu``) it only shows that the script runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from rayssl.experiment.config import Experiment
from rayssl.methods.base import Batch, JobFacts, Recall, View, Views
from rayssl.models.base import Backbone
from rayssl.models.encoder import build_encoder
from rayssl.models.layout import placed
from rayssl.schema import parse
from rayssl.training.kernels import chosen, compile_each
from rayssl.training.optim import build_optimiser

RATE, UTTERANCES = 16000, 100_000
SIMCLR = {"name": "simclr", "temperature": 0.03}
METHODS: dict[str, dict[str, Any]] = {
    "simclr": SIMCLR,
    "ssps": {"name": "ssps", "over": SIMCLR, "start_epoch": 1, "clusters": 25_000},
    "dino": {"name": "dino", "locals": 4, "local_s": 2.0},
}
FORMS = ("plain", "last", "compiled")


def experiment(name: str, arguments: argparse.Namespace, precision: str) -> Experiment:
    c = arguments.channels
    backbone = {"name": "ecapa", "channels": c, "mfa_channels": 3 * c, "embedding_dim": 512}
    seconds = {"segment_s": arguments.seconds * (2 if name == "dino" else 1), "reference_s": 2 * arguments.seconds}
    method = METHODS[name] | ({"local_s": arguments.seconds} if name == "dino" else {})
    tree = {
        "run": "nowhere",
        "corpus": {"uri": "nowhere"},
        "views": seconds,
        "encoder": {"frontend": {"n_mels": 40}, "backbone": backbone},
        "method": method,
        "training": {"epochs": 10, "batch": arguments.batch, "precision": precision, "tf32": arguments.tf32},
    }
    return parse(Experiment, tree, "gpu_step")


def step_of(settings: Experiment, form: str, device: torch.device) -> Callable[[], None]:
    """A function that does one step on its own network."""
    torch.manual_seed(0)
    size, dim = settings.training.batch, settings.encoder.embedding_dim
    facts = JobFacts("nowhere", UTTERANCES, 5000, 5000, settings.views, dim, size)
    method = settings.method.build(build_encoder(settings.encoder, RATE), facts)
    method = placed(method, device) if form != "plain" else method.to(device)
    for part in method.modules():
        if isinstance(part, Backbone):
            part.channels_last = form != "plain"
    if form == "compiled":
        compile_each(method)
    method.train()
    optimiser = build_optimiser(settings.training.optimiser, method)
    ids = torch.arange(size, device=device)
    views: Views = {}
    for segment in settings.method.segments(settings.views, 1):
        wave = 0.1 * torch.randn(size, round(segment.seconds * RATE), device=device)
        views[segment.name] = View(wave, None if segment.recipe == "none" else ids)
    batch, recall = Batch(ids, ids % 5000, ids % 5000, -1 - 0 * ids, 1, -1 - 0 * ids), None
    if settings.method.recalls(1):
        width = settings.method.over.positive_dim(dim)  # type: ignore[attr-defined]
        recall = Recall(torch.randn(size, width, device=device), torch.ones(size, dtype=torch.bool, device=device))
    bf16 = settings.training.precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = method(views)
        loss = method.step(out, batch, recall).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        method.before_update(1)
        optimiser.step()
        method.after_step(0.5)

    return step


def timed(step: Callable[[], None], steps: int, wait: Callable[[], None]) -> float:
    """Milliseconds a step."""
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - began) / steps * 1e3


def profiled(step: Callable[[], None], steps: int = 5) -> dict[str, float]:
    """Launches, host waits and copies a step, the share of time in which kernels run, and the five longest kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        milliseconds = timed(step, steps, torch.cuda.synchronize)
    events = profile.key_averages()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    for event in sorted(kernels, key=lambda each: -each.self_device_time_total)[:5]:
        print(
            f"      {event.self_device_time_total / steps / 1e3:7.2f} ms  {event.count / steps:4.0f}  {event.key[:90]}"
        )

    def counted(*names: str) -> float:
        return sum(event.count for event in events if any(name in event.key for name in names)) / steps

    return {
        "busy": sum(event.self_device_time_total for event in kernels) / steps / 1e3 / milliseconds,
        "launches": counted("LaunchKernel"),
        "waits": counted("StreamSynchronize", "DeviceSynchronize") - 2 / steps,
        "copies": counted("cudaMemcpyAsync"),
    }


def measure(name: str, precision: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    settings, wait = experiment(name, arguments, precision), torch.cuda.synchronize if device.type == "cuda" else _none
    state: Any = SimpleNamespace(config=settings.training, repeats=False, context=SimpleNamespace(device=device))
    found: dict[str, Any] = {}
    with chosen(state):
        steps = {form: step_of(settings, form, device) for form in arguments.forms.split(",")}
        warm = {form: timed(step, 3, wait) * 3e-3 for form, step in steps.items()}
        times: dict[str, list[float]] = {form: [] for form in steps}
        for _ in range(arguments.rounds):
            for form, step in steps.items():
                times[form].append(timed(step, arguments.steps, wait))
        for form, step in steps.items():
            figures = {"ms": statistics.median(times[form]), "warm_s": warm[form]}
            print(f"{name} {precision} {form:9s} {figures['ms']:8.1f} ms a step, {figures['warm_s']:.0f} s to warm up")
            if device.type == "cuda":
                figures |= profiled(step)
                print("     ", {key: round(value, 2) for key, value in figures.items()}, flush=True)
            found[form] = figures
    return {"method": name, "precision": precision, **found}


def _none() -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 256), ("channels", 1024), ("steps", 15), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--precision", default="bf16", help="bf16, fp32, or both with a comma")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    chosen_ones = [(name, each) for name in arguments.only.split(",") for each in arguments.precision.split(",")]
    found = [measure(name, precision, arguments, device) for name, precision in chosen_ones]
    if arguments.json:
        print(json.dumps({**vars(arguments), "found": found}))


if __name__ == "__main__":
    main()
