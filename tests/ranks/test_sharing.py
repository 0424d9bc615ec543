"""What ranks send each other in a step: bytes, and that what is not sent is equal or not read."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rayssl import collectives
from rayssl.models.buffers import differing
from rayssl.models.norm import BatchNorm1d
from tests.runs import DINO_METHOD, MOCO_METHOD, SSPS_METHOD, SWAV_METHOD, batches, build, experiment, write_corpus
from tests.training.test_accumulate import same, trained

pytestmark = pytest.mark.ranks
Result = dict[str, Any]
QUEUE = {**MOCO_METHOD, "queue": 4096}  # 256 KiB


class Sent(TorchDispatchMode):
    """Counts the bytes that this rank gives to each kind of collective, those of DDP too."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            given = args[1] if "allgather" in func._schema.name else args[0]
            tensors = [each for each in given if isinstance(each, torch.Tensor)]
            self.bytes[func._schema.name.removeprefix("c10d::")] += sum(each.nbytes for each in tensors)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return str(folder)


def step(rank: int, world: int, corpus: str, method: dict[str, Any], overrides: tuple[str, ...]) -> Result:
    """The bytes sent in the third step, those of the gradients and of each of their storages, and the buffers then."""
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        given = (f"ray.workers={world}", "training.log_every=1000", *overrides)
        settings = experiment(Path(folder), Path(corpus), *given, method=method)
        loop = build(settings)
        loop.state.method.train()
        rows = batches(settings, loop)
        for _ in range(2):
            loop._train_step(next(rows), rows)
        with Sent() as sent:
            loop._train_step(next(rows), rows)
        gradients = [p.grad for p in loop.state.method.parameters() if p.grad is not None]
        stores = {grad.untyped_storage().data_ptr(): grad.untyped_storage().nbytes() for grad in gradients}
        buffers = {name: value.numpy().copy() for name, value in loop.state.method.named_buffers()}
    sizes = {"gradients": sum(grad.nbytes for grad in gradients), "tensors": len(gradients)}
    return {"sent": sent.bytes, "stores": list(stores.values()), "buffers": buffers, **sizes}


def equal(results: list[Result], names: Callable[[str], bool]) -> list[bool]:
    one, two = (result["buffers"] for result in results)
    return [bool((one[name] == two[name]).all()) for name in one if names(name)]


@pytest.mark.parametrize(("name", "method"), [("moco", QUEUE), ("swav", SWAV_METHOD), ("dino", DINO_METHOD)])
def test_no_buffer_is_sent_where_none_is_read(
    ranks: Callable[..., list[Result]], corpus: str, name: str, method: dict[str, Any]
) -> None:
    """Queues and centres are equal on the ranks without that. Statistics are not, but only rank 0's are used."""
    two = ranks(step, corpus, method, (), world=2, timeout=300)
    for result in two:
        assert result["sent"]["broadcast_"] == 0
        assert result["gradients"] <= result["sent"]["allreduce_"] <= result["gradients"] + 4096
    assert all(equal(two, lambda buffer: "running" not in buffer))
    assert not all(equal(two, lambda buffer: "running" in buffer))


@pytest.mark.parametrize("over", [QUEUE, DINO_METHOD], ids=["moco", "dino"])
def test_ssps_sends_statistics_and_nothing_else(
    ranks: Callable[..., list[Result]], corpus: str, over: dict[str, Any]
) -> None:
    """Its references read them, so that they are rank 0's before each step, as under DDP's own broadcast.

    No queue and no centre is sent.
    """
    method = {**SSPS_METHOD, "over": over}
    two = ranks(step, corpus, method, (), world=2, timeout=300)
    statistics = sum(value.nbytes for name, value in two[0]["buffers"].items() if "running" in name)
    assert 0 < statistics < 2**16
    assert [result["sent"]["broadcast_"] for result in two] == [statistics] * 2
    assert all(equal(two, lambda buffer: "running" not in buffer))
    synchronised = ranks(step, corpus, method, ("training.sync_batchnorm=true",), world=2, timeout=300)
    assert all(result["sent"]["broadcast_"] == 0 for result in synchronised)
    assert all(equal(synchronised, lambda _: True))


