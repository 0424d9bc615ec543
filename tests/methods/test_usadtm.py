"""USADTM: pseudo-labels by the nearest template, and the mutual information of three views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayssl.methods.base import ClassRecall
from rayssl.methods.usadtm import USADTM, USADTMConfig
from tests.methods.few_labels import WIDTH, batch, build, outputs, same_gradients, without_anchors
from tests.runs import random_views, views_config

KNOBS = {"threshold": 0.4, "weight": 0.6, "aggregation": 0.2, "temperature": 0.3}


def recall(*absent: int) -> ClassRecall:
    prototypes = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    present = torch.tensor([k not in absent for k in range(4)])
    return without_anchors(prototypes * present[:, None], present, torch.zeros(4, dtype=torch.long))


def with_plain(seed: int) -> dict[str, Tensor]:
    plain = torch.randn(10, 4, generator=torch.Generator().manual_seed(50 + seed), dtype=torch.float64)
    return outputs(seed) | {"plain": plain.requires_grad_()}


def test_step_row_by_row() -> None:
    method, known = build(USADTM, USADTMConfig, **KNOBS), recall(2)
    out, twin, given = with_plain(0), with_plain(0), batch()
    assert given.labelled is not None
    rows = [-twin["labelled"][i].log_softmax(0)[int(c)] for i, c in enumerate(given.labelled.labels)]
    loss = torch.stack(rows).mean()
    pseudo = []
    for weak, strong in zip(twin["weak_rows"].detach(), twin["strong"], strict=True):
        cosines = torch.cosine_similarity(weak[None], known.prototypes[[0, 1, 3]])
        q = (cosines / KNOBS["temperature"]).softmax(0)
        target = [0, 1, 3][int(q.argmax())]
        pseudo.append(-strong.log_softmax(0)[target] * (float(q.max()) >= KNOBS["threshold"]))
    a, b, c = (twin[name].softmax(1) for name in ("plain", "weak", "strong"))
    orders = [(a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a)]
    together = sum(torch.einsum("ni,nj,nk->ijk", *order) for order in orders) / (6 * len(a))
    assert isinstance(together, Tensor)
    parts = [together.sum((1, 2)), together.sum((0, 2)), together.sum((0, 1))]
    apart = torch.einsum("i,j,k->ijk", *parts)
    information = (together * (together / apart).log()).sum()
    expected = loss + KNOBS["weight"] * torch.stack(pseudo).mean() - KNOBS["aggregation"] * information
    same_gradients(method.step(out, given, known).loss, out, expected, twin)


def test_before_any_template_nothing_is_confident() -> None:
    method = build(USADTM, USADTMConfig, threshold=0.3, aggregation=0.0)
    step = method.step(outputs(), batch(), recall(0, 1, 2, 3))
    assert float(step.terms["confident"]) == 0 and float(step.terms["pseudo"]) == 0


def test_the_third_view_is_there_for_the_aggregation_only() -> None:
    with_it, without = (build(USADTM, USADTMConfig, aggregation=weight) for weight in (0.1, 0.0))
    assert [(s.name, s.recipe) for s in with_it.config.segments(views_config(), 0)][-1] == ("plain", "none")
    assert [s.name for s in without.config.segments(views_config(), 0)] == ["weak", "strong"]
    views = random_views(("labelled", "weak", "strong", "plain"))
    assert with_it(views)["plain"].shape == (6, 4)


@pytest.mark.parametrize("step", [0, 499, 500])
def test_the_public_rule(step: int) -> None:
    """As in the public code of DASO: pseudo-labels from step 500 on, by cosine, if the distance agrees."""
    published = {"rule": "cosine", "threshold": 0.3, "warmup_steps": 500, "aggregation": 0.0}
    method, known = build(USADTM, USADTMConfig, **published), recall(2)
    out, twin, given = outputs(), outputs(), batch(step)
    assert given.labelled is not None
    rows = [-twin["labelled"][i].log_softmax(0)[int(c)] for i, c in enumerate(given.labelled.labels)]
    pseudo, taken = [], 0
    for weak, strong in zip(twin["weak_rows"].detach(), twin["strong"], strict=True):
        cosines = [float(torch.cosine_similarity(weak, known.prototypes[k], dim=0)) for k in (0, 1, 3)]
        apart = [float((weak - known.prototypes[k]).norm()) for k in (0, 1, 3)]
        best = max(range(3), key=lambda k: cosines[k])
        agrees = cosines[best] >= 0.3 and apart[best] == min(apart) and step >= 500
        taken += agrees
        pseudo.append(-strong.log_softmax(0)[[0, 1, 3][best]] * agrees)
    assert (0 < taken < len(pseudo)) if step >= 500 else taken == 0
    made = method.step(out, given, known)
    same_gradients(made.loss, out, torch.stack(rows).mean() + torch.stack(pseudo).mean(), twin)
    assert float(made.terms["confident"]) == pytest.approx(taken / len(pseudo))


def test_templates_of_the_trained_encoder() -> None:
    method = build(USADTM, USADTMConfig, features="current", aggregation=0.0)
    views = random_views(("labelled", "weak", "strong"))
    out = method(views)
    assert "labelled_average" not in out and out["labelled_rows"].requires_grad
    remembered = method.consult(out, batch()).features
    assert remembered is not None and not remembered.requires_grad
    assert torch.equal(remembered, out["labelled_rows"])
    assert "labelled_rows" not in build(USADTM, USADTMConfig, aggregation=0.0)(views)
