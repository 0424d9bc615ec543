"""Every method trains on a GPU as on the CPU, eagerly and compiled; runs resume there, and DDP runs over NCCL.

Bounds: the first loss within 1e-4, its gradient within 1 % of its norm, each of five losses within 5 %. A GPU adds up
in another order, and each step of Adam moves every weight by about the learning rate, however small its gradient is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rayssl.checks.component import _experiment
from rayssl.checks.small_job import SmallJob, Trace, train
from rayssl.experiment.build import build_method
from rayssl.experiment.job import resolve
from rayssl.methods.base import View
from rayssl.methods.registry import METHODS
from rayssl.training.inputs import make_views
from rayssl.views.modules import build_recipes
from tests.runs import DINO_METHOD, RATE, SSPS_METHOD, batch_of, experiment, random_views, write_corpus

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def trained_on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SmallJob, Trace]]:
    """By method: its small job, and what five steps on the CPU gave; filled by the tests that need it."""
    return {}


def on_the_cpu(known: dict[str, tuple[SmallJob, Trace]], name: str, folder: Path) -> tuple[SmallJob, Trace]:
    if name not in known:
        job = SmallJob(str(folder), _experiment(name, []))
        known[name] = job, train(job.experiment("training.compile=false"), 5)
    return known[name]


def agrees(found: Trace, cpu: Trace) -> None:
    assert len(found.losses) == len(cpu.losses) == 5
    assert found.losses[0] == pytest.approx(cpu.losses[0], rel=1e-4)
    np.testing.assert_allclose(found.losses, cpu.losses, rtol=0.05)
    assert found.gradients.keys() == cpu.gradients.keys()
    norm = float(np.sqrt(sum(np.square(value).sum() for value in cpu.gradients.values())))
    apart = sum(np.square(value - cpu.gradients[name]).sum() for name, value in found.gradients.items())
    assert float(np.sqrt(apart)) < 0.01 * norm
    assert all(np.isfinite(value).all() for value in found.weights.values())


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("name", METHODS.names())
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
        train(job.experiment("training.compile=false", f"training.precision={precision}"), 2, gpu)
        for precision in ("fp32", "bf16")
    )
    a, b = (np.concatenate([trace.gradients[k].ravel() for k in sorted(trace.gradients)]) for trace in (full, half))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9


@pytest.mark.parametrize("name", ["ssps", "moco"])
def test_resumes(name: str, gpu: str, tmp_path: Path) -> None:
    """3 steps, a checkpoint, 3 more, as 6 without a break: within the bounds of atomics in backward passes."""
    job = SmallJob(str(tmp_path), _experiment(name, []))
    once = train(job.experiment("training.compile=false", run=f"{tmp_path}/once"), 6, gpu)
    train(job.experiment("training.compile=false", run=f"{tmp_path}/twice"), 3, gpu)
    twice = train(job.experiment("training.compile=false", run=f"{tmp_path}/twice"), 6, gpu)
    np.testing.assert_allclose(twice.losses, once.losses[3:], rtol=1e-3)
    for key, value in once.memory.items():
        if value.dtype.kind in "iub":
            assert np.array_equal(twice.memory[key], value), key


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


def test_ddp_over_nccl_with_one_rank(gpu: str, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    method = build_method(resolve(experiment(tmp_path / "run", tmp_path / "corpus", method={"name": "simclr"})))
    method = method.to(gpu).train()
    views = {
        name: View(view.wave.to(gpu), None if view.keys is None else view.keys.to(gpu))
        for name, view in random_views(["anchor", "positive"]).items()
    }

    def gradients(wrapped: torch.nn.Module) -> list[torch.Tensor]:
        method.zero_grad()
        method.step(wrapped(views), batch_of(), None).loss.backward()
        return [p.grad.clone() for p in method.parameters() if p.grad is not None]

    alone = gradients(method)
    backend = "nccl" if torch.device(gpu).type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ids = [torch.cuda.current_device()] if backend == "nccl" else None
        together = gradients(DistributedDataParallel(method, device_ids=ids))
        total = torch.ones(3, device=gpu)
        dist.all_reduce(total)
    finally:
        dist.destroy_process_group()
    assert total.tolist() == [1, 1, 1] and len(together) == len(alone) > 0
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
