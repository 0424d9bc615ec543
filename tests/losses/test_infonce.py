"""InfoNCE: the paper's formula by brute force, lightly over several steps, closed forms, masks, precision."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from rayssl.losses.infonce import infonce
from rayssl.models.queue import RowQueue


def _problem(rows: int = 5, queue: int = 8, dim: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and a queue, each of which takes a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, dim), (rows, dim), (queue, dim))
    drawn = (torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return [x.requires_grad_() for x in drawn]


def _loss(queries: Tensor, keys: Tensor, queue: Tensor, *, temperature: float = 0.1, filled: int = 99) -> Tensor:
    mask = torch.arange(len(queue)) < filled
    return infonce(queries, keys, queue, filled=mask, temperature=temperature)


def _transcription(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """-log( exp(q.k+/t) / sum over the positive and all negatives of exp(q.k/t) ), in loops."""
    unit = [[row / row.norm() for row in x] for x in (queries, keys, queue)]
    total = torch.zeros((), dtype=queries.dtype)
    for q, k in zip(*unit[:2], strict=True):
        positive = torch.exp(q @ k / temperature)
        negatives = [torch.exp(q @ n / temperature) for n in unit[2]]
        total = total - torch.log(positive / (positive + sum(negatives)))
    return total / len(queries)


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_transcription_in_value_and_gradient(temperature: float) -> None:
    inputs = _problem()
    ours, theirs = _loss(*inputs, temperature=temperature), _transcription(*inputs, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, inputs), _gradients(theirs, inputs))


@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_lightly_over_several_steps(temperature: float) -> None:
    """With its memory bank, from the same random start; the queue goes round once and a half."""
    torch.manual_seed(1)
    theirs, queue = NTXentLoss(temperature, memory_bank_size=(12, 6)), RowQueue(12, 6)
    queue.push(theirs.memory_bank.bank)
    for step in range(5):
        queries, keys, _ = _problem(rows=4, dim=6, dtype=torch.float32)
        queries, keys = ((x.detach() * (step + 1) + step).requires_grad_() for x in (queries, keys))
        expected = theirs(queries, keys)
        loss = infonce(queries, keys, queue.rows, filled=queue.filled, temperature=temperature)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(_gradients(loss, [queries, keys]), _gradients(expected, [queries, keys]))
        queue.push(torch.nn.functional.normalize(keys, dim=1))
        torch.testing.assert_close(queue.rows, theirs.memory_bank.bank)


def test_all_equal_is_the_logarithm_of_the_candidates() -> None:
    ones = torch.ones(6, 3)
    assert _loss(ones, ones, torch.ones(10, 3)).item() == pytest.approx(math.log(11), rel=1e-6)


def test_orthogonal_utterances() -> None:
    basis = torch.eye(7, dtype=torch.float64)
    expected = math.log(1 + 4 * math.exp(-1 / 0.2))
    assert _loss(basis[:3], basis[:3], basis[3:], temperature=0.2).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("filled", [1, 5])
def test_only_what_is_filled_counts(filled: int) -> None:
    queries, keys, queue = _problem()
    loss = _loss(queries, keys, queue, filled=filled)
    expected = _loss(queries, keys, queue[:filled])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    ours, theirs = _gradients(loss, [queries, keys, queue]), _gradients(expected, [queries, keys, queue])
    torch.testing.assert_close(ours, theirs)
    assert not ours[2][filled:].any()


def test_an_empty_queue_costs_nothing() -> None:
    inputs = _problem()
    loss = _loss(*inputs, filled=0)
    assert loss.item() == 0
    assert all(not g.any() and g.isfinite().all() for g in _gradients(loss, inputs))


def test_zero_rows_that_are_not_filled_leave_gradients_finite() -> None:
    queries, keys, _ = _problem()
    loss = _loss(queries, keys, torch.zeros(8, 4, dtype=torch.float64), filled=0)
    assert all(g.isfinite().all() for g in _gradients(loss, [queries, keys]))


def test_norms_and_the_order_of_the_queue_do_not_matter() -> None:
    queries, keys, queue = _problem()
    scale = torch.linspace(0.01, 50, 5, dtype=torch.float64)[:, None]
    expected = _loss(queries, keys, queue)
    torch.testing.assert_close(_loss(queries * scale, keys / scale, queue * 3), expected)
    torch.testing.assert_close(_loss(queries, keys, queue.flip(0)), expected)


def test_other_keys_of_the_batch_are_no_negatives() -> None:
    queries, keys, queue = _problem()
    alone = [_loss(queries[i : i + 1], keys[i : i + 1], queue) for i in range(5)]
    torch.testing.assert_close(torch.stack(alone).mean(), _loss(queries, keys, queue))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    inputs = _problem(rows=16, queue=40, dim=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _loss(*inputs, temperature=0.03)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, _loss(*inputs, temperature=0.03))
    half = [x.half() for x in inputs]
    torch.testing.assert_close(_loss(*half), _loss(*(x.float() for x in half)), rtol=0, atol=0)


def test_each_query_may_have_negatives_of_its_own() -> None:
    """The mean of each query alone, with the rows of the queue that count for it."""
    queries, keys, queue = _problem()
    counted = torch.rand(5, 8, generator=torch.Generator().manual_seed(3)) < 0.6
    ours = infonce(queries, keys, queue, filled=counted, temperature=0.1)
    alone = [_transcription(queries[i : i + 1], keys[i : i + 1], queue[counted[i]], 0.1) for i in range(5)]
    theirs = torch.stack(alone).mean()
    torch.testing.assert_close(ours, theirs)
    inputs = [queries, keys, queue]
    torch.testing.assert_close(_gradients(ours, inputs), _gradients(theirs, inputs))


def test_inputs_stay_as_they_are() -> None:
    inputs = _problem()
    before = [x.detach().clone() for x in inputs]
    _loss(*inputs).backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_impossible_arguments() -> None:
    queries, keys, queue = _problem()
    with pytest.raises(ValueError, match="temperature must be positive"):
        _loss(queries, keys, queue, temperature=0.0)
    with pytest.raises(ValueError, match=r"keys \(4, 4\)"):
        _loss(queries, keys[:4], queue)
    with pytest.raises(ValueError, match=r"queue \(8, 3\)"):
        _loss(queries, keys, queue[:, :3])
    with pytest.raises(ValueError, match=r"filled must be bool \(8,\) or \(5, 8\), got torch.bool \(7,\)"):
        infonce(queries, keys, queue, filled=torch.ones(7, dtype=torch.bool), temperature=0.1)
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        infonce(queries, keys, queue, filled=torch.ones(8, dtype=torch.int64), temperature=0.1)
