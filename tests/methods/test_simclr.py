"""SimCLR: what it asks for, and that its loss is NT-Xent of its two views."""

from __future__ import annotations

import pytest
import torch

from rayssl.losses.ntxent import ntxent
from rayssl.methods.base import View, embed_together
from rayssl.methods.simclr import SimCLR, SimCLRConfig
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder
from rayssl.models.heads import ProjectorConfig
from tests.runs import ENCODER, batch_of, random_views, views_config


def encoder() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(EncoderConfig.model_validate(ENCODER))


def simclr(**changes: object) -> SimCLR:
    return SimCLR(SimCLRConfig.model_validate(changes), encoder(), views_config())


def test_segments() -> None:
    segments = simclr().config.segments(views_config(), 0)
    assert [(s.name, s.seconds, s.recipe) for s in segments] == [
        ("anchor", 0.2, "distort"),
        ("positive", 0.2, "distort"),
    ]


def test_loss_is_ntxent_of_the_views() -> None:
    method = simclr(temperature=0.2)
    out = method(random_views(("anchor", "positive")))
    step = method.step(out, batch_of(), None)
    a, b = out["anchor"], out["positive"]
    expected = ntxent(a, b, keys_a=a, keys_b=b, offset=0, temperature=0.2)
    torch.testing.assert_close(step.loss, expected, rtol=0, atol=0)
    assert step.remember is None and not step.terms["ntxent"].requires_grad
    assert not torch.equal(step.loss, simclr(temperature=0.1).step(out, batch_of(), None).loss)
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_projector_follows_the_encoder() -> None:
    method = simclr(projector=ProjectorConfig(sizes=[12, 7]))
    out = method(random_views(("anchor", "positive")))
    assert out["anchor"].shape == out["positive"].shape == (6, 7) and method.embedding_dim == 7
    assert simclr().embedding_dim == 16


def test_encoder_is_under_its_prefix() -> None:
    method = simclr(projector=ProjectorConfig(sizes=[4]))
    weights = {n.removeprefix("encoder."): v for n, v in method.state_dict().items() if n.startswith("encoder.")}
    method.encoder.load_state_dict(weights, strict=True)
    assert method.encoder_prefix == "encoder."


def test_both_views_share_batch_statistics() -> None:
    """One pass over views of equal length, one for each where they differ or one is undistorted."""
    views = random_views(("anchor", "positive"))
    model = encoder()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    embed_together(model, list(views.values()))
    embed_together(model, [views["anchor"], View(views["positive"].wave[:, :2400], views["positive"].keys)])
    embed_together(model, [views["anchor"], View(views["positive"].wave, None)])
    assert seen == [12, 6, 6, 6, 6]


def test_one_pass_or_two() -> None:
    """The public code for speakers has a pass for each segment: each has its own statistics."""
    views = random_views(("anchor", "positive"))
    together, apart = simclr(), simclr(one_pass=False)
    seen: list[int] = []
    apart.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    out, twin = apart(views), simclr()
    assert seen == [6, 6]
    for name in ("anchor", "positive"):
        torch.testing.assert_close(out[name], twin.encoder(views[name].wave, views[name].keys), rtol=0, atol=0)
    assert not torch.allclose(out["anchor"], together(views)["anchor"], atol=1e-3)


@pytest.mark.parametrize("same", [True, False])
def test_embeddings_keep_their_views(same: bool) -> None:
    """In eval mode one pass gives each view what its own pass gives."""
    model = encoder().eval()
    views = random_views(("anchor", "positive"))
    together = embed_together(model, list(views.values()))
    for embedding, view in zip(together, views.values() if same else reversed(views.values()), strict=True):
        alone = model(view.wave, view.keys)
        assert torch.allclose(embedding, alone, atol=1e-5) is same
