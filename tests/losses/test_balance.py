"""Logit adjustment: the paper's formula, what it does to the best logits, classes without examples, precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rayssl.losses.balance import adjusted_cross_entropy, log_prior

COUNTS = torch.tensor([60, 30, 9, 1])
LABELS = torch.tensor([0, 0, 3, 1, 2])


def _logits(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def test_transcription_in_value_and_gradient() -> None:
    """Eq. 10: -log( pi_y^tau e^f_y / sum over y' of pi_y'^tau e^f_y' ), averaged."""
    logits, prior = _logits(), COUNTS.double() / 100
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, LABELS, strict=True):
        terms = [prior[c] ** 1.3 * torch.exp(row[c]) for c in range(4)]
        total = total - torch.log(terms[label] / sum(terms))
    ours = adjusted_cross_entropy(logits, LABELS, log_prior=prior.log(), tau=1.3)
    torch.testing.assert_close(ours, total / 5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (ours, total / 5)))


def test_equal_classes_or_tau_zero_are_plain_cross_entropy() -> None:
    logits = _logits()
    plain = cross_entropy(logits, LABELS)
    even = log_prior(torch.full((4,), 7))
    torch.testing.assert_close(adjusted_cross_entropy(logits, LABELS, log_prior=even, tau=1.0), plain)
    torch.testing.assert_close(adjusted_cross_entropy(logits, LABELS, log_prior=log_prior(COUNTS), tau=0.0), plain)


def test_the_best_constant_logits_favour_no_class() -> None:
    """Rows that say nothing, labelled as often as the prior says: cross-entropy learns the prior, this nothing."""
    labels = torch.repeat_interleave(torch.arange(4), COUNTS)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = adjusted_cross_entropy(logits.expand(100, 4), labels, log_prior=log_prior(COUNTS), tau=1.0)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-7
    plain = cross_entropy(logits.expand(100, 4), labels)
    assert torch.autograd.grad(plain, logits)[0].abs().max() > 0.3


def test_prior_by_hand() -> None:
    found = log_prior(COUNTS)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([math.log(n / 100) for n in COUNTS.tolist()], rel=1e-6)
    torch.testing.assert_close(log_prior(COUNTS * 10**12), found)


def test_a_class_without_examples_is_one_with_a_single_one() -> None:
    assert torch.equal(log_prior(torch.tensor([60, 0, 9, 1])), log_prior(torch.tensor([60, 1, 9, 1])))
    torch.testing.assert_close(log_prior(torch.zeros(4)), torch.full((4,), -math.log(4)))
    logits, labels = _logits(), torch.full((5,), 1)
    loss = adjusted_cross_entropy(logits, labels, log_prior=log_prior(torch.tensor([60, 0, 9, 1])), tau=1.0)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and (gradient[:, 1] < 0).all()


def test_precision_under_autocast_and_of_half_inputs() -> None:
    logits, prior = _logits(torch.float32), log_prior(COUNTS)
    plain = adjusted_cross_entropy(logits, LABELS, log_prior=prior, tau=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = adjusted_cross_entropy(logits, LABELS, log_prior=prior, tau=1.0)
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)
    half = adjusted_cross_entropy(logits.half(), LABELS, log_prior=prior, tau=1.0)
    torch.testing.assert_close(
        half, adjusted_cross_entropy(logits.half().float(), LABELS, log_prior=prior, tau=1.0), rtol=0, atol=0
    )


def test_impossible_arguments() -> None:
    with pytest.raises(ValueError, match="tau must not be negative"):
        adjusted_cross_entropy(_logits(), LABELS, log_prior=log_prior(COUNTS), tau=-1.0)
    with pytest.raises(ValueError, match=r"log_prior \(3,\) do not fit"):
        adjusted_cross_entropy(_logits(), LABELS, log_prior=log_prior(COUNTS[1:]), tau=1.0)
    for counts in (torch.tensor([3, -1]), torch.zeros(0), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="counts must be numbers >= 0"):
            log_prior(counts)
