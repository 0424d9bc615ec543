"""SoundSleepNet: its parts in plain operations, the positions that are scored, sizes, settings that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rayssl.errors import ConfigError
from rayssl.models.soundsleepnet import SoundSleepNet, SoundSleepNetConfig
from rayssl.schema import parse


def _model(**settings: object) -> SoundSleepNet:
    torch.manual_seed(0)
    return SoundSleepNet(SoundSleepNetConfig.model_validate(settings), 20)


def test_the_default_has_the_sizes_of_the_description() -> None:
    model = _model()
    assert [tuple(each.weight.shape[:2]) for each in model.convolutions] == [(32, 1), (64, 32), (128, 64), (128, 128)]
    assert model.config.embedding_dim == 256 and model.own_dim == 128
    assert model.recurrent.lstm.hidden_size == 128 and model.recurrent.lstm.num_layers == 2
    assert len(model.blocks) == 3  # two blocks and the last normalisation
    z, own = model.eval().sequence(torch.randn(2, 3, 20, 301))
    assert z.shape == (2, 3, 256) and own.shape == (2, 3, 128)


def test_the_parts_in_plain_operations() -> None:
    """With torch's own layers, which share the weights of the model."""
    model = _model(width=8, embedding_dim=12, blocks=1, heads=2, hidden=16).double()
    x = torch.randn(2, 3, 20, 70, dtype=torch.float64)
    for training in (True, False):
        model.train(training)
        z, own = model.sequence(x)
        planes = x.flatten(0, 1)[:, None]
        for place in range(4):
            planes = F.conv2d(planes, model.convolutions[place].weight, padding=1)
            norm = model.norms[place]
            if training:
                mean, variance = planes.mean((0, 2, 3)), planes.var((0, 2, 3), correction=0)
            else:
                mean, variance = norm.running_mean, norm.running_var
            planes = (planes - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
            planes = planes.clamp_min(0)
            if place < 3:
                planes = F.max_pool2d(planes, (2, 4), ceil_mode=True)
        expected = planes.mean((2, 3)).view(2, 3, 8)
        torch.testing.assert_close(own, expected)
        lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True).double()
        lstm.load_state_dict(model.recurrent.lstm.state_dict())
        torch.testing.assert_close(z, model.blocks(lstm(expected)[0]))


def test_the_middle_half_is_scored() -> None:
    assert SoundSleepNetConfig().scored_slice == slice(10, 30)
    assert SoundSleepNetConfig(sequence=10).scored_slice == slice(2, 8)
    assert SoundSleepNetConfig(sequence=1).scored_slice == slice(0, 1)
    assert SoundSleepNetConfig(scored=(5, 35)).scored_slice == slice(5, 35)
    assert SoundSleepNetConfig(context="epoch").scored_slice == slice(0, 40)


def test_without_context_there_is_no_sequence_model() -> None:
    model = _model(context="epoch", width=8, embedding_dim=12)
    assert not hasattr(model, "recurrent") and isinstance(model.project, nn.Linear)
    assert isinstance(_model(context="epoch", width=8, embedding_dim=8).project, nn.Identity)


@pytest.mark.parametrize("shape", [(1, 1), (20, 301), (20, 1201), (64, 30)])
def test_any_size_of_picture(shape: tuple[int, int]) -> None:
    z, _ = _model(width=4, embedding_dim=8, hidden=8).eval().sequence(torch.randn(1, 2, *shape))
    assert z.shape == (1, 2, 8) and torch.isfinite(z).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scored": [30, 50]}, r"scored=\[30, 50\] must be \[from, to\) inside the 40 epochs"),
        ({"scored": [7, 7]}, r"scored=\[7, 7\]"),
        ({"embedding_dim": 10}, r"'embedding_dim' \(10\) must be a multiple of 'heads' \(4\)"),
        ({"width": 30}, "width"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(SoundSleepNetConfig, settings, "test")
