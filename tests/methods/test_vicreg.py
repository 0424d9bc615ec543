"""VICReg: its weighted terms, the published projector, and SSPS over it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayssl.losses.vicreg import vicreg
from rayssl.methods.base import Outputs, Recall
from rayssl.methods.ssps import SSPS, SSPSConfig
from rayssl.methods.vicreg import VICReg, VICRegConfig
from rayssl.models.encoder import EncoderConfig, build_encoder
from tests.runs import ENCODER, batch_of, random_views, views_config

FOUND = torch.tensor([True, False, True, True, False, False])
WEIGHTS = {"invariance": 2.0, "variance": 3.0, "covariance": 0.5}


def model(**changes: object) -> VICReg:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig.model_validate(ENCODER))
    settings = {"projector": {"sizes": [12, 8], "last_bias": False}, **WEIGHTS} | changes
    return VICReg(VICRegConfig.model_validate(settings), encoder, views_config())


def forward(method: VICReg | SSPS, seed: int = 0) -> Outputs:
    out: Outputs = method(random_views(("anchor", "positive"), seed=seed))
    return out


def recall() -> Recall:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(9)) * 3
    return Recall(rows.requires_grad_(), FOUND)


def expected(a: Tensor, b: Tensor) -> Tensor:
    terms = vicreg(a, b, keys_a=a, keys_b=b)
    return 2 * terms.invariance + 3 * terms.variance + 0.5 * terms.covariance


def test_segments() -> None:
    segments = model().config.segments(views_config(), 0)
    assert [(s.name, s.seconds, s.recipe) for s in segments] == [
        ("anchor", 0.2, "distort"),
        ("positive", 0.2, "distort"),
    ]


def test_loss_is_the_weighted_sum_of_the_terms() -> None:
    method = model()
    out = forward(method)
    assert out["anchor"].shape == out["positive"].shape == (6, 8)
    step = method.step(out, batch_of(), None)
    torch.testing.assert_close(step.loss, expected(out["anchor"], out["positive"]))
    terms = vicreg(out["anchor"], out["positive"], keys_a=out["anchor"], keys_b=out["positive"])
    assert step.terms == {name: value.detach() for name, value in terms._asdict().items()}
    assert step.remember is None and not any(term.requires_grad for term in step.terms.values())
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in method.parameters())


def test_the_mean_over_views_halves_the_variance() -> None:
    out = forward(model())
    added, averaged = (model(variance_over=over).step(out, batch_of(), None) for over in ("sum", "mean"))
    torch.testing.assert_close(2 * averaged.terms["variance"], added.terms["variance"])
    torch.testing.assert_close(added.loss - averaged.loss, 3 * averaged.terms["variance"])


def test_defaults_are_the_papers() -> None:
    config = VICRegConfig()
    assert (config.invariance, config.variance, config.covariance) == (25, 25, 1)
    assert config.projector.sizes == [2048, 2048, 2048] and not config.projector.last_bias
    assert config.positive_dim(512) == 2048 and model().embedding_dim == 8


def test_nothing_would_hold_a_last_bias() -> None:
    """The gradient of a bias after two views that both have it is rounding: Adam would make steps of it."""
    method = model(projector={"sizes": [12, 8]})
    method.projector.double()
    views = random_views(("anchor", "positive"))
    out = {name: method.projector(method.encoder(view.wave, None).double()) for name, view in views.items()}
    method.step(out, batch_of(), None).loss.backward()
    biases = [p.grad for name, p in method.projector.named_parameters() if name == "layers.3.bias"]
    assert biases and biases[0] is not None and biases[0].abs().max() < 1e-12


def test_encoder_is_under_its_prefix() -> None:
    method = model()
    weights = {n.removeprefix("encoder."): v for n, v in method.state_dict().items() if n.startswith("encoder.")}
    method.encoder.load_state_dict(weights, strict=True)
    assert method.encoder_prefix == "encoder." and method.reference_encoder is method.encoder


def test_ssps_replaces_the_positives_rows() -> None:
    method = model()
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), method)
    out, given = forward(over), recall()
    step = over.step(out, batch_of(), given)
    rows = torch.stack([given.rows[i].detach() if FOUND[i] else out["positive"][i] for i in range(6)])
    wanted = expected(out["anchor"], rows)
    torch.testing.assert_close(step.loss, wanted)
    inputs = [out["anchor"], out["positive"]]
    ours, theirs = (torch.autograd.grad(x, inputs, retain_graph=True) for x in (step.loss, wanted))
    torch.testing.assert_close(ours, theirs)
    assert (ours[0].norm(dim=1) > 0).all() and (ours[1].norm(dim=1) > 0).tolist() == (~FOUND).tolist()
    step.loss.backward()
    assert given.rows.grad is None
    assert step.remember is not None and step.remember.positives is not None
    assert torch.equal(step.remember.positives, out["positive"])


@pytest.mark.parametrize("found", [None, torch.zeros(6, dtype=torch.bool)])
def test_ssps_without_anything_found_is_vicreg(found: Tensor | None) -> None:
    plain = model()
    over = SSPS(SSPSConfig(name="ssps", start_epoch=1, clusters=4), model())
    given = None if found is None else Recall(recall().rows, found)
    loss = over.step(forward(over), batch_of(), given).loss
    assert torch.equal(loss, plain.step(forward(plain), batch_of(), None).loss)


def test_outputs_are_float32_under_autocast() -> None:
    """What is stored, exchanged and divided by temperatures is no bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        out = forward(model())
    assert {value.dtype for value in out.values()} == {torch.float32}
