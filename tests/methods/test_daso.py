"""DASO's step against a transcription of the paper, row by row, in value and gradient; what it asks and remembers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rayssl.methods.base import Batch, ClassRecall
from rayssl.methods.daso import DASO, DASOConfig
from rayssl.methods.fixmatch import FixMatch, FixMatchConfig
from rayssl.models.teacher import warmed_momentum
from tests.methods.few_labels import CLASSES, WIDTH, batch, build, outputs, same_gradients, without_anchors
from tests.runs import random_views

KNOBS = {"threshold": 0.5, "weight": 0.7, "align": 0.3, "warmup_steps": 10, "blend_temperature": 0.6}


def recall(*, absent: tuple[int, ...] = (), histogram: tuple[int, ...] = (40, 7, 2, 1)) -> ClassRecall:
    prototypes = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    present = torch.ones(4, dtype=torch.bool)
    present[list(absent)] = False
    return without_anchors(torch.where(present[:, None], prototypes, 0), present, torch.tensor(histogram))


def transcription(
    out: dict[str, Tensor], given: Batch, known: ClassRecall, temperature: float = 0.05
) -> tuple[Tensor, list[int]]:
    """The paper's step (methods.md, section 2: 2, 3, 6) with loops over rows and classes; what each row was given."""
    assert given.labelled is not None
    supervised = [-out["labelled"][i].log_softmax(0)[int(c)] for i, c in enumerate(given.labelled.labels)]
    most = max(float(m) ** (1 / KNOBS["blend_temperature"]) for m in known.histogram)
    v = [float(m) ** (1 / KNOBS["blend_temperature"]) / most if most else 0.0 for m in known.histogram]

    def similar(row: Tensor) -> Tensor:
        scores = [torch.dot(row, known.prototypes[k]) / (row.norm() * known.prototypes[k].norm()) for k in seen]
        return torch.stack(scores).div(temperature).softmax(0)

    seen = [k for k in range(4) if known.present[k]]
    pseudo, aligned, chosen = [], [], []
    for i in range(len(out["weak"])):
        p = out["weak"][i].detach().softmax(0)
        q = torch.zeros(4, dtype=torch.float64)
        q[seen] = similar(out["weak_rows"][i].detach())
        upsilon = v[int(p.argmax())]
        blended = (1 - upsilon) * p + upsilon * q
        chosen.append(int(blended.argmax()))
        confident = float(blended.max()) >= KNOBS["threshold"]
        pseudo.append(-out["strong"][i].log_softmax(0)[chosen[-1]] * confident)
        strong = similar(out["strong_rows"][i])
        aligned.append(-sum(float(q[k]) * strong[n].log() for n, k in enumerate(seen)))
    parts = [torch.stack(rows).mean() for rows in (supervised, pseudo, aligned)]
    return parts[0] + KNOBS["weight"] * parts[1] + KNOBS["align"] * parts[2], chosen


