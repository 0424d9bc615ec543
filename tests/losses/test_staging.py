"""Cross-entropy over sequences: brute force, torch's own, epochs left out, weights of stages, precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rayssl.losses.staging import sequence_cross_entropy, stage_weights

LABELS = torch.tensor([[0, 3, -1, 1], [2, 2, 0, -1]])
VALID = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


def _logits(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_transcription_in_value_and_gradient(weights: Tensor | None, valid: Tensor | None) -> None:
    logits = _logits()
    total, count = sequence_cross_entropy(logits, LABELS, weights=weights, valid=valid)
    expected, scored = torch.zeros((), dtype=logits.dtype), 0
    for s in range(2):
        for n in range(4):
            y = int(LABELS[s, n])
            if y < 0 or (valid is not None and not valid[s, n]):
                continue
            share = torch.exp(logits[s, n, y]) / torch.exp(logits[s, n]).sum()
            expected = expected - (1 if weights is None else weights[y]) * torch.log(share)
            scored += 1
    assert count.item() == scored == (6 if valid is None else 5)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, logits), torch.autograd.grad(expected, logits))


def test_torch_in_value_and_gradient() -> None:
    logits = _logits()
    total, count = sequence_cross_entropy(logits, LABELS)
    theirs = cross_entropy(logits.flatten(0, 1), LABELS.flatten(), ignore_index=-1)
    torch.testing.assert_close(total / count, theirs)
    torch.testing.assert_close(torch.autograd.grad(total / count, logits), torch.autograd.grad(theirs, logits))


def test_equal_logits_cost_the_logarithm_of_the_classes() -> None:
    total, count = sequence_cross_entropy(torch.zeros(2, 4, 4), LABELS)
    assert total.item() / count.item() == pytest.approx(math.log(4))


def test_order_shape_and_logits_of_epochs_left_out_do_not_matter() -> None:
    logits = _logits().detach()
    plain = sequence_cross_entropy(logits, LABELS, valid=VALID)
    torch.testing.assert_close(sequence_cross_entropy(logits.flip(1), LABELS.flip(1), valid=VALID.flip(1)), plain)
    flat = sequence_cross_entropy(logits.flatten(0, 1), LABELS.flatten(), valid=VALID.flatten())
    torch.testing.assert_close(flat, plain)
    changed, labels = logits.clone(), LABELS.clone()
    changed[0, 2], changed[1, 0], labels[1, 0] = 100, -100, 77
    torch.testing.assert_close(sequence_cross_entropy(changed, labels, valid=VALID), plain)
    torch.testing.assert_close(sequence_cross_entropy(logits + 9, LABELS, valid=VALID), plain)


def test_without_scored_epochs_it_is_zero_with_zero_gradient() -> None:
    logits = _logits()
    total, count = sequence_cross_entropy(logits, torch.full((2, 4), -1))
    assert (total.item(), count.item()) == (0, 0) and not torch.autograd.grad(total, logits)[0].any()


def test_weights_fall_with_the_root_of_the_count_and_are_1_on_average() -> None:
    counts = torch.tensor([8426, 91528, 5515, 5483])
    weights = stage_weights(counts).double()
    assert (weights[2] / weights[1]).item() == pytest.approx(math.sqrt(91528 / 5515), rel=1e-5)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1, rel=1e-6)
    assert stage_weights(counts, power=0).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(stage_weights(counts, power=1) * counts, torch.full((4,), counts.sum() / 4))
    assert torch.isfinite(stage_weights(torch.tensor([0, 10, 0]))).all()
    # a batch with the shares of the corpus and equal losses costs the same with and without weights
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([1, 4, 16]))
    weights = stage_weights(torch.tensor([1, 4, 16]))
    total, count = sequence_cross_entropy(torch.zeros(21, 3), labels, weights=weights)
    assert total.item() / count.item() == pytest.approx(math.log(3), rel=1e-6)


def test_precision_under_autocast_and_of_half_inputs() -> None:
    logits = _logits(torch.float32)
    plain = sequence_cross_entropy(logits, LABELS, weights=WEIGHTS)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sequence_cross_entropy(logits, LABELS, weights=WEIGHTS)
    assert cast[0].dtype == torch.float32 and torch.equal(cast[0], plain[0])
    half = sequence_cross_entropy(logits.half(), LABELS)
    torch.testing.assert_close(half, sequence_cross_entropy(logits.half().float(), LABELS), rtol=0, atol=0)


def test_impossible_arguments() -> None:
    logits = _logits()
    with pytest.raises(ValueError, match=r"labels \(2, 3\) do not fit logits \(2, 4, 4\)"):
        sequence_cross_entropy(logits, LABELS[:, 1:])
    with pytest.raises(ValueError, match=r"weights \(3,\) do not fit"):
        sequence_cross_entropy(logits, LABELS, weights=WEIGHTS[1:])
    with pytest.raises(ValueError, match=r"valid must be bool \(2, 4\)"):
        sequence_cross_entropy(logits, LABELS, valid=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"counts must be numbers >= 0"):
        stage_weights(torch.tensor([3, -1]))
    with pytest.raises(ValueError, match="power must not be negative"):
        stage_weights(torch.tensor([3, 1]), power=-1)
