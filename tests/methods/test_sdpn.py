"""SDPN: its crops, who sees which, shared prototypes, the terms of its loss, its teacher, and SSPS over it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightly.loss import KoLeoLoss, MSNLoss
from torch import Tensor
from torch.nn.functional import normalize

from rayssl.losses.sdpn import decorrelation
from rayssl.methods.base import Outputs, Recall, View, Views
from rayssl.methods.sdpn import SDPN, SDPNConfig
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, batch_of, random_views, views_config

HEAD: dict[str, Any] = {"hidden": [12], "bottleneck": 6, "prototypes": 10}
LOCALS = ("local1", "local2", "local3")
FOUND = torch.tensor([True, False, True, True, False, False])


def method(**changes: object) -> SDPN:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    config = {"locals": 3, "local_s": 0.1, "head": HEAD, "teacher_momentum": 0.9, **changes}
    return SDPN(SDPNConfig.model_validate(config), encoder, views_config())


def crops(size: int = 6, seed: int = 0) -> Views:
    views = random_views(("global", *LOCALS), size, seed)
    return {n: View(v.wave[:, :1600], v.keys) if n in LOCALS else View(v.wave, None) for n, v in views.items()}


def expected(model: SDPN, out: Outputs, teacher: Tensor) -> Tensor:
    """The whole loss by lightly's parts: MSN at the published temperatures, and KoLeo of each crop."""
    rows = model.student.head.bottleneck(torch.cat([out[f"{name}_embedding"] for name in LOCALS]))
    msn = MSNLoss(0.1, 3, 1.0)(rows, teacher, model.prototypes.weight, target_sharpen_temperature=0.25)
    return msn + 0.1 * sum(KoLeoLoss()(out[f"{name}_embedding"]) for name in LOCALS)