@pytest.mark.parametrize(
    "known", [recall(), recall(absent=(3,)), recall(absent=(0, 2)), recall(histogram=(0, 0, 0, 0))]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_step_is_the_papers(known: ClassRecall, seed: int) -> None:
    method = build(DASO, DASOConfig, **KNOBS)
    out, twin, given = outputs(seed), outputs(seed), batch(step=10, seed=seed)
    step = method.step(out, given, known)
    expected, chosen = transcription(twin, given, known)
    same_gradients(step.loss, out, expected, twin)
    counts = torch.bincount(torch.tensor(chosen), minlength=4)
    assert torch.equal(step.remember.counts, counts) and torch.equal(step.counts["predicted"], counts)
    right = [c for c, t in zip(chosen, given.truth.tolist(), strict=True) if c == t]
    assert torch.equal(step.counts["right"], torch.bincount(torch.tensor(right, dtype=torch.long), minlength=4))
    assert int(step.counts["truth"].sum()) == int((given.truth >= 0).sum())
    cosines = torch.nn.functional.cosine_similarity(out["weak_rows"][:, None], known.prototypes[None], dim=2)
    by = {"linear": out["weak"].argmax(1), "semantic": cosines.masked_fill(~known.present, -9).argmax(1)}
    for name, found in by.items():
        hits = torch.bincount(found[found == given.truth], minlength=4)
        assert torch.equal(step.counts[f"right_{name}"], hits), name


def test_warmup_is_fixmatch_and_counts_all_the_same() -> None:
    daso, fixmatch = build(DASO, DASOConfig, **KNOBS), build(FixMatch, FixMatchConfig, threshold=0.5, weight=0.7)
    out, twin, given = outputs(), outputs(), batch(step=9)
    step, other = daso.step(out, given, recall()), fixmatch.step(twin, given, None)
    same_gradients(step.loss, out, other.loss, twin)
    assert float(step.terms["align"]) == 0
    assert torch.equal(step.remember.counts, torch.bincount(out["weak"].argmax(1), minlength=4))


def test_without_any_prototype_it_is_fixmatch() -> None:
    """No zero vector in a softmax, and nothing that is not finite."""
    absent, counts = torch.zeros(4, dtype=torch.bool), torch.tensor([1, 2, 3, 4])
    nothing = without_anchors(torch.zeros(4, WIDTH).double(), absent, counts)
    daso, fixmatch = build(DASO, DASOConfig, **KNOBS), build(FixMatch, FixMatchConfig, threshold=0.5, weight=0.7)
    out, twin = outputs(), outputs()
    same_gradients(
        daso.step(out, batch(step=99), nothing).loss, out, fixmatch.step(twin, batch(step=99), None).loss, twin
    )


def test_logit_adjustment_moves_the_labelled_loss_only() -> None:
    plain, adjusted = build(FixMatch, FixMatchConfig), build(FixMatch, FixMatchConfig, adjust=1.5)
    out, twin, given = outputs(), outputs(), batch()
    one, other = plain.step(out, given, None), adjusted.step(twin, given, None)
    assert torch.equal(one.terms["pseudo"], other.terms["pseudo"])
    assert given.labelled is not None
    prior = torch.tensor(CLASSES.labelled).double() / sum(CLASSES.labelled)
    rows = [
        -(twin["labelled"][i] + 1.5 * prior.log()).log_softmax(0)[int(c)] for i, c in enumerate(given.labelled.labels)
    ]
    torch.testing.assert_close(other.terms["supervised"], torch.stack(rows).mean().detach(), rtol=1e-6, atol=1e-6)


def test_forward_and_consult() -> None:
    """Prototypes are made of the average's features, in eval mode: whoever else is in the batch."""
    method = build(DASO, DASOConfig)
    views = random_views(("labelled", "weak", "strong"))
    out = method(views)
    assert {name: tuple(rows.shape) for name, rows in out.items()} == {
        **dict.fromkeys(("labelled", "weak", "strong"), (6, 4)),
        **dict.fromkeys(("weak_rows", "strong_rows", "labelled_average"), (6, WIDTH)),
    }
    alone = method.average.encoder(views["labelled"].wave[2:3], None)
    torch.testing.assert_close(out["labelled_average"][2:3], alone, rtol=1e-4, atol=1e-5)
    assert not out["labelled_average"].requires_grad and out["weak"].requires_grad
    assert not method.average.training and method.model.training


def test_the_average_follows_parameters_and_statistics() -> None:
    method = build(DASO, DASOConfig, ema=0.9)
    views = random_views(("labelled", "weak", "strong"))
    for step in range(12):
        before = {name: value.clone() for name, value in method.average.state_dict().items()}
        method(views)
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter.add_(0.1)
        method._updates = step
        method.after_step(0.5)
        momentum = warmed_momentum(step, 0.9)
        assert momentum == min(1 - 1 / (step + 1), 0.9)
        for name, value in method.model.state_dict().items():
            if value.is_floating_point():
                expected = momentum * before[name] + (1 - momentum) * value
                torch.testing.assert_close(method.average.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_a_rare_class_keeps_the_linear_answer() -> None:
    """Eq. 5: where a class was hardly predicted, p stays; where it was predicted most, q stands."""
    method = build(DASO, DASOConfig, threshold=0.0, warmup_steps=0, align=0.0)
    known = recall(histogram=(100, 0, 0, 0))
    out, given = outputs(), batch(step=1)
    step = method.step(out, given, known)
    linear = out["weak"].argmax(1)
    cosines = torch.nn.functional.cosine_similarity(out["weak_rows"][:, None], known.prototypes[None], dim=2)
    expected = torch.where(linear == 0, cosines.argmax(1), linear)
    assert torch.equal(step.counts["predicted"], torch.bincount(expected, minlength=4))
    assert math.isfinite(step.loss.item())
