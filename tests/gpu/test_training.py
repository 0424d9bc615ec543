"""Every method trains on a GPU as on the CPU, also in parts; some are compiled; runs resume there.

Bounds: the first loss within 1e-4, its gradient within 1 % of its norm, each of five losses within 5 %. A GPU adds up
in another order, and each step of Adam moves every weight by about the learning rate, however small its gradient is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from rayssl.checks.component import _experiment
from rayssl.checks.small_job import SmallJob, Trace, _QuietContext, train
from rayssl.experiment.build import build_loop
from rayssl.experiment.config import Experiment
from rayssl.experiment.job import resolve
from rayssl.experiment.local import batches
from rayssl.methods.registry import METHODS
from rayssl.training.context import InProcessClasses
from rayssl.training.inputs import make_views
from rayssl.training.loop import Loop
from rayssl.training.passes import InParts
from rayssl.views.modules import build_recipes
from tests.runs import DINO_METHOD, RATE, SSPS_METHOD, experiment

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
EAGER = "training.compile=false"
# with a teacher of its own, with references, with two streams, and a night's encoder: a compiler takes seconds a graph
COMPILED = ("dino", "ssps", "daso", "sleep")
# with a teacher, a queue, a centre, an average or a memory of either kind
STATEFUL = ("ssps", "moco", "dino", "swav", "sdpn", "daso", "usadtm", "pseudo_speakers", "sleep")


@pytest.fixture(autouse=True)
def forgets_what_it_compiled() -> Iterator[None]:
    """Else the variants of all methods count together, and from some number on functions run uncompiled."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def loop_of(settings: Experiment, device: str) -> Loop:
    """The loop on ``device``, gone back to the run's last checkpoint where there is one."""
    job = resolve(settings)
    return build_loop(job, _QuietContext(job, device))


@pytest.fixture(scope="module")
def trained_on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SmallJob, Trace]]:
    """By method: its small job, and what five steps on the CPU gave; filled by the tests that need it."""
    return {}


def on_the_cpu(known: dict[str, tuple[SmallJob, Trace]], name: str, folder: Path) -> tuple[SmallJob, Trace]:
    if name not in known:
        job = SmallJob(str(folder), _experiment(name, []))
        known[name] = job, train(job.experiment(EAGER), 5)
    return known[name]


def agrees(found: Trace, cpu: Trace) -> None:
    assert len(found.losses) == len(cpu.losses) == 5
    assert found.losses[0] == pytest.approx(cpu.losses[0], rel=1e-4)
    np.testing.assert_allclose(found.losses, cpu.losses, rtol=0.05)
    assert found.gradients.keys() == cpu.gradients.keys()
    norm = float(np.sqrt(sum(np.square(value).sum() for value in cpu.gradients.values())))
    apart = sum(np.square(value - cpu.gradients[name]).sum() for name, value in found.gradients.items())
    assert float(np.sqrt(apart)) < 0.01 * norm
    for name, value in found.weights.items():  # what is not finite is so by design: a limit that is not set yet
        assert np.array_equal(np.isfinite(value), np.isfinite(cpu.weights[name])), name


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "eager") for name in METHODS.names()), *((name, "compiled") for name in COMPILED)]
)
def test_five_steps(
    name: str, mode: str, gpu: str, tmp_path: Path, trained_on_the_cpu: dict[str, tuple[SmallJob, Trace]]
) -> None:
    job, cpu = on_the_cpu(trained_on_the_cpu, name, tmp_path)
    compiled = "true" if mode == "compiled" else "false"
    agrees(train(job.experiment(f"training.compile={compiled}"), 5, gpu), cpu)


@pytest.mark.parametrize("name", ["simclr", "dino", "ssps", "daso"])
def test_bf16(name: str, gpu: str, tmp_path: Path) -> None:
    """The first gradient under autocast points where that of fp32 does: cosine above .9."""
    job = SmallJob(str(tmp_path), _experiment(name, []))
    full, half = (
        train(job.experiment(EAGER, f"training.precision={precision}"), 2, gpu) for precision in ("fp32", "bf16")
    )
    a, b = (np.concatenate([trace.gradients[k].ravel() for k in sorted(trace.gradients)]) for trace in (full, half))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9


@pytest.mark.parametrize("name", ["ssps", "daso"])
def test_in_parts(name: str, gpu: str, tmp_path: Path) -> None:
    job = SmallJob(str(tmp_path), _experiment(name, []))
    cpu, found = (train(job.experiment(EAGER, "training.accumulate=2"), 5, device) for device in ("cpu", gpu))
    agrees(found, cpu)