def test_gradients_are_views_of_what_is_sent(ranks: Callable[..., list[Result]], corpus: str) -> None:
    """So they take memory once, and nobody copies them. DDP joins small ones in a bucket or two."""
    for result in ranks(step, corpus, {"name": "simclr"}, (), world=2, timeout=300):
        assert len(result["stores"]) <= 2 < result["tensors"]
        assert sum(result["stores"]) == result["gradients"]


class Odd(nn.Module):
    """With every kind of buffer."""

    equal_on_ranks = ("queue",)

    def __init__(self) -> None:
        super().__init__()
        for number, name in enumerate(("queue", "own", "count")):
            self.register_buffer(name, torch.full((2, 3), number, dtype=torch.int64 if name == "count" else None))
        self.register_buffer("table", torch.ones(4), persistent=False)
        self.norms = nn.ModuleList([nn.BatchNorm1d(2), BatchNorm1d(2, sync=True), nn.SyncBatchNorm(2)])


@pytest.mark.parametrize("statistics", [False, True])
def test_which_buffers_differ(statistics: bool) -> None:
    module = Odd()
    expected = [(module, "own"), (module, "count")]
    if statistics:
        expected += [(module.norms[0], "running_mean"), (module.norms[0], "running_var")]
    assert differing(module, statistics=statistics) == expected


def shared(rank: int, world: int) -> dict[str, Any]:
    module = Odd()
    for _, buffer in module.named_buffers():
        buffer += 10 * (rank + 1)
    collectives.share(differing(module, statistics=True))
    return {name: buffer.numpy().copy() for name, buffer in module.named_buffers()}


def test_shared_buffers_are_those_of_rank_0(ranks: Callable[..., list[dict[str, Any]]]) -> None:
    zero, one = ranks(shared, world=2, timeout=300)
    same_now = {name for name, value in zero.items() if (one[name] == value).all()}
    assert same_now == {"own", "count", "norms.0.running_mean", "norms.0.running_var"}
    assert (one["own"] == 11).all() and (one["queue"] == 20).all()


def in_parts(rank: int, world: int, corpus: str, accumulate: int) -> Any:
    with tempfile.TemporaryDirectory(prefix="rank-") as folder:
        given = (
            f"ray.workers={world}",
            f"training.accumulate={accumulate}",
            "training.optimiser={name: sgd, lr: 0.001}",
        )
        method = {"name": "simclr", "temperature": 0.5, "projector": {"sizes": [12, 8]}}
        return trained(experiment(Path(folder), Path(corpus), *given, f"ray.workers={world}", method=method))


def test_parts_on_two_ranks_are_the_whole_batch(ranks: Callable[..., list[Any]], corpus: str) -> None:
    """Contrasts go over the ranks in the loss of the whole batch; the gradients are averaged after the last part."""
    whole, parts = ranks(in_parts, corpus, 1, world=2, timeout=300), ranks(in_parts, corpus, 3, world=2, timeout=300)
    for rank in range(2):
        same(parts[rank], whole[rank])
        for name, gradient in parts[0][1].items():
            assert torch.equal(parts[rank][1][name], gradient), name


def summed(rank: int, world: int) -> Any:
    x = torch.tensor([1.0, rank])
    return collectives.sum_on_host(x), x


def test_figures_are_summed_on_the_host(ranks: Callable[..., list[Any]]) -> None:
    for rank, (total, own) in enumerate(ranks(summed)):
        assert total.tolist() == [2, 1] and own.tolist() == [1, rank]
    assert collectives.sum_on_host(torch.ones(2)).tolist() == [1, 1]
