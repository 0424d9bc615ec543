"""FixMatch's and DASO's losses: the papers' formulas by brute force, closed forms, absent classes, silence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rayssl.losses.pseudolabel import alignment, blend, blend_weights, consistency, matched, semantic_logits

B, C, D = 6, 5, 7
PRESENT = torch.tensor([True, False, True, True, False])


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _prototypes(present: Tensor = PRESENT) -> Tensor:
    """What the memory gives: zeros for a class that is not present."""
    return 3 * _random(C, D, seed=5) * present[:, None]


def test_consistency_is_the_mean_over_all_rows() -> None:
    logits, targets = _random(B, C).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    confident = torch.tensor([True, False, True, False, False, False])
    expected = sum(-torch.log(logits[i].exp()[targets[i]] / logits[i].exp().sum()) for i in (0, 2)) / B
    ours = consistency(logits, targets, confident)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (ours, expected)))


def test_nobody_confident_costs_nothing_whatever_the_targets() -> None:
    logits = _random(B, C).requires_grad_()
    loss = consistency(logits, torch.full((B,), -1), torch.zeros(B, dtype=torch.bool))
    assert loss.item() == 0 and not torch.autograd.grad(loss, logits)[0].any()


def test_an_even_classifier_costs_the_logarithm_of_the_classes() -> None:
    logits = torch.zeros(B, C)
    every = torch.ones(B, dtype=torch.bool)
    assert consistency(logits, torch.arange(B) % C, every).item() == pytest.approx(math.log(C), rel=1e-6)
    q = torch.full((B, C), 1 / C)
    assert alignment(logits, q, torch.ones(C, dtype=torch.bool)).item() == pytest.approx(math.log(C), rel=1e-6)


def test_semantic_logits_are_cosines_over_the_temperature() -> None:
    features, prototypes = _random(B, D), _prototypes()
    found = semantic_logits(features, prototypes, PRESENT, temperature=0.05)
    for i in range(B):
        for c in range(C):
            expected = cosine_similarity(features[i], prototypes[c], dim=0) / 0.05 if PRESENT[c] else -math.inf
            assert found[i, c].item() == pytest.approx(float(expected), rel=1e-9)


def test_norms_of_features_and_prototypes_do_not_matter() -> None:
    features, prototypes = _random(B, D), _prototypes()
    scaled = semantic_logits(features * 1e-3, prototypes * 70, PRESENT, temperature=0.05)
    torch.testing.assert_close(scaled, semantic_logits(features, prototypes, PRESENT, temperature=0.05))


def test_an_absent_class_has_no_share_whatever_its_row_holds() -> None:
    """A zero vector in the softmax would have similarity 0, more than a class on the other side."""
    features, prototypes = -_prototypes()[[0, 0, 2, 3, 2, 3]], _prototypes()
    q = semantic_logits(features, prototypes, PRESENT, temperature=0.05).softmax(dim=1)
    assert not q[:, ~PRESENT].any()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(B, dtype=q.dtype))
    garbage = torch.where(PRESENT[:, None], prototypes, _random(C, D, seed=9))
    assert torch.equal(semantic_logits(features, garbage, PRESENT, temperature=0.05).softmax(dim=1), q)
    only = semantic_logits(features[:, :], prototypes[PRESENT], PRESENT[PRESENT], temperature=0.05).softmax(dim=1)
    torch.testing.assert_close(q[:, PRESENT], only)


def test_no_class_present_is_uniform_and_unused() -> None:
    nobody, features = torch.zeros(C, dtype=torch.bool), _random(B, D).requires_grad_()
    logits = semantic_logits(features, _random(C, D, seed=9), nobody, temperature=0.05)
    q = logits.softmax(dim=1)
    assert torch.equal(q, torch.full_like(q, 1 / C))
    loss = alignment(logits, q, nobody)
    assert loss.item() == 0 and not torch.autograd.grad(loss, features)[0].any()


def test_gradient_flows_to_features_only() -> None:
    features, prototypes = _random(B, D).requires_grad_(), _prototypes().requires_grad_()
    q = _random(B, C, seed=2).requires_grad_()
    logits = semantic_logits(features, prototypes, PRESENT, temperature=0.05)
    loss = alignment(logits, q.masked_fill(~PRESENT, -math.inf).softmax(dim=1), PRESENT)
    gradients = torch.autograd.grad(loss, [features, prototypes, q], allow_unused=True)
    assert gradients[0] is not None and gradients[0].abs().min() > 0
    assert gradients[1] is None and gradients[2] is None


def test_alignment_transcribed_in_value_and_gradient() -> None:
    """mean over i of H(q_i, q_s,i) = -sum over present c of q_ic log q_s,ic, the softmax written out."""
    weak, strong, prototypes = _random(B, D, seed=1), _random(B, D, seed=2).requires_grad_(), _prototypes()
    q = semantic_logits(weak, prototypes, PRESENT, temperature=0.05).softmax(dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        similar = {
            c: torch.exp(strong[i] @ prototypes[c] / strong[i].norm() / prototypes[c].norm() / 0.05) for c in (0, 2, 3)
        }
        total = total - sum(q[i, c] * torch.log(similar[c] / sum(similar.values())) for c in similar)
    ours = alignment(semantic_logits(strong, prototypes, PRESENT, temperature=0.05), q, PRESENT)
    torch.testing.assert_close(ours, total / B)
    torch.testing.assert_close(*(torch.autograd.grad(loss, strong) for loss in (ours, total / B)))


def test_silence_is_as_near_to_all_and_pushes_nothing() -> None:
    features = _random(B, D).float()
    features[0], features[1] = 0, 1e18
    features.requires_grad_()
    logits = semantic_logits(features, _prototypes().float(), PRESENT, temperature=0.05)
    torch.testing.assert_close(logits[0].softmax(dim=0), PRESENT / 3)
    loss = alignment(logits, torch.tensor([0.5, 0, 0.25, 0.25, 0]).expand(B, C), PRESENT)
    gradient = torch.autograd.grad(loss, features)[0]
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert not gradient[0].any() and gradient[2:].any(dim=1).all()


def test_weights_transcribed() -> None:
    m = torch.tensor([50, 1, 0, 7, 100])
    for temperature in (0.3, 1.5):
        powers = [float(count) ** (1 / temperature) for count in m]
        expected = torch.tensor([power / max(powers) for power in powers])
        torch.testing.assert_close(blend_weights(m, temperature=temperature), expected)


def test_weights_do_not_depend_on_how_much_was_counted_nor_overflow() -> None:
    m = torch.tensor([2**40, 2**39, 0, 2**20, 1])
    found = blend_weights(m, temperature=0.01)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0**-100, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(blend_weights(m * 3, temperature=0.5), blend_weights(m, temperature=0.5))


def test_an_empty_histogram_leaves_the_linear_label() -> None:
    weights = blend_weights(torch.zeros(C, dtype=torch.int64), temperature=0.3)
    assert not weights.any()
    p, q = _random(B, C, seed=1).softmax(dim=1), _random(B, C, seed=2).softmax(dim=1)
    assert torch.equal(blend(p, q, weights), p)


def test_blend_is_weighed_by_the_class_the_linear_classifier_prefers() -> None:
    p, q = _random(B, C, seed=1).softmax(dim=1), _random(B, C, seed=2).softmax(dim=1).requires_grad_()
    weights = torch.tensor([1.0, 0.5, 0.0, 0.25, 0.125])
    found = blend(p, q, weights)
    for i in range(B):
        v = float(weights[max(range(C), key=lambda c: p[i, c])])
        torch.testing.assert_close(found[i], (1 - v) * p[i] + v * q[i].detach())
    torch.testing.assert_close(found.sum(dim=1), torch.ones(B, dtype=found.dtype))
    assert not found.requires_grad


def test_precision_under_autocast_and_of_half_inputs() -> None:
    features, prototypes = _random(B, D).float(), _prototypes().float()
    q = semantic_logits(features, prototypes, PRESENT, temperature=0.05).softmax(dim=1)
    every, targets = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.int64)
    plain, cast = [], []
    for enabled, into in ((False, plain), (True, cast)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = semantic_logits(features, prototypes, PRESENT, temperature=0.05)
            into += [logits, alignment(logits, q, PRESENT), consistency(_random(B, C).float(), targets, every)]
    for one, other in zip(plain, cast, strict=True):
        assert other.dtype == torch.float32 and torch.equal(one, other)
    half = semantic_logits(features.half(), prototypes, PRESENT, temperature=0.05)
    assert half.dtype == torch.float32


def test_impossible_arguments() -> None:
    x, every = _random(B, C), torch.ones(B, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"confident torch.float32"):
        consistency(x, torch.zeros(B, dtype=torch.int64), every.float())
    with pytest.raises(ValueError, match=r"logits \(0, 5\)"):
        consistency(x[:0], torch.zeros(0, dtype=torch.int64), every[:0])
    with pytest.raises(ValueError, match=r"q \(5, 5\)"):
        alignment(x, x[1:], PRESENT)
    with pytest.raises(ValueError, match="present must be bool"):
        semantic_logits(_random(B, D), _prototypes(), PRESENT.int(), temperature=0.05)
    for call in (
        lambda: semantic_logits(_random(B, D), _prototypes(), PRESENT, temperature=0.0),
        lambda: blend_weights(torch.ones(C), temperature=-1.0),
    ):
        with pytest.raises(ValueError, match="temperature must be positive"):
            call()
    with pytest.raises(ValueError, match=r"weights \(4,\)"):
        blend(x, x, torch.ones(4))


@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.5])
def test_matched_needs_the_cosine_and_the_distance_to_agree(threshold: float) -> None:
    rows, prototypes = _random(40, D, seed=2), _prototypes() * torch.tensor([0.2, 1, 1, 0.5, 1])[:, None]
    known = [k for k in range(C) if PRESENT[k]]
    expected = []
    for row in rows:
        cosines = {k: float(cosine_similarity(row, prototypes[k], dim=0)) for k in known}
        apart = {k: float((row - prototypes[k]).norm()) for k in known}
        best = max(known, key=lambda k: cosines[k])
        expected.append(cosines[best] >= threshold and best == min(known, key=lambda k: apart[k]))
    assert 0 < sum(expected) < len(rows)
    assert matched(rows, prototypes, PRESENT, threshold=threshold).tolist() == expected


def test_nothing_matches_without_a_template() -> None:
    nobody = torch.zeros(C, dtype=torch.bool)
    assert not matched(_random(B, D), _prototypes(nobody), nobody, threshold=-1.0).any()