def test_both_passes_of_a_part_drop_out_the_same_units(gpu: str, tmp_path: Path) -> None:
    """Those of an encoder from outside, by the generator of the device. One part is the whole batch."""
    job = SmallJob(str(tmp_path), _experiment("simclr", []))
    found: list[dict[str, torch.Tensor]] = []
    for parts in (0, 1, 1):
        loop = loop_of(settings := job.experiment(EAGER), gpu)
        loop.state.method.encoder.register_forward_hook(lambda _, given, out: functional.dropout(out, 0.5))
        if parts:
            loop._passes = InParts(loop.state.method, 1, loop.state.context.device, loop.precision)
        gradients: dict[str, torch.Tensor] = {}

        def seen(*_: object, loop: Loop = loop, gradients: dict[str, torch.Tensor] = gradients) -> None:
            own = loop.state.method.named_parameters()
            gradients.update({name: p.grad.clone() for name, p in own if p.grad is not None})

        loop.optimiser.register_step_pre_hook(seen)
        loop.state.method.train()
        torch.manual_seed(7 + len(found) // 2)
        rows = batches(resolve(settings), loop.cursor, rank=0, world=1, device=loop.state.context.device)
        loop._train_step(next(rows), rows)
        found.append(gradients)
    whole, part, other = (torch.cat([gradient.flatten() for gradient in each.values()]) for each in found)
    assert (part - whole).norm() < 1e-3 * whole.norm()
    assert (other - whole).norm() > 0.01 * whole.norm(), "other draws would be seen"


@pytest.mark.parametrize("name", STATEFUL)
def test_resumes(name: str, gpu: str, tmp_path: Path) -> None:
    """3 steps, a checkpoint, 3 more, as 6 without a break: within the bounds of atomics in backward passes."""
    job = SmallJob(str(tmp_path), _experiment(name, []))
    once = train(job.experiment(EAGER, run=f"{tmp_path}/once"), 6, gpu)
    train(job.experiment(EAGER, run=f"{tmp_path}/twice"), 3, gpu)
    twice = train(job.experiment(EAGER, run=f"{tmp_path}/twice"), 6, gpu)
    np.testing.assert_allclose(twice.losses, once.losses[3:], rtol=1e-3)
    for what in ("weights", "optimiser", "memory"):  # the weights are with teachers, queues and centres
        expected, found = getattr(once, what), getattr(twice, what)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            exact = {"rtol": 0, "atol": 0} if value.dtype.kind in "iub" else {"rtol": 1e-2, "atol": 1e-3}
            np.testing.assert_allclose(found[key], value, **exact, err_msg=f"{what}: {key}")


@pytest.mark.parametrize("method", [SSPS_METHOD, DINO_METHOD], ids=["ssps", "dino"])
def test_views(method: dict[str, Any], gpu: str) -> None:
    """Joined on the GPU as one by one on the CPU: the same keys, values within 1e-4 of [-1, 1] (another FFT)."""
    settings = experiment(Path("run"), Path("corpus"), "views.distort.reverb.p=0.5", method=method)
    segments, draw = settings.method.segments(settings.views, 1), np.random.default_rng(0)
    cuts = {s.name: draw.normal(0, 2000, (32, s.samples(RATE))).astype(np.int16) for s in segments}
    raw = {"id": np.arange(32), "turn": np.zeros(32, np.int64), "epoch": 1, **cuts}
    recipes = build_recipes(settings.views, RATE, 3)
    cpu = make_views(raw, segments, recipes, seed=3, device=torch.device("cpu"))
    found = make_views(raw, segments, recipes.to(gpu), seed=3, device=torch.device(gpu))
    for name, view in cpu.items():
        assert (view.keys is None) == (found[name].keys is None)
        assert view.keys is None or torch.equal(found[name].keys.cpu(), view.keys)
        torch.testing.assert_close(found[name].wave.cpu(), view.wave, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["daso", "usadtm"])
def test_resumed_queues_are_those_of_the_owner(name: str, gpu: str, tmp_path: Path) -> None:
    """A rank fills the queues on its device from the checkpoint; they answer as the memory that wrote it."""
    job, run = SmallJob(str(tmp_path), _experiment(name, [])), f"{tmp_path}/run"
    train(job.experiment(EAGER, run=run), 3, gpu)
    loop = loop_of(job.experiment(EAGER, run=run), gpu)
    assert loop.step == 3 and loop.classes is not None and isinstance(loop.state.prototypes, InProcessClasses)
    queues, memory = loop.classes._queues, loop.state.prototypes.memory
    state = memory.state_dict()
    assert state["classes.pushed"].all() and state["windows.counts"].any() == (name == "daso")
    held = (queues._rows[:-1].view(state["classes.rows"].shape), queues._pushed, queues._open, queues._closed)
    saved = (state["classes.rows"], state["classes.pushed"], *state["windows.counts"][:2])
    for mine, value in zip(held, saved, strict=True):
        assert mine.device.type == torch.device(gpu).type
        np.testing.assert_array_equal(mine.cpu().numpy(), value)
    found, expected = vars(queues.recall(3)), vars(memory.recall(3))
    for part, value in expected.items():
        np.testing.assert_allclose(found[part].cpu().numpy(), value, rtol=1e-6, atol=1e-7, err_msg=part)
