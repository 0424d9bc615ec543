"""Projector and the angular-margin head, against pytorch-metric-learning's ArcFace."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch.nn import functional as F

from rayssl.models.heads import AamHead, Projector, ProjectorConfig


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
    x = torch.randn(3, 4)
    identity = Projector(ProjectorConfig(), 4)
    assert torch.equal(identity(x), x)
    assert identity.outputs == 4
