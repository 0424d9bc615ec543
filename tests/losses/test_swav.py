"""SwAV: codes and swapped prediction by brute force and by lightly, closed forms, invariances, precision."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import SwaVLoss
from torch import Tensor

from rayssl.losses.swav import sinkhorn, swav

TEMPERATURE, EPSILON, ITERATIONS = 0.1, 0.05, 3


def _scores(count: int = 2, rows: int = 6, prototypes: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """As cosines are: within -1 and 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(count, rows, prototypes, generator=generator, dtype=torch.float64) * 2 - 1
    return [x.to(dtype).requires_grad_() for x in drawn]


def _loss(a: Tensor, b: Tensor, **changes: float) -> Tensor:
    settings = {"temperature": TEMPERATURE, "epsilon": EPSILON, "iterations": ITERATIONS, "offset": 0} | changes
    return swav(a, b, keys_a=a, keys_b=b, **settings)  # type: ignore[arg-type]


def _codes(scores: Tensor, iterations: int = ITERATIONS) -> list[list[float]]:
    """Eq. 3 to 5 in plain numbers: rows of the transport are prototypes with 1/K each, columns utterances with 1/N."""
    rows, prototypes = scores.shape
    plan = [[math.exp(scores[n, k].item() / EPSILON) for n in range(rows)] for k in range(prototypes)]
    for _ in range(iterations):
        plan = [[value / sum(row) / prototypes for value in row] for row in plan]
        totals = [sum(row[n] for row in plan) for n in range(rows)]
        plan = [[value / totals[n] / rows for n, value in enumerate(row)] for row in plan]
    return [[plan[k][n] * rows for k in range(prototypes)] for n in range(rows)]