def trained(model: SDPN, steps: int = 2) -> SDPN:
    """After some steps of SGD, so that teacher and student differ."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        optimiser.zero_grad()
        model.step(model(crops(seed=step)), batch_of(), None).loss.backward()
        optimiser.step()
        model.after_step(0.1)
    return model


def test_published_settings_are_the_defaults() -> None:
    config = SDPNConfig()
    assert (config.locals, config.local_s, config.student_temperature, config.iterations) == (4, 2.0, 0.1, 3)
    assert config.teacher_temperature == pytest.approx(0.1 * 0.25) and config.teacher_momentum == 0.996
    assert (config.entropy_weight, config.diversity_weight, config.dimension_weight) == (1.0, 0.1, 0.0)
    head = config.head
    assert (head.hidden, head.bottleneck, head.prototypes, head.batch_norm) == ([2048, 2048], 256, 1024, True)
    assert SDPNConfig.model_validate({"head": {"hidden": [8]}}).head.prototypes == 1024


def test_segments() -> None:
    segments = method().config.segments(views_config(), 0)
    assert [(s.name, s.seconds, s.recipe) for s in segments] == [
        ("global", 0.2, "none"),
        *((name, 0.1, "distort") for name in LOCALS),
    ]
    assert method().config.positive_segments(views_config(), 0) == segments[:1]


def test_outputs() -> None:
    model = method()
    passes: list[tuple[str, tuple[int, ...]]] = []
    for name in ("student", "teacher"):
        encoder = getattr(model, name).encoder
        encoder.register_forward_pre_hook(lambda _, x, name=name: passes.append((name, tuple(x[0].shape))))
    out = model(crops())
    assert passes == [("student", (18, 1600)), ("teacher", (6, 3200))]
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        **dict.fromkeys(LOCALS, (6, 10)),
        **{f"{name}_embedding": (6, 16) for name in LOCALS},
        "teacher": (6, 6),
    }
    assert {name for name, value in out.items() if not value.requires_grad} == {"teacher"}
    torch.testing.assert_close(out["teacher"].norm(dim=1), torch.ones(6))


def test_loss_is_that_of_lightlys_parts() -> None:
    """In eval mode, where a second pass through the head gives the same rows."""
    model = trained(method()).eval()
    out = model(crops())
    step = model.step(out, batch_of(), None)
    torch.testing.assert_close(step.loss.detach(), expected(model, out, out["teacher"]).detach(), rtol=1e-5, atol=1e-5)
    assert step.terms.keys() == {"sdpn", "unevenness", "teacher_entropy", "diversity"}
    total = step.terms["sdpn"] + step.terms["unevenness"] + 0.1 * step.terms["diversity"]
    torch.testing.assert_close(total, step.loss.detach())
    assert step.remember is None and not any(term.requires_grad for term in step.terms.values())


def test_weights_of_the_terms() -> None:
    found = {}
    for name in ("entropy_weight", "diversity_weight", "dimension_weight"):
        model = method(**{"entropy_weight": 0.0, "diversity_weight": 0.0, name: 2.0}).eval()
        out = model(crops())
        found[name] = model.step(out, batch_of(), None)
    bare = method(entropy_weight=0.0, diversity_weight=0.0).eval()
    plain = bare.step(bare(crops()), batch_of(), None)
    torch.testing.assert_close(plain.loss.detach(), plain.terms["sdpn"])
    for name, term in (("entropy_weight", "unevenness"), ("diversity_weight", "diversity")):
        step = found[name]
        torch.testing.assert_close(step.loss.detach(), plain.loss.detach() + 2 * step.terms[term])
    value = sum(decorrelation(bare(crops())[f"{name}_embedding"]) for name in LOCALS)
    torch.testing.assert_close(found["dimension_weight"].loss.detach(), (plain.loss + 2 * value).detach())


def test_losses_see_no_bfloat16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = method()(crops())
    assert {value.dtype for name, value in out.items() if "embedding" not in name} == {torch.float32}


def test_every_weight_of_the_student_has_a_gradient_and_none_of_the_teacher() -> None:
    model = method()
    model.step(model(crops()), batch_of(), None).loss.backward()
    trained_parts = [*model.student.parameters(), *model.prototypes.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained_parts)
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.parameters())


def test_the_teacher_starts_as_the_student_and_follows_it() -> None:
    model = method()
    torch.testing.assert_close(model.teacher.state_dict(), model.student.state_dict(), rtol=0, atol=0)
    before, kinds = {name: p.clone() for name, p in model.teacher.named_parameters()}, model.prototypes.weight.clone()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    model.after_step(0.5)  # halfway from 0.9 to 1
    for name, parameter in model.teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.05)
    assert torch.equal(model.prototypes.weight, kinds)


@pytest.mark.parametrize("evaluate", ["teacher", "student"])
def test_which_encoder_is_evaluated(evaluate: str) -> None:
    model = trained(method(evaluate=evaluate))
    assert model.encoder is getattr(model, evaluate).encoder and model.reference_encoder is model.teacher.encoder
    prefix = model.encoder_prefix
    weights = {n[len(prefix) :]: v for n, v in model.state_dict().items() if n.startswith(prefix)}
    fresh = build_encoder(EncoderConfig.model_validate(ENCODER))
    fresh.load_state_dict(weights, strict=True)


def test_under_ssps_the_codes_are_of_the_recalled_rows() -> None:
    """Of those that were found, by the prototypes of today; the memory stores the batch's own."""
    base = trained(method()).eval()
    model = SSPS(SSPSConfig(name="ssps", over=base.config, start_epoch=1, clusters=4), base).eval()
    assert base.config.positive_dim(16) == 6 and model.encoder_prefix == "base.teacher.encoder."
    out = model(crops() | random_views(("reference",)))
    rows = normalize(torch.randn(6, 6, generator=torch.Generator().manual_seed(9)), dim=1)
    step = model.step(out, batch_of(), Recall(rows, FOUND))
    teacher = torch.where(FOUND[:, None], rows, out["teacher"])
    torch.testing.assert_close(step.loss.detach(), expected(base, out, teacher).detach(), rtol=1e-5, atol=1e-5)
    assert step.remember is not None and torch.equal(step.remember.positives, out["teacher"])
    own = model.step(out, batch_of(), Recall(rows, torch.zeros(6, dtype=torch.bool)))
    assert (own.loss - step.loss).abs() > 1e-3
    alone = base.positives_of({"global": crops()["global"]})
    torch.testing.assert_close(alone, out["teacher"])
