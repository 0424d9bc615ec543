"""SSC: the formula by brute force, closed forms, no gradient into anchors, empty places, invariances, precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rayssl.losses.ssc import ssc

CLASSES = torch.tensor([2, 0, 3, 1, 0])
Inputs = tuple[Tensor, Tensor, Tensor]


def _inputs(dim: int = 4, dtype: torch.dtype = torch.float64) -> Inputs:
    """Anchors ``[5, D]``, candidates ``[7, D]``, predictions ``[7, 4]``."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(5, dim, generator=generator, dtype=torch.float64).to(dtype)
    candidates = torch.randn(7, dim, generator=generator, dtype=torch.float64).to(dtype)
    predicted = torch.randn(7, 4, generator=generator, dtype=torch.float64).mul(2).softmax(1).to(dtype)
    return anchors.requires_grad_(), candidates.requires_grad_(), predicted


def _loss(inputs: Inputs, **settings: Any) -> Tensor:
    anchors, candidates, predicted = inputs
    total, count = ssc(anchors, CLASSES, candidates, predicted, **settings)
    return total / count


def _transcription(
    inputs: Inputs, temperature: float, threshold: float, normaliser: str, weights: Tensor, valid: Tensor
) -> tuple[Tensor, float]:
    anchors, candidates, predicted = inputs
    total, count = torch.zeros((), dtype=candidates.dtype), 0.0
    for m, anchor in enumerate(anchors):
        z = anchor.detach() / anchor.detach().norm()
        inside = [i for i in range(len(candidates)) if valid[i]]
        raised = {i: torch.exp(z @ candidates[i] / candidates[i].norm() / temperature) for i in inside}
        positives = [i for i in inside if predicted[i, CLASSES[m]] >= threshold]
        if not positives:
            continue
        p = {i: predicted[i, CLASSES[m]] for i in positives}
        norm = sum(p.values()) if normaliser == "soft" else len(positives)
        total = total - weights[m] * sum(p[i] * torch.log(raised[i] / sum(raised.values())) for i in positives) / norm
        count += float(weights[m])
    return total, count


ALL, SOME = torch.ones(7, dtype=torch.bool), torch.tensor([1, 1, 0, 1, 1, 0, 1]).bool()
EVEN, UNEVEN = torch.ones(5, dtype=torch.float64), torch.tensor([1, 0, 0.5, 2, 1], dtype=torch.float64)


@pytest.mark.parametrize(("weights", "valid"), [(EVEN, ALL), (UNEVEN, SOME)], ids=["all", "weighted"])
@pytest.mark.parametrize("normaliser", ["soft", "count"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
def test_transcription_in_value_and_gradient(threshold: float, normaliser: Any, weights: Tensor, valid: Tensor) -> None:
    inputs = _inputs()
    anchors, candidates, predicted = inputs
    total, count = ssc(
        anchors,
        CLASSES,
        candidates,
        predicted,
        temperature=0.2,
        threshold=threshold,
        normaliser=normaliser,
        weights=weights,
        valid=valid,
    )
    expected, expected_count = _transcription(inputs, 0.2, threshold, normaliser, weights, valid)
    assert count.item() == pytest.approx(expected_count) and expected_count > 0
    if threshold == 0.7:
        assert expected_count < weights.sum()  # some anchor has nobody to trust
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, candidates), torch.autograd.grad(expected, candidates))


def test_gradient_by_finite_differences() -> None:
    anchors, candidates, predicted = _inputs()
    assert torch.autograd.gradcheck(lambda z: ssc(anchors, CLASSES, z, predicted, temperature=0.3)[0], (candidates,))


def test_no_gradient_into_anchors_and_predictions() -> None:
    anchors, candidates, predicted = _inputs()
    predicted.requires_grad_()
    total, count = ssc(anchors, CLASSES, candidates, predicted)
    found = torch.autograd.grad(total, (anchors, candidates, predicted), allow_unused=True)
    assert found[0] is None and found[2] is None and found[1].norm() > 0.01
    assert not count.requires_grad


def test_all_equal_is_the_logarithm_of_the_candidates() -> None:
    _, _, predicted = _inputs()
    rows = torch.ones(7, 3, dtype=torch.float64)
    assert _loss((rows[:5], rows, predicted)).item() == pytest.approx(math.log(7))


def test_classes_on_orthogonal_points() -> None:
    """Certain predictions, each class on its own axis: 2 positives at similarity 1, 6 others at 0."""
    labels = torch.arange(4).repeat_interleave(2)
    candidates, anchors = torch.eye(4)[labels], torch.eye(4)[CLASSES]
    total, count = ssc(anchors, CLASSES, candidates, one_hot(labels).float(), temperature=0.5)
    assert count.item() == 5
    assert total.item() / 5 == pytest.approx(math.log(2 + 6 * math.exp(-2)), rel=1e-6)