def _transcription(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 1 and 2: both ways, over prototypes, over utterances, in loops."""
    total = torch.zeros((), dtype=a.dtype)
    for predicting, codes in ((a, _codes(b)), (b, _codes(a))):
        for n, row in enumerate(predicting):
            exponentials = [torch.exp(value / TEMPERATURE) for value in row]
            for k, value in enumerate(exponentials):
                total = total - codes[n][k] * torch.log(value / sum(exponentials))
    return total / (2 * len(a))


def _gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def test_transcription_in_value_and_gradient() -> None:
    inputs = _scores()
    torch.testing.assert_close(
        sinkhorn(inputs[0], epsilon=EPSILON, iterations=3), torch.tensor(_codes(inputs[0]), dtype=torch.float64)
    )
    ours, theirs = _loss(*inputs), _transcription(*inputs)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(_gradients(ours, inputs), _gradients(theirs, inputs))


@pytest.mark.parametrize(("iterations", "epsilon"), [(1, 0.05), (3, 0.05), (10, 0.5)])
def test_lightly_in_value_and_gradient(iterations: int, epsilon: float) -> None:
    inputs = _scores(rows=8, prototypes=12)
    theirs = SwaVLoss(TEMPERATURE, iterations, epsilon)(inputs, [])
    ours = _loss(*inputs, iterations=iterations, epsilon=epsilon)
    torch.testing.assert_close(ours, theirs[0])
    torch.testing.assert_close(_gradients(ours, inputs), _gradients(theirs[0], inputs))


@pytest.mark.parametrize("filled", [0, 3, 7])
def test_lightly_with_a_queue(filled: int) -> None:
    """Rows of the queue take part in the codes once they are filled, and in nothing else."""
    a, b, *queues = _scores(4, rows=7, prototypes=5)
    past = [queue.detach() for queue in queues]
    theirs = SwaVLoss(TEMPERATURE)([a, b], [], [rows[:filled] for rows in past] if filled else None)
    keys_a, keys_b = (torch.cat([own, rows]).detach() for own, rows in zip((a, b), past, strict=True))
    ours = swav(
        a,
        b,
        keys_a=keys_a,
        keys_b=keys_b,
        offset=0,
        temperature=TEMPERATURE,
        epsilon=EPSILON,
        iterations=3,
        counted=torch.arange(14) < 7 + filled,
    )
    torch.testing.assert_close(ours, theirs[0])
    torch.testing.assert_close(_gradients(ours, [a, b]), _gradients(theirs[0], [a, b]))


def test_scores_that_say_nothing_give_even_codes() -> None:
    even = torch.zeros(6, 4)
    torch.testing.assert_close(sinkhorn(even, epsilon=0.05, iterations=3), torch.full((6, 4), 0.25))
    assert _loss(even, even).item() == pytest.approx(math.log(4), rel=1e-6)


def test_scores_that_say_all_give_one_prototype_each() -> None:
    clear = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(clear, epsilon=0.01, iterations=3), clear)
    expected = math.log(1 + 4 * math.exp(-1 / TEMPERATURE))
    assert _loss(clear, clear, epsilon=0.01).item() == pytest.approx(expected, rel=1e-9)


def test_prototypes_are_used_equally() -> None:
    """Rows sum to one after any iteration, prototypes to N/K after many; before them one prototype takes most."""
    scores = _scores(1, rows=40, prototypes=5)[0].detach() * 0.3
    scores[:, 0] += 0.2
    assert sinkhorn(scores, epsilon=0.05, iterations=1).sum(1).allclose(torch.ones(40, dtype=torch.float64))
    codes = sinkhorn(scores, epsilon=0.05, iterations=300)
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 8.0, dtype=torch.float64))
    assert (scores / 0.05).softmax(1).sum(0)[0] > 16


def test_codes_carry_no_gradient() -> None:
    scores = _scores(1)[0]
    assert not sinkhorn(scores, epsilon=0.05, iterations=3).requires_grad


def test_a_prototype_that_all_like_more_gets_no_more() -> None:
    scores = _scores(1)[0]
    shift = torch.linspace(-1, 1, 5, dtype=torch.float64)
    codes, shifted = (sinkhorn(x, epsilon=EPSILON, iterations=ITERATIONS) for x in (scores, scores + shift))
    torch.testing.assert_close(shifted, codes)


def test_order_of_utterances_prototypes_and_views_does_not_matter() -> None:
    a, b = _scores()
    torch.testing.assert_close(_loss(a.flip(0), b.flip(0)), _loss(a, b))
    torch.testing.assert_close(_loss(a.flip(1), b.flip(1)), _loss(a, b))
    torch.testing.assert_close(_loss(b, a), _loss(a, b))


def test_shares_of_a_batch_average_to_the_whole() -> None:
    a, b = _scores()
    settings = {"temperature": TEMPERATURE, "epsilon": EPSILON, "iterations": ITERATIONS}
    parts = [swav(a[s : s + 2], b[s : s + 2], keys_a=a, keys_b=b, offset=s, **settings) for s in (0, 2, 4)]  # type: ignore[arg-type]
    torch.testing.assert_close(sum(parts) / 3, _loss(a, b))
    torch.testing.assert_close(_gradients(sum(parts) / 3, [a, b]), _gradients(_loss(a, b), [a, b]))


def test_precision_under_autocast_and_of_half_inputs() -> None:
    inputs = _scores(rows=16, prototypes=32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _loss(*inputs)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, _loss(*inputs))
    half = [x.half() for x in inputs]
    torch.testing.assert_close(_loss(*half), _loss(*(x.float() for x in half)), rtol=0, atol=0)


def test_no_epsilon_overflows() -> None:
    """The scores over it reach 1000, of which float32 has no exponential."""
    codes = sinkhorn(_scores(1, dtype=torch.float32)[0], epsilon=1e-3, iterations=3)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones(6))


def test_inputs_stay_as_they_are() -> None:
    inputs = _scores()
    before = [x.detach().clone() for x in inputs]
    _loss(*inputs).backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"epsilon": 0.0}, "epsilon and iterations must be positive"),
        ({"iterations": 0}, "epsilon and iterations must be positive"),
        ({"offset": 1}, r"rows 1\.\.7 of keys"),
    ],
)
def test_impossible_settings(changes: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _loss(*_scores(), **changes)


def test_shapes_that_do_not_fit() -> None:
    a, b = _scores()
    with pytest.raises(ValueError, match=r"b \(4, 5\)"):
        _loss(a, b[:4])
    for counted, text in ((torch.ones(5, dtype=torch.bool), r"torch.bool \(5,\)"), (torch.ones(6), "torch.float32")):
        with pytest.raises(ValueError, match=r"counted must be bool \(6,\), got " + text):
            sinkhorn(a, epsilon=0.05, iterations=3, counted=counted)
