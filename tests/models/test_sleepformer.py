"""SleepFormer: timm's MobileViTV2 with the same weights, resizing, positions, widths, settings that do not fit."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from rayssl.errors import ConfigError
from rayssl.models.norm import BatchNorm2d
from rayssl.models.sleepformer import SleepFormer, SleepFormerConfig, mobilevitv2
from rayssl.schema import parse


def _model(**settings: object) -> SleepFormer:
    torch.manual_seed(0)
    return SleepFormer(SleepFormerConfig.model_validate({"width": 0.125, "frames": 64, "blocks": 1} | settings), 20)


@pytest.mark.parametrize(
    ("width", "name"), [(0.5, "mobilevitv2_050"), (0.75, "mobilevitv2_075"), (1.0, "mobilevitv2_100")]
)
def test_widths_of_timm_have_its_weights(width: float, name: str) -> None:
    with torch.device("meta"):
        ours = mobilevitv2(width)
        theirs = timm.create_model(name, in_chans=1, num_classes=0)
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert theirs.num_features == SleepFormerConfig(width=width).own_dim
    assert not {type(part).__name__ for part in ours.modules()} & {"BatchNormAct2d"}


@pytest.mark.parametrize("training", [True, False])
def test_timm_parity_in_value_and_gradient(training: bool) -> None:
    """Of the epoch encoder, at timm's smallest size, also for pictures whose sides are no multiples of 64."""
    model = _model(width=0.5, bands=20, frames=75)
    theirs = timm.create_model("mobilevitv2_050", in_chans=1, num_classes=0, global_pool="avg")
    with torch.no_grad():
        for part in model.epoch.modules():
            if isinstance(part, BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    theirs.load_state_dict(model.epoch.state_dict())
    model.double().train(training)
    theirs.double().train(training)
    pictures = torch.randn(3, 20, 75, dtype=torch.float64)
    own, expected = model.encoded(pictures), theirs(pictures[:, None])
    torch.testing.assert_close(own, expected)
    cotangent = torch.randn_like(own)
    own.backward(cotangent)
    expected.backward(cotangent)
    gradients = dict(theirs.named_parameters())
    for name, weight in model.epoch.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name].grad, msg=name)
    torch.testing.assert_close(dict(model.epoch.named_buffers()), dict(theirs.named_buffers()))


def test_the_head_is_positions_blocks_and_a_projection() -> None:
    model = _model(embedding_dim=10).eval()
    z, own = model.sequence(torch.randn(2, 3, 20, 61))
    assert z.shape == (2, 3, 10) and own.shape == (2, 3, 64)
    block, norm = model.blocks
    expected = model.project(norm(block(own + model.positions[:3])))
    torch.testing.assert_close(z, expected)
    assert model.positions.shape == (40, 64)
    fc = _model(head="fc").eval()
    z, own = fc.sequence(torch.randn(2, 3, 20, 61))
    assert isinstance(fc.project, nn.Identity) and torch.equal(z, own) and not hasattr(fc, "positions")


def test_equal_epochs_differ_by_their_positions() -> None:
    model = _model().eval()
    z, own = model.sequence(torch.randn(1, 1, 20, 64).expand(1, 4, 20, 64))
    assert (own - own[:, :1]).abs().max() < 1e-5 < (z - z[:, :1]).abs().amax(dim=2)[0, 1:].min()


def test_pictures_are_resized_and_all_their_frames_are_seen() -> None:
    model = _model(bands=32, frames=60)
    x = torch.randn(2, 20, 600)
    resized = model.resized(x)
    assert resized.shape == (2, 32, 60)
    torch.testing.assert_close(model.resized(torch.full((1, 20, 600), 3.0)), torch.full((1, 32, 60), 3.0))
    # ten frames become one: the triangle of +-10 frames has the middle of the first at 4.5
    weights = (1 - (torch.arange(600) - 54.5).abs() / 10).clamp_min(0)
    rows = F.interpolate(x[:, None], (32, 600), mode="bilinear", antialias=True)[:, 0]
    torch.testing.assert_close(resized[:, :, 5], rows @ (weights / weights.sum()), rtol=1e-4, atol=1e-4)
    same = torch.randn(2, 32, 60)
    assert model.resized(same) is same


def test_all_epochs_are_scored_and_the_embedding_follows_the_width() -> None:
    assert SleepFormerConfig().scored_slice == slice(0, 40)
    assert SleepFormerConfig().embedding_dim == SleepFormerConfig().own_dim == 256
    assert parse(SleepFormerConfig, {"width": 0.25}, "test").embedding_dim == 128
    assert parse(SleepFormerConfig, {"width": 0.25, "embedding_dim": 50}, "test").embedding_dim == 50


def test_more_epochs_than_positions_fail() -> None:
    with pytest.raises(RuntimeError):
        _model(sequence=3).sequence(torch.randn(1, 4, 20, 64))


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"heads": 3}, r"feature width 256 \(512 'width'\) must be a multiple of 'heads'"), ({"width": 0.01}, "width")],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(SleepFormerConfig, settings, "test")
