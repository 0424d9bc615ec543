"""The whole encoder: configuration, shapes, masks only in training, bfloat16, compilation."""

import copy

import pytest
import torch

from rayssl.draws import fold
from rayssl.draws_torch import keys_torch
from rayssl.errors import ConfigError
from rayssl.models.encoder import Encoder, EncoderConfig, build_encoder
from rayssl.schema import parse

ECAPA = {"name": "ecapa", "channels": 16, "embedding_dim": 12, "attention_channels": 8, "se_channels": 8}
RESNET = {"name": "fast_resnet34", "channels": 4, "embedding_dim": 12}
MASKS = {"p": 1.0, "freq_width": 20, "time_width": 30}


def build(backbone: dict[str, object]) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(parse(EncoderConfig, {"backbone": backbone, "masks": MASKS}, "test"), 16000)


@pytest.mark.parametrize("backbone", [ECAPA, RESNET], ids=["ecapa", "fast_resnet34"])
def test_forward_backward_and_bfloat16(backbone: dict[str, object]) -> None:
    encoder = build(backbone)
    wave = torch.randn(6, 8000) * 0.1
    out = encoder(wave)
    assert out.shape == (6, encoder.embedding_dim) == (6, 12)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(wave)
    assert half.dtype == torch.float32
    half.square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in encoder.parameters())
    cosine = torch.cosine_similarity(half - half.mean(0), out - out.mean(0))
    assert cosine.min() > 0.9
    assert all("frontend" not in name for name in encoder.state_dict())


def test_masks_need_training_and_keys() -> None:
    encoder = build(ECAPA)
    wave, keys = torch.randn(6, 8000) * 0.1, keys_torch(fold(1), torch.arange(6))
    plain = encoder(wave)
    assert not torch.allclose(encoder(wave, keys), plain, atol=1e-3)
    encoder.eval()
    assert torch.equal(encoder(wave, keys), encoder(wave))


def test_configuration_chooses_by_name() -> None:
    assert build(RESNET).backbone.__class__.__name__ == "FastResnet34"
    with pytest.raises(ConfigError, match=r"backbone\.name.*unknown name 'ecappa'"):
        parse(EncoderConfig, {"backbone": {"name": "ecappa"}}, "test")
    with pytest.raises(ConfigError, match=r"unknown key 'backbone\.chanels'; did you mean 'channels'"):
        parse(EncoderConfig, {"backbone": {"name": "ecapa", "chanels": 8}}, "test")


def test_sync_batchnorm_is_switched_on_everywhere() -> None:
    encoder = build_encoder(parse(EncoderConfig, {"backbone": ECAPA}, "test"), sync_batchnorm=True)
    assert {part.sync for part in encoder.modules() if "BatchNorm" in type(part).__name__} == {True}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [ECAPA, RESNET], ids=["ecapa", "fast_resnet34"])
def test_one_graph_without_breaks(backbone: dict[str, object]) -> None:
    encoder = build(backbone)
    compiled = torch.compile(copy.deepcopy(encoder), backend="eager", fullgraph=True)
    wave, keys = torch.randn(4, 8000) * 0.1, keys_torch(fold(1), torch.arange(4))
    torch.testing.assert_close(compiled(wave, keys), encoder(wave, keys), rtol=1e-4, atol=1e-5)
