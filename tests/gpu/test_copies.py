"""Between the host and a GPU nobody waits for a copy that need not, and the process group of a GPU's rank works.

`torch.cuda._sleep` keeps a stream busy for some tenths of a second. It is asked only whether the stream is still busy.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from rayssl import collectives, transfer
from rayssl.experiment.build import build_method
from rayssl.experiment.job import resolve
from rayssl.methods.base import View
from rayssl.models.buffers import differing
from tests.runs import batch_of, experiment, random_views, write_corpus

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
_BUSY = 500_000_000  # cycles of the GPU


@pytest.fixture
def device(gpu: str) -> torch.device:
    """With its number, as tensors have it: streams are kept by device."""
    return torch.device("cuda", torch.cuda.current_device()) if gpu == "cuda" else torch.device(gpu)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("a CPU has no streams")
    return device


def test_fetched_values_are_those_of_the_call(device: torch.device) -> None:
    """Also if their memory is used again before the copy; None stays None."""
    under_way = []
    for number in range(8):
        rows = torch.full((1000, 64), float(number), device=device, requires_grad=True)
        if device.type == "cuda":
            with torch.cuda.stream(transfer._stream(rows.device, "to the host")):
                torch.cuda._sleep(_BUSY // 50)  # the copy is late
        under_way.append(transfer.fetch(rows, None, rows.detach().T[:3]))
        del rows  # the next ones may get its memory
    for number, fetched in enumerate(under_way):
        whole, nothing, part = fetched.arrays()
        assert whole is not None and part is not None and nothing is None
        assert whole.shape == (1000, 64) and (whole == number).all()
        assert part.shape == (3, 1000) and (part == number).all()


def test_sent_values_are_those_of_the_call(device: torch.device) -> None:
    values = np.arange(12, dtype=np.int64).reshape(3, 4)
    values.flags.writeable = False
    rows = np.ones((2, 2), np.float32)
    there, sent = transfer.send(values, device), transfer.send(rows, device)
    rows[:] = 7
    assert there.device.type == device.type and there.dtype == torch.int64
    assert (there + 1).tolist() == (values + 1).tolist() and sent.tolist() == [[1, 1], [1, 1]]
    assert transfer.send(torch.tensor([2.5]), device).tolist() == [2.5]


def test_fetching_waits_for_its_copies_alone(cuda: torch.device) -> None:
    """Not when it begins, and at its end not for what the device computes since."""
    current = torch.cuda.current_stream(cuda)
    transfer.fetch(torch.ones(5, device=cuda)).arrays()  # the first one makes the stream and pinned memory
    torch.cuda.synchronize(cuda)
    torch.cuda._sleep(_BUSY)
    fetched = transfer.fetch(torch.ones(5, device=cuda))
    assert not current.query(), "it has waited"
    torch.cuda._sleep(4 * _BUSY)
    (values,) = fetched.arrays()
    assert values is not None and values.tolist() == [1] * 5
    assert not current.query(), "it has waited for later work"
    assert all(tensor is None or tensor.is_pinned() for tensor in fetched._tensors)
    torch.cuda.synchronize(cuda)


def test_sending_does_not_wait_and_the_current_stream_does(cuda: torch.device) -> None:
    side, host = transfer._stream(cuda, "to the device"), np.arange(5.0, dtype=np.float32)
    transfer.send(host, cuda)
    torch.cuda.synchronize(cuda)
    with torch.cuda.stream(side):
        torch.cuda._sleep(_BUSY)
    there = transfer.send(host, cuda) + 1
    assert not side.query(), "it has waited"
    assert there.tolist() == [1, 2, 3, 4, 5]
    # and a step that computes does not hold up a copy
    torch.cuda._sleep(_BUSY)
    transfer.send(host, cuda)
    side.synchronize()
    assert not torch.cuda.current_stream(cuda).query()
    torch.cuda.synchronize(cuda)


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """This process as the only rank of a group, joined as `rayssl.runtime` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
        patch.setitem(os.environ, "MASTER_PORT", str(port))
        backend = collectives.GPU_BACKEND if device.type == "cuda" else "gloo"
        collectives.join(backend, 0, 1, 60.0, device)
        try:
            yield
        finally:
            collectives.leave()


@contextmanager
def as_if_several() -> Iterator[None]:
    """With one rank nothing is wrapped or sent; in here it is, to this one rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "world", lambda: 2)
        yield


def test_the_group_of_a_rank(device: torch.device) -> None:
    """Tensors of a GPU go by NCCL; objects, barriers and figures by gloo."""
    with one_rank(device):
        assert collectives.world() == 1 and collectives.rank() == 0
        x = torch.arange(6.0, device=device).view(3, 2).requires_grad_()
        gathered, summed = collectives._Gather.apply(x), collectives._Sum.apply(x)
        assert torch.equal(gathered, x) and torch.equal(summed, x) and gathered.device == x.device
        (2 * gathered + 3 * summed).sum().backward()
        assert x.grad is not None and (x.grad == 5).all()
        with as_if_several():
            assert collectives.broadcast_object({"a": 1}) == {"a": 1}
            assert collectives.sum_on_host(x).tolist() == x.tolist()
            collectives.barrier()


def test_replicated(device: torch.device, tmp_path: Path) -> None:
    """Its gradients are those of the method alone, and views of the buckets that NCCL sums."""
    write_corpus(tmp_path / "corpus")
    method = build_method(resolve(experiment(tmp_path / "run", tmp_path / "corpus", method={"name": "simclr"})))
    method = method.to(device).train()
    views = {
        name: View(view.wave.to(device), None if view.keys is None else view.keys.to(device))
        for name, view in random_views(["anchor", "positive"]).items()
    }

    def gradients(forward: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        method.zero_grad(set_to_none=True)
        method.step(forward(views), batch_of(), None).loss.backward()
        return [p.grad for p in method.parameters() if p.grad is not None]

    alone = [gradient.clone() for gradient in gradients(method)]
    with one_rank(device):
        assert collectives.replicated(method, device, []) is method, "with one rank"
        with as_if_several():
            wrapped = collectives.replicated(method, device, differing(method, statistics=True))

        def forward(views: dict[str, View]) -> torch.Tensor:
            with as_if_several():  # it shares the statistics before
                return wrapped(views)

        assert isinstance(wrapped, DistributedDataParallel)
        together = [gradients(forward) for _ in range(2)][1]
        stores = {gradient.untyped_storage().data_ptr() for gradient in together}
        assert len(stores) <= 2 < len(together) == len(alone)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-6)
