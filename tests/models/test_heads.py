"""Projector, the angular-margin head against pytorch-metric-learning's ArcFace, DINO's head against lightly's."""

import math
import warnings

import pytest
import torch
from lightly.models.modules.heads import DINOProjectionHead
from pytorch_metric_learning.losses import ArcFaceLoss
from torch.nn import functional as F

from rayssl.models.heads import AamHead, Classifier, DinoHead, DinoHeadConfig, Projector, ProjectorConfig, Prototypes


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_arcface_parity(margin: float) -> None:
    torch.manual_seed(0)
    head = AamHead(6, 9, margin=margin, scale=20.0).double()
    theirs = ArcFaceLoss(9, 6, margin=math.degrees(margin), scale=20).double()
    theirs.W.data = head.weight.detach().T.clone()
    x = torch.randn(64, 6).double()
    labels = torch.arange(64) % 9
    # both sides of theta + margin = pi
    x[:9] = -head.weight.detach() + 0.02 * torch.randn(9, 6).double()
    y = x.clone().requires_grad_()
    x.requires_grad_()
    loss, expected = F.cross_entropy(head(x, labels), labels), theirs(y, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.weight.grad, theirs.W.grad.T, rtol=1e-5, atol=1e-6)


def test_target_logit_falls_with_the_angle() -> None:
    head = AamHead(2, 2, margin=0.4, scale=1.0)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.linspace(0.01, math.pi - 0.01, 400)
    x = 7.0 * torch.stack((angles.cos(), angles.sin()), dim=1)
    logits = head(x, torch.zeros(400, dtype=torch.int64))
    assert (logits[:, 0].diff() < 0).all()
    torch.testing.assert_close(logits[:300, 0], torch.cos(angles + 0.4)[:300], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[:, 1], angles.sin(), rtol=0, atol=1e-5)


def test_easy_margin_leaves_far_targets() -> None:
    head = AamHead(2, 2, margin=0.4, scale=1.0, easy_margin=True)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angles = torch.tensor([0.5, 1.5, 1.6, 3.0])
    logits = head(torch.stack((angles.cos(), angles.sin()), dim=1), torch.zeros(4, dtype=torch.int64))
    expected = torch.cos(angles + torch.tensor([0.4, 0.4, 0.0, 0.0]))
    torch.testing.assert_close(logits[:, 0], expected, rtol=0, atol=1e-5)


def test_unknown_labels_are_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        AamHead(4, 3)(torch.randn(2, 4), torch.tensor([0, -1]))


def test_gradients_are_finite_at_the_poles() -> None:
    head = AamHead(4, 3)
    x = torch.cat((head.weight.detach(), -head.weight.detach())).requires_grad_()
    head(x, torch.tensor([0, 1, 2, 0, 1, 2])).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_projector() -> None:
    projector = Projector(ProjectorConfig(sizes=[8, 5]), 4)
    assert [type(layer).__name__ for layer in projector.layers] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert projector(torch.randn(3, 4)).shape == (3, projector.outputs) == (3, 5)
    plain = Projector(ProjectorConfig(sizes=[8, 5], batch_norm=False), 4)
    assert [type(layer).__name__ for layer in plain.layers] == ["Linear", "ReLU", "Linear"]
    unbiased = Projector(ProjectorConfig(sizes=[8, 5], last_bias=False), 4)
    assert [layer.bias is None for layer in unbiased.layers if isinstance(layer, torch.nn.Linear)] == [True, True]
    assert [layer.bias is None for layer in projector.layers if isinstance(layer, torch.nn.Linear)] == [True, False]
    x = torch.randn(3, 4)
    identity = Projector(ProjectorConfig(), 4)
    assert torch.equal(identity(x), x)
    assert identity.outputs == 4


def _dino_pair(batch_norm: bool) -> tuple[DinoHead, DINOProjectionHead]:
    """Ours and lightly's with the same weights."""
    torch.manual_seed(0)
    config = DinoHeadConfig(hidden=[10, 10], bottleneck=6, prototypes=9, batch_norm=batch_norm)
    ours = DinoHead(config, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its weight_norm
        theirs = DINOProjectionHead(5, 10, 6, 9, batch_norm=batch_norm)
    theirs.layers.load_state_dict(ours.layers.state_dict(), strict=True)
    theirs.last_layer.weight_v.data = ours.prototypes.weight.detach().clone()
    return ours.double(), theirs.double()


@pytest.mark.parametrize("batch_norm", [True, False])
def test_dino_head_is_lightlys(batch_norm: bool) -> None:
    """In value and in every gradient, with the gain of the weight normalisation fixed at 1."""
    ours, theirs = _dino_pair(batch_norm)
    x, cotangent = 5 * torch.randn(8, 5).double(), torch.randn(8, 9).double()
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, expected = ours(y), theirs(z)
    torch.testing.assert_close(mine, expected)
    mine.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(y.grad, z.grad)
    for (name, parameter), other in zip(ours.layers.named_parameters(), theirs.layers.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    torch.testing.assert_close(ours.prototypes.weight.grad, theirs.last_layer.weight_v.grad)


def test_dino_head_in_parts() -> None:
    head = DinoHead(DinoHeadConfig(hidden=[8], bottleneck=4, prototypes=7), 5)
    x = torch.randn(6, 5)
    bottleneck = head.eval().bottleneck(x)
    torch.testing.assert_close(bottleneck.norm(dim=1), torch.ones(6))
    assert torch.equal(head(x), head.prototypes(bottleneck)) and head(x).shape == (6, 7)
    assert head(x).abs().max() <= 1 + 1e-6
    assert {name for name, _ in head.named_parameters()} == {
        *("layers.0.weight", "layers.1.weight", "layers.1.bias", "layers.3.weight", "layers.3.bias"),
        "prototypes.weight",
    }
    none = DinoHead(DinoHeadConfig(hidden=[], bottleneck=4, prototypes=7), 5)
    assert [type(layer).__name__ for layer in none.layers] == ["Linear"]


def test_prototypes_are_directions() -> None:
    """Their length changes nothing, and the gradient never asks for more or less of it."""
    prototypes = Prototypes(4, 6)
    x = F.normalize(torch.randn(5, 4), dim=1)
    before = prototypes(x)
    before.square().sum().backward()
    weight = prototypes.weight
    torch.testing.assert_close((weight.grad * weight).sum(1), torch.zeros(6), rtol=0, atol=1e-5)
    with torch.no_grad():
        weight.mul_(torch.linspace(0.1, 30, 6)[:, None])
    torch.testing.assert_close(prototypes(x), before)


def test_prototypes_stay_precise_under_autocast() -> None:
    prototypes = Prototypes(4, 6)
    x = F.normalize(torch.randn(5, 4), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = prototypes(x)
    assert cast.dtype == torch.float32 and torch.equal(cast, prototypes(x))


def test_classifier_is_linear_and_starts_almost_uniform() -> None:
    torch.manual_seed(0)
    head = Classifier(64, 10)
    x = torch.randn(200, 64)
    out = head(x)
    torch.testing.assert_close(out, x @ head.linear.weight.T + head.linear.bias)
    assert out.shape == (200, 10)
    assert F.softmax(out, dim=1).max() < 0.2
    assert F.cross_entropy(out, torch.arange(200) % 10).item() == pytest.approx(math.log(10), abs=0.05)


def test_classifier_stays_precise_under_autocast() -> None:
    head = Classifier(5, 3)
    x = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(x)
    assert cast.dtype == torch.float32 and torch.equal(cast, head(x))
    assert head(x.bfloat16()).dtype == torch.float32
    assert head.double()(x.double()).dtype == torch.float64