def test_norms_order_and_names_of_classes_do_not_matter() -> None:
    anchors, candidates, predicted = _inputs()
    plain = _loss((anchors, candidates, predicted), threshold=0.3)
    scale = torch.linspace(0.01, 50, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(_loss((3 * anchors, candidates * scale, predicted), threshold=0.3), plain)
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    torch.testing.assert_close(_loss((anchors, candidates[order], predicted[order]), threshold=0.3), plain)
    total, count = ssc(anchors, (CLASSES + 1) % 4, candidates, predicted.roll(1, 1), threshold=0.3)
    torch.testing.assert_close(total / count, plain)


def test_empty_places_of_a_memory_do_not_count() -> None:
    """Rows with weight 0, or of a negative class, change neither the sums nor the gradient."""
    anchors, candidates, predicted = _inputs()
    plain, count = ssc(anchors, CLASSES, candidates, predicted)
    places, classes = torch.cat([anchors, torch.zeros(3, 4)]), torch.cat([CLASSES, torch.tensor([-1, -1, 2])])
    weights = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    padded, padded_count = ssc(places, classes, candidates, predicted, weights=weights)
    torch.testing.assert_close((padded, padded_count), (plain, count))
    torch.testing.assert_close(torch.autograd.grad(padded, candidates), torch.autograd.grad(plain, candidates))


@pytest.mark.parametrize("case", ["nobody trusted", "nobody valid", "no anchors"])
def test_without_pairs_it_is_zero_with_zero_gradient(case: str) -> None:
    anchors, candidates, predicted = _inputs()
    settings = {"nobody trusted": {"threshold": 1.0}, "nobody valid": {"valid": ~ALL}}.get(case, {})
    rows = 0 if case == "no anchors" else 5
    total, count = ssc(anchors[:rows], CLASSES[:rows], candidates, predicted, **settings)
    assert (total.item(), count.item()) == (0, 0)
    assert not torch.autograd.grad(total, candidates)[0].any()


def test_a_class_that_nobody_predicts_leaves_its_anchors_out() -> None:
    anchors, candidates, predicted = _inputs()
    predicted = predicted.clone()
    predicted[:, 0] = 0
    total, count = ssc(anchors, CLASSES, candidates, predicted)
    assert count.item() == 3  # two of the five anchors are of class 0
    others = CLASSES != 0
    expected, _ = ssc(anchors[others], CLASSES[others], candidates, predicted)
    torch.testing.assert_close(total, expected)


def test_silence_and_clipping_give_finite_gradients() -> None:
    anchors, candidates, predicted = _inputs(dtype=torch.float32)
    with torch.no_grad():
        anchors[0], candidates[1], candidates[3] = 0, 0, 1e18
    total, _ = ssc(anchors, CLASSES, candidates, predicted, temperature=0.03)
    assert torch.isfinite(total) and torch.isfinite(torch.autograd.grad(total, candidates)[0]).all()


def test_precision_under_autocast_and_of_half_inputs() -> None:
    anchors, candidates, predicted = _inputs(dim=32, dtype=torch.float32)
    plain = ssc(anchors, CLASSES, candidates, predicted, temperature=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ssc(anchors, CLASSES, candidates, predicted, temperature=0.03)
    assert cast[0].dtype == torch.float32 and torch.equal(cast[0], plain[0])
    half = ssc(anchors.half(), CLASSES, candidates.half(), predicted)
    wide = ssc(anchors.half().float(), CLASSES, candidates.half().float(), predicted)
    torch.testing.assert_close(half, wide, rtol=0, atol=0)


def test_impossible_arguments() -> None:
    inputs = _inputs()
    anchors, candidates, predicted = inputs
    for settings, text in (
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"threshold": 1.5}, r"threshold must be in 0\.\.1, got 1\.5"),
        ({"normaliser": "mean"}, "normaliser must be soft or count, got mean"),
        ({"weights": torch.ones(4)}, r"weights \(4,\) must be \[5\]"),
        ({"valid": torch.ones(7)}, r"valid must be bool \[7\]"),
    ):
        with pytest.raises(ValueError, match=text):
            _loss(inputs, **settings)
    with pytest.raises(ValueError, match=r"anchors \(5, 3\).*candidates \(7, 4\)"):
        ssc(anchors[:, :3], CLASSES, candidates, predicted)
    with pytest.raises(ValueError, match=r"predicted \(6, 4\) must be \[7, C\]"):
        ssc(anchors, CLASSES, candidates, predicted[1:])
